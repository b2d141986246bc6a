use std::ops::Range;

use super::{Error, MIB, TABLES, Tables, bytes, loaded, memory, u8_at, u16_at, u32_at, u64_at, write};
use crate::GuestMemory;
use crate::boot::{LoadedImage, Protocol};
use vm_memory::GuestAddress;

const INITRD: Range<u64> = 0x18_0000..0x18_1234;

fn with_initrd(protocol: Protocol) -> LoadedImage {
    LoadedImage {
        initrd: Some(INITRD),
        ..loaded(protocol)
    }
}

/// Memory on both sides of the hole: 3328 MiB and 16 MiB, of which hardly anything is ever touched.
fn split_memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 3328 * MIB), (GuestAddress(1 << 32), 16 * MIB)]).unwrap()
}

const SPLIT_MAP: [(u64, u64, u32); 3] = [
    (0, 0x9_f000, 1),
    (0x10_0000, 0xcff0_0000, 1),
    (0x1_0000_0000, 0x100_0000, 1),
];

#[test]
fn linux_finds_its_parameters() {
    let memory = split_memory();
    let entry = write(&memory, &with_initrd(Protocol::Linux), c"console=ttyS0", &TABLES).unwrap();
    let page = entry.regs().rsi;
    assert_eq!(u16_at(&memory, page + 0x1fe), 0xaa55);
    assert_eq!(bytes(&memory, page + 0x202, 4), b"HdrS");
    assert_eq!(u16_at(&memory, page + 0x206), 0x020e);
    assert_eq!(u8_at(&memory, page + 0x210), 0xff);
    assert_eq!(u8_at(&memory, page + 0x211) & 1, 1);
    assert_eq!(u16_at(&memory, page + 0x236) & 1, 1);
    assert_eq!(u32_at(&memory, page + 0x218), 0x18_0000);
    assert_eq!(u32_at(&memory, page + 0x21c), 0x1234);
    assert_eq!(u64_at(&memory, page + 0x70), 0xe_0000);
    assert_eq!(u8_at(&memory, page + 0x1ef), 0, "sentinel: the page is clean");

    let line = u64::from(u32_at(&memory, page + 0x228));
    assert_eq!(bytes(&memory, line, 14), b"console=ttyS0\0");
    assert_eq!(u32_at(&memory, page + 0x238), 13);

    assert_eq!(u8_at(&memory, page + 0x1e8), 3);
    for (place, area) in (0..).zip(SPLIT_MAP) {
        let at = page + 0x2d0 + place * 20;
        assert_eq!(
            (
                u64_at(&memory, at),
                u64_at(&memory, at + 8),
                u32_at(&memory, at + 16)
            ),
            area
        );
    }
}

#[test]
fn a_small_machine_has_no_memory_above_one_megabyte() {
    let memory = memory(MIB);
    write(&memory, &loaded(Protocol::Linux), c"", &TABLES).unwrap();
    assert_eq!(u8_at(&memory, 0x71e8), 1);
    assert_eq!(u32_at(&memory, 0x7238), 0);
}

/// A header as of protocol 2.15, each byte its own offset but for the limit of the command line.
fn bzimage(limit: u32) -> LoadedImage {
    let mut header: Vec<u8> = (0xf1u8..=0xff).chain(0..0x6c).collect();
    header[0x238 - 0x1f1..0x23c - 0x1f1].copy_from_slice(&limit.to_le_bytes());
    LoadedImage {
        setup_header: Some(header),
        ..loaded(Protocol::Linux)
    }
}

#[test]
fn a_bzimages_own_header_is_kept() {
    let memory = memory(MIB);
    write(&memory, &bzimage(2047), c"quiet", &TABLES).unwrap();
    let header = bytes(&memory, 0x71f1, 0x26c - 0x1f1);
    let expected = bzimage(0).setup_header.unwrap();
    let set_here = [0x210..0x211, 0x211..0x212, 0x228..0x22c, 0x238..0x23c];
    for (offset, (found, kept)) in (0x1f1..).zip(header.iter().zip(&expected)) {
        if !set_here.iter().any(|field| field.contains(&offset)) {
            assert_eq!(found, kept, "{offset:#x}");
        }
    }
    assert_eq!(u8_at(&memory, 0x7211), 0x11, "flags are kept, one is set");
    assert_eq!(u32_at(&memory, 0x7238), 2047);
}

#[test]
fn a_bzimages_limits_hold() {
    let error = write(&memory(MIB), &bzimage(4), c"quiet", &TABLES).unwrap_err();
    assert!(
        matches!(error, Error::CommandLine { length: 5, limit: 4 }),
        "{error}"
    );

    let mut short = bzimage(2047);
    short.setup_header.as_mut().unwrap().truncate(0x4a);
    let error = write(&memory(MIB), &short, c"", &TABLES).unwrap_err();
    assert!(
        matches!(error, Error::SetupHeader { length: 0x4a, .. }),
        "{error}"
    );

    let mut long = bzimage(2047);
    long.setup_header.as_mut().unwrap().resize(4096, 0xee);
    let memory = memory(MIB);
    write(&memory, &long, c"", &TABLES).unwrap();
    assert_eq!(u8_at(&memory, 0x726b), 0x6b, "the last byte of the structure");
    assert_eq!(u32_at(&memory, 0x726c), 0, "no byte beyond it");
}

#[test]
fn pvh_finds_its_start_information() {
    let memory = split_memory();
    let entry = write(&memory, &with_initrd(Protocol::Pvh), c"a", &TABLES).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info), 0x336e_c578);
    assert_eq!((u32_at(&memory, info + 4), u32_at(&memory, info + 8)), (1, 0));
    assert_eq!(u32_at(&memory, info + 12), 1);
    let line = u64_at(&memory, info + 24);
    assert_eq!(bytes(&memory, line, 2), b"a\0");
    let rsdp = u64_at(&memory, info + 32);
    assert_eq!(bytes(&memory, rsdp, 8), b"RSD PTR ");

    let module = u64_at(&memory, info + 16);
    assert_eq!(u64_at(&memory, module), 0x18_0000);
    assert_eq!(u64_at(&memory, module + 8), 0x1234);
    assert_eq!(u64_at(&memory, module + 16), 0);

    let map = u64_at(&memory, info + 40);
    assert_eq!(u32_at(&memory, info + 48), 3);
    assert!(module >= map + 3 * 24, "the map ends before the modules");
    for (place, area) in (0..).zip(SPLIT_MAP) {
        let at = map + place * 24;
        assert_eq!(
            (
                u64_at(&memory, at),
                u64_at(&memory, at + 8),
                u32_at(&memory, at + 16)
            ),
            area
        );
    }
}

#[test]
fn pvh_says_what_is_not_there() {
    let memory = memory(MIB);
    let tables = Tables {
        acpi: false,
        ..TABLES
    };
    let entry = write(&memory, &loaded(Protocol::Pvh), c"", &tables).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info + 12), 0, "modules");
    assert_eq!(u64_at(&memory, info + 16), 0, "module list");
    assert_eq!(u64_at(&memory, info + 32), 0, "RSDP");
}

#[test]
fn multiboot_finds_its_information() {
    let memory = split_memory();
    let entry = write(&memory, &with_initrd(Protocol::Multiboot), c"k a", &TABLES).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info), 0b10_0100_1101);
    assert_eq!(u32_at(&memory, info + 4), 636);
    assert_eq!(u32_at(&memory, info + 8), 3327 * 1024);
    let line = u64::from(u32_at(&memory, info + 16));
    assert_eq!(bytes(&memory, line, 4), b"k a\0");
    let name = u64::from(u32_at(&memory, info + 64));
    assert_eq!(bytes(&memory, name, 7), b"mayfly\0");

    assert_eq!(u32_at(&memory, info + 20), 1);
    let module = u64::from(u32_at(&memory, info + 24));
    assert_eq!(u32_at(&memory, module), 0x18_0000);
    assert_eq!(u32_at(&memory, module + 4), 0x18_1234);
    let string = u64::from(u32_at(&memory, module + 8));
    assert_eq!(u8_at(&memory, string), 0);

    // As a guest walks it: by the size that each entry gives, which does not count itself.
    let mut at = u64::from(u32_at(&memory, info + 48));
    let end = at + u64::from(u32_at(&memory, info + 44));
    let mut map = Vec::new();
    while at < end {
        map.push((
            u64_at(&memory, at + 4),
            u64_at(&memory, at + 12),
            u32_at(&memory, at + 20),
        ));
        at += u64::from(u32_at(&memory, at)) + 4;
    }
    assert_eq!(map, SPLIT_MAP);
}

#[test]
fn modules_are_where_they_are_said_to_be_behind_a_short_map() {
    let memory = memory(2 * MIB);
    let entry = write(&memory, &with_initrd(Protocol::Pvh), c"", &TABLES).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info + 48), 2, "areas");
    assert_eq!(u64_at(&memory, u64_at(&memory, info + 16)), INITRD.start);

    let entry = write(&memory, &with_initrd(Protocol::Multiboot), c"", &TABLES).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info + 44), 2 * 24, "bytes of the map");
    let module = u64::from(u32_at(&memory, info + 24));
    assert_eq!(u64::from(u32_at(&memory, module)), INITRD.start);
}

#[test]
fn thirty_two_bit_protocols_reach_four_gigabytes() {
    let high = 1 << 32;
    for protocol in [Protocol::Pvh, Protocol::Multiboot] {
        let image = LoadedImage {
            entry: high,
            ..loaded(protocol)
        };
        let error = write(&memory(MIB), &image, c"", &TABLES).unwrap_err();
        assert!(matches!(error, Error::Above4GiB { .. }), "{error}");
    }
    let with = |protocol| LoadedImage {
        initrd: Some(high..high + 0x1000),
        ..loaded(protocol)
    };
    let error = write(&memory(MIB), &with(Protocol::Multiboot), c"", &TABLES).unwrap_err();
    assert!(matches!(error, Error::Above4GiB { .. }), "{error}");

    let memory = memory(MIB);
    write(&memory, &with(Protocol::Linux), c"", &TABLES).unwrap();
    assert_eq!((u32_at(&memory, 0x7218), u32_at(&memory, 0x70c0)), (0, 1));
}
