//! Snapshots of a VM: creation, load, merge and description.

mod create;
mod disks;
mod first_frames;
mod generations;
mod load;
mod names;
mod open_files;
mod saved_machine;
mod source;
mod working_set;

use std::path::{Path, PathBuf};

use snapshot::file::{self, Header};

pub use crate::arch::{MAX_MAPPINGS, Mapping, MappingError};
use crate::arch::{Native, Platform};
use crate::config::VmConfig;
use crate::memory::dump;

pub use create::{CreateSnapshotParams, Error as CreateSnapshotError, SnapshotKind};
pub use disks::{ChangedDrive, DriveCheck};
pub use first_frames::{Error as FirstFramesError, FirstFramesFile};
pub(crate) use generations::check_writable;
pub use generations::{
    Error as GenerationError, MEMORY_NAME, STATE_NAME, SuspendDirectory, resolve_generation,
};
pub use load::{Error as LoadSnapshotError, LoadSnapshotParams, OpenSnapshot};
pub use names::{Error as NameError, UnnamedDevice};
pub(crate) use open_files::role_in;
pub use open_files::{FileRole, OpenFile};
pub use saved_machine::{Error as SavedMachineError, SavedMachine, SavedRegion, SavedRegisters};
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
    let config = match state.header().host.architecture == Native::ARCHITECTURE {
        true => load::read_config(&mut sections),
        false => VmConfig::read_section(&mut sections, source::MACHINE),
    };
    Ok((
        state.header().clone(),
        config.map_err(LoadSnapshotError::Sections)?,
    ))
}

/// Returns the format version of the state file at `path`, even of a version that cannot be loaded. New files have
/// [`STATE_VERSION`].
///
/// # Errors
/// [`LoadSnapshotError::State`]
pub fn state_version(path: &Path) -> Result<u32, LoadSnapshotError> {
    file::version(path).map_err(LoadSnapshotError::State)
}

/// Reason why a diff cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A state file cannot be read, removed or written.
    #[error("cannot use a state file")]
    State(#[source] file::Error),
    /// The first snapshot is not a diff.
    #[error("cannot merge {0:?}: it belongs to a Full snapshot; name a Diff snapshot")]
    NotDiff(PathBuf),
    /// The base is a diff too.
    #[error("cannot merge into {0:?}: it belongs to a Diff snapshot; begin with the Full one")]
    BaseIsDiff(PathBuf),
    /// The memory files cannot be merged.
    #[error("cannot merge the memory")]
    Memory(#[source] dump::Error),
}

/// Merges the snapshot `diff` into the snapshot `base`, each a state file and a memory file. The base gets the state of the diff. An
/// interrupted merge leaves a base without a state file: copy that of the diff there, and repeat the merge to complete it.
///
/// # Errors
/// [`MergeError`]
pub fn merge_snapshots(
    diff: (PathBuf, PathBuf),
    base: (PathBuf, PathBuf),
) -> Result<dump::DumpStats, MergeError> {
    let diff_state = file::read(&diff.0, None).map_err(MergeError::State)?;
    if diff_state.header().contents == Contents::Full {
        return Err(MergeError::NotDiff(diff.0));
    }
    let base_state = file::read(&base.0, None).map_err(MergeError::State)?;
    if base_state.header().contents == Contents::Diff {
        return Err(MergeError::BaseIsDiff(base.0));
    }
    file::remove(&base.0).map_err(MergeError::State)?;
    let written = dump::merge_diff(&diff.1, &base.1).map_err(MergeError::Memory)?;
    let header = Header {
        contents: Contents::Full,
        ..diff_state.header().clone()
    };
    file::write_bytes(&base.0, &header, diff_state.sections()).map_err(MergeError::State)?;
    Ok(written)
}
