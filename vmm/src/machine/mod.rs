//! A machine that has been built and never run.
//!
//! The order of the calls on KVM is a feature: the VM, then its memory slots, then the interrupt controllers, then the
//! vCPUs, and whatever registers with the kernel's I/O buses last. A slot that is set after any of those waits for
//! grace periods of several milliseconds. Meanwhile the thread of the first vCPU asks KVM for the processor's features.

mod attachments;
pub mod state;
mod vcpus;

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::serial::{Serial, SerialOutput, uart};
use devices::{Bus, Power, lock};
use kvm_ioctls::VmFd;
use snapshot::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use devices::virtio::net::passt;

use crate::arch::{self, AttachContext, Buses, MmioDeviceInfo, Native, Platform, SharedSource};
use crate::boot::{self, Image, Initrd, LoadedImage, Protocol};
use crate::config::{DriveConfig, VmConfig, VmSpec};
use crate::kvm::Kick;
use crate::timeline::{Lane, Timeline};
use crate::vcpu::KINDS;

use crate::vcpu::{Start, StopReason, VcpuError, VcpuInit, VcpuShared, VcpuThread};
use crate::{kvm, memory};
use vcpus::{create_vcpus, limit_vcpus, start_threads};

pub(crate) use attachments::AttachedDevice;
use attachments::Place;
pub use attachments::{
    DeviceCounters, Error as DeviceError, OpenDevice, UpdateError, open as open_device,
    open_all as open_devices,
};

/// Why a machine could not be built, booted or paused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A vCPU does not heed its kick.
    #[error(
        "a vCPU waits for a page that the page fault handler does not give; the guest goes on when it has it"
    )]
    Pause,
    /// KVM cannot be used, or refused.
    #[error("cannot use KVM")]
    Kvm(#[source] kvm::Error),
    /// The architecture's part failed.
    #[error("cannot build the machine")]
    Platform(#[source] arch::Error),
    /// There is no memory for the guest.
    #[error("cannot get {size} of memory for the guest")]
    Memory {
        /// What was asked for.
        size: crate::config::MemorySize,
        /// Why.
        #[source]
        source: memory::Error,
    },
    /// A vCPU's thread could not be started.
    #[error("cannot start a vCPU")]
    Vcpu(#[source] VcpuError),
    /// The serial port could not be made.
    #[error("cannot make the serial port")]
    Serial(#[source] uart::Error),
    /// An event descriptor or a signal handler could not be had.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program that was to serve the network has ended.
    #[error("cannot give the guest a network")]
    Passt(#[source] passt::Error),
    /// The image cannot be loaded.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The initrd cannot be loaded.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The guest cannot be given its command line.
    #[error("cannot pass the guest its arguments")]
    CommandLine(#[source] boot::cmdline::Error),
}

/// File descriptors, memory, buses, devices, and vCPUs that wait on their threads.
pub struct Machine {
    spec: VmSpec,
    timeline: Arc<Timeline>,
    // Dropped in this order: the vCPUs stop before what they use goes away, and the VM goes before its memory.
    vcpus: Vec<VcpuThread>,
    reports: Receiver<StopReason>,
    shared: Arc<VcpuShared>,
    sources: Vec<SharedSource>,
    devices: Vec<AttachedDevice>,
    serial: Arc<Mutex<Serial>>,
    platform: Arc<Native>,
    ports: Arc<Bus>,
    memory_bus: Arc<Bus>,
    power: Arc<Power>,
    _vm: Arc<VmFd>,
    memory: GuestMemory,
    /// The state has been restored, and the devices have not looked at what there is to do since.
    needs_notify: Cell<bool>,
}

impl Machine {
    /// Builds the machine of `spec` with the `devices` that were opened for it. Its serial port prints to `output`.
    ///
    /// # Errors
    /// [`Error`]; nothing of the machine is left then.
    pub fn build(
        spec: VmSpec,
        devices: Vec<OpenDevice>,
        output: SerialOutput,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        Self::assemble(spec, None, devices, output, timeline)
    }

    /// Builds the machine of `spec` around `memory`, which has the spec's [regions](Platform::memory_regions), for a state that
    /// [`resume_from`](Self::resume_from) gives it. KVM is not asked what the processor can be.
    ///
    /// # Errors
    /// [`Error`]; nothing of the machine is left then.
    pub fn build_with_memory(
        spec: VmSpec,
        memory: GuestMemory,
        devices: Vec<OpenDevice>,
        output: SerialOutput,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        Self::assemble(spec, Some(memory), devices, output, timeline)
    }

    fn assemble(
        spec: VmSpec,
        memory: Option<GuestMemory>,
        devices: Vec<OpenDevice>,
        output: SerialOutput,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        let measure = Measure(&timeline);
        let kvm = measure
            .phase("open KVM", || kvm::open(Native::CAPABILITIES))
            .map_err(Error::Kvm)?;
        let kvm = Arc::new(kvm);
        limit_vcpus(&kvm, &spec)?;
        let kick = Kick::default();
        let (vcpus, shared, reports) = measure.phase("start vCPU threads", || {
            start_threads(&kvm, &spec, &kick, &timeline, memory.is_some())
        })?;
        let memory = measure.phase("map memory", || memory.map_or_else(|| allocate(&spec), Ok))?;
        let vm = measure
            .phase("create VM", || kvm::create_vm(&kvm))
            .map_err(Error::Kvm)?;
        measure
            .phase("set memory slots", || kvm::slots::set(&vm, &memory))
            .map_err(Error::Kvm)?;
        let mut platform = measure
            .phase("create interrupt controllers", || Native::new(&vm, &spec, kick))
            .map_err(Error::Platform)?;
        measure
            .phase("create vCPUs", || create_vcpus(&vm, &vcpus))
            .map_err(Error::Kvm)?;
        let power = Arc::new(Power::new());
        let serial = Serial::new(platform.serial_interrupt(), output).map_err(Error::Serial)?;
        let serial = Arc::new(Mutex::new(serial));
        let wiring = AttachContext {
            power: power.clone(),
            serial: serial.clone(),
        };
        let mut buses = Buses::default();
        let mut sources = measure
            .phase("attach devices", || platform.attach(&wiring, &spec, &mut buses))
            .map_err(Error::Platform)?;
        let place = Place {
            memory: &memory,
            buses: &mut buses,
            sources: &mut sources,
        };
        let devices = attachments::attach(devices, &spec, &platform, place).map_err(Error::Platform)?;
        Ok(Self {
            spec,
            vcpus,
            reports,
            shared,
            sources,
            devices,
            serial,
            platform: Arc::new(platform),
            ports: Arc::new(buses.ports.build()),
            memory_bus: Arc::new(buses.memory.build()),
            power,
            _vm: vm,
            memory,
            needs_notify: Cell::new(false),
            timeline,
        })
    }

    /// Loads `image` and lets the guest run.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Initrd`], [`Error::CommandLine`] or [`Error::Platform`].
    pub fn boot(mut self, image: &Image, initrd: Option<&Initrd>) -> Result<Self, Error> {
        let timeline = self.timeline.clone();
        let measure = Measure(&timeline);
        let config = self.spec.config();
        let loaded = measure.phase("load image", || self.load(image, initrd))?;
        let cmdline = boot::cmdline::compose(
            &command_line(config, loaded.protocol),
            &self.arguments(),
            Native::COMMAND_LINE_CAPACITY,
        )
        .map_err(Error::CommandLine)?;
        let infos: Vec<MmioDeviceInfo> = self.devices.iter().map(|device| *device.info()).collect();
        let entry = measure
            .phase("write boot information", || {
                Native::write_boot_data(&self.memory, &loaded, &cmdline, &self.spec, &infos)
            })
            .map_err(Error::Platform)?;
        for device in &mut self.devices {
            device.check_process().map_err(Error::Passt)?;
        }
        let mut entry = Some(entry);
        for vcpu in &self.vcpus {
            let origin = entry.take().map_or(VcpuInit::Reset, VcpuInit::Entry);
            vcpu.start(self.start(origin));
        }
        timeline.mark(Lane::Main, "vCPUs told to run");
        Ok(self)
    }

    /// What the guest is told of its devices.
    fn arguments(&self) -> Vec<String> {
        let config = self.spec.config();
        let told = config.device_arguments;
        let windows = self.devices.iter().filter(|_| told);
        let windows = windows.map(|device| attachments::argument(device.info()));
        let root = config.drives().find_map(DriveConfig::root_argument);
        root.into_iter().chain(windows).collect()
    }

    fn load(&self, image: &Image, initrd: Option<&Initrd>) -> Result<LoadedImage, Error> {
        let protocol = image
            .select_protocol(self.spec.config().protocol)
            .map_err(Error::Image)?;
        let mut loaded = image
            .load(protocol, &self.memory, Native::RESERVED)
            .map_err(Error::Image)?;
        if let Some(initrd) = initrd {
            let range = initrd.load(&self.memory, loaded.end, loaded.initrd_limit, Native::RESERVED);
            loaded.initrd = Some(range.map_err(Error::Initrd)?);
        }
        Ok(loaded)
    }

    fn start(&self, init: VcpuInit) -> Start {
        Start {
            platform: self.platform.clone(),
            ports: self.ports.clone(),
            memory_bus: self.memory_bus.clone(),
            power: self.power.clone(),
            memory: self.memory.clone(),
            init,
        }
    }

    /// What the event loop watches for the platform's devices.
    pub(crate) fn event_sources(&self) -> &[SharedSource] {
        &self.sources
    }

    /// The first serial port.
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.serial
    }

    /// Signalled when [`Machine::take_stop_reason`] has something.
    pub(crate) fn stop_event(&self) -> &EventFd {
        &self.shared.stop_event
    }

    /// Why a vCPU has ended, if one has.
    pub fn take_stop_reason(&self) -> Option<StopReason> {
        self.reports.try_recv().ok()
    }

    /// Records when the guest printed for the first time: the boot vCPU's doing, as a rule.
    pub(crate) fn mark_first_output(&self) {
        if let Some(moment) = lock(&self.serial).output().first_write() {
            self.timeline.mark_at(Lane::Vcpu(0), "first output", moment);
        }
    }

    /// Makes the vCPUs leave the guest for good.
    pub(crate) fn stop(&self) {
        self.vcpus.iter().for_each(VcpuThread::stop);
    }

    /// Keeps the vCPUs out of the guest until [`Machine::resume`], with all instructions that they were in completed.
    pub fn pause(&self) {
        let kick = || self.vcpus.iter().for_each(VcpuThread::kick);
        self.shared.gate.close(self.vcpus.len(), kick);
    }

    /// Lets the vCPUs into the guest again.
    pub fn resume(&self) {
        self.notify_devices();
        self.shared.gate.open();
    }

    /// Presses Ctrl-Alt-Del on the guest's keyboard. Returns whether the machine has one.
    pub(crate) fn press_ctrl_alt_del(&self) -> bool {
        self.platform.press_ctrl_alt_del()
    }

    /// What the machine is made from.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Has the specification say what was changed while the machine runs.
    pub(crate) fn change_config(&mut self, change: impl FnOnce(&mut VmConfig)) {
        self.spec.change(change);
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How often each vCPU has left the guest, by kind.
    pub(crate) fn exits(&self) -> impl Iterator<Item = [u64; KINDS.len()]> {
        self.vcpus.iter().map(|vcpu| vcpu.exits().counts())
    }

    /// Returns the virtio devices, in the order in which the guest counts them.
    pub(crate) fn devices(&self) -> &[AttachedDevice] {
        &self.devices
    }

    /// Counts what the guest's output still holds back as lost.
    pub(crate) fn discard_output(&self) {
        lock(&self.serial).output_mut().finish(Duration::ZERO);
    }

    /// Accesses that no device claimed: ports and memory-mapped registers.
    pub fn unclaimed(&self) -> (u64, u64) {
        (self.ports.unclaimed(), self.memory_bus.unclaimed())
    }
}

struct Measure<'a>(&'a Timeline);

impl Measure<'_> {
    fn phase<T>(&self, name: &'static str, phase: impl FnOnce() -> T) -> T {
        self.0.measure(Lane::Main, name, phase)
    }
}

/// What the guest is given as its command line. Multiboot images expect the image's name as the first word of theirs, and
/// skip it.
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

fn allocate(spec: &VmSpec) -> Result<GuestMemory, Error> {
    let config = spec.config();
    let size = config.memory;
    let memory = memory::allocate(&Native::memory_regions(size));
    let memory = memory.map_err(|source| Error::Memory { size, source })?;
    if config.huge_pages {
        memory::prefer_huge_pages(&memory);
    }
    Ok(memory)
}
