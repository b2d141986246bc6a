//! Segments of an image: addresses, checks, and load into guest memory.
//!
//! The pages of a segment whose file offset and address agree modulo the page size are mapped from the file. The rest at its
//! ends, and every other segment, is read. The memory after the content of a segment is not written: guest memory is fresh and
//! zero. A page shared by two segments is complete in neither of them, so that both are read into it.
//!
//! A small segment is read completely, because a mapping costs more than the copy of a page. Medians of 101 measurements in
//! microseconds, with the file in tmpfs and a guest that accesses every page once afterwards:
//!
//! | KiB | read, then accessed | mapped, then read by the guest | mapped, then written by the guest |
//! |---|---|---|---|
//! | 4 | 4 | 6 | 8 |
//! | 16 | 9 | 7 | 11 |
//! | 64 | 32 | 8 | 32 |
//! | 256 | 107 | 16 | 98 |
//! | 4,096 | 2,300 | 180 | 1,650 |
//!
//! A mapping takes 4 for any size. Text gains from 16 KiB on, and guests share its pages; data loses at most 3, and nothing from
//! 64 KiB on. The threshold is therefore 16 KiB.

use std::fmt;
use std::ops::Range;

use snapshot::GuestMemory;
use vm_memory::{Address, Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::file::RegularFile;
use crate::memory::{Bytes, Error as MemoryError, map_file, page_size, read_file_into};

/// Minimum number of bytes in complete pages of a segment that is mapped instead of read. The module documentation has the
/// measurements.
pub const MAP_THRESHOLD: u64 = 16 << 10;
/// Length of memory that is contiguous from the lowest address on in every machine.
const CONTIGUOUS: u64 = 3 << 30;
/// Alignment of suggested memory sizes.
const SIZE_ALIGNMENT: u64 = 2 << 20;

/// Permissions of a segment. They are informative: guests set up their own protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
}

impl fmt::Display for Flags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |allowed, letter| if allowed { letter } else { '-' };
        write!(
            formatter,
            "{}{}{}",
            letter(self.read, 'r'),
            letter(self.write, 'w'),
            letter(self.execute, 'x')
        )
    }
}

/// Range of an image with its addresses in guest memory.
///
/// The ranges are ordered and do not wrap, the file contains all of `file`, and `file` is at most as long as `physical`: the
/// remaining bytes of `physical` are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index in the image.
    pub number: usize,
    /// Bytes of the file.
    pub file: Range<u64>,
    /// Guest-physical addresses.
    pub physical: Range<u64>,
    /// Virtual address of the start of `physical` in the code of the image.
    pub virtual_address: u64,
    /// Permissions.
    pub flags: Flags,
}

impl Segment {
    /// Returns the segment with `distance` added to its addresses. An end beyond the address space saturates, and then lies outside
    /// memory.
    #[must_use]
    pub fn moved(&self, distance: u64) -> Self {
        let add = |address: u64| address.saturating_add(distance);
        Self {
            physical: add(self.physical.start)..add(self.physical.end),
            virtual_address: add(self.virtual_address),
            ..self.clone()
        }
    }

    /// Returns the guest-physical addresses of the pages mapped from the file. The range is empty for a segment that is read: a
    /// small one, or one whose offset and address differ modulo the page size.
    pub fn mapped(&self) -> Range<u64> {
        let page = page_size();
        let empty = self.physical.start..self.physical.start;
        if self.file.start % page != self.physical.start % page {
            return empty;
        }
        let Some(start) = self.physical.start.checked_next_multiple_of(page) else {
            return empty;
        };
        let content_end = self.physical.start + (self.file.end - self.file.start);
        let end = content_end - content_end % page;
        if end.saturating_sub(start) < MAP_THRESHOLD {
            return empty;
        }
        start..end
    }
}

/// Returns the guest-physical address of `entry`, a physical address or, outside all segments, a virtual one.
pub fn physical_entry(segments: &[Segment], entry: u64) -> Option<u64> {
    if segments.iter().any(|segment| segment.physical.contains(&entry)) {
        return Some(entry);
    }
    segments.iter().find_map(|segment| {
        let length = segment.physical.end - segment.physical.start;
        let distance = entry.checked_sub(segment.virtual_address)?;
        (distance < length).then(|| segment.physical.start + distance)
    })
}

/// Error of the addresses of segments.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Guest memory is too small.
    #[error(
        "segment {number} ({:#x}..{:#x}): guest memory of {memory} is too small; {sufficient_mib} MiB suffice",
        .range.start, .range.end
    )]
    MemoryTooSmall {
        /// Index of the segment.
        number: usize,
        /// Guest-physical addresses.
        range: Range<u64>,
        /// Size of guest memory.
        memory: Bytes,
        /// Size of memory in MiB that contains all segments.
        sufficient_mib: u64,
    },
    /// No size of memory contains the segment.
    #[error(
        "segment {number} ({:#x}..{:#x}) is outside guest memory of any size; link the image at {base:#x} or above, within \
         {CONTIGUOUS:#x} bytes",
        .range.start, .range.end
    )]
    OutsideMemory {
        /// Index of the segment.
        number: usize,
        /// Guest-physical addresses.
        range: Range<u64>,
        /// Lowest address of memory.
        base: u64,
    },
    /// The segment overlaps boot data.
    #[error(
        "segment {number} ({:#x}..{:#x}) overlaps boot data at {:#x}..{:#x}; link the image at {free:#x} or above",
        .range.start, .range.end, .reserved.start, .reserved.end
    )]
    Reserved {
        /// Index of the segment.
        number: usize,
        /// Guest-physical addresses.
        range: Range<u64>,
        /// Addresses of boot data.
        reserved: Range<u64>,
        /// Lowest address above all boot data.
        free: u64,
    },
    /// Two segments overlap.
    #[error(
        "segment {first} ({:#x}..{:#x}) overlaps segment {second} ({:#x}..{:#x}): the image is damaged or linked incorrectly",
        .first_range.start, .first_range.end, .second_range.start, .second_range.end
    )]
    Overlap {
        /// Index of the lower segment.
        first: usize,
        /// Guest-physical addresses.
        first_range: Range<u64>,
        /// Index of the higher segment.
        second: usize,
        /// Guest-physical addresses.
        second_range: Range<u64>,
    },
}

/// Checks that each segment lies within one region of memory and overlaps no `reserved` range and no other segment.
///
/// # Errors
/// [`LayoutError`] of the first invalid segment.
pub fn check_segments(
    segments: &[Segment],
    memory: &GuestMemory,
    reserved: &[Range<u64>],
) -> Result<(), LayoutError> {
    for segment in segments {
        check_reserved(segment, reserved)?;
    }
    if let Some(segment) = segments
        .iter()
        .find(|segment| !is_memory(memory, &segment.physical))
    {
        return Err(outside_memory_error(segment, segments, memory));
    }
    let mut sorted: Vec<_> = segments.iter().collect();
    sorted.sort_by_key(|segment| segment.physical.start);
    match sorted
        .windows(2)
        .find(|pair| overlaps(&pair[0].physical, &pair[1].physical))
    {
        Some(pair) => Err(LayoutError::Overlap {
            first: pair[0].number,
            first_range: pair[0].physical.clone(),
            second: pair[1].number,
            second_range: pair[1].physical.clone(),
        }),
        None => Ok(()),
    }
}

/// Returns the size in MiB of memory from `base` that contains `end`, or `None` if no size suffices.
pub(super) fn sufficient_mib(base: u64, end: u64) -> Option<u64> {
    let length = end.checked_sub(base).filter(|length| *length <= CONTIGUOUS)?;
    Some(length.next_multiple_of(SIZE_ALIGNMENT) >> 20)
}

/// Returns true if two ranges share an address.
pub(super) fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn check_reserved(segment: &Segment, reserved: &[Range<u64>]) -> Result<(), LayoutError> {
    match reserved.iter().find(|range| overlaps(range, &segment.physical)) {
        Some(range) => Err(LayoutError::Reserved {
            number: segment.number,
            range: segment.physical.clone(),
            reserved: range.clone(),
            free: reserved.iter().map(|range| range.end).max().unwrap_or(0),
        }),
        None => Ok(()),
    }
}

fn is_memory(memory: &GuestMemory, range: &Range<u64>) -> bool {
    memory.iter().any(|region| {
        region.start_addr().raw_value() <= range.start && range.end - 1 <= region.last_addr().raw_value()
    })
}

/// Returns the error for a segment outside memory.
fn outside_memory_error(segment: &Segment, all: &[Segment], memory: &GuestMemory) -> LayoutError {
    let base = memory
        .iter()
        .next()
        .map_or(0, |region| region.start_addr().raw_value());
    let (number, range) = (segment.number, segment.physical.clone());
    let end = all.iter().map(|segment| segment.physical.end).max();
    let all_above = all.iter().all(|segment| segment.physical.start >= base);
    match end
        .filter(|_| all_above)
        .and_then(|end| sufficient_mib(base, end))
    {
        Some(sufficient_mib) => LayoutError::MemoryTooSmall {
            number,
            range,
            memory: Bytes(memory.iter().map(GuestMemoryRegion::len).sum()),
            sufficient_mib,
        },
        None => LayoutError::OutsideMemory { number, range, base },
    }
}

/// Error of loading a segment. The caller adds its name.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Mapping or reading the file failed.
    #[error("cannot map or read the file into guest memory")]
    File(#[source] MemoryError),
    /// Writing the first bytes of the file failed.
    #[error("cannot write to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Loads a segment of `file` into fresh memory.
///
/// # Errors
/// [`LoadError`] if the segment lies outside memory or a call of the kernel fails.
pub fn load_segment(file: &RegularFile, segment: &Segment, memory: &GuestMemory) -> Result<(), LoadError> {
    let content = segment.physical.start..segment.physical.start + (segment.file.end - segment.file.start);
    let mapped = segment.mapped();
    if mapped.is_empty() {
        return read_range(file, segment, memory, content);
    }
    map_range(file, segment, memory, &mapped)?;
    read_range(file, segment, memory, content.start..mapped.start)?;
    read_range(file, segment, memory, mapped.end..content.end)
}

fn map_range(
    file: &RegularFile,
    segment: &Segment,
    memory: &GuestMemory,
    range: &Range<u64>,
) -> Result<(), LoadError> {
    let (offset, length) = file_range(segment, range)?;
    match map_file(memory, GuestAddress(range.start), file.file(), offset, length) {
        // ENODEV: the file system does not support mmap.
        Err(MemoryError::Map { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            read_range(file, segment, memory, range.clone())
        }
        Err(source) => Err(LoadError::File(source)),
        Ok(()) => Ok(()),
    }
}

fn read_range(
    file: &RegularFile,
    segment: &Segment,
    memory: &GuestMemory,
    range: Range<u64>,
) -> Result<(), LoadError> {
    if range.is_empty() {
        return Ok(());
    }
    let (offset, length) = file_range(segment, &range)?;
    let address = GuestAddress(range.start);
    if let Some(bytes) = file.head_bytes(offset, length) {
        return memory.write_slice(bytes, address).map_err(LoadError::Write);
    }
    read_file_into(memory, address, file.file(), offset, length).map_err(LoadError::File)
}

/// Returns offset and length in the file of a guest-physical `range`.
fn file_range(segment: &Segment, range: &Range<u64>) -> Result<(u64, usize), LoadError> {
    let offset = segment.file.start + (range.start - segment.physical.start);
    let length = usize::try_from(range.end - range.start);
    let length = length.map_err(|_| LoadError::File(MemoryError::Outside(range.clone())))?;
    Ok((offset, length))
}
