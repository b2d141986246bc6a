//! Working set: the pages that a restored guest touches first.
//!
//! A working set is recorded once, some time after a restore. Later restores prefetch its pages before the guest's page
//! faults. It does not change guest-visible state: a superfluous page only costs time and memory. The kernel reports
//! touched pages of a file in fault-around steps of up to 64 KiB.
//!
//! # Prefetch
//! Ranges of written pages are populated: page faults of the guest take three to four times as long. Single written
//! pages are populated only while the guest waits for other work, since one takes as long as a page fault. Pages that
//! were only read are not populated: the kernel maps such pages together on a fault, and a page mapped for reading
//! makes a later write slower. From a cold memory file no page is populated, because that blocks on the disk; the
//! kernel reads the file ahead in large chunks while the guest runs.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use snapshot::file::{self as state_file, Header, Links, PendingStateFile};
use snapshot::{ArchiveWriter, GuestMemory, Schema, section};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::map::page_size;
use super::pagemap::{self, PageFilter, Pagemap};

/// Maximum number of page ranges of each kind. Further ranges of a guest are not recorded.
const MAX_RANGES: usize = 64 << 10;

/// Key of the only section.
const KEY: &str = "working-set";

/// Maximum length of the sections in bytes: two numbers of at most five bytes per range of each kind, and the names. Bounds the
/// memory that an invalid file occupies.
const MAX_SECTIONS: usize = 2 * 2 * 5 * MAX_RANGES + 100;

/// Maximum gap in pages between two ranges that are read ahead together, for fewer and larger reads.
const MAX_GAP: u32 = 32;

/// Maximum number of pages to read ahead or populate, 64 MiB with 4 KiB pages. A guest that wrote all of its memory during the
/// recording would not start faster from more, and each clone would occupy that memory.
const MAX_PAGES: u32 = 16 << 10;

/// Number of reads that are probed for a cold file.
const PROBES: usize = 16;

/// Pages per populated chunk, some 100 us.
const CHUNK_PAGES: u32 = 64;

/// Error while a working set is recorded, written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not list the pages.
    #[error("cannot list the touched pages of guest memory")]
    Pages(#[source] pagemap::Error),
    /// The timer of the recording could not be created.
    #[error("cannot create a timer for the recording")]
    Timer(#[source] io::Error),
    /// The file could not be written or read.
    #[error("cannot access the file, which must have the format of a state file")]
    File(#[source] state_file::Error),
    /// The file holds other sections.
    #[error("the file is not a working set")]
    Section(#[source] section::Error),
    /// The sections are longer than those of any recording.
    #[error("{0} bytes exceed the limit of {MAX_SECTIONS} for a working set; record it again")]
    Long(usize),
    /// The recording had another size of memory or of pages.
    #[error("the working set is for {found} bytes of memory, the guest has {needed}; record it again")]
    Memory {
        /// Size of memory at the recording.
        found: u64,
        /// Size of guest memory.
        needed: u64,
    },
    /// The recording was made with another snapshot of the same size.
    #[error(
        "the working set belongs to another snapshot, or to an earlier one at the same path; record it again"
    )]
    Snapshot,
    /// A page range is empty, outside memory or not sorted.
    #[error("page range {0:?} of the working set is invalid; record it again")]
    Range(Range<u32>),
}

/// Page ranges, as sorted page numbers of the memory file.
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
    /// Records the pages of `memory` that were written and touched since it was mapped from a snapshot. `snapshot` is
    /// the checksum of its state file. The guest may run during the call.
    ///
    /// # Errors
    /// [`Error::Pages`].
    pub fn record(memory: &GuestMemory, pagemap: &Pagemap, snapshot: u64) -> Result<Self, Error> {
        Ok(Self {
            snapshot,
            written: page_ranges(memory, pagemap, PageFilter::Private)?,
            touched: page_ranges(memory, pagemap, PageFilter::Touched)?,
        })
    }

    /// Returns the number of written pages.
    pub fn written(&self) -> u64 {
        page_count(&self.written)
    }

    /// Returns the number of touched pages, including the written ones.
    pub fn touched(&self) -> u64 {
        page_count(&self.touched)
    }

    /// Writes the working set to `file` and renames the file to its path, without a sync. `header` is that of the snapshot.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Section`].
    pub fn write(&self, mut file: PendingStateFile, header: &Header) -> Result<(), Error> {
        let mut sections = ArchiveWriter::new();
        sections.write(KEY, self).map_err(Error::Section)?;
        file.fill(header, sections).map_err(Error::File)?;
        file.commit_unsynced().map_err(Error::File)
    }

    /// Reads the working set at `path` for a guest with `memory` bytes. `snapshot` is the checksum of the state file
    /// that the guest is restored from, `links` the treatment of a link.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::Snapshot`], and the errors of [`WorkingSet::describe`].
    pub fn read(path: &Path, memory: u64, snapshot: u64, links: Links) -> Result<Self, Error> {
        let (header, set) = Self::describe_with(path, links)?;
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

    /// Reads the working set at `path` of any snapshot, with its header.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Long`], [`Error::Section`] or [`Error::Range`].
    pub fn describe(path: &Path) -> Result<(Header, Self), Error> {
        Self::describe_with(path, Links::Follow)
    }

    fn describe_with(path: &Path, links: Links) -> Result<(Header, Self), Error> {
        let state = state_file::read_with(path, None, links).map_err(Error::File)?;
        let header = state.header();
        let length = state.sections().len();
        if length > MAX_SECTIONS {
            return Err(Error::Long(length));
        }
        let mut sections = state.reader().map_err(Error::Section)?;
        let set: Self = sections.read(KEY).map_err(Error::Section)?;
        sections.finish().map_err(Error::Section)?;
        let pages = header.memory / u64::from(header.host.page_size);
        check_ranges(&set.written, pages)?;
        check_ranges(&set.touched, pages)?;
        Ok((header.clone(), set))
    }
}

fn page_ranges(
    memory: &GuestMemory,
    pagemap: &Pagemap,
    filter: PageFilter,
) -> Result<Vec<Range<u32>>, Error> {
    let page = page_size();
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut first = 0;
    for region in memory.iter() {
        let host = region.as_ptr().addr() as u64;
        for found in pagemap.ranges(host..host + region.len(), filter) {
            let found = found.map_err(Error::Pages)?;
            let number = |address| u32::try_from(first + (address - host) / page);
            let (Ok(start), Ok(end)) = (number(found.start), number(found.end)) else {
                return Ok(ranges);
            };
            let is_full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ if is_full => return Ok(ranges),
                _ => ranges.push(start..end),
            }
        }
        first += region.len() / page;
    }
    Ok(ranges)
}

fn page_count(ranges: &[Range<u32>]) -> u64 {
    ranges
        .iter()
        .map(|range| u64::from(range.end - range.start))
        .sum()
}

fn check_ranges(ranges: &[Range<u32>], pages: u64) -> Result<(), Error> {
    let mut end = 0;
    for range in ranges {
        if range.is_empty() || range.start < end || u64::from(range.end) > pages {
            return Err(Error::Range(range.clone()));
        }
        end = range.end;
    }
    Ok(())
}

/// Prefetch of a working set in chunks.
#[derive(Debug)]
pub struct Prefetch {
    ranges: VecDeque<Range<u32>>,
    single: VecDeque<Range<u32>>,
    populated: u32,
}

impl Prefetch {
    /// Starts the prefetch of `set` from the memory `file`. If the file is cold, requests read-ahead from the kernel
    /// and leaves no page to populate. Never blocks on the disk.
    pub fn new(set: WorkingSet, file: &File) -> Self {
        let mut written = set.written;
        if read_ahead(&set.touched, file) {
            written.clear();
        }
        let (ranges, single): (VecDeque<_>, VecDeque<_>) =
            written.into_iter().partition(|range| range.len() > 1);
        Self {
            ranges,
            single,
            populated: 0,
        }
    }

    /// Returns true if ranges of two or more pages are left to populate.
    pub fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Drops the single pages, for a guest that does not wait any longer.
    pub fn drop_single(&mut self) {
        self.single.clear();
    }

    /// Populates one chunk of `memory` with private copies. Returns true while chunks remain. The guest may run during
    /// the call.
    ///
    /// The prefetch ends without an error if the kernel does not support it (before Linux 5.14) or the host is short of memory.
    /// Populated pages count as changed: a diff contains them even if the guest has not written them.
    pub fn populate_chunk(&mut self, memory: &GuestMemory) -> bool {
        let mut left = CHUNK_PAGES.min(MAX_PAGES - self.populated);
        while left > 0 {
            let rest = if self.has_ranges() {
                &mut self.ranges
            } else {
                &mut self.single
            };
            let Some(range) = rest.front_mut() else { break };
            let length = u32::try_from(range.len()).unwrap_or(u32::MAX).min(left);
            let Some(length) = populate(memory, range.start, length) else {
                self.cancel();
                break;
            };
            range.start += length;
            if range.start == range.end {
                rest.pop_front();
            }
            left -= length;
            self.populated += length;
        }
        if self.populated == MAX_PAGES {
            self.cancel();
        }
        self.has_ranges() || !self.single.is_empty()
    }

    fn cancel(&mut self) {
        self.ranges.clear();
        self.single.clear();
    }

    /// Returns the number of populated pages.
    pub fn populated(&self) -> u32 {
        self.populated
    }
}

/// Returns the host address of page `number` of the memory file, and the number of pages from it to the end of its region.
fn find_page(memory: &GuestMemory, number: u32) -> Option<(*mut u8, u32)> {
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

/// Populates up to `length` pages from page `number` for writing. Returns the number of pages, or `None` if madvise(2) fails.
fn populate(memory: &GuestMemory, number: u32, length: u32) -> Option<u32> {
    let (host, room) = find_page(memory, number)?;
    let pages = length.min(room);
    let bytes = usize::try_from(u64::from(pages) * page_size()).ok()?;
    loop {
        // SAFETY: the pages belong to a live region of guest memory; MADV_POPULATE_WRITE does not change their content.
        if unsafe { libc::madvise(host.cast(), bytes, libc::MADV_POPULATE_WRITE) } == 0 {
            return Some(pages);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Requests read-ahead of the pages of `file` if the file is cold, without blocking. Returns true if it is cold.
fn read_ahead(touched: &[Range<u32>], file: &File) -> bool {
    let reads = join_ranges(touched);
    let step = reads.len().div_ceil(PROBES).max(1);
    if !reads.iter().step_by(step).any(|read| is_cold(file, read.start)) {
        return false;
    }
    let mut left = MAX_PAGES;
    for read in reads {
        let length = u32::try_from(read.len()).unwrap_or(u32::MAX).min(left);
        let (start, length_bytes) = (byte_offset(read.start), byte_offset(length));
        // SAFETY: the call has no pointer arguments.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), start, length_bytes, libc::POSIX_FADV_WILLNEED) };
        left -= length;
        if left == 0 {
            break;
        }
    }
    true
}

/// Returns true if the page is known to be absent from the page cache. File systems in memory do not support
/// RWF_NOWAIT, and their files are never cold.
fn is_cold(file: &File, page: u32) -> bool {
    let mut byte = 0_u8;
    let iovec = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: `iovec` is one byte that is valid for writes.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const iovec,
            1,
            byte_offset(page),
            libc::RWF_NOWAIT,
        )
    };
    read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

fn byte_offset(pages: u32) -> libc::off_t {
    // 2^32 pages of at most 2^16 bytes are below 2^63.
    libc::off_t::try_from(u64::from(pages) * page_size()).unwrap_or(libc::off_t::MAX)
}

/// Joins ranges with gaps of at most [`MAX_GAP`] pages.
fn join_ranges(ranges: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut joined: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= MAX_GAP => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}
