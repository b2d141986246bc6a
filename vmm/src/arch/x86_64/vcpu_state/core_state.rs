//! State of a vCPU as an ELF core has it.

use kvm_bindings::{KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};

use super::VcpuState;
use crate::arch::x86_64::paging::Paging;
use crate::arch::{CoreState, MappingError, Mappings};

/// Bytes of the area of FXSAVE, `elf_fpregset_t`.
const FXSAVE: usize = 512;

impl CoreState for VcpuState {
    /// `EM_X86_64`
    const MACHINE: u16 = 62;
    /// The lowest upper address that is not canonical.
    const PHYSICAL_WINDOW: u64 = 1 << 63;

    type Paging = Paging;

    fn is_started(&self) -> bool {
        ![KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED].contains(&self.mp_state.mp_state)
    }

    fn general_registers(&self) -> Vec<u8> {
        let (regs, sregs) = (&self.registers, self.sregs.registers());
        // The order of struct user_regs_struct: arch/x86/include/asm/user_64.h.
        let registers = [
            regs.r15,
            regs.r14,
            regs.r13,
            regs.r12,
            regs.rbp,
            regs.rbx,
            regs.r11,
            regs.r10,
            regs.r9,
            regs.r8,
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            // orig_rax: no system call.
            u64::MAX,
            // 0 in long mode.
            regs.rip.wrapping_add(sregs.cs.base),
            sregs.cs.selector.into(),
            regs.rflags,
            regs.rsp,
            sregs.ss.selector.into(),
            sregs.fs.base,
            sregs.gs.base,
            sregs.ds.selector.into(),
            sregs.es.selector.into(),
            sregs.fs.selector.into(),
            sregs.gs.selector.into(),
        ];
        registers.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn float_registers(&self) -> Option<Vec<u8>> {
        let words = self.xsave.legacy_words(FXSAVE / size_of::<u32>());
        Some(words.iter().copied().flat_map(u32::to_le_bytes).collect())
    }

    fn paging(&self) -> Paging {
        Paging::from(self.sregs.registers())
    }

    fn add_mappings(&self, mappings: &mut Mappings<'_>) -> Result<(), MappingError> {
        self.paging().add_mappings(mappings)
    }
}
