//! Working sets: what a restored guest touches first, recorded, and made ready in later restores.

use std::path::{Path, PathBuf};
use std::time::Duration;

use snapshot::file::{Header, StateFile};

use super::MemorySource;
use crate::memory::WorkingSet;
use crate::memory::working_set;
use crate::vm::Recording;

/// How long is recorded if nothing is said.
pub const DEFAULT_LENGTH: Duration = Duration::from_millis(100);
/// The longest recording, in milliseconds. The shortest is 1.
pub const MAX_RECORD_MS: u64 = 600_000;

/// Why no working set can be used or recorded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no memory file.
    #[error(
        "{0} goes with a memory file only: another process serves this memory, and may have its pages ready itself"
    )]
    Served(&'static str),
    /// What was made ready would be recorded as if the guest had touched it.
    #[error(
        "a working set cannot be used while one is recorded: leave out working_set or record_working_set"
    )]
    Both,
    /// The set cannot be used.
    #[error("cannot use the working set {}", path.display())]
    Use {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: working_set::Error,
    },
    /// None can be recorded.
    #[error("cannot record a working set in {}", path.display())]
    Record {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        #[source]
        source: working_set::Error,
    },
}

/// A working set to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// Where it goes, in place of what is there.
    pub path: PathBuf,
    /// For how much of the guest's time: 1 to [`MAX_RECORD_MS`] milliseconds. A guest that ends or is frozen before is recorded
    /// until then.
    pub length: Duration,
}

/// What is done about the pages that a restored guest touches first. Nothing, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSetOptions {
    /// A working set that was recorded with this snapshot: its pages are made ready.
    pub prepare: Option<PathBuf>,
    /// A working set to be recorded; not while one is used.
    pub record: Option<RecordOptions>,
}

impl WorkingSetOptions {
    /// Opens what is needed for the snapshot with this `state` and that memory.
    pub(super) fn open(
        &self,
        state: &StateFile,
        memory: &MemorySource,
    ) -> Result<(Option<WorkingSet>, Option<Recording>), Error> {
        let asked = [
            (self.prepare.is_some(), "working_set"),
            (self.record.is_some(), "record_working_set"),
        ];
        let served = matches!(memory, MemorySource::Uffd(_));
        if let Some((_, name)) = asked.iter().find(|(asked, _)| *asked && served) {
            return Err(Error::Served(name));
        }
        if asked.iter().all(|(asked, _)| *asked) {
            return Err(Error::Both);
        }
        let set = self.prepare.as_ref().map(|path| {
            let read = WorkingSet::read(path, state.header().memory, state.checksum());
            read.map_err(|source| Error::Use {
                path: path.clone(),
                source,
            })
        });
        let recording = self.record.as_ref().map(|record| {
            let begun = Recording::new(&record.path, record.length, state);
            begun.map_err(|source| Error::Record {
                path: record.path.clone(),
                source,
            })
        });
        Ok((set.transpose()?, recording.transpose()?))
    }
}

/// What the working set at `path` holds, for people: the header of its snapshot, and how many pages were touched, and how many of
/// them written.
///
/// # Errors
/// [`working_set::Error`]
pub fn describe(path: &Path) -> Result<(Header, u64, u64), working_set::Error> {
    let (header, set) = WorkingSet::describe(path)?;
    Ok((header, set.touched(), set.written()))
}
