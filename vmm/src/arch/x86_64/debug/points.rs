//! Breakpoints, watchpoints and single step: Intel SDM volume 3B, chapter 19.

use gdb::PointKind;
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;

use crate::arch::{DebugControl, DebugExit, HardwarePoint, PointLimits, StepMode};
use crate::kvm::{self, failed};

/// Breakpoints and watchpoints share four registers.
pub const LIMITS: PointLimits = PointLimits {
    breakpoints: 4,
    watchpoints: 4,
};

/// Exception of INT3.
const BREAKPOINT_EXCEPTION: u32 = 3;
/// Bits of DR6: the register with the condition that was met.
const DR6_REGISTERS: u64 = 0xf;
/// Bit of DR6: single step.
const DR6_STEP: u64 = 1 << 14;
/// Bits of DR7 that always read as one.
const DR7_FIXED: u64 = 1 << 10;
/// Bit of DR7: exact breakpoints, ignored by all processors since the P6.
const DR7_EXACT: u64 = 1 << 9;

/// Returns true if a register can hold `point`: 1, 2, 4 or 8 bytes at a multiple of the length.
pub fn is_valid(point: &HardwarePoint) -> bool {
    let length = length(point);
    matches!(length, 1 | 2 | 4 | 8) && point.address.is_multiple_of(length)
}

/// Returns the length of a point in the register: 1 for a breakpoint.
fn length(point: &HardwarePoint) -> u64 {
    match point.kind {
        PointKind::Hardware => 1,
        _ => point.length,
    }
}

/// Returns DR7 for `points`.
fn control_register(points: &[HardwarePoint]) -> u64 {
    (0..)
        .zip(points)
        .fold(DR7_FIXED | DR7_EXACT, |control, (index, point)| {
            let condition = match point.kind {
                PointKind::Write => 1,
                PointKind::Access | PointKind::Read => 3,
                PointKind::Hardware | PointKind::Software => 0,
            };
            let length = match length(point) {
                2 => 1,
                4 => 3,
                8 => 2,
                _ => 0,
            };
            control | 2 << (2 * index) | (condition | length << 2) << (16 + 4 * index)
        })
}

/// Sets the registers of `vcpu`.
pub fn set(vcpu: &VcpuFd, control: &DebugControl) -> Result<(), kvm::Error> {
    set_with(vcpu, control, 0)
}

/// Sets the registers of `vcpu`, and injects the exception of INT3.
pub fn pass_breakpoint(vcpu: &VcpuFd, control: &DebugControl) -> Result<(), kvm::Error> {
    set_with(vcpu, control, KVM_GUESTDBG_INJECT_BP)
}

fn set_with(vcpu: &VcpuFd, control: &DebugControl, flags: u32) -> Result<(), kvm::Error> {
    let mut debug = kvm_guest_debug::default();
    if control.is_enabled {
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP | flags;
        if control.has_software {
            debug.control |= KVM_GUESTDBG_USE_SW_BP;
        }
        for (register, point) in debug.arch.debugreg.iter_mut().zip(&control.points) {
            *register = point.address;
        }
        debug.arch.debugreg[7] = control_register(&control.points);
        debug.control |= match control.step {
            StepMode::Off => 0,
            StepMode::WithoutInterrupts => KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ,
            StepMode::WithInterrupts => KVM_GUESTDBG_SINGLESTEP,
        };
    }
    let set = match vcpu.set_guest_debug(&debug) {
        // Since Linux 5.16. Without it, a pending interrupt makes the step end in its handler.
        Err(error) if error.errno() == libc::EINVAL && control.step == StepMode::WithoutInterrupts => {
            debug.control &= !KVM_GUESTDBG_BLOCKIRQ;
            vcpu.set_guest_debug(&debug)
        }
        result => result,
    };
    set.map_err(failed("KVM_SET_GUEST_DEBUG"))
}

/// Returns the reason of an exit.
pub fn debug_exit(exit: &kvm_debug_exit_arch) -> DebugExit {
    if exit.exception == BREAKPOINT_EXCEPTION {
        return DebugExit::Software(0);
    }
    let index = (exit.dr6 & DR6_REGISTERS).trailing_zeros();
    if index < 4 {
        // A breakpoint comes before its instruction, and before the end of a step.
        return match exit.dr7 >> (16 + 4 * index) & 3 {
            0 => DebugExit::Hardware,
            _ => DebugExit::WatchIndex(index as usize),
        };
    }
    // KVM that interprets the guest reports a breakpoint without a register.
    match exit.dr6 & DR6_STEP {
        0 => DebugExit::Hardware,
        _ => DebugExit::Step,
    }
}

#[cfg(test)]
mod tests {
    use gdb::PointKind;
    use kvm_bindings::kvm_debug_exit_arch;

    use super::{control_register, debug_exit, is_valid};
    use crate::arch::{DebugExit, HardwarePoint};

    fn point(kind: PointKind, address: u64, length: u64) -> HardwarePoint {
        HardwarePoint {
            kind,
            address,
            length,
        }
    }

    #[test]
    fn control_register_has_enable_condition_and_length() {
        let points = [
            point(PointKind::Hardware, 0x1001, 1),
            point(PointKind::Write, 0x2000, 8),
            point(PointKind::Access, 0x3004, 4),
            point(PointKind::Write, 0x4002, 2),
        ];
        assert_eq!(control_register(&[]), 0x600);
        assert_eq!(control_register(&points[..1]), 0x602);
        // Length 8 is 0b10, 4 is 0b11, 2 is 0b01; a write is 0b01, an access 0b11.
        assert_eq!(control_register(&points), 0x5f90_06aa);
    }

    #[test]
    fn point_needs_power_of_two_and_alignment() {
        for (length, address, is_ok) in [
            (1, 0x11, true),
            (2, 0x12, true),
            (2, 0x11, false),
            (3, 0x12, false),
            (8, 0x18, true),
            (8, 0x14, false),
            (16, 0x20, false),
            (0, 0, false),
        ] {
            assert_eq!(
                is_valid(&point(PointKind::Write, address, length)),
                is_ok,
                "{length}"
            );
        }
        assert!(is_valid(&point(PointKind::Hardware, 0x13, 3)));
    }

    #[test]
    fn exit_has_reason() {
        let exit = |exception, dr6, dr7| {
            debug_exit(&kvm_debug_exit_arch {
                exception,
                dr6,
                dr7,
                ..Default::default()
            })
        };
        assert_eq!(exit(3, 0, 0), DebugExit::Software(0));
        assert_eq!(exit(1, 0xffff_4ff0, 0x400), DebugExit::Step);
        assert_eq!(exit(1, 0xffff_0ff1, 0x602), DebugExit::Hardware);
        assert_eq!(exit(1, 0xffff_4ff2, 0x0010_0600), DebugExit::WatchIndex(1));
        assert_eq!(exit(1, 0xffff_4ff1, 0x602), DebugExit::Hardware);
    }
}
