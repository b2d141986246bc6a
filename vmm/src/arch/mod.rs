//! All that differs between architectures, behind two traits: [`Platform`] for the machine, [`Cpu`] for its vCPUs.
//!
//! This is the only place that asks for the architecture. The rest of the crate names [`Native`].

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use devices::{BusBuilder, Interrupt, Power, bus};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use snapshot::file::Architecture;
use snapshot::persist::Error as StateError;
use snapshot::{ArchiveReader, ArchiveWriter, GuestMemory, Schema};
use vm_memory::GuestAddress;

use crate::boot::LoadedImage;
use crate::config::{MemorySize, VmSpec};
use crate::kvm;
use crate::kvm::Kick;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::Aarch64 as Native;
#[cfg(target_arch = "x86_64")]
pub use x86_64::X86_64 as Native;

/// Why the machine's architecture could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused.
    #[error("cannot set the platform up")]
    Kvm(#[source] kvm::Error),
    /// A platform device could not be made.
    #[error("cannot make the {device}")]
    Device {
        /// Name of the device.
        device: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A platform device could not be put on a bus.
    #[error("cannot put a device on its bus")]
    Bus(#[source] bus::Error),
    /// What the guest is to find in memory at its start could not be written.
    #[error("cannot write what the guest finds in memory at its start")]
    Entry(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The architecture cannot run guests.
    #[error("this build of mayfly cannot run guests on {0} yet")]
    Unsupported(&'static str),
}

/// Something that the event loop watches on behalf of a platform device.
pub trait EventSource: Send {
    /// The descriptor that becomes readable.
    fn descriptor(&self) -> RawFd;

    /// Whether it is watched for the beginning of its readiness only.
    fn is_edge(&self) -> bool;

    /// Called when it is readable.
    fn ready(&mut self);
}

/// The registers of a virtio-mmio device, as a guest is told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDeviceInfo {
    /// First address, at a page.
    pub base: u64,
    /// Length in bytes, whole pages.
    pub size: u64,
    /// The interrupt, active high and edge-triggered.
    pub gsi: u32,
}

/// A source as the platform and the event loop share it.
pub type SharedSource = Arc<Mutex<dyn EventSource>>;

/// The two address spaces of a machine while they are being filled.
#[derive(Default)]
pub struct Buses {
    /// Ports; empty where the architecture has none.
    pub ports: BusBuilder,
    /// Memory-mapped registers.
    pub memory: BusBuilder,
}

/// What the platform connects its devices to.
pub struct AttachContext {
    /// Where the guest says that it has ended.
    pub power: Arc<Power>,
    /// The first serial port.
    pub serial: bus::SharedDevice,
}

/// The machine around the vCPUs: memory layout, interrupt controllers, clocks.
pub trait Platform: Send + Sync + Sized + 'static {
    /// What the vCPUs are.
    type Cpu: Cpu;

    /// What KVM must be able to do.
    const CAPABILITIES: &'static [Cap];
    /// The architecture, as snapshots name it.
    const ARCHITECTURE: Architecture;
    /// Bytes that the guest's command line may take, NUL included.
    const COMMAND_LINE_CAPACITY: usize;
    /// Guest-physical addresses that an image may not load over.
    const RESERVED: &'static [Range<u64>];

    /// Where memory of `size` is in the guest's address space, lowest first.
    fn memory_regions(size: MemorySize) -> Vec<(GuestAddress, usize)>;

    /// Makes the interrupt controllers: after the memory slots, before the vCPUs.
    ///
    /// `boot_cpu` interrupts the vCPU that takes interrupts of legacy controllers.
    ///
    /// # Errors
    /// [`Error`]
    fn new(vm: &Arc<VmFd>, spec: &VmSpec, boot_cpu: Kick) -> Result<Self, Error>;

    /// The wire to the interrupt controllers for the first serial port.
    fn serial_interrupt(&self) -> Arc<dyn Interrupt>;

    /// The windows of virtio devices, [`MAX_DEVICES`](crate::config::MAX_DEVICES) of them, each with the wire to the interrupt
    /// controllers for it.
    fn mmio_devices(&self) -> Box<dyn Iterator<Item = (MmioDeviceInfo, Arc<dyn Interrupt>)> + '_>;

    /// Puts the platform's devices on the buses; returns what the event loop has to watch for them.
    ///
    /// # Errors
    /// [`Error::Bus`] or [`Error::Device`].
    fn attach(
        &mut self,
        wiring: &AttachContext,
        spec: &VmSpec,
        buses: &mut Buses,
    ) -> Result<Vec<SharedSource>, Error>;

    /// Writes what the guest finds in memory at its start.
    ///
    /// # Errors
    /// [`Error::Entry`]
    fn write_boot_data(
        memory: &GuestMemory,
        loaded: &LoadedImage,
        cmdline: &CStr,
        spec: &VmSpec,
        windows: &[MmioDeviceInfo],
    ) -> Result<<Self::Cpu as Cpu>::Entry, Error>;

    /// Called before each `KVM_RUN` of vCPU `id` that may enter the guest: injects what KVM does not inject by itself.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn inject_interrupts(&self, id: u8, vcpu: &mut VcpuFd) -> Result<(), kvm::Error>;

    /// The host's processor, in words that are alike on two hosts exactly when a snapshot can move between them.
    fn cpu_identity() -> String;

    /// The guest has acknowledged the interrupt of `vector` at a local interrupt controller.
    fn end_of_interrupt(&self, vector: u8);

    /// Presses Ctrl-Alt-Del on the guest's keyboard. Returns whether the machine has one.
    fn press_ctrl_alt_del(&self) -> bool;

    /// Adds the state of the platform's devices, interrupt controllers and clock to `archive`. No vCPU runs.
    ///
    /// # Errors
    /// [`StateError`], naming the part.
    fn save_state(&self, archive: &mut ArchiveWriter) -> Result<(), StateError>;

    /// Restores what can be restored while the vCPUs are given their state. Devices that raise their interrupts when they are
    /// restored have been: what they raised is replaced by what was pending.
    ///
    /// # Errors
    /// [`StateError`], naming the part.
    fn restore_before_vcpus(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError>;

    /// Restores the rest, once all vCPUs have their state and before one runs. With `realtime` the guest's clock jumps to
    /// where it would stand had it never stopped.
    ///
    /// # Errors
    /// [`StateError`], naming the part.
    fn restore_after_vcpus(&self, archive: &mut ArchiveReader<'_>, realtime: bool) -> Result<(), StateError>;
}

/// What a vCPU is made to look like, and how it enters the guest.
pub trait Cpu {
    /// What the guest may know of its processor, without what differs between vCPUs.
    type Profile: Send + Sync;
    /// Registers of the boot vCPU at its first instruction.
    type Entry: Send;
    /// All that a vCPU has of its own.
    type State: Schema + Send;

    /// What KVM can offer on this host. Slow, see HOSTS.md: it runs on a vCPU's thread while the machine is made.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn profile(kvm: &Kvm) -> Result<Self::Profile, kvm::Error>;

    /// Gives vCPU `id` of `count` its profile and its state at reset.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn configure(vcpu: &VcpuFd, id: u8, count: u8, profile: &Self::Profile) -> Result<(), kvm::Error>;

    /// Sets the registers of the boot vCPU.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn set_boot_registers(vcpu: &VcpuFd, entry: &Self::Entry) -> Result<(), kvm::Error>;

    /// Reads the state of `vcpu`, whose last exit has been completed. `settle` has KVM do what it puts off until the vCPU
    /// enters the guest, without letting it in; it may be called several times.
    ///
    /// # Errors
    /// [`StateError::Kernel`]
    fn save(vcpu: &mut VcpuFd, kvm: &Kvm, settle: impl FnMut(&mut VcpuFd))
    -> Result<Self::State, StateError>;

    /// Gives `vcpu` a state, in the place of a profile and of registers.
    ///
    /// # Errors
    /// [`StateError::Invalid`] and [`StateError::Kernel`]; the vCPU must not be run then.
    fn restore(vcpu: &VcpuFd, kvm: &Kvm, state: &Self::State) -> Result<(), StateError>;

    /// The vCPU is about to be kept from running for some time, which the guest is not to take for a hang of its own.
    fn notify_pause(vcpu: &VcpuFd);

    /// The instruction pointer and the bytes there, for reports on a guest that cannot go on.
    fn instruction(vcpu: &VcpuFd, memory: &GuestMemory) -> (u64, Vec<u8>);
}
