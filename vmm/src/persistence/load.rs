//! Load of a snapshot into a paused VM.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::block::{self, DiskStamp, disk};
use snapshot::file::{self, Contents, Links, StateFile};
use snapshot::{ArchiveReader, section};

use super::disks::{ChangedDrive, DriveCheck, SavedDisks};
use super::first_frames::{self, FirstFramesFile};
use super::generations::{self, GenerationFiles, open_current};
use super::names;
use super::source::{self, MACHINE, MapTarget, MemorySource, host_identity};
use super::working_set::{self, WorkingSetOptions};
use crate::arch::{CpuCheck, CpuRestore, Native, Platform};
use crate::cancellation::BeginError;
use crate::config::{self, DeviceBackend, DeviceKind, DriveConfig, HostMemory, VmConfig, VmSpec};
use crate::machine::state::{self, StateError, VcpuRestore};
use crate::machine::{self, Machine, MachineParts, Mismatch, PassedFiles, PreparedVm, open_unlocked_devices};
use crate::memory::{DirtyTracker, MemoryFile, Prefetch};
use crate::timeline::{Lane, Timeline};
use crate::vm::{Console, ConsoleError, ConsoleInput, GuestImage, MemoryBacking, Vm};

/// Reason why a snapshot cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM was started, or configured with values that the snapshot replaces.
    #[error("cannot load a snapshot: the VM is configured or started already; load it into a new process")]
    Configured,
    /// The state file cannot be read.
    #[error(transparent)]
    State(file::Error),
    /// The current generation cannot be opened.
    #[error(transparent)]
    Generation(generations::Error),
    /// The disk of a drive has changed since the snapshot.
    #[error(transparent)]
    Changed(Box<ChangedDrive>),
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
    /// The first frames cannot be used.
    #[error(transparent)]
    FirstFrames(first_frames::Error),
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
    /// The VM that is prepared for the load has another shape.
    #[error("cannot load the snapshot into the prepared VM; use one of the same shape")]
    Prepared(#[source] Mismatch),
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
    /// Directory whose current [generation](super::SuspendDirectory) replaces the files at `state` and `memory`, if it has one.
    pub generations: Option<PathBuf>,
    /// Overrides: ID and new host side of each device.
    pub overrides: Vec<(String, DeviceBackend)>,
    /// Frames that network interfaces receive before those of their backends, at most one file for each.
    pub first_frames: Vec<FirstFramesFile>,
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
    /// Treatment of a drive whose disk has changed since the snapshot, and is not replaced.
    pub drive_check: DriveCheck,
    /// CPUID bits and model-specific registers that this host does not support are removed. Otherwise the load fails.
    pub mask_cpu: bool,
}

/// Reads the configuration and the settings that the platform adds to it.
pub(super) fn read_config(sections: &mut ArchiveReader<'_>) -> Result<VmConfig, section::Error> {
    let mut config = VmConfig::read_section(sections, MACHINE)?;
    Native::restore_settings(sections, &mut config)?;
    Ok(config)
}

/// Configuration in the state file, without overrides, and the disks at the snapshot.
struct SavedDrives {
    config: VmConfig,
    disks: SavedDisks,
}

impl SavedDrives {
    fn read(sections: &mut ArchiveReader<'_>) -> Result<Self, Error> {
        Ok(Self {
            config: read_config(sections).map_err(Error::Sections)?,
            disks: SavedDisks::read(sections).map_err(Error::Sections)?,
        })
    }
}

impl LoadSnapshotParams {
    /// Returns the parameters to load these files, unchanged and paused.
    pub fn new(state: PathBuf, memory: PathBuf) -> Self {
        Self {
            state,
            memory: MemorySource::File(memory),
            generations: None,
            overrides: Vec::new(),
            first_frames: Vec::new(),
            track_dirty_pages: false,
            resume: false,
            realtime: false,
            working_set: WorkingSetOptions::default(),
            untrusted: false,
            drive_check: DriveCheck::default(),
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

    /// Returns the time by which the clocks of the vCPUs advance.
    fn clock_advance(&self, state: &StateFile) -> Result<Duration, section::Error> {
        match self.realtime {
            true => Native::time_since_save(&mut state.reader()?),
            false => Ok(Duration::ZERO),
        }
    }

    /// Begins to restore the vCPUs of `parts`. Returns the other sections of `state` too.
    fn begin_restore<'s>(
        &self,
        parts: &MachineParts,
        state: &'s StateFile,
    ) -> Result<(VcpuRestore, SavedDrives, ArchiveReader<'s>), Error> {
        let restore = CpuRestore {
            check: self.cpu_check(),
            advance: self.clock_advance(state).map_err(Error::Sections)?,
        };
        let mut sections = state.reader().map_err(Error::Sections)?;
        // Each section must be consumed.
        let drives = SavedDrives::read(&mut sections)?;
        let vcpus = parts.begin_restore(&mut sections, restore);
        Ok((vcpus.map_err(Error::Restore)?, drives, sections))
    }

    /// Returns the image of the guest, which only the state file names.
    fn image(&self) -> GuestImage {
        match self.untrusted {
            true => GuestImage::Untrusted,
            false => GuestImage::Named,
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

    /// Opens the files of the load: those of the snapshot and the disks. Another process can load the snapshot with them as
    /// [`PassedFiles`].
    ///
    /// # Errors
    /// [`Error`] if a file cannot be opened, or the snapshot cannot be loaded on this host.
    pub fn open_files(&self) -> Result<Vec<(PathBuf, File)>, Error> {
        let (path, links) = (&self.state, self.links());
        if self.untrusted {
            names::check_files(path, &self.memory, &self.working_set).map_err(Error::Name)?;
        }
        let (state, memory) = match self.open_generation()? {
            Some(GenerationFiles { state, memory }) => (state, Some(memory)),
            None => (file::open(path, links).map_err(Error::State)?, None),
        };
        let read = file::read_open(&state, path, Some(&host_identity())).map_err(Error::State)?;
        let spec = self.check(&read, &HostMemory::this())?;
        let mut files = vec![(path.clone(), state)];
        if let MemorySource::File(path) = &self.memory {
            let open = || source::open_memory_file(path.clone(), links).map(MemoryFile::into_file);
            let opened = memory.map_or_else(open, Ok).map_err(Error::Memory)?;
            files.push((path.clone(), opened));
        }
        let mut sections = read.reader().map_err(Error::Sections)?;
        let drives = SavedDrives::read(&mut sections)?;
        for DriveConfig { disk, .. } in spec.config().drives() {
            let opened = disk::open_file(&disk.path, disk.read_only);
            let failed = |source| block::Error::Disk {
                id: disk.id.clone(),
                source,
            };
            let opened =
                opened.map_err(|source| Error::Device(machine::DeviceError::Drive(failed(source))))?;
            self.compare(&drives, &disk.id, &disk.path, DiskStamp::of(&opened))?;
            files.push((disk.path.clone(), opened));
        }
        Ok(files)
    }

    /// Compares the disk of the drive `id`, open at `path`, with that of the snapshot.
    fn compare(
        &self,
        drives: &SavedDrives,
        id: &str,
        path: &Path,
        found: io::Result<DiskStamp>,
    ) -> Result<(), Error> {
        // The open of a disk that cannot be inspected has failed before.
        let Ok(found) = found else { return Ok(()) };
        let compared = drives
            .disks
            .compare(id, (path, found), &drives.config, &self.overrides);
        self.drive_check
            .treat(compared)
            .map_err(|changed| Error::Changed(Box::new(changed)))
    }

    fn open_generation(&self) -> Result<Option<GenerationFiles>, Error> {
        let Some(directory) = &self.generations else {
            return Ok(None);
        };
        open_current(directory, self.links()).map_err(Error::Generation)
    }

    /// Reads the state file, and checks it and the parameters. Files in `passed` are not opened again.
    pub(crate) fn open(
        self,
        mut passed: PassedFiles,
        host_memory: &HostMemory,
        timeline: &Timeline,
    ) -> Result<OpenSnapshot, Error> {
        if self.untrusted {
            names::check_files(&self.state, &self.memory, &self.working_set).map_err(Error::Name)?;
        }
        // A client has passed the files of the generation that was current then.
        if !passed.has(&self.state)
            && let Some(files) = self.open_generation()?
        {
            passed.add(self.state.clone(), files.state);
            if let MemorySource::File(path) = &self.memory {
                passed.add(path.clone(), files.memory);
            }
        }
        let (path, host) = (&self.state, host_identity());
        let read = timeline.measure(Lane::Main, "read state", || match passed.take(path) {
            Some(file) => file::read_open(&file, path, Some(&host)),
            None => file::read_with(path, Some(&host), self.links()),
        });
        let state = read.map_err(Error::State)?;
        let spec = self.check(&state, host_memory)?;
        first_frames::read(&self.first_frames, spec.config(), &mut passed).map_err(Error::FirstFrames)?;
        Ok(OpenSnapshot {
            params: self,
            state,
            spec,
            passed,
        })
    }

    /// Checks `state` and the overrides. Returns the configuration of the machine.
    fn check(&self, state: &StateFile, host: &HostMemory) -> Result<VmSpec, Error> {
        if state.header().contents == Contents::Diff {
            return Err(Error::Diff(self.state.clone()));
        }
        let mut sections = state.reader().map_err(Error::Sections)?;
        let mut config = read_config(&mut sections).map_err(Error::Sections)?;
        if self.untrusted {
            config.cpu_features.distrust();
        }
        let spec = self.apply_overrides(config, state.header().memory, host)?;
        if self.untrusted {
            names::check_named(spec.config(), &self.overrides).map_err(Error::Name)?;
        }
        Ok(spec)
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

/// A snapshot whose state file has been read and checked. Its other files and its devices are not open, unless they were passed.
#[derive(Debug)]
pub struct OpenSnapshot {
    params: LoadSnapshotParams,
    state: StateFile,
    spec: VmSpec,
    passed: PassedFiles,
}

impl OpenSnapshot {
    /// Returns the parameters of the load.
    pub fn params(&self) -> &LoadSnapshotParams {
        &self.params
    }

    /// Checks that `prepared` can become the VM, memory included.
    pub(crate) fn check_prepared(&self, prepared: &PreparedVm) -> Result<(), Error> {
        prepared.check_restore(&self.spec).map_err(Error::Prepared)
    }

    /// Loads the snapshot into a paused VM, for which the VM of `prepare` is used if it fits. The console is opened last: terminal and
    /// files stay untouched if the snapshot, its memory or a device cannot be opened.
    pub(crate) fn load(
        self,
        prepare: impl FnOnce() -> Option<PreparedVm>,
        open_console: impl FnOnce() -> Result<Console, ConsoleError>,
        timeline: &Arc<Timeline>,
    ) -> Result<Vm, Error> {
        let Self {
            params,
            state,
            spec,
            mut passed,
        } = self;
        names::log(spec.config(), &params.overrides, &params.memory);
        let opened = params.working_set.open(&state, &params.memory, params.links());
        let (set, recording) = opened.map_err(Error::WorkingSet)?;
        let tracker = params
            .track_dirty_pages
            .then(|| DirtyTracker::select(params.memory.is_served()));
        let prepared = prepare();
        prepared.iter().for_each(PreparedVm::expect_order);
        let mapped = timeline.measure(Lane::Main, "map memory file", || {
            let is_logged = tracker.as_ref().is_some_and(DirtyTracker::needs_log);
            let target = MapTarget {
                slots: prepared
                    .as_ref()
                    .and_then(|prepared| prepared.memory_for_restore(&spec)),
                is_logged,
                links: params.links(),
            };
            params.memory.map(spec.config(), target, &mut passed)
        });
        let (memory, backing) = mapped.map_err(Error::Memory)?;
        let parts = MachineParts::create(&spec, Some(memory), prepared, timeline);
        let parts = parts.map_err(|source| Error::Machine(machine::Error::Parts(source)))?;
        let (vcpus, drives, sections) = params.begin_restore(&parts, &state)?;
        let prefetch = match (set, &backing) {
            (Some(set), MemoryBacking::File(file)) => Some(Prefetch::new(set, file.file())),
            _ => None,
        };
        let devices = open_unlocked_devices(&spec, &mut passed).map_err(Error::Device)?;
        for (config, device) in spec.config().devices.iter().zip(&devices) {
            if let Some(disk) = device.disk() {
                params.compare(&drives, config.id(), disk.path(), disk.stamp())?;
            }
        }
        let Console {
            output,
            input,
            filter,
            guard,
        } = open_console().map_err(Error::Console)?;
        let mut machine =
            Machine::build_with(parts, spec, devices, output, timeline.clone()).map_err(Error::Machine)?;
        machine.set_dirty_tracker(tracker);
        set_memory_source(&mut machine, &backing);
        let restored = timeline.measure(Lane::Main, "restore state", || {
            machine.restore(vcpus, sections, params.realtime)
        });
        let machine = restored.map_err(Error::Restore)?;
        let input = input.map(|file| ConsoleInput { file, filter });
        let mut vm = Vm::restored(machine, backing, params.image(), input, guard);
        vm.set_recording(recording);
        if let Some(prefetch) = prefetch {
            timeline.measure(Lane::Main, "make pages ready", || vm.start_prefetch(prefetch));
        }
        Ok(vm)
    }
}

/// Prepares `machine` for waits for its memory.
fn set_memory_source(machine: &mut Machine, backing: &MemoryBacking) {
    if let MemoryBacking::Uffd(handler) = backing {
        machine.set_fault_handler(handler.clone());
    }
}
