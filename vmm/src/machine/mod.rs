//! A machine: memory, buses, devices and vCPUs of a VM, from its build to its stop.
//!
//! The order of KVM calls is part of the design: the VM, its memory slots, the interrupt controllers, the vCPUs, and last the
//! devices, which register with KVM's I/O buses. On aarch64 the interrupt controller follows the vCPUs. A memory slot that is set after an in-kernel interrupt controller or an ioeventfd
//! waits several milliseconds for an SRCU grace period. Meanwhile the thread of the first vCPU queries the supported features. A process
//! that waits for its configuration makes a part of this in advance, see [`PreparedVm`].

mod activity;
mod attachable;
mod attachments;
mod bounded;
mod breakpoints;
mod claim;
mod debug;
mod io_thread;
mod parts;
mod passed_files;
mod recorder;
pub mod state;
mod user_network;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use devices::serial::{Serial, SerialMetrics, SerialOutput, SerialRecorder, uart};
use devices::virtio::net::passt;
use devices::{Bus, BusBuilder, Power, ThreadRole, lock};
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::{
    self, AttachContext, BootInputs, Cpu, CpuStatus, InputMetrics, LoadPlan, MmioDeviceInfo, Native,
    Platform, SharedSource,
};
use crate::boot::{self, Image, Initrd, LoadedImage, Protocol};
use crate::cancellation::Cancellation;
use crate::channel::Receiver;
use crate::config::{DeviceUpdate, DriveConfig, VmConfig, VmSpec};
use crate::identity::{self, IdentityState, PendingRecord, Record};
use crate::kvm;
use crate::memory::dirty::{self, DirtyTracker};
use crate::memory::{bus_error, page_size, uffd::FaultHandler};
use crate::timeline::{Lane, Timeline};
use crate::vcpu::{ExitCounters, StartContext, StopReason, ThreadSet, VcpuShared, VcpuThread};

pub use attachable::{Error as DeviceError, UpdateError};
use attachments::AttachTarget;
pub(crate) use attachments::AttachedDevice;
pub use attachments::{OpenDevice, open as open_device, open_all_unlocked as open_unlocked_devices};
use breakpoints::MemoryBreakpoints;
use claim::Claim;
pub use io_thread::ThreadWait;
use io_thread::{IoThread, PAGE_TIMEOUT};
pub use parts::MachineParts;
pub use parts::{Error as PartsError, Mismatch, PreparedVm};
use parts::{Measure, SlotMemory, VmParts};
pub use passed_files::PassedFiles;
pub use recorder::DeviceCounters;

/// Maximum wait for the threads of a machine at its end.
const END_TIMEOUT: Duration = Duration::from_millis(50);

/// Maximum wait for a thread without a fault handler: only a disk that does not answer delays one so long.
pub(crate) const THREAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum wait for the replies of all vCPUs to an inspection. A thread that waits for no disk replies at once.
const INSPECTION_TIMEOUT: Duration = Duration::from_millis(20);

/// Reason why a machine cannot be built, booted, paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread does not react to its kick, because it waits for the fault handler or a disk.
    #[error("cannot pause the VM")]
    Pause(#[source] ThreadWait),
    /// The host side of a device cannot be locked.
    #[error("cannot resume the VM, which stays paused")]
    Resume(#[source] DeviceError),
    /// A part that KVM provides cannot be created.
    #[error(transparent)]
    Parts(parts::Error),
    /// The platform cannot be built.
    #[error("cannot build the machine")]
    Platform(#[source] arch::Error),
    /// The serial port cannot be created.
    #[error("cannot create the serial port")]
    Serial(#[source] uart::Error),
    /// The passt process of an interface has ended.
    #[error("cannot connect the network interface")]
    Passt(#[source] passt::Error),
    /// The image cannot be loaded.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The initrd cannot be loaded.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The identity cannot be created or written.
    #[error(transparent)]
    Identity(identity::Error),
    /// The main thread cannot be restricted.
    #[error("cannot restrict the system calls and rights of the process")]
    Restrict(#[source] io::Error),
    /// The command line does not fit.
    #[error("cannot compose the command line")]
    CommandLine(#[source] boot::cmdline::Error),
}

type BootEntry = <<Native as Platform>::Cpu as Cpu>::Entry;

/// Time of the first output of the guest, read without the lock of the serial port: its holder may wait for a slow disk.
type FirstOutput = Arc<OnceLock<Instant>>;

/// Serial port of a machine.
struct SerialPort {
    port: Arc<Mutex<Serial>>,
    recorder: Arc<SerialRecorder>,
    first_output: FirstOutput,
}

/// Memory, buses and devices of a VM, and its vCPUs, which wait on their threads.
pub struct Machine {
    spec: VmSpec,
    timeline: Arc<Timeline>,
    // The fields drop in this order: the vCPUs stop before the devices that they use, and the VM is closed before its memory is
    // unmapped.
    vcpus: Vec<VcpuThread>,
    /// `None` unless a fault handler serves the memory.
    io_thread: Option<IoThread>,
    stop_reasons: Mutex<Receiver<StopReason>>,
    shared: Arc<VcpuShared>,
    event_sources: Vec<SharedSource>,
    /// Event sources of the platform; those of the devices follow.
    platform_sources: usize,
    devices: Vec<AttachedDevice>,
    serial: SerialPort,
    platform: Arc<Native>,
    memory_bus: Arc<Bus>,
    power: Arc<Power>,
    vm: Arc<VmFd>,
    memory: GuestMemory,
    /// `None` without dirty page tracking.
    dirty_tracker: Option<DirtyTracker>,
    fault_handler: Option<Arc<FaultHandler>>,
    breakpoints: MemoryBreakpoints,
    /// `None` before the start, and for a guest without an identity record.
    identity: Option<IdentityState>,
    // Relaxed: one thread at a time operates on the machine, and gets it by a new thread or by a channel.
    /// The identity has changed by a restore, and the guest has not been notified since.
    needs_identity_notice: AtomicBool,
    /// The state has been restored, and the devices have not processed their available buffers since.
    needs_notify: AtomicBool,
    /// The state has been restored, and the host sides of the devices are not locked since.
    needs_locks: AtomicBool,
}

impl Machine {
    /// Builds the machine of `spec` with its open `devices`, from `prepared` if it fits, for its boot. The serial port prints to `output`.
    ///
    /// # Errors
    /// [`Error`]; everything that was created is dropped then.
    pub fn build(
        spec: VmSpec,
        prepared: Option<PreparedVm>,
        devices: Vec<OpenDevice>,
        output: SerialOutput,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        let parts = MachineParts::create(&spec, None, prepared, &timeline).map_err(Error::Parts)?;
        Self::build_with(parts, spec, devices, output, timeline)
    }

    /// Builds the machine of `spec` with the `parts` of the same, to be [restored](Self::restore) if the restore of the vCPUs has begun.
    /// Otherwise as [`build`](Self::build).
    ///
    /// # Errors
    /// [`Error`]; everything that was created is dropped then.
    pub fn build_with(
        parts: MachineParts,
        spec: VmSpec,
        devices: Vec<OpenDevice>,
        output: SerialOutput,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        let measure = Measure(&timeline);
        let MachineParts { vm: parts, memory } = parts;
        let VmParts {
            vcpus,
            stop_reasons,
            shared,
            mut platform,
            vm,
        } = parts;
        let SlotMemory {
            memory,
            dirty_tracker,
        } = memory;
        let (power, mut bus) = (Arc::new(Power::new()), BusBuilder::new());
        let serial = create_serial(&platform, output)?;
        let context = AttachContext {
            power: power.clone(),
            serial: serial.port.clone(),
        };
        let mut event_sources = measure
            .phase("attach devices", || platform.attach(&context, &spec, &mut bus))
            .map_err(Error::Platform)?;
        let platform_sources = event_sources.len();
        let target = AttachTarget {
            memory: &memory,
            bus: &mut bus,
            event_sources: &mut event_sources,
        };
        let devices = attachments::attach(devices, &spec, &platform, target).map_err(Error::Platform)?;
        Ok(Self {
            spec,
            vcpus,
            io_thread: None,
            stop_reasons: Mutex::new(stop_reasons),
            shared,
            event_sources,
            platform_sources,
            devices,
            serial,
            platform: Arc::new(platform),
            memory_bus: Arc::new(bus.build()),
            power,
            vm,
            memory,
            dirty_tracker,
            fault_handler: None,
            breakpoints: MemoryBreakpoints::default(),
            identity: None,
            needs_identity_notice: AtomicBool::new(false),
            needs_notify: AtomicBool::new(false),
            needs_locks: AtomicBool::new(false),
            timeline,
        })
    }

    /// Loads `image` and starts the guest.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Initrd`], [`Error::CommandLine`], [`Error::Platform`] or [`Error::Passt`]; the machine is dropped
    /// then.
    pub fn boot(mut self, image: &Image, initrd: Option<&Initrd>) -> Result<Self, Error> {
        let timeline = self.timeline.clone();
        let measure = Measure(&timeline);
        let config = self.spec.config();
        let (loaded, plan) = measure.phase("load image", || self.load(image, initrd))?;
        let cmdline = boot::cmdline::compose(
            &command_line(config, loaded.protocol),
            &self.device_arguments(),
            Native::COMMAND_LINE_CAPACITY,
        )
        .map_err(Error::CommandLine)?;
        self.log_boot(loaded.protocol, &cmdline);
        let infos: Vec<MmioDeviceInfo> = self.devices.iter().map(|device| *device.info()).collect();
        let inputs = BootInputs {
            loaded: &loaded,
            plan: &plan,
            cmdline: &cmdline,
            spec: &self.spec,
            mmio_devices: &infos,
        };
        let entry = measure
            .phase("write boot information", || {
                self.platform.write_boot_data(&self.memory, &inputs)
            })
            .map_err(Error::Platform)?;
        if let Some(record) = self
            .create_identity(IdentityState::BOOTED)
            .map_err(Error::Identity)?
        {
            record.write(&self.memory).map_err(Error::Identity)?;
        }
        for device in &mut self.devices {
            device.check_process().map_err(Error::Passt)?;
        }
        // The vCPU threads set their registers meanwhile.
        self.shared.gate.close_at_start();
        let mut entry = Some(entry);
        for vcpu in &self.vcpus {
            vcpu.start(self.start_context(entry.take(), None));
        }
        self.restrict()?;
        self.shared.gate.open();
        timeline.mark(Lane::Main, "vCPUs told to run");
        Ok(self)
    }

    /// Enters the role of the main thread, before the guest runs.
    ///
    /// # Errors
    /// [`Error::Restrict`]
    pub(crate) fn restrict(&self) -> Result<(), Error> {
        let measure = Measure(&self.timeline);
        measure
            .phase("restrict thread", || ThreadRole::Vmm.enter())
            .map_err(Error::Restrict)
    }

    /// Logs what the guest gets, for the search of a fault of a silent guest.
    fn log_boot(&self, protocol: Protocol, cmdline: impl std::fmt::Debug) {
        log::debug!("boot protocol {protocol}, command line {cmdline:?}");
        for device in &self.devices {
            let MmioDeviceInfo { base, size, gsi } = device.info();
            log::debug!(
                "virtio device {:?} ({}): address {base:#x}, {size:#x} bytes, IRQ {gsi}",
                device.id(),
                device.kind()
            );
        }
    }

    /// Returns the command line arguments for root drive and devices.
    fn device_arguments(&self) -> Vec<String> {
        let config = self.spec.config();
        let is_listed = Native::HAS_DEVICE_ARGUMENTS && config.device_arguments;
        let listed = self.devices.iter().filter(|_| is_listed);
        let devices = listed.map(|device| attachments::argument(device.info()));
        let root = config.drives().find_map(DriveConfig::root_argument);
        root.into_iter().chain(devices).collect()
    }

    fn load(&self, image: &Image, initrd: Option<&Initrd>) -> Result<(LoadedImage, LoadPlan), Error> {
        let config = self.spec.config();
        match &config.initrd {
            Some(path) => {
                bus_error::set_files(format_args!(
                    "the image {:?} or the initrd {path:?}",
                    config.kernel
                ));
            }
            None => bus_error::set_files(format_args!("the image {:?}", config.kernel)),
        }
        let protocol = image
            .select_protocol(self.spec.config().protocol)
            .map_err(Error::Image)?;
        let plan =
            Native::plan_load(image, protocol, config.layout, config.memory).map_err(Error::Platform)?;
        let mut loaded = image
            .load_at(plan.image_base, protocol, &self.memory, &plan.reserved)
            .map_err(Error::Image)?;
        if let Some(initrd) = initrd {
            let (limit, placement) = (loaded.initrd_limit, protocol.initrd_placement());
            let range = initrd.load(&self.memory, loaded.end, limit, &plan.reserved, placement);
            loaded.initrd = Some(range.map_err(Error::Initrd)?);
        }
        Ok((loaded, plan))
    }

    /// Creates the identity of the VM. Returns its record, which must be written before the guest runs; `None` for a guest without one.
    fn create_identity(&mut self, state: IdentityState) -> Result<Option<Record>, identity::Error> {
        let config = self.spec.config();
        let Some(address) = Native::identity_address(config.layout, config.memory) else {
            return Ok(None);
        };
        let record = Record::new(address, state)?;
        log::debug!("identity record: {record:?}");
        self.identity = Some(state);
        Ok(Some(record))
    }

    fn start_context(&self, entry: Option<BootEntry>, identity: Option<Arc<PendingRecord>>) -> StartContext {
        StartContext {
            platform: self.platform.clone(),
            memory_bus: self.memory_bus.clone(),
            power: self.power.clone(),
            memory: self.memory.clone(),
            identity,
            entry,
        }
    }

    /// Sets the fault handler of the memory, before the [restore](Self::restore).
    pub(crate) fn set_fault_handler(&mut self, handler: Arc<FaultHandler>) {
        self.fault_handler = Some(handler);
    }

    /// Returns true if there is an I/O thread, for which changes of a device wait.
    pub(crate) fn has_io_thread(&self) -> bool {
        self.io_thread.is_some()
    }

    /// Returns the time after which an operation fails that waits for a thread.
    pub(crate) fn thread_timeout(&self) -> Duration {
        match self.fault_handler {
            Some(_) => PAGE_TIMEOUT,
            None => THREAD_TIMEOUT,
        }
    }

    /// Returns the reason why `threads` do not answer.
    fn thread_wait(&self, threads: ThreadSet) -> ThreadWait {
        if self.shared.gate.is_stopped() {
            ThreadWait::Stopped
        } else if self.fault_handler.is_some() {
            ThreadWait::Page(threads)
        } else {
            ThreadWait::Disk(threads)
        }
    }

    /// Sets the source of dirty pages of the memory, before the [restore](Self::restore). If it needs a log, the memory must have one.
    pub(crate) fn set_dirty_tracker(&mut self, tracker: Option<DirtyTracker>) {
        self.dirty_tracker = tracker;
    }

    /// Returns the source of dirty pages, or `None` without dirty page tracking.
    pub(crate) fn dirty_tracker(&self) -> Option<&DirtyTracker> {
        self.dirty_tracker.as_ref()
    }

    /// Collects the dirty pages of the paused machine for a diff.
    ///
    /// # Errors
    /// [`dirty::Error`]; no page is lost.
    pub(crate) fn collect_dirty_pages(&self) -> Result<Option<&DirtyTracker>, dirty::Error> {
        if let Some(tracker) = &self.dirty_tracker {
            tracker.collect(&self.memory, &|slot, size| self.take_dirty_log(slot, size))?;
        }
        Ok(self.dirty_tracker())
    }

    /// Makes all pages of the paused machine clean, after a complete snapshot. Has no effect without dirty page tracking.
    ///
    /// # Errors
    /// [`dirty::Error`]; pages may still be dirty then.
    pub(crate) fn clear_dirty_pages(&self) -> Result<(), dirty::Error> {
        self.dirty_tracker.as_ref().map_or(Ok(()), |tracker| {
            tracker.clear(&self.memory, &|slot, size| self.take_dirty_log(slot, size))
        })
    }

    fn take_dirty_log(&self, slot: u32, size: usize) -> Result<Vec<u64>, kvm::Error> {
        kvm::slots::take_dirty_log(&self.vm, slot, size)
    }

    /// Returns the event sources for the event loop: those of the devices too, unless they belong to the I/O thread.
    pub(crate) fn event_sources(&self) -> &[SharedSource] {
        &self.event_sources
    }

    /// Returns the serial port.
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.serial.port
    }

    /// Returns the eventfd that is signalled when [`Machine::take_stop_reason`] returns a reason.
    pub(crate) fn stop_event(&self) -> &EventFd {
        &self.shared.stop_event
    }

    /// Returns the next stop reason of a vCPU, or `None` while no vCPU has stopped.
    pub fn take_stop_reason(&self) -> Option<StopReason> {
        lock(&self.stop_reasons).try_receive().ok()
    }

    /// Adds the first output of the guest to the timeline, on the lane of the boot vCPU, which usually prints it.
    pub(crate) fn mark_first_output(&self) {
        if let Some(time) = self.serial.first_output.get() {
            self.timeline.mark_at(Lane::Vcpu(0), "first output", *time);
        }
    }

    /// Stops the vCPUs for good, without waiting for their threads.
    pub(crate) fn stop(&self) {
        self.vcpus.iter().for_each(VcpuThread::stop);
    }

    /// Pauses the vCPUs and the I/O thread until [`Machine::resume`], with every instruction completed. A thread may wait for the fault
    /// handler or a disk.
    ///
    /// # Errors
    /// [`Error::Pause`] after `timeout`; the guest runs on then.
    pub fn pause(&self, timeout: Duration) -> Result<(), Error> {
        let kick = || {
            self.vcpus.iter().for_each(VcpuThread::kick);
            self.io_thread.iter().for_each(IoThread::kick);
        };
        let paused = self.shared.gate.close(self.threads(), kick, timeout);
        paused.map_err(|waiting| Error::Pause(self.thread_wait(waiting)))?;
        self.breakpoints.lift(&self.memory);
        Ok(())
    }

    /// Returns the threads of the machine.
    fn threads(&self) -> ThreadSet {
        let io_thread = self.io_thread.as_ref().map(|_| ThreadSet::IO);
        ThreadSet::vcpus(self.vcpus.len()).and(io_thread.unwrap_or_default())
    }

    /// Fetches all pages from the fault handler, if there is one, so that this thread can read memory without waiting.
    ///
    /// # Errors
    /// [`ThreadWait`] if the handler sends no page for [`PAGE_TIMEOUT`], or the operation is cancelled.
    pub(crate) fn fetch_pages(&self, cancellation: &Cancellation) -> Result<(), ThreadWait> {
        let (Some(io_thread), Some(_)) = (&self.io_thread, &self.fault_handler) else {
            return Ok(());
        };
        let memory = self.memory.clone();
        let fetch = move |claim: &Claim| {
            for region in memory.iter() {
                let first = region.start_addr();
                for offset in (0..region.len()).step_by(usize::try_from(page_size()).ok()?) {
                    if claim.is_cancelled() {
                        return None;
                    }
                    // Within the region.
                    memory.read_obj::<u8>(first.checked_add(offset)?).ok()?;
                    claim.report_progress();
                }
            }
            Some(())
        };
        io_thread.run_until(|| cancellation.is_cancelled(), fetch)
    }

    /// Changes the device with the number `index` while the guest runs.
    ///
    /// # Errors
    /// [`UpdateError`]; the device is unchanged then.
    pub(crate) fn update_device(&self, index: usize, update: &DeviceUpdate) -> Result<(), UpdateError> {
        self.devices[index].update(update, self.io_thread.as_ref())
    }

    /// Returns true if a device of the paused machine has requests in flight, for which a save waits.
    pub(crate) fn has_requests_in_flight(&self) -> bool {
        self.devices.iter().any(AttachedDevice::has_requests_in_flight)
    }

    /// Resumes the vCPUs. After a restore the host sides of the devices are locked first, the devices process their available
    /// buffers, and the guest is notified of its new identity.
    ///
    /// # Errors
    /// [`Error::Resume`] if another VM has a conflicting lock. The machine is unchanged then.
    pub fn resume(&self) -> Result<(), Error> {
        if self.needs_locks.load(Ordering::Relaxed) {
            self.lock_backends()?;
            self.needs_locks.store(false, Ordering::Relaxed);
        }
        self.notify_devices();
        if self.needs_identity_notice.swap(false, Ordering::Relaxed) {
            self.platform.notify_identity();
        }
        self.breakpoints.insert(&self.memory);
        self.shared.gate.open();
        Ok(())
    }

    /// Locks the host sides of all devices, or of none.
    fn lock_backends(&self) -> Result<(), Error> {
        for (index, device) in self.devices.iter().enumerate() {
            if let Err(error) = device.lock_backend() {
                self.devices[..index]
                    .iter()
                    .for_each(AttachedDevice::unlock_backend);
                return Err(Error::Resume(error));
            }
        }
        Ok(())
    }

    /// Requests a shutdown from the guest. Returns false if the machine has no device for it.
    pub(crate) fn request_shutdown(&self) -> bool {
        self.platform.request_shutdown()
    }

    /// Returns the configuration at the build.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Returns guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes the states of crashed vCPUs part of the next save.
    pub(crate) fn use_crash_states(&self) {
        self.shared.crashes.request();
    }

    /// Returns the vCPU threads, to observe them.
    pub(crate) fn vcpus(&self) -> &[VcpuThread] {
        &self.vcpus
    }

    /// Returns true if a fault handler serves guest memory.
    pub(crate) fn is_served(&self) -> bool {
        self.fault_handler.is_some()
    }

    /// Returns the present execution of each vCPU. Kicks those that may be in the guest. `None` for a vCPU that has ended, or whose
    /// thread does not reply within 20 ms, because it waits for a disk, a page or a processor.
    pub(crate) fn inspect_vcpus(&self) -> Vec<Option<CpuStatus>> {
        let deadline = Instant::now() + INSPECTION_TIMEOUT;
        let replies: Vec<_> = self.vcpus.iter().map(VcpuThread::request_inspection).collect();
        if !self.shared.gate.is_open() {
            self.shared.gate.notify_waiters();
        }
        let receive = |reply: Receiver<CpuStatus>| {
            let rest = deadline.saturating_duration_since(Instant::now());
            reply.receive_within(rest).ok()
        };
        replies.into_iter().map(|reply| receive(reply?)).collect()
    }

    /// Returns the counters of the exits of each vCPU.
    pub(crate) fn exits(&self) -> impl Iterator<Item = &ExitCounters> {
        self.vcpus.iter().map(VcpuThread::exits)
    }

    /// Returns the metrics of the serial port, without its lock.
    pub(crate) fn serial_metrics(&self) -> SerialMetrics {
        self.serial.recorder.metrics()
    }

    /// Returns the metrics of the device through which a user requests a shutdown.
    pub(crate) fn input_metrics(&self) -> InputMetrics {
        self.platform.input_metrics()
    }

    /// Returns the virtio devices, in the order in which the guest counts them.
    pub(crate) fn devices(&self) -> &[AttachedDevice] {
        &self.devices
    }

    /// Discards the pending output of the guest that its disk does not accept soon, and counts it as lost.
    pub(crate) fn discard_output(&self) {
        lock(&self.serial.port).output_mut().discard();
    }

    /// Returns the numbers of accesses that no device claims: to the I/O space and to memory.
    pub fn unclaimed(&self) -> (u64, u64) {
        (self.platform.unclaimed_io(), self.memory_bus.unclaimed())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(handler) = &self.fault_handler {
            // A thread that waits for a page must wait until the process ends. If the userfaultfd were closed or unregistered, the
            // kernel would fill the page with zeros, and a write of the guest would bring them to its disk. The devices stay for such a
            // thread, and for a request in the kernel.
            std::mem::forget(handler.clone());
            for device in &self.devices {
                std::mem::forget(device.transport());
            }
        }
        self.vcpus.iter_mut().for_each(VcpuThread::end);
        self.io_thread.iter().for_each(IoThread::kick);
        // A thread that waits for a page or a disk ends with the process. It shares its vCPU, the devices and guest memory.
        let late = self.shared.gate.wait_end(self.threads(), END_TIMEOUT);
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.abandon(late));
        self.io_thread.iter_mut().for_each(|thread| thread.abandon(late));
    }
}

/// Returns the command line of the configuration. With multiboot the name of the image precedes it, which guests skip.
fn command_line(config: &VmConfig, protocol: Protocol) -> Cow<'_, str> {
    if protocol != Protocol::Multiboot {
        return Cow::Borrowed(&config.cmdline);
    }
    let name = config.kernel.file_name().and_then(OsStr::to_str);
    let name = name
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
        .unwrap_or("kernel");
    Cow::Owned([name, &config.cmdline].join(" "))
}

fn create_serial(platform: &Native, output: SerialOutput) -> Result<SerialPort, Error> {
    let first_output = output.first_write();
    let serial = Serial::with_model(platform.serial_model(), platform.serial_interrupt(), output)
        .map_err(Error::Serial)?;
    Ok(SerialPort {
        recorder: serial.recorder(),
        port: Arc::new(Mutex::new(serial)),
        first_output,
    })
}
