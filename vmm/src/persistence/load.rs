//! Load of a snapshot into a paused VM.

use std::path::PathBuf;
use std::sync::Arc;

use snapshot::file::{self, Contents, Links};
use snapshot::section;

use super::names;
use super::source::{self, MACHINE, MemorySource, host_identity};
use super::working_set::{self, WorkingSetOptions};
use crate::arch::CpuCheck;
use crate::cancellation::BeginError;
use crate::config::{self, DeviceBackend, DeviceKind, HostMemory, VmConfig, VmSpec};
use crate::machine::state::{self, RestoreOptions, StateError};
use crate::machine::{self, Machine, PreparedVm, open_unlocked_devices};
use crate::memory::{DirtyTracker, Prefetch};
use crate::timeline::{Lane, Timeline};
use crate::vm::{Console, ConsoleError, ConsoleInput, MemoryBacking, Vm};

/// Reason why a snapshot cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM was started, or configured with values that the snapshot replaces.
    #[error("cannot load a snapshot: the VM is configured or started already; load it into a new process")]
    Configured,
    /// The state file cannot be read.
    #[error(transparent)]
    State(file::Error),
    /// The snapshot is a diff.
    #[error(
        "cannot load {0:?}: it belongs to a Diff snapshot; merge it into the snapshot that it differs from"
    )]
    Diff(PathBuf),
    /// The configuration is missing or damaged.
    #[error("cannot read the configuration of the machine from the state file")]
    Sections(#[source] section::Error),
    /// Header and configuration disagree on the size of guest memory.
    #[error(
        "cannot load the snapshot: its header has {header} bytes of memory, its configuration {config}; create it again"
    )]
    Size {
        /// Bytes in the header.
        header: u64,
        /// Bytes in the configuration.
        config: u64,
    },
    /// The configuration is not possible on this host.
    #[error("cannot build the machine of the snapshot on this host")]
    Config(#[source] config::Error),
    /// An override names a device that the snapshot does not have.
    #[error("cannot override {kind} {id:?}: the snapshot has {known}")]
    Unknown {
        /// Kind of the device.
        kind: DeviceKind,
        /// ID in the override.
        id: String,
        /// IDs of the devices of this kind, separated by commas, or `none`.
        known: String,
    },
    /// A name in the state file is invalid, or must not be opened.
    #[error(transparent)]
    Name(names::Error),
    /// The memory cannot be mapped.
    #[error(transparent)]
    Memory(source::Error),
    /// The working set cannot be used or recorded.
    #[error(transparent)]
    WorkingSet(working_set::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(machine::DeviceError),
    /// The console cannot be opened.
    #[error(transparent)]
    Console(ConsoleError),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(machine::Error),
    /// The load cannot run on another thread.
    #[error("cannot begin the load")]
    Thread(#[source] BeginError),
    /// The VM is loaded, but cannot be resumed.
    #[error(transparent)]
    Resume(machine::Error),
    /// The machine rejects the state.
    #[error("cannot restore the state of the machine")]
    Restore(#[source] state::Error),
}

impl Error {
    /// Returns true if the load could succeed with [`LoadSnapshotParams::mask_cpu`].
    pub fn can_mask_cpu(&self) -> bool {
        let Self::Restore(state::Error::Vcpu { source, .. }) = self else {
            return false;
        };
        matches!(source, StateError::Unsupported { .. })
    }
}

/// Parameters of the load of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSnapshotParams {
    /// State file.
    pub state: PathBuf,
    /// Source of guest memory.
    pub memory: MemorySource,
    /// Overrides: ID and new host side of each device.
    pub overrides: Vec<(String, DeviceBackend)>,
    /// Each Diff holds the pages that were written since the snapshot before. Otherwise, those that differ from the loaded snapshot.
    pub track_dirty_pages: bool,
    /// The guest is resumed at once.
    pub resume: bool,
    /// The guest's clock advances by the time since the save.
    pub realtime: bool,
    /// Working set to prefetch or to record.
    pub working_set: WorkingSetOptions,
    /// The state file is untrusted: the load opens nothing that only the state file names.
    pub untrusted: bool,
    /// CPUID bits and model-specific registers that this host does not support are removed. Otherwise the load fails.
    pub mask_cpu: bool,
}

impl LoadSnapshotParams {
    /// Returns the parameters to load these files, unchanged and paused.
    pub fn new(state: PathBuf, memory: PathBuf) -> Self {
        Self {
            state,
            memory: MemorySource::File(memory),
            overrides: Vec::new(),
            track_dirty_pages: false,
            resume: false,
            realtime: false,
            working_set: WorkingSetOptions::default(),
            untrusted: false,
            mask_cpu: false,
        }
    }

    /// The attacker chooses the features of an untrusted state, and knows the limits of [`CpuCheck::Quick`].
    fn cpu_check(&self) -> CpuCheck {
        match (self.mask_cpu, self.untrusted) {
            (true, _) => CpuCheck::Mask,
            (false, true) => CpuCheck::Strict,
            (false, false) => CpuCheck::Quick,
        }
    }

    /// Returns the treatment of links at the paths of the snapshot. [`names::check_files`] has checked the paths of an untrusted
    /// snapshot, but the owner of the directory may change it meanwhile.
    fn links(&self) -> Links {
        if self.untrusted {
            Links::Reject
        } else {
            Links::Follow
        }
    }

    /// Loads the snapshot into a paused VM, for which the VM of `prepare` is used if it fits. The console is opened last: terminal and files stay untouched if the snapshot, its memory
    /// or a device cannot be opened.
    pub(crate) fn load(
        &self,
        host_memory: &HostMemory,
        prepare: impl FnOnce() -> Option<PreparedVm>,
        open_console: impl FnOnce() -> Result<Console, ConsoleError>,
        timeline: &Arc<Timeline>,
    ) -> Result<Vm, Error> {
        if self.untrusted {
            names::check_files(&self.state, &self.memory, &self.working_set).map_err(Error::Name)?;
        }
        let read = timeline.measure(Lane::Main, "read state", || {
            file::read_with(&self.state, Some(&host_identity()), self.links())
        });
        let state = read.map_err(Error::State)?;
        if state.header().contents == Contents::Diff {
            return Err(Error::Diff(self.state.clone()));
        }
        let mut sections = state.reader().map_err(Error::Sections)?;
        let config = VmConfig::read_section(&mut sections, MACHINE).map_err(Error::Sections)?;
        let spec = self.apply_overrides(config, state.header().memory, host_memory)?;
        if self.untrusted {
            names::check_named(spec.config(), &self.overrides).map_err(Error::Name)?;
        }
        names::log(spec.config(), &self.overrides, &self.memory);
        let opened = self.working_set.open(&state, &self.memory, self.links());
        let (set, recording) = opened.map_err(Error::WorkingSet)?;
        let tracker = self
            .track_dirty_pages
            .then(|| DirtyTracker::select(self.memory.is_served()));
        let is_logged = tracker.as_ref().is_some_and(DirtyTracker::needs_log);
        let mapped = timeline.measure(Lane::Main, "map memory file", || {
            self.memory.map(spec.config(), self.links(), is_logged)
        });
        let (memory, backing) = mapped.map_err(Error::Memory)?;
        let prefetch = match (set, &backing) {
            (Some(set), MemoryBacking::File(file)) => Some(Prefetch::new(set, file.file())),
            _ => None,
        };
        let devices = open_unlocked_devices(&spec).map_err(Error::Device)?;
        let Console {
            output,
            input,
            filter,
            guard,
        } = open_console().map_err(Error::Console)?;
        let mut machine =
            Machine::build_with_memory(spec, memory, prepare(), devices, output, timeline.clone())
                .map_err(Error::Machine)?;
        machine.set_dirty_tracker(tracker);
        set_memory_source(&mut machine, &backing);
        let restored = timeline.measure(Lane::Main, "restore state", || {
            machine.restore(
                sections,
                RestoreOptions {
                    realtime: self.realtime,
                    check: self.cpu_check(),
                },
            )
        });
        let machine = restored.map_err(Error::Restore)?;
        let input = input.map(|file| ConsoleInput { file, filter });
        let mut vm = Vm::restored(machine, backing, input, guard);
        vm.set_recording(recording);
        if let Some(prefetch) = prefetch {
            timeline.measure(Lane::Main, "make pages ready", || vm.start_prefetch(prefetch));
        }
        Ok(vm)
    }

    fn apply_overrides(&self, mut config: VmConfig, memory: u64, host: &HostMemory) -> Result<VmSpec, Error> {
        if config.memory.bytes() != memory {
            return Err(Error::Size {
                header: memory,
                config: config.memory.bytes(),
            });
        }
        names::check_lengths(&config).map_err(Error::Name)?;
        for (id, backend) in &self.overrides {
            let kind = backend.kind();
            let Some(index) = config.position(kind, id) else {
                return Err(Error::Unknown {
                    kind,
                    id: id.clone(),
                    known: config.list_ids(kind),
                });
            };
            names::check_access(&config.devices[index], backend).map_err(Error::Name)?;
            config.devices[index].set_backend(backend);
        }
        config.track_dirty_pages = self.track_dirty_pages;
        config.check(host).map_err(Error::Config)
    }
}

/// Prepares `machine` for waits for its memory.
fn set_memory_source(machine: &mut Machine, backing: &MemoryBacking) {
    if let MemoryBacking::Uffd(handler) = backing {
        machine.set_fault_handler(handler.clone());
    }
}
