//! A part of an image with its place in guest memory.

use std::fmt;
use std::ops::Range;

use crate::memory::page_size;

/// From how many bytes of whole pages on a segment is mapped instead of read; measured, see [`super::place`].
pub const MAP_THRESHOLD: u64 = 16 << 10;

/// What the image allows with a segment. Guests set up their own protection, so that it is told and not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
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

/// A part of an image with its place in guest memory.
///
/// The ranges neither wrap nor are they backwards, the file has all of `file`, and `file` is not longer than `physical`:
/// what remains of `physical` is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which one it is in the image, counted as the image counts.
    pub number: usize,
    /// Bytes of the file.
    pub file: Range<u64>,
    /// Guest-physical addresses.
    pub physical: Range<u64>,
    /// Virtual address by which the image's code knows the start of `physical`.
    pub virtual_address: u64,
    /// What the image allows with it.
    pub flags: Flags,
}

impl Segment {
    /// The guest-physical addresses of the whole pages that are mapped from the file. Empty when all is read in: because
    /// the segment is small, or because offset and address differ modulo the page size.
    pub fn mapped(&self) -> Range<u64> {
        let page = page_size();
        let nothing = self.physical.start..self.physical.start;
        if self.file.start % page != self.physical.start % page {
            return nothing;
        }
        let Some(start) = self.physical.start.checked_next_multiple_of(page) else {
            return nothing;
        };
        let content_end = self.physical.start + (self.file.end - self.file.start);
        let end = content_end - content_end % page;
        if end.saturating_sub(start) < MAP_THRESHOLD {
            return nothing;
        }
        start..end
    }
}

/// The guest-physical address of an entry that is given as a physical address or, if no segment is there, as a virtual one.
pub fn physical_entry(segments: &[Segment], entry: u64) -> Option<u64> {
    if segments.iter().any(|segment| segment.physical.contains(&entry)) {
        return Some(entry);
    }
    segments.iter().find_map(|segment| {
        let length = segment.physical.end - segment.physical.start;
        let distance = entry.checked_sub(segment.virtual_address)?;
        (distance < length).then_some(segment.physical.start + distance)
    })
}
