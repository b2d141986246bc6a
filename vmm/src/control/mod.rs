//! Control of a VM: configuration, start, pause, changes, snapshots and metrics.
//!
//! ```text
//! Not started ── start, load_snapshot ──> Running <── pause, resume ──> Paused
//! ```
//! Image, disks and taps are opened as soon as they are configured. A failed request changes nothing, except that a snapshot that
//! cannot be loaded ends the process.
//!
//! An operation that may wait for a disk or for a fault handler runs on a thread of its own, see [`Progress`]. The event loop goes on
//! meanwhile; the caller must not begin another operation before it has ended.

mod builder;
mod crash;
mod debug;
mod error;
mod idle;
mod metrics;
mod operation;
mod preparation;
mod scale_to_zero;
mod status;
mod suspend;
#[cfg(test)]
mod tests;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use builder::VmBuilder;
use operation::Operation;
use preparation::Preparation;
use scale_to_zero::ScaleToZero;
use status::StatusHistory;

use crate::arch::{Native, Platform};
use crate::boot::{Image, Initrd};
use crate::cancellation::{BeginError, Cancellation};
use crate::config::{
    Bucket, CpuFeatures, DeviceConfig, DeviceUpdate, HostMemory, MemorySize, Protocol, SerialTarget, VmConfig,
};
use crate::debugger::Debugger;
use crate::machine::{self, PreparedVm};
use crate::memory::ResidencyCounter;
use crate::vm::Vm;

pub use crate::ErrorChain;
pub use crate::arch::{AddressSpace, InputMetrics};
pub use crate::debugger::{AttachError, DebugAbilities, DebugSettings};
pub use crate::machine::{DeviceCounters, DeviceError, PassedFiles, UpdateError};
pub use crate::memory::dump::DumpStats;
pub use crate::persistence::{
    ChangedDrive, Contents, CreateSnapshotError, CreateSnapshotParams, DEFAULT_RECORD_LENGTH, DriveCheck,
    FileRole, FirstFramesError, FirstFramesFile, GenerationError, LoadSnapshotError, LoadSnapshotParams,
    MAX_RECORD_MS, MEMORY_NAME, MemorySource, MergeError, NameError, OpenFile, OpenSnapshot, RecordOptions,
    STATE_NAME, STATE_VERSION, SnapshotKind, UnnamedDevice, WorkingSetError, WorkingSetOptions,
    describe_snapshot, describe_working_set, merge_snapshots, resolve_generation, state_version,
};
pub use crate::private_socket::{SocketFile, is_live};
pub use crate::timeline::Timeline;
pub use crate::vcpu::{Access, UnclaimedAccess, VcpuActivity};
pub use builder::OpenConsole;
pub use crash::CrashDirectoryError;
pub use devices::Latency;
pub use devices::serial::SerialMetrics;
pub use devices::virtio::TransportMetrics;
pub use devices::virtio::block::BlockMetrics;
pub use devices::virtio::net::NetMetrics;
pub use devices::virtio::{DriverState, StatusBit};
pub use error::{Error, OperationError};
pub use idle::BusyReason;
pub use metrics::{
    DeviceMetrics, DriveMetrics, InterfaceMetrics, OperationTimes, StartPhase, VcpuMetrics, VmMetrics,
};
pub use scale_to_zero::{
    CancelReason, DEFAULT_COOLDOWN, DEFAULT_MAX_CPU_PERCENT, IdlePolicy, IdleState, MAX_COOLDOWN_MS,
    ScaleToZeroConfig, ScaleToZeroError, ScaleToZeroMetrics, ScaleToZeroStatus, SnapshotFiles,
};
pub use status::{CpuStatus, DeviceStatus, VcpuInspection, VcpuStatus, VmStatus};

/// Server of requests for the VM from outside the process, such as an API.
pub trait Service {
    /// Returns a descriptor that is readable while there is work. It never changes.
    fn descriptor(&self) -> RawFd;

    /// Processes a bounded batch of requests without blocking.
    fn ready(&mut self, control: &mut Control);

    /// Handles the `result` of an operation that a request has begun.
    fn finish_operation(&mut self, control: &mut Control, result: OperationResult);

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

/// Progress of an operation after its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The operation has ended.
    Done,
    /// The operation runs on another thread. [`Service::finish_operation`] gets its result.
    Pending,
}

/// Result of an operation on another thread.
pub type OperationResult = Result<(), OperationError>;

/// Last part of an operation, on the main thread.
type Completion = Box<dyn FnOnce(&mut Control) -> OperationResult + Send>;

/// Size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Each two vCPUs are threads of one core.
    pub smt: bool,
    /// Guest memory.
    pub memory: MemorySize,
    /// The client requests dirty page tracking, which has no effect: changed pages are known at no cost in any case.
    pub track_dirty_pages: bool,
    /// The kernel is advised to use huge pages.
    pub huge_pages: bool,
    /// Processor features that the guest gets by request alone.
    pub cpu_features: CpuFeatures,
}

/// A VM and its configuration, from before the start to the end.
pub struct Control {
    host: HostMemory,
    timeline: Arc<Timeline>,
    open_console: OpenConsole,
    instance: Instance,
    /// VM for the start or load.
    preparation: Option<Preparation>,
    /// Directory for the snapshot of a crash.
    crash_directory: Option<PathBuf>,
    crash_snapshot: Option<Result<PathBuf, String>>,
    /// Settings of a debugger before the start.
    debug_settings: Option<Box<DebugSettings>>,
    debugger: Option<Debugger>,
    has_plain_crash_status: bool,
    /// The load of a snapshot has failed.
    failed: bool,
    residency: ResidencyCounter,
    status_history: StatusHistory,
    console_name: Option<String>,
    times: OperationTimes,
    scale_to_zero: Box<ScaleToZero>,
    operation: Option<Operation<Completion>>,
    /// Signalled at the end of each operation. `None` before the first one.
    operation_ended: Option<Arc<EventFd>>,
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
            preparation: None,
            crash_directory: None,
            crash_snapshot: None,
            debug_settings: None,
            debugger: None,
            has_plain_crash_status: false,
            failed: false,
            residency: ResidencyCounter::default(),
            status_history: StatusHistory::default(),
            console_name: None,
            times: OperationTimes::default(),
            scale_to_zero: Box::default(),
            operation: None,
            operation_ended: None,
        }
    }

    /// Begins to create what a start or a load needs in any case, on another thread. A failure has no effect: the start or the load
    /// creates it then, and reports its error.
    pub fn prepare(&mut self) {
        self.preparation = Preparation::begin(&self.host, &self.timeline);
    }

    /// Creates the parts of a VM that do not depend on a snapshot, for the load of one with the shape of `config`: memory size, vCPUs
    /// and interrupt controllers.
    ///
    /// # Errors
    /// [`Error::Config`] when a value is out of range, [`Error::Machine`] when KVM cannot be used.
    pub fn prepare_load(&mut self, config: VmConfig) -> Result<(), Error> {
        let spec = config.check(&self.host).map_err(Error::Config)?;
        let prepared = PreparedVm::with_memory(spec, &self.timeline);
        let prepared = prepared.map_err(|error| Error::Machine(machine::Error::Parts(error)))?;
        self.preparation = Some(Preparation::Complete(Box::new(prepared)));
        Ok(())
    }

    /// Wakes the threads of the VM of [`prepare_load`](Self::prepare_load) for a load that follows soon, and restarts the timeline.
    pub fn expect_load(&self) {
        self.timeline.restart(Instant::now());
        if let Some(Preparation::Complete(prepared)) = &self.preparation {
            prepared.expect_order();
        }
    }

    /// Reads and checks the state file of a snapshot, for the VM of [`prepare_load`](Self::prepare_load). Files in `passed` are not
    /// opened again. Changes nothing.
    ///
    /// # Errors
    /// [`LoadSnapshotError`]; [`LoadSnapshotError::Prepared`] when the VM has another shape.
    pub fn open_snapshot(
        &self,
        params: LoadSnapshotParams,
        passed: PassedFiles,
    ) -> Result<OpenSnapshot, LoadSnapshotError> {
        let snapshot = params.open(passed, &self.host, &self.timeline)?;
        if let Some(Preparation::Complete(prepared)) = &self.preparation {
            snapshot.check_prepared(prepared)?;
        }
        Ok(snapshot)
    }

    /// Replaces the whole configuration of the machine. `image` and `initrd` are the open files of `config`.
    ///
    /// # Errors
    /// [`Error::AfterStart`]
    pub fn configure(&mut self, config: VmConfig, image: Image, initrd: Option<Initrd>) -> Result<(), Error> {
        let builder = self.builder()?;
        *builder = VmBuilder::with_image(config, image, initrd, builder.take_serial());
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
            Instance::Started(vm) => vm.config(),
        }
    }

    /// Returns true if an image is configured or the VM has been started.
    pub fn has_kernel(&self) -> bool {
        match &self.instance {
            Instance::NotStarted(builder) => builder.has_kernel(),
            Instance::Started(_) => true,
        }
    }

    /// Sets the size of the machine, and its processor features.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Config`] when a value is out of range, and [`Error::NoSmt`] and [`Error::Machine`] for a property
    /// of another architecture.
    pub fn set_machine(&mut self, machine: MachineConfig) -> Result<(), Error> {
        let host = self.host;
        self.builder()?;
        // Checked without the devices, so that the error does not name one.
        let mut without_devices = VmConfig::new(PathBuf::new());
        machine.apply(&mut without_devices);
        if without_devices.smt && Native::MAX_CORE_THREADS < 2 {
            return Err(Error::NoSmt);
        }
        let spec = without_devices.clone().check(&host).map_err(Error::Config)?;
        // The image selects the address layout, at the start.
        without_devices.layout = Native::DEFAULT_LAYOUT;
        let native = without_devices.check(&host).map_err(Error::Config)?;
        Native::check(&native).map_err(|error| Error::Machine(machine::Error::Platform(error)))?;
        self.builder()?.set_machine(|config| machine.apply(config));
        if let Some(previous) = self.preparation.take() {
            self.preparation = Preparation::change(previous, spec, &self.timeline);
        }
        Ok(())
    }

    /// Sets image, initial RAM disk, command line, and the boot protocol unless the image selects it.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Image`] and [`Error::Initrd`].
    pub fn set_boot(
        &mut self,
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
        protocol: Option<Protocol>,
    ) -> Result<(), Error> {
        self.builder()?.set_boot(kernel, initrd, cmdline, protocol)
    }

    /// Adds a device, or replaces the device of the same kind and ID. The ID must not be empty.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Config`] and [`Error::Device`].
    pub fn put_device(&mut self, config: impl Into<DeviceConfig>) -> Result<(), Error> {
        self.builder()?.put_device(config.into())
    }

    /// Connects the guest's serial port with `target`. Output beyond `limit` is dropped. Neither is part of a snapshot; both apply to a
    /// loaded one.
    ///
    /// # Errors
    /// [`Error::AfterStart`] and [`Error::Serial`]; the former target stays.
    pub fn set_serial(&mut self, target: SerialTarget, limit: Option<Bucket>) -> Result<(), Error> {
        let builder = self.builder()?;
        builder.set_serial(target, limit)?;
        self.console_name = builder.serial_name();
        if let Some(name) = &self.console_name {
            log::info!("the serial console is at {name}");
        }
        Ok(())
    }

    /// Returns the other end of the guest's serial port in the form of [`SerialTarget`], with the path of a pseudoterminal. `None` for
    /// stdin and stdout.
    pub fn console_name(&self) -> Option<&str> {
        self.console_name.as_deref()
    }

    /// Builds the machine and runs the guest. After an error it can be called again.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(&mut self) -> Result<(), Error> {
        let Instance::NotStarted(builder) = &mut self.instance else {
            return Err(Error::AfterStart);
        };
        let prepared = &mut self.preparation;
        let started = builder.start(
            &self.host,
            prepared,
            &mut self.open_console,
            &self.timeline,
            self.debug_settings.as_deref(),
        );
        // Cleared, so that a client that repeats a failing start cannot grow the timeline.
        let vm = started.inspect_err(|_| self.timeline.clear())?;
        self.start_debugger(vm.core()).map_err(Error::Thread)?;
        self.instance = Instance::Started(Box::new(vm));
        Ok(())
    }

    /// Loads a snapshot, and resumes the VM if `params` request it. With a fault handler the load runs on another thread. The event
    /// loop ends the process after any error except [`LoadSnapshotError::Configured`] and [`LoadSnapshotError::Resume`]: the load may
    /// have changed the host side of the devices.
    ///
    /// # Errors
    /// [`LoadSnapshotError`]; [`LoadSnapshotError::Configured`] when the VM was configured or started before;
    /// [`LoadSnapshotError::Resume`] when the VM is loaded and stays paused.
    pub fn load_snapshot(&mut self, params: LoadSnapshotParams) -> Result<Progress, LoadSnapshotError> {
        let (host, timeline) = (self.host, self.timeline.clone());
        let (resume, is_served) = (params.resume, matches!(params.memory, MemorySource::Uffd(_)));
        let open = move || params.open(PassedFiles::default(), &host, &timeline);
        self.load_with(open, resume, is_served)
    }

    /// Loads `snapshot` as [`load_snapshot`](Self::load_snapshot) does.
    ///
    /// # Errors
    /// As [`load_snapshot`](Self::load_snapshot).
    pub fn load_open_snapshot(&mut self, snapshot: OpenSnapshot) -> Result<Progress, LoadSnapshotError> {
        let params = snapshot.params();
        let (resume, is_served) = (params.resume, matches!(params.memory, MemorySource::Uffd(_)));
        self.load_with(move || Ok(snapshot), resume, is_served)
    }

    fn load_with(
        &mut self,
        open: impl FnOnce() -> Result<OpenSnapshot, LoadSnapshotError> + Send + 'static,
        resume: bool,
        is_served: bool,
    ) -> Result<Progress, LoadSnapshotError> {
        let start = Instant::now();
        let builder = match &mut self.instance {
            Instance::NotStarted(builder) if !builder.is_configured() => builder,
            _ => return Err(LoadSnapshotError::Configured),
        };
        let serial = builder.take_serial();
        let no_console: OpenConsole = Box::new(|| Err("the console is open already".into()));
        let mut open_console = std::mem::replace(&mut self.open_console, no_console);
        let console = move || {
            let opened = serial.open_console(&mut open_console);
            opened.map_err(Into::into)
        };
        let timeline = self.timeline.clone();
        let preparation = self.preparation.take();
        let prepare = move || preparation.and_then(Preparation::wait);
        let load = move || open()?.load(prepare, console, &timeline).map(Box::new);
        if !is_served {
            return self.finish_load(load(), resume, start).map(|()| Progress::Done);
        }
        let begun = self.begin(move |_| {
            let loaded = load();
            move |control: &mut Self| {
                control
                    .finish_load(loaded, resume, start)
                    .map_err(OperationError::Load)
            }
        });
        self.failed |= begun.is_err();
        begun.map_err(LoadSnapshotError::Thread)
    }

    fn finish_load(
        &mut self,
        loaded: Result<Box<Vm>, LoadSnapshotError>,
        resume: bool,
        start: Instant,
    ) -> Result<(), LoadSnapshotError> {
        self.failed |= loaded.is_err();
        let mut vm = loaded?;
        let restricted = vm.machine().restrict();
        self.failed |= restricted.is_err();
        restricted.map_err(LoadSnapshotError::Machine)?;
        if let Some(settings) = &self.debug_settings {
            vm.machine().await_debugger(settings.is_running);
        }
        self.start_debugger(vm.core())
            .map_err(LoadSnapshotError::Thread)?;
        let resumed = if resume {
            vm.resume()
        } else {
            vm.prepare_resume();
            Ok(())
        };
        self.instance = Instance::Started(vm);
        self.times.load_us = OperationTimes::elapsed_us(start);
        resumed.map_err(LoadSnapshotError::Resume)
    }

    /// Returns true after a [`load_snapshot`](Self::load_snapshot) that failed and must not be repeated. The event loop then ends the
    /// process, and a service must execute no further request.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Creates a snapshot of the VM, which must be paused and stays so. It replaces none of the open files of the VM and of the
    /// `process` around it. Runs on another thread, unless it is a small Diff in memory.
    ///
    /// # Errors
    /// [`CreateSnapshotError`]
    pub fn create_snapshot(
        &mut self,
        params: CreateSnapshotParams,
        process: Vec<OpenFile>,
    ) -> Result<Progress, CreateSnapshotError> {
        let (start, kind) = (Instant::now(), params.kind);
        let vm = self.vm_mut().filter(|vm| vm.is_paused());
        let vm = vm.ok_or(CreateSnapshotError::Running)?;
        // A VM that is resumed after this touches pages for other reasons than its load.
        vm.end_begun_recording();
        if let Some(created) = params.create_quickly(vm.core(), vm.config(), &process) {
            created?;
            *self.times.create_us(kind) = OperationTimes::elapsed_us(start);
            return Ok(Progress::Done);
        }
        let (core, config) = (vm.core().clone(), vm.config().clone());
        let begun = self.begin(move |cancellation| {
            let created = params.create(&core, &config, &process, cancellation);
            move |control: &mut Self| {
                created.map_err(OperationError::Create)?;
                *control.times.create_us(kind) = OperationTimes::elapsed_us(start);
                Ok(())
            }
        });
        begun.map_err(CreateSnapshotError::Thread)
    }

    /// Pauses the guest. Has no effect on a paused guest. With an I/O thread, or if a thread does not stop at once, the pause runs on
    /// another thread.
    ///
    /// # Errors
    /// [`Error::BeforeStart`] and [`Error::Thread`]. [`Error::Machine`] when a thread waits for a fault handler or a disk.
    pub fn pause(&mut self) -> Result<Progress, Error> {
        let start = Instant::now();
        let vm = self.vm_mut().ok_or(Error::BeforeStart)?;
        if vm.is_paused() {
            return Ok(Progress::Done);
        }
        let core = vm.core().clone();
        if !core.machine().has_io_thread() && core.pause_quickly().is_ok() {
            return self.finish_pause(Ok(()), start).map(|()| Progress::Done);
        }
        let begun = self.begin(move |_| {
            let paused = core.pause();
            move |control: &mut Self| {
                control
                    .finish_pause(paused, start)
                    .map_err(OperationError::Control)
            }
        });
        begun.map_err(Error::Thread)
    }

    fn finish_pause(&mut self, paused: Result<(), machine::Error>, start: Instant) -> Result<(), Error> {
        paused.map_err(Error::Machine)?;
        if let Some(vm) = self.vm_mut() {
            vm.set_paused();
        }
        self.times.pause_us = OperationTimes::elapsed_us(start);
        Ok(())
    }

    /// Resumes the guest. Has no effect on a running guest.
    ///
    /// # Errors
    /// [`Error::BeforeStart`]. [`Error::Machine`] when another VM uses a disk of a loaded snapshot; the guest stays paused then.
    pub fn resume(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        let vm = self.vm_mut().ok_or(Error::BeforeStart)?;
        vm.resume().map_err(Error::Machine)?;
        self.times.resume_us = OperationTimes::elapsed_us(start);
        Ok(())
    }

    /// Requests a shutdown from the guest, as a user at its console does. The guest may ignore the request.
    ///
    /// # Errors
    /// [`Error::BeforeStart`] and [`Error::NoShutdownRequest`].
    pub fn request_shutdown(&mut self) -> Result<(), Error> {
        let vm = self.vm().ok_or(Error::BeforeStart)?;
        if vm.machine().request_shutdown() {
            return Ok(());
        }
        Err(Error::NoShutdownRequest)
    }

    /// Changes the attached device `id`; `update` determines its kind. The change runs on another thread if there is an I/O
    /// thread, or if it calls a file system.
    ///
    /// # Errors
    /// [`Error::BeforeStart`], [`Error::Unknown`], [`Error::Update`] and [`Error::Thread`].
    pub fn update_device(&mut self, id: String, update: DeviceUpdate) -> Result<Progress, Error> {
        let vm = self.vm_mut().ok_or(Error::BeforeStart)?;
        let kind = update.kind();
        let Some(index) = vm.config().position(kind, &id) else {
            let known = vm.config().list_ids(kind);
            return Err(Error::Unknown { kind, id, known });
        };
        let core = vm.core().clone();
        if !core.machine().has_io_thread() && !update.calls_file_system() {
            let updated = core.machine().update_device(index, &update);
            return self.finish_update(id, &update, updated).map(|()| Progress::Done);
        }
        let begun = self.begin(move |_| {
            let updated = core.machine().update_device(index, &update);
            move |control: &mut Self| {
                let finished = control.finish_update(id, &update, updated);
                finished.map_err(OperationError::Control)
            }
        });
        begun.map_err(Error::Thread)
    }

    fn finish_update(
        &mut self,
        id: String,
        update: &DeviceUpdate,
        updated: Result<(), UpdateError>,
    ) -> Result<(), Error> {
        let kind = update.kind();
        if let Err(source) = updated {
            return Err(Error::Update { kind, id, source });
        }
        if let Some(vm) = self.vm_mut() {
            vm.change_config(|config| {
                if let Some(index) = config.position(kind, &id) {
                    config.devices[index].apply(update);
                }
            });
        }
        Ok(())
    }

    /// Runs `operation` on another thread. The function that it returns then runs on the main thread.
    pub(crate) fn begin<C>(
        &mut self,
        operation: impl FnOnce(&Cancellation) -> C + Send + 'static,
    ) -> Result<Progress, BeginError>
    where
        C: FnOnce(&mut Self) -> OperationResult + Send + 'static,
    {
        debug_assert!(self.operation.is_none(), "an operation runs already");
        let ended = match &self.operation_ended {
            Some(ended) => ended.clone(),
            None => Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BeginError::EventFd)?),
        };
        let operation = Operation::spawn(ended.clone(), |cancellation| -> Completion {
            Box::new(operation(cancellation))
        });
        self.operation = Some(operation.map_err(BeginError::Thread)?);
        self.operation_ended = Some(ended);
        Ok(Progress::Pending)
    }

    /// Returns true while an operation runs on another thread.
    pub fn is_busy(&self) -> bool {
        self.operation.is_some()
    }

    /// Requests the end of an operation that creates a snapshot; others end by themselves. Its result follows as usual.
    pub fn cancel_operation(&mut self) {
        if self.is_suspending() {
            // Too late: the process ends.
            let _ = self.cancel_suspend(CancelReason::Client);
            return;
        }
        if let Some(operation) = &self.operation {
            operation.cancel();
        }
    }

    /// Returns the eventfd that is signalled at the end of each operation, once there was one. It never changes.
    pub(crate) fn operation_ended(&self) -> Option<&EventFd> {
        self.operation_ended.as_deref()
    }

    /// Completes the operation if it has ended, and returns its result. `None` also if its completion has begun a further operation, whose
    /// result follows.
    pub(crate) fn finish_operation(&mut self) -> Option<OperationResult> {
        let completion = self.operation.as_ref()?.take_result()?;
        self.operation = None;
        let result = completion(self);
        (self.operation.is_none() || result.is_err()).then_some(result)
    }

    /// Cancels an operation at the end of the process, and waits for it: for its end if it commits its result or has files to remove,
    /// otherwise at most 100 ms.
    pub(crate) fn end_operation(&mut self) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        if operation.cancel()
            && let Some(vm) = self.vm()
        {
            // Ends waits for vCPUs and for the fault handler.
            vm.machine().stop();
        }
        operation.wait();
    }

    /// Returns the durations of the last operations.
    pub fn operation_times(&self) -> OperationTimes {
        self.times
    }

    /// Returns the metrics of the VM.
    pub fn metrics(&self) -> VmMetrics {
        let metrics = VmMetrics::collect(self.vm(), &self.timeline, &self.residency);
        VmMetrics {
            operations: self.times,
            scale_to_zero: self.scale_to_zero.metrics,
            ..metrics
        }
    }

    /// Returns the status of vCPUs and devices, empty before the start. Takes no lock and interrupts no vCPU.
    pub fn status(&mut self) -> VmStatus {
        let status = match &self.instance {
            Instance::NotStarted(_) => VmStatus::default(),
            Instance::Started(vm) => self.status_history.status(vm),
        };
        VmStatus {
            console: self.console_name().unwrap_or("stdio").to_owned(),
            ..status
        }
    }

    /// Returns the present execution of each vCPU, none before the start. Interrupts running vCPUs for some microseconds, and waits at
    /// most 20 ms for their replies.
    pub fn inspect_vcpus(&mut self) -> VcpuInspection {
        match &self.instance {
            Instance::NotStarted(_) => VcpuInspection::default(),
            Instance::Started(vm) => self.status_history.inspect(vm),
        }
    }

    /// Returns the timeline of the VM.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Returns the use that the VM has for `file`; `None` before the start.
    #[inline(never)]
    pub fn role_of(&self, file: &OpenFile) -> Option<FileRole> {
        crate::persistence::role_in(self.vm()?.core(), file)
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
        config.smt = self.smt;
        config.memory = self.memory;
        config.track_dirty_pages = self.track_dirty_pages;
        config.huge_pages = self.huge_pages;
        config.cpu_features = self.cpu_features;
    }
}
