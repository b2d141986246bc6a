//! The global descriptor table, and the segment registers as if loaded from it.
//!
//! One table serves every entry. The 64-bit Linux protocol fixes its flat code segment at selector 0x10 and its flat
//! data segment at 0x18; the 32-bit protocols leave the selectors open and find their code segment at 0x08.

use kvm_bindings::kvm_segment;

/// Present: code and data segments reach over all of 4 GiB, in units of pages.
const FLAT: kvm_segment = kvm_segment {
    base: 0,
    limit: 0xffff_ffff,
    selector: 0,
    type_: 0,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 0,
    g: 1,
    avl: 0,
    unusable: 0,
    padding: 0,
};

/// Execute and read, accessed.
const CODE_TYPE: u8 = 0xb;
/// Read and write, accessed.
const DATA_TYPE: u8 = 0x3;
/// A busy 32-bit task state segment in protected mode, a busy 64-bit one in long mode.
const TASK_TYPE: u8 = 0xb;

/// Flat 32-bit code.
pub const CODE_32: kvm_segment = kvm_segment {
    selector: 0x08,
    type_: CODE_TYPE,
    db: 1,
    ..FLAT
};
/// 64-bit code.
pub const CODE_64: kvm_segment = kvm_segment {
    selector: 0x10,
    type_: CODE_TYPE,
    l: 1,
    ..FLAT
};
/// Flat data and stack.
pub const DATA: kvm_segment = kvm_segment {
    selector: 0x18,
    type_: DATA_TYPE,
    db: 1,
    ..FLAT
};
/// Task state. PVH asks for base 0 and limit 0x67; nothing is ever read from it before the guest loads its own.
pub const TASK: kvm_segment = kvm_segment {
    limit: 0x67,
    selector: 0x20,
    type_: TASK_TYPE,
    s: 0,
    g: 0,
    ..FLAT
};

/// Descriptors in the table: null, two for code, one for data, and the task's, which takes two in long mode.
const DESCRIPTORS: usize = 6;
/// Length of the table in bytes.
pub const TABLE_LENGTH: usize = DESCRIPTORS * 8;
/// The table's limit register.
pub const TABLE_LIMIT: u16 = 47;
const _: () = assert!(TABLE_LIMIT as usize == TABLE_LENGTH - 1);

/// The table's bytes, as they go to [`GDT`](crate::arch::x86_64::layout::GDT).
pub fn table() -> [u8; TABLE_LENGTH] {
    const TABLE: [u64; DESCRIPTORS] = [
        0,
        descriptor(&CODE_32),
        descriptor(&CODE_64),
        descriptor(&DATA),
        descriptor(&TASK),
        0,
    ];
    let mut bytes = [0; TABLE_LENGTH];
    for (place, entry) in bytes.chunks_exact_mut(8).zip(TABLE) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

/// Packs a segment as Intel SDM volume 3, figure 3-8 has it.
const fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    } as u64;
    let access = (segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7) as u64;
    let flags = (segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3) as u64;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::{CODE_32, CODE_64, DATA, TASK, table};

    #[test]
    fn every_selector_points_at_its_own_descriptor() {
        let table = table();
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
            "upper half of the task's base in long mode"
        );
    }

    #[test]
    fn the_linux_protocol_fixes_two_selectors() {
        // Documentation/arch/x86/boot.rst: __BOOT_CS is 0x10 and __BOOT_DS is 0x18.
        assert_eq!((CODE_64.selector, DATA.selector), (0x10, 0x18));
    }
}
