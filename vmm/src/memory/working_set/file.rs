//! A working set in a file, which has the format of a state file.

use std::ops::Range;
use std::path::Path;

use snapshot::ArchiveWriter;
use snapshot::file::{self, Header, PendingStateFile};

use super::{Error, MAX_RANGES, WorkingSet};
use crate::memory::page_size;

/// The one section.
pub(super) const KEY: &str = "working-set";

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
        let state = file::read(path, None).map_err(Error::File)?;
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
