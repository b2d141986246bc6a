//! The pages that a restored guest touches first.
//!
//! Recorded once, some time after a restore, the set lets later restores have these pages ready before the guest asks for
//! them one by one. It changes nothing that the guest can see, and a page too many costs time and memory, no more.
//! Which pages a guest has read is known in the kernel's steps, which are up to 64 KiB.

mod file;
mod prepare;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use snapshot::file as state_file;
use snapshot::{GuestMemory, Schema, section};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::page_size;
use super::pagemap::{self, PageFilter, Pagemap};
pub use prepare::Prefetch;

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
