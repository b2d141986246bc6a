//! Debugging of vCPUs, behind the trait [`DebugCpu`].

use std::fmt::Write;
use std::io;
use std::ops::Range;

use gdb::PointKind;
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use crate::kvm::{self, failed};
use crate::memory::allocate;

/// Size of the smallest page of all supported page tables: addresses within one are contiguous in physical memory.
pub const TRANSLATION_UNIT: u64 = 4096;

/// Reason of KVM_EXIT_DEBUG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugExit {
    /// Single step.
    Step,
    /// Breakpoint instruction, with its operand.
    Software(u16),
    /// Breakpoint of a debug register.
    Hardware,
    /// Watchpoint with this index among the hardware points.
    WatchIndex(usize),
    /// Watchpoint of an access to this address.
    WatchAddress(u64),
}

/// Breakpoint or watchpoint in debug registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwarePoint {
    /// Kind; not [`PointKind::Software`].
    pub kind: PointKind,
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Settings of the debugger for a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// A debugger is attached. Otherwise the rest has no effect.
    pub is_enabled: bool,
    /// Breakpoint instructions stop the vCPU. Otherwise those of the guest cost it no exit.
    pub has_software: bool,
    /// Single step.
    pub step: StepMode,
    /// Breakpoints and watchpoints, which [fit](DebugCpu::fit).
    pub points: Vec<HardwarePoint>,
}

/// Single step of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepMode {
    /// None.
    #[default]
    Off,
    /// Each KVM_RUN executes one instruction; interrupts wait where KVM can.
    WithoutInterrupts,
    /// Each KVM_RUN executes one instruction, of the handler of a pending interrupt, too.
    WithInterrupts,
}

/// Numbers of breakpoints and watchpoints in debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointLimits {
    /// Breakpoints.
    pub breakpoints: usize,
    /// Watchpoints.
    pub watchpoints: usize,
}

/// Debugging that KVM on this host supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugAbilities {
    /// Breakpoints of debug registers stop the vCPU.
    pub has_hardware_breakpoints: bool,
    /// A breakpoint instruction stops the vCPU, and not the guest.
    pub has_software_breakpoints: bool,
    /// Watchpoints stop the vCPU.
    pub has_watchpoints: bool,
}

/// Access of a debugger to a vCPU, from its thread, outside the guest.
pub trait DebugCpu {
    /// Registers that determine the translation of addresses.
    type Paging: Send + 'static;

    /// Breakpoint instruction.
    const BREAKPOINT: &'static [u8];
    /// Registers of the target description.
    const REGISTERS: &'static [RegisterFeature];
    /// Name of the architecture in gdb.
    const GDB_NAME: &'static str;

    /// Reads the registers, in the order of [`REGISTERS`](Self::REGISTERS).
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn registers(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm::Error>;

    /// Sets the registers that differ. Registers that only KVM sets must not.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]; some registers may be set then.
    fn set_registers(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), kvm::Error>;

    /// Returns the instruction pointer among `registers`.
    fn instruction_pointer(registers: &[u8]) -> u64;

    /// Reads the state of the translation of addresses.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn paging(vcpu: &VcpuFd) -> Result<Self::Paging, kvm::Error>;

    /// Returns the guest-physical address of `address`, or `None` if the page tables do not map it. Rights do not matter.
    fn translate(paging: &Self::Paging, memory: &GuestMemory, address: u64) -> Option<u64>;

    /// Returns the reason of an exit.
    fn debug_exit(exit: &kvm_debug_exit_arch) -> DebugExit;

    /// Returns the numbers of debug registers.
    fn point_limits(vcpu: &VcpuFd) -> PointLimits;

    /// Returns true if debug registers within `limits` hold all `points`.
    fn fit(points: &[HardwarePoint], limits: PointLimits) -> bool;

    /// Sets breakpoints, watchpoints and single step.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn set_debug(vcpu: &VcpuFd, control: &DebugControl) -> Result<(), kvm::Error>;

    /// Sets the same as [`set_debug`](Self::set_debug), and passes the exception of the breakpoint instruction with `operand`, at the
    /// instruction pointer, to the guest.
    ///
    /// # Errors
    /// [`kvm::Error::Call`]
    fn pass_breakpoint(vcpu: &VcpuFd, control: &DebugControl, operand: u16) -> Result<(), kvm::Error>;

    /// Makes `length` bytes at `address`, which this thread has written, visible to vCPUs as instructions.
    fn sync_instructions(memory: &GuestMemory, address: GuestAddress, length: usize);

    /// Probes the means of debugging of this host by a VM of its own with some instructions.
    ///
    /// # Errors
    /// [`kvm::Error::Call`] and [`kvm::Error::Open`].
    fn probe(kvm: &Kvm) -> Result<DebugAbilities, kvm::Error>;
}

/// Exits after which a probe gives up: each of its instructions makes at most one.
const MAX_PROBE_EXITS: usize = 8;

/// Allocates the memory of a probe: `length` bytes from `address` on.
pub fn probe_memory(address: u64, length: usize) -> Result<GuestMemory, kvm::Error> {
    allocate(&[(GuestAddress(address), length)]).map_err(|error| kvm::Error::Call {
        call: "mmap".into(),
        hint: "",
        source: io::Error::other(error),
    })
}

/// Runs the vCPU of a probe. Returns the reason of its KVM_EXIT_DEBUG, or `None` after another exit.
pub fn probe_exit(
    vcpu: &mut VcpuFd,
    reason: fn(&kvm_debug_exit_arch) -> DebugExit,
) -> Result<Option<DebugExit>, kvm::Error> {
    for _ in 0..MAX_PROBE_EXITS {
        match vcpu.run() {
            Ok(VcpuExit::Debug(exit)) => return Ok(Some(reason(&exit))),
            Ok(VcpuExit::Intr) => {}
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(failed("KVM_RUN")(error)),
        }
    }
    Ok(None)
}

/// Feature of a target description: gdb, "Target Description Format".
pub struct RegisterFeature {
    /// Name of the feature.
    pub name: &'static str,
    /// Types of its registers, in XML.
    pub types: &'static str,
    /// Its registers.
    pub registers: &'static [RegisterRow],
}

/// Registers with a common type.
pub struct RegisterRow {
    /// Name, or its part before the number.
    pub name: &'static str,
    /// Numbers in the names; `None` for a single register without one.
    pub numbers: Option<Range<u8>>,
    /// Part of the name behind the number.
    pub suffix: &'static str,
    /// Length in bytes.
    pub length: usize,
    /// Type in gdb.
    pub kind: &'static str,
}

impl RegisterRow {
    /// Returns a row of one register.
    pub const fn one(name: &'static str, length: usize, kind: &'static str) -> Self {
        Self {
            name,
            numbers: None,
            suffix: "",
            length,
            kind,
        }
    }

    /// Returns a row of registers with `numbers`.
    pub const fn many(name: &'static str, numbers: Range<u8>, length: usize, kind: &'static str) -> Self {
        Self {
            name,
            numbers: Some(numbers),
            suffix: "",
            length,
            kind,
        }
    }

    fn count(&self) -> usize {
        self.numbers.as_ref().map_or(1, ExactSizeIterator::len)
    }
}

/// Returns the target description of `C`.
pub fn target_description<C: DebugCpu>() -> String {
    let mut text = format!(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\"><architecture>{}</architecture>",
        C::GDB_NAME
    );
    for feature in C::REGISTERS {
        // A string takes all text.
        let _ = write!(text, "<feature name=\"{}\">{}", feature.name, feature.types);
        for row in feature.registers {
            let first = row.numbers.as_ref().map_or(0, |numbers| numbers.start);
            for index in 0..row.count() {
                let number = match &row.numbers {
                    Some(_) => (usize::from(first) + index).to_string(),
                    None => String::new(),
                };
                let (name, suffix, bits, kind) = (row.name, row.suffix, row.length * 8, row.kind);
                let _ = write!(
                    text,
                    "<reg name=\"{name}{number}{suffix}\" bitsize=\"{bits}\" type=\"{kind}\"/>"
                );
            }
        }
        text.push_str("</feature>");
    }
    text.push_str("</target>");
    text
}

/// Returns the bytes of register `number` of `C` among all registers.
pub fn register_range<C: DebugCpu>(mut number: usize) -> Option<Range<usize>> {
    let mut start = 0;
    for row in C::REGISTERS.iter().flat_map(|feature| feature.registers) {
        let count = row.count();
        if number < count {
            start += number * row.length;
            return Some(start..start + row.length);
        }
        number -= count;
        start += count * row.length;
    }
    None
}

/// Returns the number of bytes of all registers of `C`.
#[cfg(test)]
pub fn registers_length<C: DebugCpu>() -> usize {
    let rows = C::REGISTERS.iter().flat_map(|feature| feature.registers);
    rows.map(|row| row.count() * row.length).sum()
}

/// Registers as bytes, in the order of the target description.
pub struct RegisterReader<'a>(pub &'a [u8]);

impl RegisterReader<'_> {
    /// Takes the next `N` bytes; zeros beyond the end.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((bytes, rest)) => {
                self.0 = rest;
                *bytes
            }
            None => [0; N],
        }
    }

    /// Takes a 64-bit register.
    pub fn take_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
