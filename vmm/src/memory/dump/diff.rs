//! What differs from a base where the kernel does not say it: found by looking.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use super::error::Error;
use super::writer::{PageWriter, RegionExtent, Zeros};
use crate::memory::map::page_size;
use crate::memory::try_read::try_read;

/// Bytes that are looked at in one go.
const CHUNK_SIZE: usize = 1 << 20;

/// What mincore(2) is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resident {
    /// A page that is not in memory is nobody's own: there is nowhere else that it could be.
    Known,
    /// It may be in swap.
    Unknown,
}

impl Resident {
    /// What it is on this host, by a system call that needs no /proc.
    pub fn here() -> Self {
        let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
        // SAFETY: `info` is valid for writes of the structure.
        let asked = unsafe { libc::sysinfo(info.as_mut_ptr()) };
        // SAFETY: the structure is made of integers, for which any bytes will do, and was zeroed.
        let info = unsafe { info.assume_init() };
        if asked == 0 && info.totalswap == 0 {
            Self::Known
        } else {
            Self::Unknown
        }
    }

    /// Runs of pages that may be in memory, as offsets in `part`, in their order, none longer than a piece.
    pub fn runs<'a>(self, part: &'a RegionExtent<'_>) -> impl Iterator<Item = Range<u64>> + 'a {
        let range = part.range();
        let starts = range.clone().step_by(CHUNK_SIZE);
        let pieces = starts.map(move |start| start..range.end.min(start + CHUNK_SIZE as u64));
        pieces.flat_map(move |piece| {
            let known = self == Self::Known;
            let pages = known.then(|| resident(part, &piece)).flatten();
            pages.map_or_else(|| vec![piece.clone()], |pages| runs(piece.start, pages))
        })
    }
}

/// Whether each page of `piece` is in memory; none when the kernel does not say. Of a file's pages, it says so of all of them
/// to who could not write the file.
fn resident(part: &RegionExtent<'_>, piece: &Range<u64>) -> Option<impl Iterator<Item = bool> + use<>> {
    let slice = part.slice(piece).ok()?;
    let mut pages = vec![0; slice.len().div_ceil(page())];
    let host = slice.ptr_guard();
    let start = host.as_ptr().cast_mut().cast();
    // SAFETY: the range is mapped as long as `slice` lives, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(start, slice.len(), pages.as_mut_ptr()) };
    (asked == 0).then(|| pages.into_iter().map(|page| page & 1 != 0))
}

/// Runs of the pages from `start` on that are `wanted`.
fn runs(start: u64, wanted: impl Iterator<Item = bool>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (start, _) in (start..)
        .step_by(page())
        .zip(wanted)
        .filter(|(_, wanted)| *wanted)
    {
        let end = start + page_size();
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Writes the pages of `part`, of `memory`, that are not as they are in `base`, which they were mapped from.
pub(super) fn write_different(
    memory: &GuestMemory,
    part: &RegionExtent<'_>,
    base: &File,
    resident: Resident,
    output: &mut PageWriter<'_>,
) -> Result<(), Error> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in resident.runs(part) {
        let length = usize::try_from(run.end - run.start).unwrap_or(CHUNK_SIZE);
        ours.resize(length, 0);
        theirs.resize(length, 0);
        // Read, and not looked at in the mapping, which would bring holes into memory.
        let offset = part.offset() + run.start;
        base.read_exact_at(&mut theirs, offset)
            .map_err(|source| output.not_copied(offset, source))?;
        let address = part.guest().start + run.start;
        let read = try_read(memory, GuestAddress(address), &mut ours);
        if read < length {
            let address = address + read as u64;
            return Err(Error::Gone { address });
        }
        let pages = ours.chunks(page()).zip(theirs.chunks(page()));
        for different in runs(run.start, pages.map(|(our, their)| our != their)) {
            output.put(part, different, Zeros::Data)?;
        }
    }
    Ok(())
}

fn page() -> usize {
    usize::try_from(page_size()).unwrap_or(4096)
}
