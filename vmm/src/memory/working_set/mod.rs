//! The pages that a restored guest touches first.
//!
//! Recorded once, some time after a restore, the set lets later restores have these pages ready before the guest asks for
//! them one by one. It changes nothing that the guest can see, and a page too many costs time and memory, no more.
//! Which pages a guest has read is known in the kernel's steps, which are up to 64 KiB.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use snapshot::file::{self as state_file, Header, PendingStateFile};
use snapshot::{ArchiveWriter, GuestMemory, Schema, section};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::map::page_size;
use super::pagemap::{self, PageFilter, Pagemap};

/// Runs that are kept of each kind. A guest that touched more is restored without the rest.
const MAX_RANGES: usize = 64 << 10;

/// Why a working set could not be recorded, written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say which pages there are.
    #[error("cannot find out what the guest has touched")]
    Pages(#[source] pagemap::Error),
    /// The time could not be taken.
    #[error("cannot make a timer")]
    Timer(#[source] io::Error),
    /// The file could not be written or read.
    #[error("a working set is kept as a state file is")]
    File(#[source] state_file::Error),
    /// The file holds something else.
    #[error("the file holds no working set")]
    Section(#[source] section::Error),
    /// There are more runs than a recording has.
    #[error("the file holds {0} bytes, and no working set is that long; record it anew")]
    Long(usize),
    /// The set was recorded with another size of memory or of pages.
    #[error(
        "the working set is of a guest with {found} bytes of memory, and this one has {needed}; record it anew"
    )]
    Memory {
        /// Size of the memory that it was recorded with.
        found: u64,
        /// Size of the memory that it is to be used with.
        needed: u64,
    },
    /// The set was recorded with another snapshot of the same size.
    #[error(
        "the working set belongs to another snapshot, or to an earlier one in the same place; record it anew with this one"
    )]
    Snapshot,
    /// A run is empty, lies outside the memory or is not behind the one before.
    #[error("the working set has the run {0:?} of pages, which cannot be; record it anew")]
    Run(Range<u32>),
}

/// Runs of pages, by their number in the memory file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Checksum of the snapshot's state file.
    snapshot: u64,
    written: Vec<Range<u32>>,
    touched: Vec<Range<u32>>,
}

impl Schema for WorkingSet {
    const NAME: &'static str = "working set";
    const VERSION: u32 = 1;
}

impl WorkingSet {
    /// The pages of `memory` that have been written and touched since it was mapped from the memory file of the snapshot whose
    /// state file has the checksum `snapshot`. The guest may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Pages`].
    pub fn record(memory: &GuestMemory, pagemap: &Pagemap, snapshot: u64) -> Result<Self, Error> {
        Ok(Self {
            snapshot,
            written: runs(memory, pagemap, PageFilter::Private)?,
            touched: runs(memory, pagemap, PageFilter::Touched)?,
        })
    }

    /// Pages that were written.
    pub fn written(&self) -> u64 {
        pages(&self.written)
    }

    /// Pages that were touched, the written ones included.
    pub fn touched(&self) -> u64 {
        pages(&self.touched)
    }
}

fn runs(memory: &GuestMemory, pagemap: &Pagemap, wanted: PageFilter) -> Result<Vec<Range<u32>>, Error> {
    let page = page_size();
    let mut runs: Vec<Range<u32>> = Vec::new();
    let mut first = 0;
    for region in memory.iter() {
        let host = region.as_ptr().addr() as u64;
        for found in pagemap.runs(host..host + region.len(), wanted) {
            let found = found.map_err(Error::Pages)?;
            let number = |address| u32::try_from(first + (address - host) / page);
            let (Ok(start), Ok(end)) = (number(found.start), number(found.end)) else {
                return Ok(runs);
            };
            let full = runs.len() == MAX_RANGES;
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if full => return Ok(runs),
                _ => runs.push(start..end),
            }
        }
        first += region.len() / page;
    }
    Ok(runs)
}

fn pages(runs: &[Range<u32>]) -> u64 {
    runs.iter().map(|run| u64::from(run.end - run.start)).sum()
}

/// The one section.
const KEY: &str = "working-set";

/// Bytes that the longest recording takes: two numbers of up to five bytes for each run of each kind, and the names around
/// them. It keeps a file that lies from having more memory than that filled with runs.
const MAX_SECTION: usize = 2 * 2 * 5 * MAX_RANGES + 100;

impl WorkingSet {
    /// Fills `file` with the set and gives it its name, without waiting for the disk. The `header` is that of the snapshot.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Section`].
    pub fn write(&self, mut file: PendingStateFile, header: &Header) -> Result<(), Error> {
        let mut sections = ArchiveWriter::new();
        sections.write(KEY, self).map_err(Error::Section)?;
        file.fill(header, &sections.into_bytes()).map_err(Error::File)?;
        file.commit_unsynced().map_err(Error::File)
    }

    /// Reads the set at `path`, for a guest with `memory` bytes, restored from the snapshot whose state file has the checksum
    /// `snapshot`.
    ///
    /// # Errors
    /// As [`WorkingSet::describe`], and [`Error::Memory`] and [`Error::Snapshot`].
    pub fn read(path: &Path, memory: u64, snapshot: u64) -> Result<Self, Error> {
        let (header, set) = Self::describe(path)?;
        if header.memory != memory || u64::from(header.host.page_size) != page_size() {
            return Err(Error::Memory {
                found: header.memory,
                needed: memory,
            });
        }
        if set.snapshot != snapshot {
            return Err(Error::Snapshot);
        }
        Ok(set)
    }

    /// Reads the set at `path`, of whatever snapshot, whose header is returned too.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Long`], [`Error::Section`] or [`Error::Run`].
    pub fn describe(path: &Path) -> Result<(Header, Self), Error> {
        let state = state_file::read(path, None).map_err(Error::File)?;
        let header = state.header();
        let length = state.sections().len();
        if length > MAX_SECTION {
            return Err(Error::Long(length));
        }
        let mut sections = state.reader().map_err(Error::Section)?;
        let set: Self = sections.read(KEY).map_err(Error::Section)?;
        sections.finish().map_err(Error::Section)?;
        let pages = header.memory / u64::from(header.host.page_size);
        check(&set.written, pages)?;
        check(&set.touched, pages)?;
        Ok((header.clone(), set))
    }
}

fn check(runs: &[Range<u32>], pages: u64) -> Result<(), Error> {
    let mut end = 0;
    for run in runs {
        if run.is_empty() || run.start < end || u64::from(run.end) > pages {
            return Err(Error::Run(run.clone()));
        }
        end = run.end;
    }
    Ok(())
}

/// Pages between two runs that are rather read as well than left out, so that there are few large reads.
const GAP: u32 = 32;
/// Pages that are read ahead or populated at most, 64 MiB where they have 4 KiB. A guest that had written all of its memory when
/// it was recorded would not be quicker by that, and each of its clones as large.
const MAX_PAGES: u32 = 16 << 10;
/// Reads of which is found out whether the file is cold.
const PROBES: usize = 16;
/// Pages that are populated at a time, some 100 us.
const CHUNK_PAGES: u32 = 64;

/// Pages that are being made ready, piece by piece.
#[derive(Debug)]
pub struct Prefetch {
    runs: VecDeque<Range<u32>>,
    single: VecDeque<Range<u32>>,
    ready: u32,
}

impl Prefetch {
    /// Begins with the pages of `set` in the memory `file`: where it is cold, the kernel is asked to read them, and that was all.
    /// Never waits for the disk.
    pub fn new(set: WorkingSet, file: &File) -> Self {
        let mut written = set.written;
        if read_ahead(&set.touched, file) {
            written.clear();
        }
        let (runs, single): (VecDeque<_>, VecDeque<_>) = written.into_iter().partition(|run| run.len() > 1);
        Self {
            runs,
            single,
            ready: 0,
        }
    }

    /// Whether there are runs of pages that are not ready.
    pub fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Leaves the pages to the guest that stand alone, because it does not wait any more.
    pub fn leave_single(&mut self) {
        self.single.clear();
    }

    /// Gives the guest its own copy of some more pages that it will write, before it does; it may run. Returns whether there are
    /// more.
    ///
    /// A kernel that cannot, before Linux 5.14, is no error, nor is memory of which the host has too little: the rest is then
    /// left to the guest. The pages count as changed from then on: a difference holds them, whether the guest has written them
    /// or not.
    pub fn populate_chunk(&mut self, memory: &GuestMemory) -> bool {
        let mut left = CHUNK_PAGES.min(MAX_PAGES - self.ready);
        while left > 0 {
            let rest = if self.has_runs() {
                &mut self.runs
            } else {
                &mut self.single
            };
            let Some(run) = rest.front_mut() else { break };
            let length = u32::try_from(run.len()).unwrap_or(u32::MAX).min(left);
            let Some(length) = populate(memory, run.start, length) else {
                self.give_up();
                break;
            };
            run.start += length;
            if run.start == run.end {
                rest.pop_front();
            }
            left -= length;
            self.ready += length;
        }
        if self.ready == MAX_PAGES {
            self.give_up();
        }
        self.has_runs() || !self.single.is_empty()
    }

    fn give_up(&mut self) {
        self.runs.clear();
        self.single.clear();
    }

    /// Pages that are ready.
    pub fn ready(&self) -> u32 {
        self.ready
    }
}

/// Where the page of that number in the memory file is in this process, and how many pages there are from it to the end of its
/// region.
fn find(memory: &GuestMemory, number: u32) -> Option<(*mut u8, u32)> {
    let mut offset = u64::from(number) * page_size();
    for region in memory.iter() {
        if offset < region.len() {
            let room = (region.len() - offset) / page_size();
            let host = region.as_ptr().wrapping_add(usize::try_from(offset).ok()?);
            return Some((host, u32::try_from(room).unwrap_or(u32::MAX)));
        }
        offset -= region.len();
    }
    None
}

/// Makes up to `length` pages from that number on writable, and returns how many; nothing when the kernel does not.
fn populate(memory: &GuestMemory, number: u32, length: u32) -> Option<u32> {
    let (host, room) = find(memory, number)?;
    let pages = length.min(room);
    let bytes = usize::try_from(u64::from(pages) * page_size()).ok()?;
    loop {
        // SAFETY: the pages belong to a live region of guest memory, of which no byte changes.
        if unsafe { libc::madvise(host.cast(), bytes, libc::MADV_POPULATE_WRITE) } == 0 {
            return Some(pages);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Has the kernel read the pages of `file` into its cache if they are not there, and does not wait. Returns whether some were not.
fn read_ahead(touched: &[Range<u32>], file: &File) -> bool {
    let reads = joined(touched);
    let step = reads.len().div_ceil(PROBES).max(1);
    if !reads.iter().step_by(step).any(|run| is_cold(file, run.start)) {
        return false;
    }
    let mut left = MAX_PAGES;
    for run in reads {
        let length = u32::try_from(run.len()).unwrap_or(u32::MAX).min(left);
        let (start, length_bytes) = (offset(run.start), offset(length));
        // SAFETY: the call takes numbers and touches no memory of ours.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), start, length_bytes, libc::POSIX_FADV_WILLNEED) };
        left -= length;
        if left == 0 {
            break;
        }
    }
    true
}

/// Whether the page is known not to be in the kernel's cache. File systems whose files are always in memory do not say so.
fn is_cold(file: &File, page: u32) -> bool {
    let mut byte = 0_u8;
    let part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: the one part is a byte that is valid for writes.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const part,
            1,
            offset(page),
            libc::RWF_NOWAIT,
        )
    };
    read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

fn offset(pages: u32) -> libc::off_t {
    // 2^32 pages of at most 2^16 bytes fit.
    libc::off_t::try_from(u64::from(pages) * page_size()).unwrap_or(libc::off_t::MAX)
}

fn joined(runs: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut joined: Vec<Range<u32>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end <= GAP => last.end = run.end,
            _ => joined.push(run.clone()),
        }
    }
    joined
}
