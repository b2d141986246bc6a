//! Byte ranges of a disk, and the pieces of a discard or write zeroes.

use std::fs;
use std::path::Path;

/// Alignment and maximum length of a piece of a write zeroes, and usually of a discard, in bytes. The worker executes it with one call,
/// and the rate limiter counts it as one operation.
pub(super) const CHUNK_SIZE: u64 = 1 << 20;

/// Maximum size of a unit that pieces of a discard respect, in bytes: the largest chunk of dm-thin.
const MAX_GRANULARITY: u64 = 1 << 30;

/// Byte range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) offset: u64,
    /// Number of bytes. The end is within the disk.
    pub(super) length: u64,
}

impl Extent {
    /// Splits the extent at the boundaries of `pieces`.
    pub(super) fn pieces(self, pieces: Pieces) -> impl Iterator<Item = Self> {
        let Pieces { size, start } = pieces;
        let mut offset = self.offset;
        let end = self.offset.saturating_add(self.length);
        std::iter::from_fn(move || {
            let next = match offset.checked_sub(start) {
                Some(rest) => (rest / size + 1).saturating_mul(size).saturating_add(start),
                None => start,
            };
            let next = next.min(end);
            let length = next.checked_sub(offset).filter(|length| *length > 0)?;
            let chunk = Self { offset, length };
            offset = next;
            Some(chunk)
        })
    }
}

/// Boundaries at which a discard or write zeroes is split, each by one call of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Distance of two boundaries in bytes.
    size: u64,
    /// First boundary, less than `size`.
    start: u64,
}

impl Pieces {
    /// Pieces of [`CHUNK_SIZE`].
    pub(super) const CHUNKS: Self = Self::of_size(CHUNK_SIZE);

    /// Returns pieces of `size` bytes.
    pub(super) const fn of_size(size: u64) -> Self {
        Self { size, start: 0 }
    }

    /// Returns pieces of complete units of `granularity` bytes, of which the first begins at `start`. A block device ignores the
    /// discard of a part of its unit, for example of a chunk of dm-thin.
    pub(super) fn of_units(granularity: u64, start: u64) -> Self {
        if granularity == 0 || granularity > MAX_GRANULARITY {
            return Self::CHUNKS;
        }
        Self {
            size: CHUNK_SIZE.next_multiple_of(granularity),
            start: start % granularity,
        }
    }

    /// Reads the limits of the block device with the sysfs `directory`. A partition has those of its disk, and its own alignment.
    pub(super) fn of_device(directory: &Path) -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let granularity = read("queue/discard_granularity").or_else(|| read("../queue/discard_granularity"));
        Self::of_units(
            granularity.unwrap_or_default(),
            read("discard_alignment").unwrap_or_default(),
        )
    }
}

/// Shrinks `extent` to complete blocks of `block` bytes.
pub(super) fn shrink_to_blocks(extent: Extent, block: u64) -> Extent {
    let block = block.max(1);
    let end = (extent.offset + extent.length) / block * block;
    // No overflow: the extent is within the disk.
    let offset = extent.offset.div_ceil(block) * block;
    Extent {
        offset,
        length: end.saturating_sub(offset),
    }
}
