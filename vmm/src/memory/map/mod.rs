//! Mappings of guest memory: one private mapping per region, anonymous or of a file.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use snapshot::{GuestMemory, GuestRegion, GuestSlice, HostWrites};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError};

use super::bus_error;

#[cfg(test)]
mod tests;

/// Error of a mapping or of a read into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The region is empty, not a multiple of the page size, or ends beyond the last address.
    #[error(
        "cannot map a memory region of {size} at {address:#x}: address and size must be multiples of {page_size}, and the end \
         below 2^64"
    )]
    Region {
        /// Guest-physical address of the region.
        address: u64,
        /// Size of the region.
        size: Bytes,
        /// Page size of the host.
        page_size: Bytes,
    },
    /// The kernel has no address space for the region.
    #[error(
        "cannot reserve {size} of guest memory; configure less, raise RLIMIT_AS (ulimit -v), or allow overcommit on the host \
         (sysctl vm.overcommit_memory=1)"
    )]
    Reserve {
        /// Size of the region.
        size: Bytes,
        /// Error of `mmap`.
        #[source]
        source: MmapRegionError,
    },
    /// There are no regions, or they overlap or are not sorted.
    #[error("cannot combine the memory regions")]
    Regions(#[source] GuestRegionCollectionError),
    /// The range is not within one region of guest memory.
    #[error("cannot access guest memory {:#x}..{:#x}: the range is not within one region", .0.start, .0.end)]
    Outside(Range<u64>),
    /// Address, offset or length is not a multiple of the page size.
    #[error(
        "cannot map {length:#x} bytes at {offset:#x} of a file to {address:#x}: these are not multiples of the page size"
    )]
    Unaligned {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// `fstat` failed.
    #[error("cannot determine the size of a file")]
    Size(#[source] io::Error),
    /// The file ends before the requested range.
    #[error(
        "cannot load bytes {:#x}..{:#x} of a file: it ends at {size:#x}; do not change the file while it is in use",
        .needed.start, .needed.end
    )]
    Short {
        /// Requested range of the file.
        needed: Range<u64>,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The memory file of a snapshot is a directory, pipe or device.
    #[error("cannot map the memory file: it is not a regular file")]
    Irregular,
    /// The memory file belongs to another snapshot, is truncated, or is a diff without its base.
    #[error(
        "cannot map the memory file: its size is {found}, guest memory of the snapshot has {needed}; use the file that was \
         written with the state file"
    )]
    Snapshot {
        /// Length of the file.
        found: Bytes,
        /// Size of guest memory.
        needed: Bytes,
    },
    /// `mmap` of the file failed.
    #[error("cannot map {length:#x} bytes at {offset:#x} of a file to {address:#x}")]
    Map {
        /// Guest-physical address.
        address: u64,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// Error of `mmap`.
        #[source]
        source: io::Error,
    },
    /// `pread` of the file failed.
    #[error("cannot read {length:#x} bytes at {offset:#x} of a file")]
    Read {
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// Error of `pread`.
        #[source]
        source: io::Error,
    },
}

/// Number of bytes, printed in the largest of MiB, KiB and bytes that gives an integer.
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

/// Returns the page size of the host in bytes: 4,096 on x86_64, 4,096 to 65,536 on aarch64.
pub fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions and writes no memory of this process.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // sysconf(3) does not fail for this name; 4,096 is the smallest page size of the supported architectures.
    u64::try_from(size).unwrap_or(4096)
}

/// Maps zeroed memory for `regions`, each an address and a size in bytes, sorted by address. Host memory is allocated
/// at the first access to a page.
///
/// # Errors
/// [`Error::Region`] if a region is not a sequence of pages, [`Error::Reserve`] if `mmap` fails, and [`Error::Regions`] if
/// `regions` is empty, overlapping or unsorted.
pub fn allocate(regions: &[(GuestAddress, usize)]) -> Result<GuestMemory, Error> {
    allocate_with(regions, |_| HostWrites::default())
}

/// Maps memory like [`allocate`], with a log of the writes of this process.
///
/// # Errors
/// As [`allocate`].
pub fn allocate_logged(regions: &[(GuestAddress, usize)]) -> Result<GuestMemory, Error> {
    let page_size = usize::try_from(page_size()).unwrap_or(4096);
    allocate_with(regions, |size| HostWrites::logged(size, page_size))
}

fn allocate_with(
    regions: &[(GuestAddress, usize)],
    log: impl Fn(usize) -> HostWrites,
) -> Result<GuestMemory, Error> {
    let mapped = regions
        .iter()
        .map(|(address, size)| map_region(*address, *size, log(*size)))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemory::from_regions(mapped).map_err(Error::Regions)
}

fn map_region(address: GuestAddress, size: usize, log: HostWrites) -> Result<GuestRegion, Error> {
    let page_size = page_size();
    let bytes = size as u64;
    let invalid = || Error::Region {
        address: address.0,
        size: Bytes(bytes),
        page_size: Bytes(page_size),
    };
    if size == 0 || !bytes.is_multiple_of(page_size) || !address.0.is_multiple_of(page_size) {
        return Err(invalid());
    }
    // With MAP_NORESERVE only RLIMIT_AS and overcommit mode 2 limit the size.
    let mapping = MmapRegionBuilder::new_with_bitmap(size, log)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_PRIVATE)
        .build();
    let mapping = mapping.map_err(|source| Error::Reserve {
        size: Bytes(bytes),
        source,
    })?;
    GuestRegion::new(mapping, address).ok_or_else(invalid)
}

/// Returns the host addresses of `region`.
pub fn host_range(region: &GuestRegion) -> Range<u64> {
    let start = region.as_ptr().addr() as u64;
    start..start + region.len()
}

/// Advises the kernel to back `memory` with huge pages. Failure is ignored: the guest then runs with small pages.
pub fn prefer_huge_pages(memory: &GuestMemory) {
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap_or(0);
        // SAFETY: the range is a live mapping; MADV_HUGEPAGE does not change its content.
        unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    }
}

/// Maps `length` bytes at `offset` of `file` privately over guest memory at `address`. Guest writes go to private copies.
///
/// Address, offset and length must be multiples of the page size. A length of 0 has no effect.
///
/// # Errors
/// [`Error::Outside`] and [`Error::Unaligned`] for an invalid range, [`Error::Short`] if the file ends before the range, and
/// [`Error::Map`] if `mmap` fails, for example because the file system has no support for it.
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
    let is_aligned = |value: u64| value.is_multiple_of(page_size());
    if !is_aligned(host.addr() as u64) || !is_aligned(offset) || !is_aligned(length as u64) {
        return Err(Error::Unaligned {
            address: address.0,
            offset,
            length,
        });
    }
    let failed = |source| Error::Map {
        address: address.0,
        offset,
        length,
        source,
    };
    // mmap(2) accepts pages beyond the end of the file; the first access to one raises SIGBUS.
    let size = file.metadata().map_err(Error::Size)?.len();
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(short(offset, length, size));
    }
    let offset = libc::off_t::try_from(offset).map_err(|error| failed(io::Error::other(error)))?;
    // SAFETY: the pages from `host` on belong to `slice`, so that MAP_FIXED replaces guest memory only; Rust holds no
    // references into guest memory, and the region unmaps its pages independently of their backing.
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
        return Err(failed(io::Error::last_os_error()));
    }
    bus_error::watch(host.addr(), length);
    Ok(())
}

/// Reads `length` bytes at `offset` of `file` into guest memory at `address`. The file position does not move.
///
/// # Errors
/// [`Error::Outside`] for an invalid range, [`Error::Short`] if the file ends before the range, [`Error::Read`] if `pread`
/// fails.
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

fn read_at(file: &File, slice: &GuestSlice<'_>, offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut();
    // SAFETY: `host` points to `slice.len()` bytes of guest memory, which stay mapped and writable while `slice` lives.
    let read = unsafe { libc::pread(file.as_raw_fd(), host.as_ptr().cast(), slice.len(), offset) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    slice.bitmap().mark_dirty(0, read);
    Ok(read)
}

fn slice(memory: &GuestMemory, address: GuestAddress, length: usize) -> Result<GuestSlice<'_>, Error> {
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

/// Maps `regions`, each an address and a size in bytes, privately from `file`. The file holds the regions one after another,
/// sorted by address. The function reads no page and allocates no memory for pages.
///
/// The file must be a regular file of exactly the total size of the regions, and must not change while the VM exists: pages
/// that the guest has not written read the current content of the file, and truncated pages raise SIGBUS.
///
/// # Errors
/// As [`allocate()`] and [`remap_snapshot`].
pub fn map_snapshot(regions: &[(GuestAddress, usize)], file: &File) -> Result<GuestMemory, Error> {
    let memory = allocate(regions)?;
    remap_snapshot(&memory, file)?;
    Ok(memory)
}

/// Maps a memory file like [`map_snapshot`], with a log of the writes of this process.
///
/// # Errors
/// As [`map_snapshot`].
pub fn map_snapshot_logged(regions: &[(GuestAddress, usize)], file: &File) -> Result<GuestMemory, Error> {
    let memory = allocate_logged(regions)?;
    remap_snapshot(&memory, file)?;
    Ok(memory)
}

/// Replaces the content of `memory` with a private mapping of a snapshot's memory `file`, as [`map_snapshot`] does.
/// Host addresses and memory slots stay valid. No other thread may access the memory during the call.
///
/// # Errors
/// [`Error::Irregular`] if the file is not a regular file, [`Error::Snapshot`] if its length differs from guest memory, and
/// the errors of [`map_file`]. Only in the last case part of the memory may have changed.
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

/// Creates an anonymous file that holds `bytes`. `name` appears in `/proc/PID/fd` only.
///
/// # Errors
/// Fails if `memfd_create` or a write fails.
pub fn memfd(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    // SAFETY: `name` is a valid C string during the call.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created the descriptor, and no other object owns it.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(file)
}
