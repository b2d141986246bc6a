//! Whether the segments of an image can be where they belong.

use std::ops::Range;

use snapshot::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::segment::Segment;
use crate::memory::Bytes;

/// Memory that every machine has in one piece from its lowest address on, when it has that much.
const CONTIGUOUS: u64 = 3 << 30;
/// What advice on the memory size is rounded up to.
const GRAIN: u64 = 2 << 20;

/// Why the segments cannot be where they belong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest has too little memory.
    #[error(
        "segment {number} ({:#x}..{:#x}) does not fit into {memory} of memory; --memory {enough}M is enough",
        .range.start, .range.end
    )]
    Small {
        /// Which segment.
        number: usize,
        /// Its guest-physical addresses.
        range: Range<u64>,
        /// What the guest has.
        memory: Bytes,
        /// MiB with which all segments fit.
        enough: u64,
    },
    /// More memory would not help.
    #[error(
        "segment {number} ({:#x}..{:#x}) lies where a guest has no memory; link the image to load from {:#x} on and \
         within {CONTIGUOUS:#x} bytes",
        .range.start, .range.end, .base
    )]
    Nowhere {
        /// Which segment.
        number: usize,
        /// Its guest-physical addresses.
        range: Range<u64>,
        /// Lowest address of memory.
        base: u64,
    },
    /// What the guest is told at its start is there.
    #[error(
        "segment {number} ({:#x}..{:#x}) lies over {:#x}..{:#x}, where the guest finds its tables; link the image to load \
         from {free:#x} on",
        .range.start, .range.end, .reserved.start, .reserved.end
    )]
    Reserved {
        /// Which segment.
        number: usize,
        /// Its guest-physical addresses.
        range: Range<u64>,
        /// What is taken.
        reserved: Range<u64>,
        /// Where all is free.
        free: u64,
    },
    /// Two segments belong to the same place.
    #[error(
        "segment {first} ({:#x}..{:#x}) and segment {second} ({:#x}..{:#x}) overlap: the image is damaged or linked wrongly",
        .first_range.start, .first_range.end, .second_range.start, .second_range.end
    )]
    Overlap {
        /// The lower one.
        first: usize,
        /// Its guest-physical addresses.
        first_range: Range<u64>,
        /// The higher one.
        second: usize,
        /// Its guest-physical addresses.
        second_range: Range<u64>,
    },
}

/// Checks that each segment lies within one region of memory, over none of the `reserved` ranges and over no other segment.
///
/// # Errors
/// The first thing that is in the way.
pub fn check_segments(
    segments: &[Segment],
    memory: &GuestMemory,
    reserved: &[Range<u64>],
) -> Result<(), Error> {
    for segment in segments {
        check_reserved(segment, reserved)?;
    }
    if let Some(segment) = segments
        .iter()
        .find(|segment| !is_memory(memory, &segment.physical))
    {
        return Err(no_memory(segment, segments, memory));
    }
    let mut sorted: Vec<_> = segments.iter().collect();
    sorted.sort_by_key(|segment| segment.physical.start);
    match sorted
        .windows(2)
        .find(|pair| overlap(&pair[0].physical, &pair[1].physical))
    {
        Some(pair) => Err(Error::Overlap {
            first: pair[0].number,
            first_range: pair[0].physical.clone(),
            second: pair[1].number,
            second_range: pair[1].physical.clone(),
        }),
        None => Ok(()),
    }
}

/// MiB of memory from `base` on with which everything up to `end` is memory, or None if no size is enough.
pub fn enough(base: u64, end: u64) -> Option<u64> {
    let length = end.checked_sub(base).filter(|length| *length <= CONTIGUOUS)?;
    Some(length.next_multiple_of(GRAIN) >> 20)
}

/// Whether two ranges have an address in common.
pub fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn check_reserved(segment: &Segment, reserved: &[Range<u64>]) -> Result<(), Error> {
    match reserved.iter().find(|range| overlap(range, &segment.physical)) {
        Some(range) => Err(Error::Reserved {
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

fn no_memory(segment: &Segment, all: &[Segment], memory: &GuestMemory) -> Error {
    let base = memory
        .iter()
        .next()
        .map_or(0, |region| region.start_addr().raw_value());
    let (number, range) = (segment.number, segment.physical.clone());
    let end = all.iter().map(|segment| segment.physical.end).max();
    let all_above = all.iter().all(|segment| segment.physical.start >= base);
    match end.filter(|_| all_above).and_then(|end| enough(base, end)) {
        Some(enough) => Error::Small {
            number,
            range,
            memory: Bytes(memory.iter().map(GuestMemoryRegion::len).sum()),
            enough,
        },
        None => Error::Nowhere { number, range, base },
    }
}
