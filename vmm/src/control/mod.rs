//! Control of a VM: configuration, start, pause, changes, snapshots and metrics.
//!
//! ```text
//! Not started ── start, load_snapshot ──> Running <── pause, resume ──> Paused
//! ```
//! Image, disks and taps are opened as soon as they are configured. A failed request changes nothing, except that a snapshot that
//! cannot be loaded ends the process.

mod builder;
mod error;
mod metrics;
#[cfg(test)]
mod tests;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use builder::VmBuilder;

use crate::boot::{Image, Initrd};
use crate::config::{DeviceConfig, DeviceUpdate, HostMemory, MemorySize, VmConfig};
use crate::memory::ResidencyCounter;
use crate::vm::Vm;

pub use crate::ErrorChain;
pub use crate::machine::{DeviceCounters, DeviceError, UpdateError};
pub use crate::memory::dump::DumpStats;
pub use crate::persistence::{
    Contents, CreateSnapshotError, CreateSnapshotParams, DEFAULT_RECORD_LENGTH, FileRole, LoadSnapshotError,
    LoadSnapshotParams, MAX_RECORD_MS, MemorySource, MergeError, NameError, OpenFile, RecordOptions,
    STATE_VERSION, SnapshotKind, UnnamedDevice, WorkingSetError, WorkingSetOptions, describe_snapshot,
    describe_working_set, merge_snapshots, state_version,
};
pub use crate::timeline::Timeline;
pub use builder::OpenConsole;
pub use devices::virtio::block::BlockMetrics;
pub use devices::virtio::net::NetMetrics;
pub use error::Error;
pub use metrics::{DeviceMetrics, DriveMetrics, InterfaceMetrics, StartPhase, VcpuMetrics, VmMetrics};

/// Server of requests for the VM from outside the process, such as an API.
pub trait Service {
    /// Returns a descriptor that is readable while there is work. It never changes.
    fn descriptor(&self) -> RawFd;

    /// Processes a bounded batch of requests without blocking.
    fn ready(&mut self, control: &mut Control);

    /// Handles SIGHUP. Returns true if log files were reopened; otherwise the signal ends the VM.
    fn reopen_logs(&mut self) -> bool {
        false
    }
}

/// State of the instance, as Firecracker names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// Before the start.
    NotStarted,
    /// The guest runs.
    Running,
    /// The vCPUs are stopped until the VM is resumed.
    Paused,
}

/// Size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: MemorySize,
    /// The client requests dirty page tracking, which has no effect: changed pages are known at no cost in any case.
    pub track_dirty_pages: bool,
    /// The kernel is advised to use huge pages.
    pub huge_pages: bool,
}

/// A VM and its configuration, from before the start to the end.
pub struct Control {
    host: HostMemory,
    timeline: Arc<Timeline>,
    open_console: OpenConsole,
    instance: Instance,
    /// The load of a snapshot has failed.
    failed: bool,
    residency: ResidencyCounter,
}

enum Instance {
    NotStarted(Box<VmBuilder>),
    Started(Box<Vm>),
}

impl Control {
    /// Returns a VM without configuration.
    pub fn new(open_console: OpenConsole, timeline: Arc<Timeline>) -> Self {
        Self {
            host: HostMemory::this(),
            timeline,
            open_console,
            instance: Instance::NotStarted(Box::new(VmBuilder::new())),
            failed: false,
            residency: ResidencyCounter::default(),
        }
    }

    /// Replaces the whole configuration. `image` and `initrd` are the open files of `config`.
    ///
    /// # Errors
    /// [`Error::AfterStart`]
    pub fn configure(&mut self, config: VmConfig, image: Image, initrd: Option<Initrd>) -> Result<(), Error> {
        *self.builder()? = VmBuilder::with_image(config, image, initrd);
        Ok(())
    }

    /// Returns the state of the instance.
    pub fn state(&self) -> InstanceState {
        match &self.instance {
            Instance::NotStarted(_) => InstanceState::NotStarted,
            Instance::Started(vm) if vm.is_paused() => InstanceState::Paused,
            Instance::Started(_) => InstanceState::Running,
        }
    }

    /// Returns the configuration, with the changes that were made since the start.
    pub fn config(&self) -> &VmConfig {
        match &self.instance {
            Instance::NotStarted(builder) => &builder.config,
            Instance::Started(vm) => vm.machine().spec().config(),
        }
    }

    /// Returns true if an image is configured or the VM has been started.
    pub fn has_kernel(&self) -> bool {
        match &self.instance {
            Instance::NotStarted(builder) => builder.has_kernel(),
            Instance::Started(_) => true,
        }
    }

    /// Sets the size of the machine.
    ///
    /// # Errors
    /// [`Error::AfterStart`], and [`Error::Config`] when a value is out of range.
    pub fn set_machine(&mut self, machine: MachineConfig) -> Result<(), Error> {
        let host = self.host;
        let builder = self.builder()?;
        // Checked without the devices, so that the error does not name one.
        let mut without_devices = VmConfig::new(PathBuf::new());
        machine.apply(&mut without_devices);
        without_devices.check(&host).map_err(Error::Config)?;
        builder.set_machine(|config| machine.apply(config));
        Ok(())
    }

    /// Sets image, initial RAM disk and command line.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Image`] and [`Error::Initrd`].
    pub fn set_boot(
        &mut self,
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
    ) -> Result<(), Error> {
        self.builder()?.set_boot(kernel, initrd, cmdline)
    }

    /// Adds a device, or replaces the device of the same kind and ID. The ID must not be empty.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Config`] and [`Error::Device`].
    pub fn put_device(&mut self, config: impl Into<DeviceConfig>) -> Result<(), Error> {
        self.builder()?.put_device(config.into())
    }

    /// Appends the guest's output to the file or FIFO at `path`; the guest then gets no input. Without a path, the guest has its
    /// usual console again.
    ///
    /// # Errors
    /// [`Error::AfterStart`] and [`Error::Serial`].
    pub fn set_serial(&mut self, path: Option<&Path>) -> Result<(), Error> {
        self.builder()?.set_serial(path)
    }

    /// Builds the machine and runs the guest. After an error it can be called again.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(&mut self) -> Result<(), Error> {
        let Instance::NotStarted(builder) = &mut self.instance else {
            return Err(Error::AfterStart);
        };
        let started = builder.start(&self.host, &mut self.open_console, &self.timeline);
        // Cleared, so that a client that repeats a failing start cannot grow the timeline.
        let vm = started.inspect_err(|_| self.timeline.clear())?;
        self.instance = Instance::Started(Box::new(vm));
        Ok(())
    }

    /// Loads a snapshot, and resumes the VM if `params` request it. The event loop ends the process after any error except
    /// [`LoadSnapshotError::Configured`]: the load may have changed the host side of the devices.
    ///
    /// # Errors
    /// [`LoadSnapshotError`]; [`LoadSnapshotError::Configured`] when the VM was configured or started before.
    pub fn load_snapshot(&mut self, params: &LoadSnapshotParams) -> Result<(), LoadSnapshotError> {
        let builder = match &self.instance {
            Instance::NotStarted(builder) if !builder.is_configured() => builder,
            _ => return Err(LoadSnapshotError::Configured),
        };
        let console = || builder.console(&mut self.open_console).map_err(Into::into);
        let vm = params.load(&self.host, console, &self.timeline);
        self.failed = vm.is_err();
        let mut vm = vm?;
        if params.resume {
            vm.resume();
        } else {
            vm.prepare_resume();
        }
        self.instance = Instance::Started(Box::new(vm));
        Ok(())
    }

    /// Returns true after a [`load_snapshot`](Self::load_snapshot) that failed and must not be repeated.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Creates a snapshot of the VM, which must be paused and stays so. It replaces none of the open files of the VM and of the
    /// `process` around it. Returns the amount of memory written.
    ///
    /// # Errors
    /// [`CreateSnapshotError`]
    pub fn create_snapshot(
        &mut self,
        params: &CreateSnapshotParams,
        process: &[OpenFile],
    ) -> Result<DumpStats, CreateSnapshotError> {
        let vm = self.vm_mut().ok_or(CreateSnapshotError::Running)?;
        if vm.is_paused() {
            // A VM that is resumed after this touches pages for other reasons than its load.
            vm.end_begun_recording();
        }
        params.create(vm, process)
    }

    /// Pauses the guest. Has no effect on a paused guest.
    ///
    /// # Errors
    /// [`Error::BeforeStart`]. [`Error::Machine`] when a vCPU waits for a fault handler.
    pub fn pause(&mut self) -> Result<(), Error> {
        let vm = self.vm_mut().ok_or(Error::BeforeStart)?;
        vm.pause().map_err(Error::Machine)
    }

    /// Resumes the guest. Has no effect on a running guest.
    ///
    /// # Errors
    /// [`Error::BeforeStart`]
    pub fn resume(&mut self) -> Result<(), Error> {
        self.vm_mut().map(Vm::resume).ok_or(Error::BeforeStart)
    }

    /// Presses Ctrl-Alt-Del on the guest's keyboard. The keys are lost if the keyboard is disabled or its buffer is full.
    ///
    /// # Errors
    /// [`Error::BeforeStart`] and [`Error::NoKeyboard`].
    pub fn send_ctrl_alt_del(&mut self) -> Result<(), Error> {
        let vm = self.vm().ok_or(Error::BeforeStart)?;
        if vm.machine().press_ctrl_alt_del() {
            return Ok(());
        }
        Err(Error::NoKeyboard)
    }

    /// Changes the attached device `id`; `update` determines its kind.
    ///
    /// # Errors
    /// [`Error::BeforeStart`], [`Error::Unknown`] and [`Error::Update`].
    pub fn update_device(&mut self, id: &str, update: &DeviceUpdate) -> Result<(), Error> {
        let machine = self.vm_mut().ok_or(Error::BeforeStart)?.machine_mut();
        let kind = update.kind();
        let mut devices = machine.devices().iter();
        let Some(device) = devices.find(|device| device.kind() == kind && device.id() == id) else {
            return Err(Error::Unknown {
                kind,
                id: id.to_owned(),
                known: machine.spec().config().list_ids(kind),
            });
        };
        machine
            .update_device(device, update)
            .map_err(|source| Error::Update {
                kind,
                id: id.to_owned(),
                source,
            })?;
        machine.change_config(|config| {
            if let Some(index) = config.position(kind, id) {
                config.devices[index].apply(update);
            }
        });
        Ok(())
    }

    /// Returns the metrics of the VM.
    pub fn metrics(&self) -> VmMetrics {
        VmMetrics::collect(self.vm(), &self.timeline, &self.residency)
    }

    /// Returns the VM once it has been started.
    pub fn vm(&self) -> Option<&Vm> {
        match &self.instance {
            Instance::NotStarted(_) => None,
            Instance::Started(vm) => Some(vm),
        }
    }

    /// Returns the VM once it has been started, to change it.
    pub fn vm_mut(&mut self) -> Option<&mut Vm> {
        match &mut self.instance {
            Instance::NotStarted(_) => None,
            Instance::Started(vm) => Some(vm),
        }
    }

    fn builder(&mut self) -> Result<&mut VmBuilder, Error> {
        match &mut self.instance {
            Instance::NotStarted(builder) => Ok(builder),
            Instance::Started(_) => Err(Error::AfterStart),
        }
    }
}

impl MachineConfig {
    fn apply(self, config: &mut VmConfig) {
        config.vcpus = self.vcpus;
        config.memory = self.memory;
        config.track_dirty_pages = self.track_dirty_pages;
        config.huge_pages = self.huge_pages;
    }
}
