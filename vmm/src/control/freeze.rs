//! A paused VM into the files of a snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use snapshot::file::{self, Contents, Header};
use snapshot::{ArchiveWriter, section};

use crate::arch::{Native, Platform};
use crate::config::VmConfig;
use crate::machine::state;
use crate::memory::{Pagemap, dump, page_size};
use crate::vm::Vm;

/// Section of the configuration.
pub(super) const MACHINE: &str = "machine";

/// Why a VM could not be frozen. It can go on, and what was there of an earlier snapshot stays, but for the state file of one
/// whose memory a difference was being written into.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest runs, or there is none.
    #[error("the microVM must be paused: PATCH /vm with the state Paused, or mayfly ctl pause")]
    Running,
    /// One file cannot hold both.
    #[error("the state and the memory cannot both go to {0:?}: name two files")]
    Same(PathBuf),
    /// Some pages of all are nowhere any more.
    #[error(
        "the page fault handler has ended, and with it the pages that the guest has not touched: make a Diff snapshot, and merge \
         it into the one that was loaded"
    )]
    Abandoned,
    /// The machine's parts did not give their state.
    #[error("cannot save the state of the machine")]
    Machine(#[source] state::Error),
    /// The configuration cannot be kept.
    #[error("cannot keep the configuration of the machine")]
    Config(#[source] section::Error),
    /// The memory file cannot be written.
    #[error("cannot write the memory file")]
    Memory(#[source] dump::Error),
    /// The state file cannot be written.
    #[error("cannot write the state file")]
    State(#[source] file::Error),
}

/// Which pages a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All that were ever touched.
    #[default]
    Full,
    /// Those that differ from what the VM was restored from; of one that was not restored, all that were ever touched.
    Diff,
}

/// What is to be made of a paused VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSnapshotParams {
    /// Which pages.
    pub kind: SnapshotKind,
    /// The state file, which is replaced.
    pub state: PathBuf,
    /// The memory file, which is replaced; by a difference that finds a file of the memory's size there, it is changed.
    pub memory: PathBuf,
}

/// The host as state files name it.
pub(super) fn host() -> file::HostIdentity {
    file::HostIdentity {
        architecture: Native::ARCHITECTURE,
        page_size: u32::try_from(page_size()).unwrap_or(u32::MAX),
        cpu: Native::cpu_identity(),
    }
}

/// The sections of a state file, with the first of them.
fn begun(config: &VmConfig) -> Result<ArchiveWriter, Error> {
    let mut archive = ArchiveWriter::new();
    archive.write(MACHINE, config).map_err(Error::Config)?;
    Ok(archive)
}

/// Whether what is written to `path` goes elsewhere.
fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// The file that is written for `path`, however that is spelled.
fn place(path: &Path) -> PathBuf {
    if let Ok(file) = fs::canonicalize(path) {
        return file;
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

impl CreateSnapshotParams {
    /// Writes both files. The VM stays paused, and can go on or be frozen again.
    ///
    /// Memory is written once requests that were in flight are done and KVM has done what it had put off, since both write into
    /// it; meanwhile the vCPUs are read. If KVM does more of that before they are, all is read anew and written after that. The
    /// state file gets its name last, so that it never stands beside the memory of another time. An old snapshot goes when all
    /// that can be refused has been done: from then on it takes no more space on the disk, and no more time than it must.
    pub(super) fn create(&self, vm: &Vm) -> Result<dump::DumpStats, Error> {
        if !vm.is_paused() {
            return Err(Error::Running);
        }
        // Files of different names that are no links need no look at their folders, which takes time.
        let alike = self.state.file_name() == self.memory.file_name()
            || is_link(&self.state)
            || is_link(&self.memory);
        if alike && place(&self.state) == place(&self.memory) {
            return Err(Error::Same(self.state.clone()));
        }
        if self.kind == SnapshotKind::Full && vm.is_fault_handler_gone() {
            // To look at such a page would be to wait for ever.
            return Err(Error::Abandoned);
        }
        let machine = vm.machine();
        let config = machine.spec().config();
        let saving = machine.begin_save().map_err(Error::Machine)?;
        // Meanwhile, what does not depend on it.
        let mut state = file::PendingStateFile::create(&self.state).map_err(Error::State)?;
        let pagemap = Pagemap::open().ok();
        let source = dump::DumpSource {
            memory: machine.memory(),
            origin: vm.page_origin(),
            pagemap: pagemap.as_ref(),
        };
        let target = self.target(&source)?;
        let (host, mut archive) = (host(), begun(config)?);
        saving.save_devices(&mut archive).map_err(Error::Machine)?;
        let mut memory = self.prepare(&source, target)?;
        if saving.finish(&mut archive).map_err(Error::Machine)? {
            // Once more, and this time one after the other.
            drop(memory);
            archive = begun(config)?;
            machine.save(&mut archive).map_err(Error::Machine)?;
            memory = self.prepare(&source, self.target(&source)?)?;
        }
        let header = Header {
            host,
            memory: config.memory.bytes(),
            contents: memory.contents(&source),
        };
        state.fill(&header, &archive.into_bytes()).map_err(Error::State)?;
        state.sync().map_err(Error::State)?;
        let written = memory.replace(&source, state.path())?;
        state.commit().map_err(Error::State)?;
        Ok(written)
    }

    fn target(&self, source: &dump::DumpSource<'_>) -> Result<dump::DumpTarget, Error> {
        let target = match self.kind {
            SnapshotKind::Full => dump::DumpTarget::new(source, &self.memory),
            SnapshotKind::Diff => dump::DumpTarget::base_or_new(source, &self.memory),
        };
        target.map_err(Error::Memory)
    }

    /// Writes the memory, as far as that can be done before the old snapshot goes.
    fn prepare(&self, source: &dump::DumpSource<'_>, target: dump::DumpTarget) -> Result<Memory, Error> {
        let prepared = match self.kind {
            SnapshotKind::Full => dump::dump_full(source, target).map(Memory::New),
            SnapshotKind::Diff => dump::DiffDump::prepare(source, target).and_then(|difference| {
                if difference.is_merged() {
                    Ok(Memory::Base(difference))
                } else {
                    difference.write(source).map(Memory::Difference)
                }
            }),
        };
        prepared.map_err(Error::Memory)
    }
}

/// A memory file, as far as it is there before the old snapshot goes.
enum Memory {
    /// A new file of all pages.
    New(dump::PendingDump),
    /// A new file of those that changed.
    Difference(dump::PendingDump),
    /// An old file, as it was, that those will be written into.
    Base(dump::DiffDump),
}

impl Memory {
    fn contents(&self, source: &dump::DumpSource<'_>) -> Contents {
        // What was not restored differs from nothing.
        let fresh = matches!(source.origin, dump::PageOrigin::Fresh);
        match self {
            Self::Difference(_) if !fresh => Contents::Difference,
            _ => Contents::Whole,
        }
    }

    /// Has the memory file be the new one. The old state file, at `state`, is removed: whatever is to become of it, it is not one
    /// whose memory is another's.
    fn replace(self, source: &dump::DumpSource<'_>, state: &Path) -> Result<dump::DumpStats, Error> {
        let remove = || file::remove(state).map_err(Error::State);
        let dump = match self {
            Self::New(mut dump) | Self::Difference(mut dump) => {
                dump.sync().map_err(Error::Memory)?;
                remove()?;
                dump
            }
            Self::Base(difference) => {
                remove()?;
                difference.write(source).map_err(Error::Memory)?
            }
        };
        dump.commit().map_err(Error::Memory)
    }
}

/// Why a difference could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A state file cannot be read, removed or written.
    #[error("cannot use a state file")]
    State(#[source] file::Error),
    /// The first holds all of the memory.
    #[error("{0:?} holds all of the memory and no difference")]
    Whole(PathBuf),
    /// The second is a difference itself.
    #[error("{0:?} holds a difference itself: begin with the Full snapshot")]
    Difference(PathBuf),
    /// The memory cannot be merged.
    #[error("cannot merge the memory")]
    Memory(#[source] dump::Error),
}

/// Merges a difference, a state file and a memory file, into the snapshot in `base`, which has the state of the difference
/// then. A merge that was broken off leaves no state file there; to merge once more, with the state of the difference put
/// there, completes it.
///
/// # Errors
/// [`MergeError`]
pub fn merge(
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
