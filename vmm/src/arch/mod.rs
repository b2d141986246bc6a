//! Architectures, behind two traits: [`Platform`] for the machine, [`Cpu`] for its vCPUs.
//!
//! Only this file tests the target architecture. The rest of the crate uses [`Native`].
//!
//! # A further architecture
//! It supplies a folder here, with a type that implements both traits, and the lines of this file that select the folder. The first
//! column is the order of the calls: a start makes those of the rows up to "run", a load those of "snapshots" in place of "boot".
//!
//! | subject | items of [`Platform`] and [`Cpu`] | contract |
//! |---|---|---|
//! | limits | `ARCHITECTURE`, `CAPABILITIES`, `COMMAND_LINE_CAPACITY`, `MAX_CORE_THREADS`, `HAS_DEVICE_ARGUMENTS` | KVM must have all capabilities |
//! | settings | `check`, `save_settings`, `restore_settings` | `check` rejects settings of other architectures, which a state file may hold. The others transfer what the build depends on besides the configuration |
//! | addresses | `DEFAULT_LAYOUT`, `select_layout`, `memory_regions`, `plan_load` | an [`AddressLayout`] never changes: state files hold it |
//! | VM | `vm_type`, then the memory slots, `reserve_addresses`, `new`, `create_vcpus` | interrupt controllers in the kernel follow the slots. Those that must follow the vCPUs are part of `create_vcpus`, before it passes a vCPU to its thread |
//! | prepared VM | `can_precede_memory`, `restart_clock` | false is always right |
//! | vCPUs | `Cpu`, `Profile`, `Features`, `profile`, `PROFILE_PHASE`, `configure`, `features` | on the thread of each vCPU; `profile` on one of them, while the main thread creates the VM |
//! | devices | `serial_model`, `serial_interrupt`, `mmio_devices`, `attach` | an [`Interrupt`] raises a line from any thread; the lines of `mmio_devices` are edge-triggered |
//! | boot | `write_boot_data`, `Entry`, `set_boot_registers` | boot data describes the machine to the guest. Other vCPUs wait until the guest starts them |
//! | run | `inject_interrupts`, `ExitContext`, `exit_context`, `exit_kind`, `handle_exit`, `cancel_early_exits` | the loop of a vCPU thread handles accesses to memory, power events and errors itself. Without an I/O space, with all interrupt controllers in the kernel, these do nothing |
//! | pause | `notify_pause` | |
//! | snapshots | `save_state`, `time_since_save`, `restore_before_vcpus`, `restore_after_vcpus`, `State`, `save`, `prefetch_limits`, `restore`, `cpu_identity` | a save runs while no vCPU does. `restore` rejects what the host does not support, by name |
//! | clones | `identity_address`, `notify_identity` | none is right, but the clones of a guest then draw the same random numbers |
//! | requests | `request_shutdown` | false without a device for it |
//! | cores | [`CoreState`] | registers and page tables of a saved vCPU, for an ELF core |
//! | debugger | [`DebugCpu`] | registers in gdb's order, page tables, debug registers |
//! | reports | `status`, `instruction`, `stack`, `unclaimed_io`, `input_metrics`, `has_hardware_virtualization`, `emulation_hint` | zeros for what the architecture lacks |
//!
//! Other places name each architecture: [`Architecture`] with its number in the header of state files (`snapshot`), [`AddressLayout`] and
//! settings of the user (`config`), image formats and their machine numbers (`boot`), options of the command line (`src/cli/args`), and
//! models of its chips (`devices`).

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::serial::{Serial, SerialModel};
use devices::{BusBuilder, Clock, Interrupt, Power, WallClock, bus};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use serde::Serialize;
pub use snapshot::file::Architecture;
use snapshot::persist::Error as StateError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, GuestMemory, Schema};
use vm_memory::GuestAddress;

use crate::boot::{Image, LoadedImage, Protocol};
use crate::config::{AddressLayout, CpuFeatures, CpuTopology, MemorySize, VmConfig, VmSpec};
use crate::kvm::{self, Kick, RunPage};

/// aarch64: machine with a GIC in the kernel, entered as Linux's arm64 boot protocol defines. The modules without KVM are tested on
/// all architectures.
///
/// | module | contents |
/// |---|---|
/// | `cache` | caches of instructions |
/// | `call` | call instructions |
/// | `clock` | counters of the timers in a snapshot |
/// | `core_state` | state of vCPUs for an ELF core |
/// | `debug` | registers, breakpoints and probe of a debugger |
/// | `device_tree` | the device tree |
/// | `exception` | entry of an exception of the guest |
/// | `gic` | interrupt controller |
/// | `gic_state` | its state in a snapshot |
/// | `gic_version` | choice of its version |
/// | `layout` | memory maps, places of image and device tree |
/// | `paging` | translation of addresses |
/// | `platform` | `Aarch64`, the platform |
/// | `registers` | sizes, names and restore of registers |
/// | `settings` | settings of a snapshot that precede the vCPUs |
/// | `vcpu` | initialisation, boot registers and status of vCPUs |
/// | `vcpu_state` | state of vCPUs in a snapshot |
#[cfg(any(target_arch = "aarch64", test))]
pub mod aarch64 {
    #[cfg(target_arch = "aarch64")]
    pub mod cache;
    pub mod call;
    #[cfg(target_arch = "aarch64")]
    pub mod clock;
    pub mod core_state;
    #[cfg(target_arch = "aarch64")]
    pub mod debug;
    pub mod device_tree;
    pub mod exception;
    #[cfg(target_arch = "aarch64")]
    pub mod gic;
    #[cfg(target_arch = "aarch64")]
    pub mod gic_state;
    pub mod gic_version;
    pub mod layout;
    pub mod paging;
    #[cfg(target_arch = "aarch64")]
    pub mod platform;
    pub mod registers;
    pub mod settings;
    #[cfg(target_arch = "aarch64")]
    pub mod vcpu;
    #[cfg(target_arch = "aarch64")]
    pub mod vcpu_state;
}
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

mod address_space;
mod core_state;
mod debug;
mod exit;
mod frames;
mod mappings;

pub use address_space::AddressSpace;
pub use core_state::CoreState;
pub use debug::{
    DebugAbilities, DebugControl, DebugCpu, DebugExit, HardwarePoint, PointLimits, StepMode,
    TRANSLATION_UNIT, register_range, target_description,
};
pub use exit::{ExitKind, IoAccess, NativeExit};
pub use frames::CpuStack;
pub use mappings::{Error as MappingError, MAX_MAPPINGS, Mapping, Mappings};

#[cfg(target_arch = "aarch64")]
pub use aarch64::platform::Aarch64 as Native;
#[cfg(target_arch = "x86_64")]
pub use x86_64::X86_64 as Native;

/// Error of creating the platform.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A KVM call failed.
    #[error("cannot create the platform")]
    Kvm(#[source] kvm::Error),
    /// A platform device was not created.
    #[error("cannot create device {device}")]
    Device {
        /// Name of the device.
        device: &'static str,
        /// Error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// A device was not attached to a bus.
    #[error("cannot attach a device to its bus")]
    Bus(#[source] bus::Error),
    /// Boot data was not written.
    #[error("cannot write boot data")]
    BootData(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration has a setting of another architecture.
    #[error("cannot create the machine on this architecture: {0}")]
    Foreign(&'static str),
    /// Image or memory do not fit the memory map.
    #[error("cannot place the image in guest memory")]
    Placement(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The counters were not started.
    #[error("cannot start the counters of the VM")]
    Counter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The host lacks a processor feature of the configuration.
    #[error("cannot give the vCPUs {feature}: KVM on this host does not support {missing}; {way_out}")]
    CpuFeature {
        /// Requested feature.
        feature: &'static str,
        /// Unsupported part of it.
        missing: &'static str,
        /// Remedy.
        way_out: &'static str,
    },
    /// The interrupt controller was not created.
    #[error(transparent)]
    InterruptController(Box<dyn std::error::Error + Send + Sync>),
}

/// File descriptor of a device that the event loop watches.
pub trait EventSource: Send {
    /// Returns the descriptor to watch for reads.
    fn descriptor(&self) -> RawFd;

    /// Returns true if the descriptor is watched edge-triggered.
    fn is_edge(&self) -> bool;

    /// Handles a readable descriptor.
    fn ready(&mut self);
}

/// Registers and interrupt line of a virtio-mmio device, as boot data describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDeviceInfo {
    /// First address, page-aligned.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// Interrupt line, edge-triggered, in the numbers of the platform.
    pub gsi: u32,
}

/// Event source that the machine and the event loop share.
pub type SharedSource = Arc<Mutex<dyn EventSource>>;

/// Objects that platform devices connect to.
pub struct AttachContext {
    /// Power state that the guest controls.
    pub power: Arc<Power>,
    /// First serial port.
    pub serial: Arc<Mutex<Serial>>,
}

/// Counters of the device through which a user requests a shutdown from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InputMetrics {
    /// Reads of a register.
    pub reads: u64,
    /// Writes of a register.
    pub writes: u64,
    /// Requests of the guest for a reset.
    pub resets: u64,
}

/// Places of an image and of boot data in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Base of the addresses of the image: 0, unless the image [has none of its own](crate::boot::image::Format::Arm64).
    pub image_base: u64,
    /// First address of the boot data that the platform writes.
    pub boot_data: u64,
    /// Addresses of boot data, where neither the image nor the initrd may lie.
    pub reserved: Cow<'static, [Range<u64>]>,
}

/// Inputs of boot data.
pub struct BootInputs<'a> {
    /// Loaded image.
    pub loaded: &'a LoadedImage,
    /// Place of the boot data.
    pub plan: &'a LoadPlan,
    /// Command line.
    pub cmdline: &'a CStr,
    /// Configuration.
    pub spec: &'a VmSpec,
    /// Attached virtio-mmio devices.
    pub mmio_devices: &'a [MmioDeviceInfo],
}

/// Way out after an instruction that a KVM with hardware virtualization cannot emulate.
const UNBACKED_HINT: &str = "KVM cannot emulate the instruction, which may access an address without memory or device; check the image and the memory size";

/// Returns the nanoseconds since 1970.
fn realtime_ns() -> u64 {
    u64::try_from(WallClock.now().as_nanos()).unwrap_or(u64::MAX)
}

/// Creates vCPU `id` of `vm`.
fn create_vcpu(vm: &VmFd, id: u8) -> Result<VcpuFd, Error> {
    let created = vm.create_vcpu(id.into());
    created
        .map_err(kvm::failed(format!("KVM_CREATE_VCPU {id}")))
        .map_err(Error::Kvm)
}

/// Machine without its vCPUs: memory layout, interrupt controllers, clocks.
pub trait Platform: Send + Sync + Sized + 'static {
    /// Type of the vCPUs.
    type Cpu: Cpu + DebugCpu;

    /// KVM capabilities that the platform requires.
    const CAPABILITIES: &'static [Cap];
    /// Architecture of snapshots and images.
    const ARCHITECTURE: Architecture;
    /// Capacity of the command line in bytes, NUL included.
    const COMMAND_LINE_CAPACITY: usize;
    /// Maximum number of vCPUs that are threads of one core.
    const MAX_CORE_THREADS: u8;
    /// The command line has an argument for each virtio-mmio device, unless the configuration omits them.
    const HAS_DEVICE_ARGUMENTS: bool;
    /// Layout of a VM whose image is not known yet.
    const DEFAULT_LAYOUT: AddressLayout;

    /// Checks that the architecture has all settings of `spec`. It may come from a state file.
    ///
    /// # Errors
    /// [`Error::Foreign`]
    fn check(spec: &VmSpec) -> Result<(), Error>;

    /// Returns the layout of a VM that boots `image` by `config`. If the architecture has several, returns the name of its memory map
    /// and the reason too.
    ///
    /// # Errors
    /// [`Error::Placement`]
    fn select_layout(image: &Image, config: &VmConfig) -> Result<(AddressLayout, Option<String>), Error>;

    /// Returns the places of `image`, entered by `protocol`, and of boot data in `memory` of `layout`.
    ///
    /// # Errors
    /// [`Error::Placement`]
    fn plan_load(
        image: &Image,
        protocol: Protocol,
        layout: AddressLayout,
        memory: MemorySize,
    ) -> Result<LoadPlan, Error>;

    /// Returns the type of the VM of `spec` for `KVM_CREATE_VM`.
    ///
    /// # Errors
    /// [`Error::Placement`] if the host cannot address its memory.
    fn vm_type(kvm: &Kvm, spec: &VmSpec) -> Result<u64, Error>;

    /// Returns the regions of memory of `size` in `layout`, lowest first.
    fn memory_regions(size: MemorySize, layout: AddressLayout) -> Vec<(GuestAddress, usize)>;

    /// Returns the guest-physical address of the [identity record](crate::identity) in memory of `size` and `layout`; `None` if the guest
    /// has none.
    fn identity_address(layout: AddressLayout, size: MemorySize) -> Option<GuestAddress>;

    /// Raises the interrupt of a new identity record, if the guest can find a description of it.
    fn notify_identity(&self);

    /// Reserves guest-physical addresses that KVM uses itself: after the memory slots, before a vCPU runs.
    ///
    /// # Errors
    /// [`Error::Kvm`]
    fn reserve_addresses(vm: &VmFd) -> Result<(), Error>;

    /// Returns true if the interrupt controllers of `spec` can be created before the memory slots: each slot would otherwise wait
    /// several milliseconds for them.
    fn can_precede_memory(spec: &VmSpec) -> bool;

    /// Creates the platform, and the interrupt controllers that must precede the vCPUs: after the memory slots unless they [can
    /// precede](Self::can_precede_memory) them.
    ///
    /// `boot_cpu` kicks the vCPU that receives interrupts of legacy controllers.
    ///
    /// # Errors
    /// [`Error`]
    fn new(vm: &Arc<VmFd>, spec: &VmSpec, boot_cpu: Kick) -> Result<Self, Error>;

    /// Creates the vCPUs of `spec`, and the interrupt controllers that must follow them. Calls `pass` for each vCPU in their order,
    /// from which time on its thread uses it.
    ///
    /// # Errors
    /// [`Error`]
    fn create_vcpus(&mut self, spec: &VmSpec, pass: &mut dyn FnMut(u8, VcpuFd)) -> Result<(), Error>;

    /// Makes the clock of the guest start now, if the VM was created long before its boot.
    ///
    /// # Errors
    /// [`Error::Kvm`]
    fn restart_clock(&self) -> Result<(), Error>;

    /// Returns the model of the first serial port.
    fn serial_model(&self) -> SerialModel;

    /// Returns the interrupt line of the first serial port.
    fn serial_interrupt(&self) -> Arc<dyn Interrupt>;

    /// Returns [`MAX_DEVICES`](crate::config::MAX_DEVICES) virtio-mmio devices, each with its interrupt line.
    fn mmio_devices(&self) -> Box<dyn Iterator<Item = (MmioDeviceInfo, Arc<dyn Interrupt>)> + '_>;

    /// Attaches the platform devices to `bus`, which has memory-mapped registers, and to buses of the platform. Returns their event
    /// sources.
    ///
    /// # Errors
    /// [`Error::Bus`] or [`Error::Device`].
    fn attach(
        &mut self,
        context: &AttachContext,
        spec: &VmSpec,
        bus: &mut BusBuilder,
    ) -> Result<Vec<SharedSource>, Error>;

    /// Writes boot data to guest memory. Returns the entry of the boot vCPU.
    ///
    /// # Errors
    /// [`Error::BootData`]
    fn write_boot_data(
        &self,
        memory: &GuestMemory,
        inputs: &BootInputs<'_>,
    ) -> Result<<Self::Cpu as Cpu>::Entry, Error>;

    /// Injects interrupts that KVM does not inject by itself. The vCPU thread calls it before each `KVM_RUN` of vCPU `id` that
    /// can enter the guest.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn inject_interrupts(&self, id: u8, vcpu: &mut VcpuFd) -> Result<(), kvm::Error>;

    /// Returns the identity of the host processor. A snapshot can move between two hosts only if the identities are equal.
    fn cpu_identity() -> String;

    /// Returns false if KVM on this host works without hardware virtualization, and interprets the guest's kernel. Slow where the host
    /// is a virtual machine: no step of a start calls it before the guest runs.
    fn has_hardware_virtualization() -> bool;

    /// Returns the way out after an instruction that KVM cannot emulate.
    fn emulation_hint() -> &'static str;

    /// Handles an exit that only this architecture has: an access to [`AddressSpace::Io`], an interrupt controller in this process, a
    /// halt. `context` belongs to the exit. Inlined into the loop of the vCPU thread.
    fn handle_exit<'a>(
        &self,
        exit: VcpuExit<'a>,
        context: &<Self::Cpu as Cpu>::ExitContext,
    ) -> NativeExit<'a>;

    /// Returns the number of accesses to [`AddressSpace::Io`] that no device claims; 0 without this space.
    fn unclaimed_io(&self) -> u64;

    /// Returns the metrics of the device through which a user requests a shutdown; zeros without one. Takes no lock of a device.
    fn input_metrics(&self) -> InputMetrics;

    /// Requests a shutdown from the guest, as a user at its console does. The guest may ignore the request. Returns false if the
    /// machine has no device for it.
    fn request_shutdown(&self) -> bool;

    /// Adds the settings to `archive` that the build of the machine requires besides its configuration.
    ///
    /// # Errors
    /// As [`ArchiveWriter::write`].
    fn save_settings(&self, archive: &mut ArchiveWriter) -> Result<(), SectionError>;

    /// Adds the settings of [`save_settings`](Self::save_settings) to `config`.
    ///
    /// # Errors
    /// As [`ArchiveReader::read`].
    fn restore_settings(archive: &mut ArchiveReader<'_>, config: &mut VmConfig) -> Result<(), SectionError>;

    /// Returns the time since the save of `archive` by which clocks of the vCPUs advance in a restore with `realtime`; zero if only
    /// [`restore_after_vcpus`](Self::restore_after_vcpus) advances clocks. Consumes the section that it reads.
    ///
    /// # Errors
    /// As [`ArchiveReader::read`].
    fn time_since_save(archive: &mut ArchiveReader<'_>) -> Result<Duration, SectionError>;

    /// Adds the state of devices, interrupt controllers and clock to `archive`. No vCPU may run.
    ///
    /// # Errors
    /// [`StateError`] with the component.
    fn save_state(&self, archive: &mut ArchiveWriter) -> Result<(), StateError>;

    /// Restores the state that does not depend on vCPUs, in parallel with their restore. Devices that raise interrupts at their
    /// restore must be restored before: the saved pending interrupts replace these interrupts.
    ///
    /// # Errors
    /// [`StateError`] with the component.
    fn restore_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError>;

    /// Restores the remaining state, after the restore of all vCPUs and before one runs. With `realtime` the clock of the guest
    /// advances by the time since the save.
    ///
    /// # Errors
    /// [`StateError`] with the component.
    fn restore_after_vcpus(&self, archive: &mut ArchiveReader<'_>, realtime: bool) -> Result<(), StateError>;
}

/// Check of a saved vCPU for features and registers that this host does not support.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuCheck {
    /// They are rejected. Features that the processor has, and that any KVM supports then, are not looked up.
    #[default]
    Quick,
    /// They are rejected, by the answer of KVM.
    Strict,
    /// They are removed.
    Mask,
}

/// Parameters of the restore of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuRestore {
    /// Check for values that this host does not support.
    pub check: CpuCheck,
    /// Time by which the clocks of the vCPU advance, beside that of the machine.
    pub advance: Duration,
}

/// Present execution of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuStatus {
    /// The vCPU waits in a halt, and no event that would end it is pending.
    pub is_halted: bool,
    /// The vCPU has been started: it is the boot vCPU, or another one has started it.
    pub is_started: bool,
    /// The guest accepts interrupts.
    pub accepts_interrupts: bool,
    /// Instruction pointer.
    pub ip: u64,
}

/// Features, entry and state of vCPUs.
pub trait Cpu {
    /// Processor features common to all vCPUs.
    type Profile: Send + Sync;
    /// Processor features of one vCPU.
    type Features;
    /// Registers of the boot vCPU at its first instruction.
    type Entry: Send;
    /// State of one vCPU.
    type State: Schema + CoreState + Clone + fmt::Debug + Send;
    /// Data of an exit that [`VcpuExit`] does not contain.
    type ExitContext;

    /// Name of the phase of the start in which [`profile`](Self::profile) runs.
    const PROFILE_PHASE: &'static str;

    /// Reads the features that KVM supports on this host, without those that a guest gets by request alone and that are not in
    /// `requested`. The call may be slow where the host is a virtual machine. A vCPU thread calls
    /// it while the machine is built.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn profile(kvm: &Kvm, requested: CpuFeatures) -> Result<Self::Profile, kvm::Error>;

    /// Sets profile and reset state of vCPU `id` of `topology`.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn configure(
        vcpu: &VcpuFd,
        id: u8,
        topology: CpuTopology,
        profile: &Self::Profile,
    ) -> Result<(), kvm::Error>;

    /// Reads the features of a [configured](Self::configure) vCPU: KVM may add some.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn features(vcpu: &VcpuFd) -> Result<Self::Features, kvm::Error>;

    /// Sets the registers of the boot vCPU.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn set_boot_registers(vcpu: &VcpuFd, entry: &Self::Entry) -> Result<(), kvm::Error>;

    /// Reads the state of `vcpu`, whose last exit is complete. `flush_pending` flushes pending work of KVM without a guest entry;
    /// it can be called several times.
    ///
    /// # Errors
    /// [`StateError::Kernel`]
    fn save(
        vcpu: &mut VcpuFd,
        kvm: &Kvm,
        flush_pending: impl FnMut(&mut VcpuFd),
    ) -> Result<Self::State, StateError>;

    /// Reads from the processor what most calls of [`restore`](Self::restore) need.
    fn prefetch_limits();

    /// Restores the state of `vcpu`, in place of boot registers. It has `features` if it was configured. `profile` returns the
    /// features that KVM supports; `params` and the state decide if it is called.
    ///
    /// # Errors
    /// [`StateError::Unsupported`], [`StateError::Invalid`], [`StateError::Kernel`], and those of `profile`; the vCPU must not run
    /// afterwards.
    fn restore<'p>(
        vcpu: &VcpuFd,
        kvm: &Kvm,
        state: &mut Self::State,
        features: Option<&Self::Features>,
        profile: impl FnOnce() -> Result<&'p Self::Profile, StateError>,
        params: CpuRestore,
    ) -> Result<(), StateError>
    where
        Self::Profile: 'p;

    /// Returns access to the data of the next exit, before it happens: the exit borrows the vCPU.
    fn exit_context(page: &mut RunPage<'_>) -> Self::ExitContext;

    /// Returns the kind of `exit`, which is no access to memory and no kick.
    fn exit_kind(exit: &VcpuExit<'_>) -> ExitKind;

    /// Cancels exits that KVM makes before guest entry, and thus before it flushes its pending work.
    fn cancel_early_exits(page: &mut RunPage<'_>);

    /// Notifies the guest of a pause of `vcpu`, so that its watchdog does not report a hang. Returns false if KVM rejects it.
    fn notify_pause(vcpu: &VcpuFd) -> bool;

    /// Reads the present execution of `vcpu`, whose last exit is complete.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn status(vcpu: &VcpuFd) -> Result<CpuStatus, kvm::Error>;

    /// Returns the instruction pointer and the bytes at that address, for error reports.
    fn instruction(vcpu: &VcpuFd, memory: &GuestMemory) -> (u64, Vec<u8>);

    /// Returns the innermost functions, with at most `limit` return addresses by frame pointers, for error reports and samples. Code
    /// without frame pointers may use their register for something else. `None` if the registers cannot be read.
    fn stack(vcpu: &VcpuFd, memory: &GuestMemory, limit: usize) -> Option<CpuStack>;
}
