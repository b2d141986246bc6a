//! Parts of files in guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::{Error, page_size};

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
