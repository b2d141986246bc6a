//! Pages of a working set made ready for the guest: read where the memory file is cold, else populated.
//!
//! Runs of written pages are worth populating: the guest's faults take three to four times as long as the kernel takes to
//! populate them, and what is left of one fault often serves the pages around it. A page alone is worth it only while the guest
//! waits for something else: it takes as long as the guest's fault. What was only read is not worth it: the kernel maps such
//! pages together anyway, and one that is mapped for reading makes a later write dearer. Of a cold file nothing is populated,
//! because that waits for the disk; the kernel reads it in large pieces while the guest runs.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use snapshot::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::WorkingSet;
use crate::memory::page_size;

/// Pages between two runs that are rather read as well than left out, so that there are few large reads.
const GAP: u32 = 32;
/// Pages that are read ahead or populated at most, 64 MiB where they have 4 KiB. A guest that had written all of its memory when
/// it was recorded would not be quicker by that, and each of its clones as large.
pub(super) const MAX_PAGES: u32 = 16 << 10;
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

pub(super) fn joined(runs: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut joined: Vec<Range<u32>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end <= GAP => last.end = run.end,
            _ => joined.push(run.clone()),
        }
    }
    joined
}
