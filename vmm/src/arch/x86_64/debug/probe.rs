//! Abilities of KVM, by a VM of its own.
//!
//! KVM that interprets guests passes INT3 to the guest, and has no watchpoints; emulated SVM has neither, and no breakpoints in debug
//! registers. KVM announces none of this, so that a probe tries each. Single steps work everywhere.

use gdb::PointKind;
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::points;
use crate::arch::debug::{probe_exit, probe_memory};
use crate::arch::x86_64::entry::EntryState;
use crate::arch::{DebugAbilities, DebugControl, DebugExit, HardwarePoint, StepMode};
use crate::boot::Protocol;
use crate::kvm::{self, failed};

/// Length of the memory of the probe.
const MEMORY: usize = 0x4000;
/// Address of the instructions.
const CODE: u64 = 0x1000;
/// Address that an instruction writes.
const DATA: u32 = 0x2000;

/// Runs the probe.
pub fn probe(kvm: &Kvm) -> Result<DebugAbilities, kvm::Error> {
    let memory = probe_memory(0, MEMORY)?;
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    kvm::slots::set(&vm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU 0"))?;
    // mov %eax, DATA; int3; hlt
    let mut code = vec![0xa3];
    code.extend_from_slice(&DATA.to_le_bytes());
    let breakpoint = CODE + code.len() as u64;
    code.extend_from_slice(&[0xcc, 0xf4]);
    // The memory contains all of it.
    let _ = memory.write_slice(&code, GuestAddress(CODE));
    let second = HardwarePoint {
        kind: PointKind::Hardware,
        address: breakpoint,
        length: 1,
    };
    let watchpoint = HardwarePoint {
        kind: PointKind::Write,
        address: DATA.into(),
        length: 4,
    };
    Ok(DebugAbilities {
        has_hardware_breakpoints: stops(&mut vcpu, CODE, vec![second], DebugExit::Hardware)?,
        has_watchpoints: stops(&mut vcpu, CODE, vec![watchpoint], DebugExit::WatchIndex(0))?,
        has_software_breakpoints: stops(&mut vcpu, breakpoint, Vec::new(), DebugExit::Software(0))?,
    })
}

/// Runs from `start`, in 32-bit mode without paging. Returns true if the vCPU stops for the reason `expected`.
fn stops(
    vcpu: &mut VcpuFd,
    start: u64,
    points: Vec<HardwarePoint>,
    expected: DebugExit,
) -> Result<bool, kvm::Error> {
    let entry = EntryState {
        protocol: Protocol::Pvh,
        entry: start,
    };
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&entry.sregs(sregs))
        .map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&entry.regs()).map_err(failed("KVM_SET_REGS"))?;
    let control = DebugControl {
        is_enabled: true,
        has_software: true,
        step: StepMode::Off,
        points,
    };
    points::set(vcpu, &control)?;
    // INT3 without a descriptor table shuts the processor down.
    probe_exit(vcpu, points::debug_exit).map(|exit| exit == Some(expected))
}
