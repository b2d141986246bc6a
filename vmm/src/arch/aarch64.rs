//! aarch64: memory layout only. Creating a machine fails.

use std::ffi::CStr;
use std::ops::Range;
use std::sync::Arc;

use devices::Interrupt;
use devices::i8042::I8042Metrics;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use snapshot::file::Architecture;
use snapshot::persist::Error as StateError;
use snapshot::{ArchiveReader, ArchiveWriter, GuestMemory, Schema};
use vm_memory::GuestAddress;

use super::{AttachContext, Buses, Cpu, CpuCheck, CpuStatus, Error, MmioDeviceInfo, Platform, SharedSource};
use crate::boot::LoadedImage;
use crate::config::{AddressLayout, CpuTopology, MemorySize, VmSpec};
use crate::kvm::{self, Kick};

/// Start of memory, above interrupt controller and devices.
const MEMORY: GuestAddress = GuestAddress(0x8000_0000);

/// Platform of aarch64, without values, because [`Platform::new`] fails.
pub enum Aarch64 {}

impl Platform for Aarch64 {
    type Cpu = Self;

    const CAPABILITIES: &'static [Cap] = &[Cap::UserMemory, Cap::ImmediateExit, Cap::ArmPsci02];
    const ARCHITECTURE: Architecture = Architecture::Aarch64;
    const COMMAND_LINE_CAPACITY: usize = 4096;
    const RESERVED: &'static [Range<u64>] = &[];

    fn memory_regions(size: MemorySize, _: AddressLayout) -> Vec<(GuestAddress, usize)> {
        vec![(MEMORY, usize::try_from(size.bytes()).unwrap_or(usize::MAX))]
    }

    fn reserve_addresses(_: &VmFd) -> Result<(), Error> {
        Ok(())
    }

    fn can_precede_memory(_: &VmSpec) -> bool {
        false
    }

    fn identity_address(_: AddressLayout) -> Option<GuestAddress> {
        None
    }

    fn notify_identity(&self) {
        match *self {}
    }

    fn new(_: &Arc<VmFd>, _: &VmSpec, _: Kick) -> Result<Self, Error> {
        Err(Error::Unsupported("aarch64"))
    }

    fn restart_clock(&self) -> Result<(), Error> {
        match *self {}
    }

    fn serial_interrupt(&self) -> Arc<dyn Interrupt> {
        match *self {}
    }

    fn mmio_devices(&self) -> Box<dyn Iterator<Item = (MmioDeviceInfo, Arc<dyn Interrupt>)> + '_> {
        match *self {}
    }

    fn attach(&mut self, _: &AttachContext, _: &VmSpec, _: &mut Buses) -> Result<Vec<SharedSource>, Error> {
        match *self {}
    }

    fn write_boot_data(
        _: &GuestMemory,
        _: &LoadedImage,
        _: &CStr,
        _: &VmSpec,
        _: &[MmioDeviceInfo],
    ) -> Result<(), Error> {
        Err(Error::Unsupported("aarch64"))
    }

    fn inject_interrupts(&self, _: u8, _: &mut VcpuFd) -> Result<(), kvm::Error> {
        match *self {}
    }

    fn cpu_identity() -> String {
        String::new()
    }

    fn has_hardware_virtualization() -> bool {
        true
    }

    fn end_of_interrupt(&self, _: u8) {
        match *self {}
    }

    fn keyboard_metrics(&self) -> Option<I8042Metrics> {
        None
    }

    fn press_ctrl_alt_del(&self) -> bool {
        match *self {}
    }

    fn save_state(&self, _: &mut ArchiveWriter) -> Result<(), StateError> {
        match *self {}
    }

    fn restore_before_vcpus(&self, _: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        match *self {}
    }

    fn restore_after_vcpus(&self, _: &mut ArchiveReader<'_>, _: bool) -> Result<(), StateError> {
        match *self {}
    }
}

/// State of one vCPU, empty.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState;

impl Schema for VcpuState {
    const NAME: &'static str = "aarch64-vcpu";
    const VERSION: u32 = 0;
}

impl Cpu for Aarch64 {
    type Profile = ();
    type Entry = ();
    type State = VcpuState;

    fn profile(_: &Kvm) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn configure(_: &VcpuFd, _: u8, _: CpuTopology, (): &()) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn set_boot_registers(_: &VcpuFd, (): &()) -> Result<(), kvm::Error> {
        Ok(())
    }

    fn save(_: &mut VcpuFd, _: &Kvm, _: impl FnMut(&mut VcpuFd)) -> Result<VcpuState, StateError> {
        Ok(VcpuState)
    }

    fn prefetch_limits() {}

    fn restore<'p>(
        _: &VcpuFd,
        _: &Kvm,
        _: &mut VcpuState,
        _: impl FnOnce() -> Result<&'p (), StateError>,
        _: CpuCheck,
    ) -> Result<(), StateError> {
        Ok(())
    }

    fn notify_pause(_: &VcpuFd) -> bool {
        true
    }

    fn status(_: &VcpuFd) -> Result<CpuStatus, kvm::Error> {
        Err(kvm::Error::Call {
            call: "KVM_GET_MP_STATE".into(),
            hint: "",
            source: std::io::Error::from(std::io::ErrorKind::Unsupported),
        })
    }

    fn instruction(_: &VcpuFd, _: &GuestMemory) -> (u64, Vec<u8>) {
        (0, Vec::new())
    }
}
