//! The guest's memory: one private mapping a region, and files put into it.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use snapshot::GuestMemory;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap,
    MmapRegion, VolatileSlice,
};

#[cfg(test)]
mod tests;

/// Why memory could not be had or filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region is empty, does not consist of whole pages, or goes beyond the last address.
    #[error("a memory region of {size} at {address:#x} cannot be: whole pages of {page_size} are needed")]
    Region {
        /// Guest-physical address of the region.
        address: u64,
        /// Size of the region.
        size: Bytes,
        /// The host's page size.
        page_size: Bytes,
    },
    /// The kernel gave no address space.
    #[error(
        "cannot reserve {size} for the guest; give it less memory, raise RLIMIT_AS (ulimit -v), or let the host \
         overcommit (sysctl vm.overcommit_memory=1)"
    )]
    Reserve {
        /// Size of the region.
        size: Bytes,
        /// The kernel's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The regions overlap or are out of order.
    #[error("the memory regions cannot be put together")]
    Regions(#[source] GuestRegionCollectionError),
    /// The range does not lie within one region of guest memory.
    #[error("{:#x}..{:#x} does not lie within one region of guest memory", .0.start, .0.end)]
    Outside(Range<u64>),
    /// Only whole pages can be mapped.
    #[error(
        "{length:#x} bytes at {offset:#x} of a file cannot be mapped at {address:#x}: not multiples of the page size"
    )]
    Unaligned {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// The file's size could not be found out.
    #[error("cannot find out the size of a file")]
    Size(#[source] io::Error),
    /// The file is shorter than what is to be put into memory.
    #[error(
        "bytes {:#x}..{:#x} of a file are needed, but it ends at {size:#x}; it must not change while it is used",
        .needed.start, .needed.end
    )]
    Short {
        /// The part of the file that is needed.
        needed: Range<u64>,
        /// Where the file ends.
        size: u64,
    },
    /// A snapshot's memory is in no folder, pipe or device.
    #[error("the memory file is no regular file")]
    Irregular,
    /// The memory file is of another machine, cut, or a difference without its base.
    #[error(
        "the memory file has {found} where the snapshot has {needed} of memory; it must be the one that was written with the \
         state file"
    )]
    Snapshot {
        /// Length of the file.
        found: Bytes,
        /// Size of guest memory.
        needed: Bytes,
    },
    /// The kernel refused to map the file.
    #[error("cannot map {length:#x} bytes at {offset:#x} of a file to {address:#x}")]
    Map {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read {length:#x} bytes at {offset:#x} of a file")]
    Read {
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A number of bytes, shown in the largest of MiB, KiB and bytes that gives a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes != 0 && bytes.is_multiple_of(1 << 20) => write!(formatter, "{} MiB", bytes >> 20),
            bytes if bytes != 0 && bytes.is_multiple_of(1 << 10) => write!(formatter, "{} KiB", bytes >> 10),
            bytes => write!(formatter, "{bytes} bytes"),
        }
    }
}

/// Size of a page of the host in bytes: 4,096 on x86_64, 4,096 to 65,536 on aarch64.
pub fn page_size() -> u64 {
    // SAFETY: sysconf reads a value that the kernel handed over at exec and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // The page size is always known; 4,096 is the smallest of any host.
    u64::try_from(size).unwrap_or(4096)
}

/// Maps each region, an address and a size in bytes, as zeros that take no memory until they are touched. The regions
/// are sorted by address.
///
/// # Errors
/// [`Error::Region`] when a region is no run of pages, [`Error::Reserve`] when the kernel gives no address space, and
/// [`Error::Regions`] when there is no region, or regions overlap or are not sorted.
pub fn allocate(regions: &[(GuestAddress, usize)]) -> Result<GuestMemory, Error> {
    let mapped = regions
        .iter()
        .map(|(address, size)| map_region(*address, *size))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(mapped).map_err(Error::Regions)
}

fn map_region(address: GuestAddress, size: usize) -> Result<GuestRegionMmap<()>, Error> {
    let page_size = page_size();
    let bytes = size as u64;
    let impossible = || Error::Region {
        address: address.0,
        size: Bytes(bytes),
        page_size: Bytes(page_size),
    };
    if size == 0 || !bytes.is_multiple_of(page_size) || !address.0.is_multiple_of(page_size) {
        return Err(impossible());
    }
    // Private, anonymous, MAP_NORESERVE: the size counts against no limit but RLIMIT_AS and strict overcommit.
    let mapping = MmapRegion::new(size).map_err(|source| Error::Reserve {
        size: Bytes(bytes),
        source,
    })?;
    GuestRegionMmap::new(mapping, address).ok_or_else(impossible)
}

/// Asks the kernel to back `memory` by huge pages where it can. One that cannot is none the worse.
pub fn prefer_huge_pages(memory: &GuestMemory) {
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is a live mapping; the advice changes no byte of it.
        unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    }
}

/// Maps `length` bytes at `offset` of `file` over guest memory at `address`: the guest sees the file and writes to its own
/// copy. Address, offset and length are multiples of the page size; a length of 0 does nothing.
///
/// # Errors
/// [`Error::Outside`], [`Error::Unaligned`], [`Error::Short`] when the file is not that long, [`Error::Map`] when the
/// kernel refuses, for example because the file system cannot map.
pub fn map_file(
    memory: &GuestMemory,
    address: GuestAddress,
    file: &File,
    offset: u64,
    length: usize,
) -> Result<(), Error> {
    if length == 0 {
        return Ok(());
    }
    let slice = slice(memory, address, length)?;
    let host = slice.ptr_guard_mut().as_ptr();
    let aligned = |value: u64| value.is_multiple_of(page_size());
    if !aligned(host.addr() as u64) || !aligned(offset) || !aligned(length as u64) {
        return Err(Error::Unaligned {
            address: address.0,
            offset,
            length,
        });
    }
    let refused = |source| Error::Map {
        address: address.0,
        offset,
        length,
        source,
    };
    // A page beyond the end of the file could be mapped, but the first access to it would be the end of this process.
    let size = file.metadata().map_err(Error::Size)?.len();
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(short(offset, length, size));
    }
    let offset = libc::off_t::try_from(offset).map_err(|error| refused(io::Error::other(error)))?;
    // SAFETY: the pages from `host` on belong to `slice`, so that MAP_FIXED replaces guest memory and nothing else; Rust
    // has no references into guest memory, and the region's owner unmaps all its pages alike, however they are backed.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(refused(io::Error::last_os_error()));
    }
    Ok(())
}

/// Reads `length` bytes at `offset` of `file` into guest memory at `address`. The file's position stays where it is.
///
/// # Errors
/// [`Error::Outside`], [`Error::Short`] when the file ends before, [`Error::Read`] when the kernel refuses.
pub fn read_file_into(
    memory: &GuestMemory,
    address: GuestAddress,
    file: &File,
    offset: u64,
    length: usize,
) -> Result<(), Error> {
    let slice = slice(memory, address, length)?;
    let failed = |source| Error::Read {
        offset,
        length,
        source,
    };
    let mut done = 0;
    while done < length {
        let at = offset.saturating_add(done as u64);
        let rest = slice
            .offset(done)
            .map_err(|error| failed(io::Error::other(error)))?;
        match read_at(file, &rest, at) {
            Ok(0) => return Err(short(offset, length, at)),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn read_at(file: &File, slice: &VolatileSlice<'_>, offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut();
    // SAFETY: `host` points to `slice.len()` bytes of guest memory, which stay mapped and writable as long as `slice` lives.
    let read = unsafe { libc::pread(file.as_raw_fd(), host.as_ptr().cast(), slice.len(), offset) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

fn slice(memory: &GuestMemory, address: GuestAddress, length: usize) -> Result<VolatileSlice<'_>, Error> {
    let outside = || Error::Outside(address.0..address.0.saturating_add(length as u64));
    let region = memory.find_region(address).ok_or_else(outside)?;
    let start = region.to_region_addr(address).ok_or_else(outside)?;
    region.get_slice(start, length).map_err(|_| outside())
}

fn short(offset: u64, length: usize, size: u64) -> Error {
    Error::Short {
        needed: offset..offset.saturating_add(length as u64),
        size,
    }
}

/// Maps the regions, an address and a size in bytes each, privately from `file`, in which they follow each other by address.
/// Nothing is read, and nothing of the regions' size is allocated.
///
/// The file must be a regular one, exactly as long as the regions together. Nobody may change it while the guest lives: a page
/// that the guest has not written is the file's as it is now, and one that was cut off raises SIGBUS.
///
/// # Errors
/// As [`allocate()`] and [`remap_snapshot`].
pub fn map_snapshot(regions: &[(GuestAddress, usize)], file: &File) -> Result<GuestMemory, Error> {
    let memory = allocate(regions)?;
    remap_snapshot(&memory, file)?;
    Ok(memory)
}

/// Lets `memory` be what a snapshot's memory `file` holds, as [`map_snapshot`] does, whatever it was before. Addresses in
/// this process stay as they are, and so do the memory slots of a VM. Nobody may use the memory meanwhile.
///
/// # Errors
/// [`Error::Irregular`] when the file is none to map, [`Error::Snapshot`] when its length is another, and as [`map_file`];
/// only in that last case some of the memory may have changed.
pub fn remap_snapshot(memory: &GuestMemory, file: &File) -> Result<(), Error> {
    let metadata = file.metadata().map_err(Error::Size)?;
    if !metadata.is_file() {
        return Err(Error::Irregular);
    }
    let needed = memory.iter().map(GuestMemoryRegion::len).sum();
    if metadata.len() != needed {
        return Err(Error::Snapshot {
            found: Bytes(metadata.len()),
            needed: Bytes(needed),
        });
    }
    let mut offset = 0;
    for region in memory.iter() {
        let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
        map_file(memory, region.start_addr(), file, offset, length)?;
        offset += region.len();
    }
    Ok(())
}

/// Makes a file in memory that holds `bytes`. The `name` is for people who look at the process's descriptors.
///
/// # Errors
/// The kernel's answer.
pub fn memfd(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    // SAFETY: `name` is a valid C string for the length of the call.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else has it.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(file)
}
