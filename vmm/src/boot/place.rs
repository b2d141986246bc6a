//! How the parts of an image get into guest memory.
//!
//! The whole pages of a segment whose offset and address agree modulo the page size are mapped from the file; what is left
//! over at its ends, and every other segment, is read. What follows a segment's content up to its end in memory is left
//! alone: the memory is fresh, and fresh memory is zero. A page that two segments share is whole in neither of them, so
//! that both are read into it.
//!
//! A small segment is read as a whole, since a mapping costs more than a page's copy. In microseconds, on the development
//! machine with the file in tmpfs, medians of 101, with the guest touching every page once afterwards:
//!
//! | KiB | read, then touched | mapped, then read by the guest | mapped, then written by the guest |
//! |---|---|---|---|
//! | 4 | 4 | 6 | 8 |
//! | 16 | 9 | 7 | 11 |
//! | 64 | 32 | 8 | 32 |
//! | 256 | 107 | 16 | 98 |
//! | 4,096 | 2,300 | 180 | 1,650 |
//!
//! Mapping alone takes 4 whatever the size. Text gains from 16 KiB on and is shared between guests, data loses 3 at worst
//! and nothing from 64 KiB on: 16 KiB is the threshold.

use std::ops::Range;

use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::file::RegularFile;
use super::segment::Segment;
use crate::memory::{Error as MemoryError, map_file, read_file_into};

/// Why a segment, of which the caller knows the name, did not get into memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mapping or reading failed.
    #[error("the file's bytes cannot be put into guest memory")]
    File(#[source] MemoryError),
    /// Bytes that had been read before could not be written.
    #[error("the file's first bytes cannot be written to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Puts a segment of `file` into fresh memory.
///
/// # Errors
/// [`Error::File`] or [`Error::Write`] when it does not lie in memory or the kernel refuses.
pub fn load_segment(file: &RegularFile, segment: &Segment, memory: &GuestMemory) -> Result<(), Error> {
    let content = segment.physical.start..segment.physical.start + (segment.file.end - segment.file.start);
    let mapped = segment.mapped();
    if mapped.is_empty() {
        return read(file, segment, memory, content);
    }
    map(file, segment, memory, &mapped)?;
    read(file, segment, memory, content.start..mapped.start)?;
    read(file, segment, memory, mapped.end..content.end)
}

fn map(file: &RegularFile, segment: &Segment, memory: &GuestMemory, range: &Range<u64>) -> Result<(), Error> {
    let (offset, length) = part(segment, range)?;
    match map_file(memory, GuestAddress(range.start), file.file(), offset, length) {
        // The file system cannot map.
        Err(MemoryError::Map { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            read(file, segment, memory, range.clone())
        }
        Err(source) => Err(Error::File(source)),
        Ok(()) => Ok(()),
    }
}

fn read(file: &RegularFile, segment: &Segment, memory: &GuestMemory, range: Range<u64>) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    let (offset, length) = part(segment, &range)?;
    let address = GuestAddress(range.start);
    if let Some(bytes) = file.head_part(offset, length) {
        return memory.write_slice(bytes, address).map_err(Error::Write);
    }
    read_file_into(memory, address, file.file(), offset, length).map_err(Error::File)
}

fn part(segment: &Segment, range: &Range<u64>) -> Result<(u64, usize), Error> {
    let offset = segment.file.start + (range.start - segment.physical.start);
    let length = usize::try_from(range.end - range.start);
    let length = length.map_err(|_| Error::File(MemoryError::Outside(range.clone())))?;
    Ok((offset, length))
}
