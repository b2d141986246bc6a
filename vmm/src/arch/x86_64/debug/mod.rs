//! Debugging of vCPUs.
//!
//! | module | contents |
//! |---|---|
//! | `points` | debug registers |
//! | `probe` | abilities of KVM |
//! | `registers` | registers in gdb's order |

mod points;
mod probe;
mod registers;

use gdb::PointKind;
use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use super::X86_64;
use super::paging::Paging;
use crate::arch::debug::RegisterFeature;
use crate::arch::{DebugAbilities, DebugControl, DebugCpu, DebugExit, HardwarePoint, PointLimits};
use crate::kvm::{self, failed};

impl DebugCpu for X86_64 {
    type Paging = Paging;

    /// INT3.
    const BREAKPOINT: &'static [u8] = &[0xcc];
    const REGISTERS: &'static [RegisterFeature] = registers::FEATURES;
    const GDB_NAME: &'static str = "i386:x86-64";

    fn registers(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm::Error> {
        registers::read(vcpu)
    }

    fn set_registers(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), kvm::Error> {
        registers::write(vcpu, bytes)
    }

    fn instruction_pointer(registers: &[u8]) -> u64 {
        registers::instruction_pointer(registers)
    }

    fn paging(vcpu: &VcpuFd) -> Result<Paging, kvm::Error> {
        let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        Ok(Paging::from(&sregs))
    }

    fn translate(paging: &Paging, memory: &GuestMemory, address: u64) -> Option<u64> {
        paging.translate(memory, address)
    }

    fn debug_exit(exit: &kvm_debug_exit_arch) -> DebugExit {
        points::debug_exit(exit)
    }

    fn point_limits(_: &VcpuFd) -> PointLimits {
        points::LIMITS
    }

    fn fit(points: &[HardwarePoint], limits: PointLimits) -> bool {
        // No register watches reads alone; gdb uses a watchpoint for all accesses then.
        points.len() <= limits.breakpoints
            && points
                .iter()
                .all(|point| point.kind != PointKind::Read && points::is_valid(point))
    }

    fn set_debug(vcpu: &VcpuFd, control: &DebugControl) -> Result<(), kvm::Error> {
        points::set(vcpu, control)
    }

    fn pass_breakpoint(vcpu: &VcpuFd, control: &DebugControl, _: u16) -> Result<(), kvm::Error> {
        points::pass_breakpoint(vcpu, control)
    }

    /// Does nothing: fetches of instructions see all writes (Intel SDM volume 3A, section 13.6).
    fn sync_instructions(_: &GuestMemory, _: GuestAddress, _: usize) {}

    fn probe(kvm: &Kvm) -> Result<DebugAbilities, kvm::Error> {
        probe::probe(kvm)
    }
}
