//! General and special registers at entry.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::arch::x86_64::entry::segments::{CODE_32, CODE_64, DATA, TABLE_LIMIT, TASK};
use crate::arch::x86_64::layout;
use crate::boot::Protocol;

const CR0_PE: u64 = 1 << 0;
/// Hard-wired to one in every processor with an FPU.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one; interrupts are off.
const RFLAGS: u64 = 1 << 1;
/// What a multiboot 1 kernel finds in EAX.
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;

/// Where and how the boot vCPU starts. The memory that the registers point at is written by
/// [`handoff::write`](crate::arch::x86_64::handoff::write()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// The boot protocol.
    pub protocol: Protocol,
    /// Address of the first instruction.
    pub entry: u64,
}

impl EntryState {
    /// General registers.
    pub fn regs(&self) -> kvm_regs {
        let regs = kvm_regs {
            rip: self.entry,
            rsp: layout::STACK_TOP,
            rflags: RFLAGS,
            ..Default::default()
        };
        match self.protocol {
            Protocol::Linux => kvm_regs {
                rsi: layout::BOOT_PARAMS,
                ..regs
            },
            Protocol::Pvh => kvm_regs {
                rbx: layout::START_INFO,
                ..regs
            },
            Protocol::Multiboot => kvm_regs {
                rax: MULTIBOOT_MAGIC,
                rbx: layout::START_INFO,
                ..regs
            },
        }
    }

    /// Special registers: `base`, as KVM has them after reset, with all replaced that the entry fixes. What stays is the
    /// local APIC's base, the LDT, CR2 and CR8.
    pub fn sregs(&self, base: kvm_sregs) -> kvm_sregs {
        let flat = |code: kvm_segment| kvm_sregs {
            cs: code,
            ds: DATA,
            es: DATA,
            fs: DATA,
            gs: DATA,
            ss: DATA,
            tr: TASK,
            gdt: kvm_dtable {
                base: layout::GDT,
                limit: TABLE_LIMIT,
                ..Default::default()
            },
            // An exception before the guest has an IDT of its own ends in a triple fault, not in stray memory.
            idt: kvm_dtable::default(),
            ..base
        };
        match self.protocol {
            Protocol::Linux => kvm_sregs {
                cr0: CR0_PE | CR0_ET | CR0_PG,
                cr3: layout::PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..flat(CODE_64)
            },
            // PVH: PE is the only writable bit set in CR0, and CR4 is clear.
            Protocol::Pvh | Protocol::Multiboot => kvm_sregs {
                cr0: CR0_PE | CR0_ET,
                cr3: 0,
                cr4: 0,
                efer: 0,
                ..flat(CODE_32)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_segment, kvm_sregs};

    use super::EntryState;
    use crate::boot::Protocol;

    fn state(protocol: Protocol) -> EntryState {
        EntryState {
            protocol,
            entry: 0x10_0000,
        }
    }

    /// Not all zero, so that a register that is not set shows.
    fn after_reset() -> kvm_sregs {
        kvm_sregs {
            cr0: 0x6000_0010,
            cr3: 0x1234_5000,
            cr4: 0x20_0000,
            cr8: 7,
            efer: 1,
            apic_base: 0xfee0_0900,
            ..Default::default()
        }
    }

    fn assert_flat(segment: &kvm_segment) {
        assert_eq!(
            (segment.base, segment.limit, segment.present),
            (0, 0xffff_ffff, 1)
        );
        assert_eq!((segment.s, segment.g, segment.dpl), (1, 1, 0));
    }

    #[test]
    fn linux_starts_in_long_mode_with_paging() {
        let regs = state(Protocol::Linux).regs();
        assert_eq!((regs.rip, regs.rsi), (0x10_0000, 0x7000));
        assert_eq!((regs.rsp, regs.rflags), (0x8ff0, 2));

        let sregs = state(Protocol::Linux).sregs(after_reset());
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!(sregs.cr3, 0x9000);
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector), (1, 0, 0x10));
        for segment in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.ss] {
            assert_flat(segment);
        }
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 47));
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_a_task_and_a_stack() {
        let regs = state(Protocol::Pvh).regs();
        assert_eq!((regs.rip, regs.rbx, regs.rax), (0x10_0000, 0x6000, 0));
        assert_eq!((regs.rsp, regs.rflags), (0x8ff0, 2));

        let sregs = state(Protocol::Pvh).sregs(after_reset());
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.type_), (0, 1, 0xb));
        for segment in [&sregs.cs, &sregs.ds, &sregs.es, &sregs.ss] {
            assert_flat(segment);
        }
        assert_eq!((sregs.tr.base, sregs.tr.limit, sregs.tr.type_), (0, 0x67, 0xb));
    }

    #[test]
    fn multiboot_differs_from_pvh_by_its_magic() {
        let multiboot = state(Protocol::Multiboot);
        let pvh = state(Protocol::Pvh);
        assert_eq!(multiboot.regs().rax, 0x2bad_b002);
        assert_eq!(multiboot.regs().rbx, pvh.regs().rbx);
        assert_eq!(multiboot.sregs(after_reset()), pvh.sregs(after_reset()));
    }

    #[test]
    fn what_the_entry_does_not_fix_stays() {
        for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
            let sregs = state(protocol).sregs(after_reset());
            assert_eq!((sregs.apic_base, sregs.cr8), (0xfee0_0900, 7));
        }
    }
}
