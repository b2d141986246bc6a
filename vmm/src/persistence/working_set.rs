//! Working sets: the pages that a restored guest touches first are recorded once and prefetched in later loads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use snapshot::file::{Header, Links, StateFile};

use super::source::MemorySource;
use crate::memory::WorkingSet;
use crate::memory::working_set;
use crate::vm::Recording;

/// Default length of a recording.
pub const DEFAULT_LENGTH: Duration = Duration::from_millis(100);
/// Maximum length of a recording in milliseconds. The minimum is 1.
pub const MAX_RECORD_MS: u64 = 600_000;

/// Reason why a working set cannot be used or recorded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A fault handler serves the memory.
    #[error("cannot {0} a working set: a fault handler serves the memory; use a memory file")]
    Uffd(&'static str),
    /// Prefetched pages would be recorded as if the guest had touched them.
    #[error("cannot use a working set and record one in the same load: leave out one of them")]
    Both,
    /// The set cannot be used.
    #[error("cannot use the working set {}", path.display())]
    Use {
        /// Path of the set.
        path: PathBuf,
        /// Cause.
        #[source]
        source: working_set::Error,
    },
    /// The set cannot be recorded.
    #[error("cannot record a working set in {}", path.display())]
    Record {
        /// Path of the set.
        path: PathBuf,
        /// Cause.
        #[source]
        source: working_set::Error,
    },
}

/// Parameters of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// File for the set, which is replaced.
    pub path: PathBuf,
    /// Run time of the guest to record: 1 to [`MAX_RECORD_MS`] milliseconds. A recording ends early with the guest, or with the
    /// creation of a snapshot.
    pub length: Duration,
}

/// Working set to prefetch or to record; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSetOptions {
    /// Working set that was recorded with this snapshot, to prefetch.
    pub prefetch: Option<PathBuf>,
    /// Working set to record; excludes `prefetch`.
    pub record: Option<RecordOptions>,
}

impl WorkingSetOptions {
    /// Opens the files for a load of the snapshot with this `state` and `memory`. `links` is the treatment of links.
    pub(super) fn open(
        &self,
        state: &StateFile,
        memory: &MemorySource,
        links: Links,
    ) -> Result<(Option<WorkingSet>, Option<Recording>), Error> {
        let requests = [
            (self.prefetch.is_some(), "use"),
            (self.record.is_some(), "record"),
        ];
        let is_uffd = matches!(memory, MemorySource::Uffd(_));
        if let Some((_, operation)) = requests.iter().find(|(requested, _)| *requested && is_uffd) {
            return Err(Error::Uffd(operation));
        }
        if requests.iter().all(|(requested, _)| *requested) {
            return Err(Error::Both);
        }
        let set = self.prefetch.as_ref().map(|path| {
            let read = WorkingSet::read(path, state.header().memory, state.checksum(), links);
            read.map_err(|source| Error::Use {
                path: path.clone(),
                source,
            })
        });
        let recording = self.record.as_ref().map(|record| {
            let prepared = Recording::new(&record.path, record.length, state, links);
            prepared.map_err(|source| Error::Record {
                path: record.path.clone(),
                source,
            })
        });
        Ok((set.transpose()?, recording.transpose()?))
    }
}

/// Returns the header of the snapshot of the working set at `path`, and the numbers of touched and of written pages.
///
/// # Errors
/// [`working_set::Error`]
pub fn describe(path: &Path) -> Result<(Header, u64, u64), working_set::Error> {
    let (header, set) = WorkingSet::describe(path)?;
    Ok((header, set.touched(), set.written()))
}
