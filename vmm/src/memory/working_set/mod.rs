//! The pages that a restored guest touches first.
//!
//! Recorded once, some time after a restore, the set lets later restores have these pages ready before the guest asks for
//! them one by one. It changes nothing that the guest can see: a set of another snapshot costs time and memory, no more.
//! Which pages a guest has read is known in the kernel's steps, which are up to 64 KiB.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use snapshot::file::{self, Header};
use snapshot::{GuestMemory, Schema, Writer, section};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::page_size;
use super::pagemap::{self, Pagemap, Wanted};

/// Runs that are kept of each kind. A guest that touched more is restored without the rest.
const LONGEST: usize = 64 << 10;

/// Pages between two runs that are rather read as well than left out, so that there are few large reads.
const GAP: u32 = 32;

const KEY: &str = "working-set";

/// Why a working set could not be recorded, written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say which pages there are.
    #[error("cannot find out what the guest has touched")]
    Pages(#[source] pagemap::Error),
    /// The file could not be written or read.
    #[error("cannot keep a working set in a file")]
    File(#[source] file::Error),
    /// The file holds something else.
    #[error("the file holds no working set")]
    Section(#[source] section::Error),
    /// The set was recorded with another size of memory.
    #[error(
        "the working set is of a guest with {found} bytes of memory, and this one has {needed}; record it anew"
    )]
    Memory {
        /// Size of the memory that it was recorded with.
        found: u64,
        /// Size of the memory that it is to be used with.
        needed: u64,
    },
    /// A run is empty, lies outside the memory or is not behind the one before.
    #[error("the working set has the run {0:?} of pages, which cannot be; record it anew")]
    Run(Range<u32>),
}

/// Runs of pages, by their number in the memory file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    written: Vec<Range<u32>>,
    touched: Vec<Range<u32>>,
}

impl Schema for WorkingSet {
    const NAME: &'static str = "working set";
    const VERSION: u32 = 1;
}

impl WorkingSet {
    /// The pages of `memory` that have been written and touched since it was mapped from a snapshot's memory file. The guest
    /// may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Pages`].
    pub fn record(memory: &GuestMemory, pagemap: &Pagemap) -> Result<Self, Error> {
        Ok(Self {
            written: runs(memory, pagemap, Wanted::Private)?,
            touched: runs(memory, pagemap, Wanted::Touched)?,
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

    /// Writes the set at `path`, in a file like the state file, in place of what is there. The `header` is that of the snapshot.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Section`].
    pub fn write(&self, path: &Path, header: &Header) -> Result<(), Error> {
        let mut sections = Writer::new();
        sections.put(KEY, self).map_err(Error::Section)?;
        file::write(path, header, sections).map_err(Error::File)
    }

    /// Reads the set at `path`, for a guest with `memory` bytes.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Section`], [`Error::Memory`] or [`Error::Run`].
    pub fn read(path: &Path, memory: u64) -> Result<Self, Error> {
        let state = file::read(path, None).map_err(Error::File)?;
        let found = state.header().memory;
        if found != memory || u64::from(state.header().host.page_size) != page_size() {
            return Err(Error::Memory {
                found,
                needed: memory,
            });
        }
        let mut sections = state.reader().map_err(Error::Section)?;
        let set: Self = sections.take(KEY).map_err(Error::Section)?;
        sections.finish().map_err(Error::Section)?;
        check(&set.written, memory / page_size())?;
        check(&set.touched, memory / page_size())?;
        Ok(set)
    }

    /// Has the kernel read the touched pages of the memory `file` into its cache where they are not there, and does not wait.
    /// A kernel that does not is no error. Returns how many reads were asked for.
    pub fn read_ahead(&self, file: &File) -> usize {
        let page = page_size();
        let joined = joined(&self.touched);
        for run in &joined {
            let (start, end) = (u64::from(run.start) * page, u64::from(run.end) * page);
            let range = (libc::off_t::try_from(start), libc::off_t::try_from(end - start));
            if let (Ok(start), Ok(length)) = range {
                // SAFETY: the call takes numbers and touches no memory of ours.
                unsafe { libc::posix_fadvise(file.as_raw_fd(), start, length, libc::POSIX_FADV_WILLNEED) };
            }
        }
        joined.len()
    }

    /// Gives the guest its own copy of each page that it will write, before it does. A kernel that cannot, before Linux 5.14,
    /// is no error, nor is memory of which the host has too little. Returns how many pages are ready.
    ///
    /// The pages count as changed from then on: a difference holds them, whether the guest has written them or not.
    pub fn populate(&self, memory: &GuestMemory) -> u64 {
        let page = page_size();
        let (mut first, mut ready) = (0, 0);
        for region in memory.iter() {
            let end = first + region.len() / page;
            for run in &self.written {
                let part = u64::from(run.start).max(first)..u64::from(run.end).min(end);
                if !part.is_empty() && !populate(region.as_ptr(), part.start - first..part.end - first) {
                    return ready;
                }
                ready += part.end.saturating_sub(part.start);
            }
            first = end;
        }
        ready
    }
}

/// Makes pages of the region at `host` writable; false when the kernel does not.
fn populate(host: *mut u8, pages: Range<u64>) -> bool {
    let page = page_size();
    let range = (
        usize::try_from(pages.start * page),
        usize::try_from((pages.end - pages.start) * page),
    );
    let (Ok(offset), Ok(length)) = range else {
        return false;
    };
    let start = host.wrapping_add(offset).cast();
    loop {
        // SAFETY: the pages belong to a live region of guest memory, of which no byte changes.
        if unsafe { libc::madvise(start, length, libc::MADV_POPULATE_WRITE) } == 0 {
            return true;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

fn runs(memory: &GuestMemory, pagemap: &Pagemap, wanted: Wanted) -> Result<Vec<Range<u32>>, Error> {
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
            let full = runs.len() == LONGEST;
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
