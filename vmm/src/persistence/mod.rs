//! Snapshots of a VM: creation, load, merge and description.

mod create;
mod load;
mod source;
mod working_set;

use std::path::{Path, PathBuf};

use snapshot::file::{self, Header};

use crate::config::VmConfig;
use crate::memory::dump;

pub use create::{CreateSnapshotParams, Error as CreateSnapshotError, SnapshotKind};
pub use load::{Error as LoadSnapshotError, LoadSnapshotParams};
pub use snapshot::file::{Contents, VERSION as STATE_VERSION};
pub use source::MemorySource;
pub use working_set::{
    DEFAULT_LENGTH as DEFAULT_RECORD_LENGTH, Error as WorkingSetError, MAX_RECORD_MS, RecordOptions,
    WorkingSetOptions, describe as describe_working_set,
};

/// Returns header and configuration of the state file at `path`, without a check against this host.
///
/// # Errors
/// [`LoadSnapshotError::State`] and [`LoadSnapshotError::Sections`].
pub fn describe_snapshot(path: &Path) -> Result<(Header, VmConfig), LoadSnapshotError> {
    let state = file::read(path, None).map_err(LoadSnapshotError::State)?;
    let mut sections = state.reader().map_err(LoadSnapshotError::Sections)?;
    let config = sections
        .read(source::MACHINE)
        .map_err(LoadSnapshotError::Sections)?;
    Ok((state.header().clone(), config))
}

/// Returns the format version of the state file at `path`, which may be one that cannot be loaded. New files have [`STATE_VERSION`].
///
/// # Errors
/// [`LoadSnapshotError::State`]
pub fn state_version(path: &Path) -> Result<u32, LoadSnapshotError> {
    file::version(path).map_err(LoadSnapshotError::State)
}

/// Reason why a difference cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A state file cannot be read, removed or written.
    #[error("cannot use a state file")]
    State(#[source] file::Error),
    /// The first snapshot is not a difference.
    #[error("cannot merge {0:?}: it belongs to a Full snapshot; name a Diff snapshot")]
    Whole(PathBuf),
    /// The second snapshot is a difference.
    #[error("cannot merge into {0:?}: it belongs to a Diff snapshot; begin with the Full one")]
    Difference(PathBuf),
    /// The memory cannot be merged.
    #[error("cannot merge the memory")]
    Memory(#[source] dump::Error),
}

/// Merges a difference (state file, memory file) into the snapshot `base`, which gets the state of the difference. An interrupted
/// merge leaves no state file in `base`; a second merge, with the state file of the difference copied there, completes it.
///
/// # Errors
/// [`MergeError`]
pub fn merge_snapshots(
    difference: (PathBuf, PathBuf),
    base: (PathBuf, PathBuf),
) -> Result<dump::DumpStats, MergeError> {
    let newer = file::read(&difference.0, None).map_err(MergeError::State)?;
    if newer.header().contents == Contents::Whole {
        return Err(MergeError::Whole(difference.0));
    }
    let older = file::read(&base.0, None).map_err(MergeError::State)?;
    if older.header().contents == Contents::Difference {
        return Err(MergeError::Difference(base.0));
    }
    file::remove(&base.0).map_err(MergeError::State)?;
    let written = dump::merge_diff(&difference.1, &base.1).map_err(MergeError::Memory)?;
    let header = Header {
        contents: Contents::Whole,
        ..newer.header().clone()
    };
    file::write_bytes(&base.0, &header, newer.sections()).map_err(MergeError::State)?;
    Ok(written)
}
