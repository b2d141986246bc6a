//! Comparison of guest memory with its base, for hosts without /proc.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use super::error::Error;
use super::writer::{PageWriter, RegionExtent, Zeros, next_data, next_hole};
use crate::cancellation::Cancellation;
use crate::memory::map::page_size;
use crate::memory::try_read::try_read;

/// Bytes per comparison.
const CHUNK_SIZE: usize = 1 << 20;

/// Significance of an absent page in mincore(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resident {
    /// The host has no swap: an absent page has no private copy.
    Known,
    /// An absent page may have a private copy in swap.
    Unknown,
}

impl Resident {
    /// Returns the value for this host, from sysinfo(2), which needs no /proc.
    pub fn of_host() -> Self {
        let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
        // SAFETY: `info` is valid for writes of the structure.
        let result = unsafe { libc::sysinfo(info.as_mut_ptr()) };
        // SAFETY: the structure was zeroed and consists of integers, for which any bit pattern is valid.
        let info = unsafe { info.assume_init() };
        if result == 0 && info.totalswap == 0 {
            Self::Known
        } else {
            Self::Unknown
        }
    }

    /// Returns the ranges of pages that may be resident, as sorted offsets in `extent`, each at most [`CHUNK_SIZE`] long.
    pub fn page_ranges<'a>(self, extent: &'a RegionExtent<'_>) -> impl Iterator<Item = Range<u64>> + 'a {
        let range = extent.range();
        let starts = range.clone().step_by(CHUNK_SIZE);
        let chunks = starts.map(move |start| start..range.end.min(start + CHUNK_SIZE as u64));
        chunks.flat_map(move |chunk| {
            let is_known = self == Self::Known;
            let pages = is_known.then(|| residency(extent, &chunk)).flatten();
            pages.map_or_else(|| vec![chunk.clone()], |pages| select_ranges(chunk.start, pages))
        })
    }
}

/// Returns the residency of each page of `chunk`, or `None` if mincore(2) fails. For a file that the process may not write, the
/// kernel reports every page as resident (mincore(2), since Linux 5.2).
fn residency(extent: &RegionExtent<'_>, chunk: &Range<u64>) -> Option<impl Iterator<Item = bool> + use<>> {
    let slice = extent.slice(chunk).ok()?;
    let mut pages = vec![0; slice.len().div_ceil(page())];
    let host = slice.ptr_guard();
    let start = host.as_ptr().cast_mut().cast();
    // SAFETY: the range is mapped while `slice` lives, and `pages` has a byte for each of its pages.
    let result = unsafe { libc::mincore(start, slice.len(), pages.as_mut_ptr()) };
    (result == 0).then(|| pages.into_iter().map(|page| page & 1 != 0))
}

/// Returns the ranges of the `selected` pages, counted from `start`.
fn select_ranges(start: u64, selected: impl Iterator<Item = bool>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (start, _) in (start..)
        .step_by(page())
        .zip(selected)
        .filter(|(_, selected)| *selected)
    {
        let end = start + page_size();
        match ranges.last_mut() {
            Some(range) if range.end == start => range.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// Writes the pages of `extent` of `memory` that differ from `base`, the file that they were mapped from.
pub(super) fn write_different(
    memory: &GuestMemory,
    extent: &RegionExtent<'_>,
    base: &File,
    resident: Resident,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    writer.begin_comparison()?;
    let (mut memory_bytes, mut base_bytes) = (Vec::new(), Vec::new());
    for range in resident.page_ranges(extent) {
        writer.check_cancelled()?;
        let length = usize::try_from(range.end - range.start).unwrap_or(CHUNK_SIZE);
        memory_bytes.resize(length, 0);
        base_bytes.resize(length, 0);
        // A read access through the mapping would allocate page cache for holes.
        let offset = extent.offset() + range.start;
        base.read_exact_at(&mut base_bytes, offset)
            .map_err(|source| writer.copy_error(offset, source))?;
        let address = extent.guest().start + range.start;
        let read = try_read(memory, GuestAddress(address), &mut memory_bytes);
        if read < length {
            let address = address + read as u64;
            return Err(Error::Gone { address });
        }
        let pages = memory_bytes.chunks(page()).zip(base_bytes.chunks(page()));
        for different in select_ranges(range.start, pages.map(|(current, base)| current != base)) {
            writer.write_pages(extent, different, Zeros::Data)?;
        }
    }
    Ok(())
}

/// Returns true if each hole in the first `size` bytes of `file` reads as zeros in `base` too. Both files have at least this length.
///
/// # Errors
/// [`Error::Cancelled`], and [`Error::Copy`] with `path` if a file cannot be read.
pub(super) fn has_data_of(
    base: &File,
    file: &File,
    path: &Path,
    size: u64,
    cancellation: &Cancellation,
) -> Result<bool, Error> {
    let mut at = 0;
    while let Some(missing) =
        next_missing(base, file, at..size).map_err(|source| copy_error(path, at, source))?
    {
        at = missing.start;
        cancellation.spend(0)?;
        let end = missing.end.min(at + CHUNK_SIZE as u64);
        let mut bytes = vec![0; usize::try_from(end - at).unwrap_or(CHUNK_SIZE)];
        base.read_exact_at(&mut bytes, at)
            .map_err(|source| copy_error(path, at, source))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

/// Returns the first part of `range` that is data in `base` and a hole in `file`.
fn next_missing(base: &File, file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut at = range.start;
    while at < range.end {
        let Some(start) = next_data(base, at)?.filter(|start| *start < range.end) else {
            break;
        };
        let end = next_hole(base, start)?.min(range.end);
        let hole = next_hole(file, start)?;
        if hole < end {
            let data = next_data(file, hole)?;
            return Ok(Some(hole..data.map_or(end, |data| data.min(end))));
        }
        at = end;
    }
    Ok(None)
}

fn copy_error(path: &Path, offset: u64, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Copy { path, offset, source }
}

fn page() -> usize {
    usize::try_from(page_size()).unwrap_or(4096)
}
