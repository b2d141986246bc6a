//! Page tables, descriptors and registers as the processor reads them.

use kvm_bindings::{kvm_segment, kvm_sregs};
use proptest::prelude::{prop_assert_eq, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::{CODE_32, CODE_64, DATA, EntryState, PAGE, TASK, descriptor_table, write_page_tables};
use crate::GuestMemory;
use crate::arch::x86_64::layout;
use crate::boot::Protocol;

/// PML4, page-directory pointers, and at most four page directories.
const PAGE_TABLE_COUNT: usize = 6;

fn state(protocol: Protocol) -> EntryState {
    EntryState {
        protocol,
        entry: 0x10_0000,
    }
}

/// Special registers after reset. Nonzero values show registers that the entry does not set.
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
fn linux_entry_is_long_mode_with_paging() {
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
fn pvh_entry_is_protected_mode_with_tss_and_stack() {
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
fn multiboot_entry_is_pvh_entry_with_magic() {
    let multiboot = state(Protocol::Multiboot);
    let pvh = state(Protocol::Pvh);
    assert_eq!(multiboot.regs().rax, 0x2bad_b002);
    assert_eq!(multiboot.regs().rbx, pvh.regs().rbx);
    assert_eq!(multiboot.sregs(after_reset()), pvh.sregs(after_reset()));
}

#[test]
fn other_special_registers_keep_reset_values() {
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        let sregs = state(protocol).sregs(after_reset());
        assert_eq!((sregs.apic_base, sregs.cr8), (0xfee0_0900, 7));
    }
}

#[test]
fn selectors_match_descriptors() {
    let table = descriptor_table();
    let at = |selector: u16| {
        let start = usize::from(selector);
        u64::from_le_bytes(table[start..start + 8].try_into().unwrap())
    };
    assert_eq!(at(0), 0);
    assert_eq!(at(CODE_32.selector), 0x00cf_9b00_0000_ffff);
    assert_eq!(at(CODE_64.selector), 0x00af_9b00_0000_ffff);
    assert_eq!(at(DATA.selector), 0x00cf_9300_0000_ffff);
    assert_eq!(at(TASK.selector), 0x0000_8b00_0000_0067);
    assert_eq!(
        at(TASK.selector + 8),
        0,
        "upper half of the 64-bit TSS descriptor"
    );
}

#[test]
fn linux_protocol_selectors_are_fixed() {
    // Documentation/arch/x86/boot.rst: __BOOT_CS is 0x10 and __BOOT_DS is 0x18.
    assert_eq!((CODE_64.selector, DATA.selector), (0x10, 0x18));
}

/// Returns memory with the page tables of an image that ends at `end`.
fn memory(end: u64) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    // Stale content shows entries that are not written.
    memory
        .write_slice(
            &[0xff; PAGE_TABLE_COUNT * PAGE],
            GuestAddress(layout::PAGE_TABLES),
        )
        .unwrap();
    write_page_tables(&memory, end).unwrap();
    memory
}

/// Translates a linear address by the tables in memory: Intel SDM volume 3A, section 4.5, 4-level paging.
fn translate(memory: &GuestMemory, address: u64) -> Option<u64> {
    let mut table = layout::PAGE_TABLES;
    for shift in [39, 30, 21] {
        let entry: u64 = memory
            .read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8))
            .unwrap();
        if entry & 0b11 != 0b11 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if entry & 0x80 != 0 {
            assert_eq!(shift, 21, "only page directories map large pages");
            return Some(table | address & 0x1f_ffff);
        }
    }
    None
}

const GIB: u64 = 1 << 30;

proptest! {
    #[test]
    fn gibs_of_image_are_identity_mapped(address in 0..1u64 << 48, end in 1..4 * GIB) {
        let mapped = address / GIB <= (end - 1) / GIB;
        prop_assert_eq!(translate(&memory(end), address), mapped.then_some(address));
    }
}

#[test]
fn map_ends_with_gib_of_image() {
    for (end, mapped) in [
        (0, GIB),
        (GIB, GIB),
        (GIB + 1, 2 * GIB),
        (4 * GIB, 4 * GIB),
        (u64::MAX, 4 * GIB),
    ] {
        let memory = memory(end);
        assert_eq!(translate(&memory, mapped - 1), Some(mapped - 1), "{end:#x}");
        assert_eq!(translate(&memory, mapped), None, "{end:#x}");
    }
}

#[test]
fn page_tables_end_below_command_line() {
    let end = layout::PAGE_TABLES + (PAGE_TABLE_COUNT * PAGE) as u64;
    assert_eq!(end, 0xf000);
    assert!(end <= layout::COMMAND_LINE);
    let next: u8 = memory(u64::MAX).read_obj(GuestAddress(end)).unwrap();
    assert_eq!(next, 0);
}
