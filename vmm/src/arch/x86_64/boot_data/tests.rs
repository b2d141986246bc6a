//! Reads the boot data from guest memory as a guest does.

use std::ops::Range;

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::protocols::memory_map;
use super::{Error, Tables, mptable, write};
use crate::GuestMemory;
use crate::arch::MmioDeviceInfo;
use crate::arch::x86_64::layout;
use crate::boot::{LoadedImage, Protocol};

const MIB: usize = 1 << 20;
const MIB_64: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const TABLES: Tables<'static> = Tables {
    acpi: true,
    mptable: true,
    vcpus: 2,
    mmio_devices: &[],
    identity: Some(layout::IDENTITY),
};

fn memory(size: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

fn loaded(protocol: Protocol) -> LoadedImage {
    LoadedImage {
        protocol,
        entry: 0x10_0000,
        end: 0x20_0000,
        initrd_limit: 1 << 32,
        setup_header: None,
        initrd: None,
    }
}

fn bytes(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u8_at(memory: &GuestMemory, address: u64) -> u8 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u16_at(memory: &GuestMemory, address: u64) -> u16 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u32_at(memory: &GuestMemory, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u64_at(memory: &GuestMemory, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Returns `count` MMIO devices at the addresses of the platform.
fn mmio_devices(count: u64, gsi: impl Fn(u32) -> u32) -> Vec<MmioDeviceInfo> {
    (0..count)
        .map(|number| MmioDeviceInfo {
            base: 0xd000_0000 + number * 0x1000,
            size: 0x1000,
            gsi: gsi(u32::try_from(number).unwrap()),
        })
        .collect()
}

#[test]
fn unrequested_tables_are_not_written() {
    let memory = memory(2 * MIB);
    let none = Tables {
        acpi: false,
        mptable: false,
        ..TABLES
    };
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        write(&memory, &loaded(protocol), c"", &none).unwrap();
    }
    assert_eq!(bytes(&memory, 0x9_fc00, 1024), vec![0; 1024]);
    assert!(bytes(&memory, 0xe_0000, 0x1_f000).iter().all(|byte| *byte == 0));
    assert_eq!(u16_at(&memory, 0x40e), 0);
    assert_eq!(u64_at(&memory, 0x7070), 0, "boot_params");
}

#[test]
fn boot_data_ends_below_1_mib() {
    let memory = memory(2 * MIB);
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        write(&memory, &loaded(protocol), c"a=b", &TABLES).unwrap();
    }
    assert_eq!(bytes(&memory, MIB as u64, MIB), vec![0; MIB]);
}

#[test]
fn largest_boot_data_fits_in_1_mib() {
    let devices = mmio_devices(64, |number| number % 24);
    let full = Tables {
        vcpus: 32,
        mmio_devices: &devices,
        ..TABLES
    };
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        write(&memory(MIB), &loaded(protocol), c"", &full).unwrap();
    }
}

#[test]
fn memory_below_1_mib_is_rejected() {
    let error = write(&memory(MIB / 2), &loaded(Protocol::Pvh), c"", &TABLES).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Write {
                address: 0xf_fff0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn command_line_beyond_capacity_is_rejected() {
    let memory = memory(MIB);
    let line = |length: usize| std::ffi::CString::new(vec![b'x'; length]).unwrap();
    write(&memory, &loaded(Protocol::Linux), &line(4095), &TABLES).unwrap();
    assert_eq!(bytes(&memory, 0x2_0ffe, 2), [b'x', 0]);
    assert_eq!(u32_at(&memory, 0x7238), 4096);
    let error = write(&memory, &loaded(Protocol::Linux), &line(4096), &TABLES).unwrap_err();
    assert!(
        matches!(
            error,
            Error::CommandLine {
                length: 4096,
                limit: 4095
            }
        ),
        "{error}"
    );
}

#[test]
fn indescribable_machines_are_rejected() {
    let try_with = |tables: Tables<'_>| write(&memory(MIB), &loaded(Protocol::Linux), c"", &tables);
    for vcpus in [0, 33] {
        let error = try_with(Tables { vcpus, ..TABLES }).unwrap_err();
        assert!(matches!(error, Error::Vcpus(_)), "{error}");
    }
    for (base, size, gsi) in [
        (0xd000_0000, 0x1000, 24),
        (0xd000_0000, 0, 5),
        (0xbfff_f000, 0x1000, 5),
        (0xfebf_f000, 0x2000, 5),
        (u64::MAX, 0x1000, 5),
    ] {
        let devices = [MmioDeviceInfo { base, size, gsi }];
        let error = try_with(Tables {
            mmio_devices: &devices,
            ..TABLES
        })
        .unwrap_err();
        assert!(matches!(error, Error::MmioDevice { .. }), "{error}");
    }
    let devices = mmio_devices(4096, |_| 5);
    let error = try_with(Tables {
        mmio_devices: &devices,
        ..TABLES
    })
    .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn reset_vector_contains_reset_code() {
    let memory = memory(1 << 20);
    let tables = Tables {
        acpi: false,
        mptable: false,
        vcpus: 1,
        mmio_devices: &[],
        identity: None,
    };
    write(&memory, &loaded(Protocol::Linux), c"", &tables).unwrap();
    // mov al, 0xfe; out 0x64, al
    assert_eq!(bytes(&memory, 0xf_fff0, 4), [0xb0, 0xfe, 0xe6, 0x64]);
}

fn map_of(size: u64) -> Vec<Range<u64>> {
    memory_map(size).collect()
}

#[test]
fn memory_map_omits_hole() {
    let low = 0..0x9_f000;
    assert_eq!(map_of(MIB_64), std::slice::from_ref(&low));
    assert_eq!(map_of(MIB_64 + 4096), [low.clone(), MIB_64..MIB_64 + 4096]);
    assert_eq!(map_of(128 * MIB_64), [low.clone(), MIB_64..128 * MIB_64]);
    assert_eq!(map_of(3072 * MIB_64), [low.clone(), MIB_64..0xc000_0000]);
    assert_eq!(
        map_of(3073 * MIB_64),
        [low.clone(), MIB_64..0xc000_0000, 4 * GIB..4 * GIB + MIB_64]
    );
    assert_eq!(map_of(8 * GIB), [low, MIB_64..0xc000_0000, 4 * GIB..9 * GIB]);
}

proptest! {
    #[test]
    fn memory_map_lists_pages_once(pages in 256..1u64 << 40) {
        let size = pages * 4096;
        let map = map_of(size);
        prop_assert!(map.is_sorted_by(|left, right| left.end < right.start));
        let listed: u64 = map.iter().map(|area| area.end - area.start).sum();
        prop_assert_eq!(listed, size - (MIB_64 - 0x9_f000));
        for area in &map {
            prop_assert_eq!((area.start % 4096, area.end % 4096), (0, 0));
            prop_assert!(area.end <= layout::HOLE.start || area.start >= layout::HOLE.end);
        }
    }
}

#[test]
fn memory_map_omits_tables() {
    for address in [layout::EBDA, layout::ACPI, layout::HIGH_MEMORY - 1] {
        assert!(
            !memory_map(64 * MIB_64).any(|area| area.contains(&address)),
            "{address:#x}"
        );
    }
}

const INITRD: Range<u64> = 0x18_0000..0x18_1234;

fn with_initrd(protocol: Protocol) -> LoadedImage {
    LoadedImage {
        initrd: Some(INITRD),
        ..loaded(protocol)
    }
}

/// Returns memory on both sides of the hole: 3072 MiB and 16 MiB, mostly untouched.
fn split_memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 3072 * MIB), (GuestAddress(1 << 32), 16 * MIB)]).unwrap()
}

const SPLIT_MAP: [(u64, u64, u32); 3] = [
    (0, 0x9_f000, 1),
    (0x10_0000, 0xbff0_0000, 1),
    (0x1_0000_0000, 0x100_0000, 1),
];

#[test]
fn boot_params_describe_guest() {
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
    assert_eq!(u8_at(&memory, page + 0x1ef), 0, "sentinel: the page is zeroed");

    let line = u64::from(u32_at(&memory, page + 0x228));
    assert_eq!(bytes(&memory, line, 14), b"console=ttyS0\0");
    assert_eq!(u32_at(&memory, page + 0x238), 14, "with the NUL");

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
fn boot_params_of_1_mib_have_one_area() {
    let memory = memory(MIB);
    write(&memory, &loaded(Protocol::Linux), c"", &TABLES).unwrap();
    assert_eq!(u8_at(&memory, 0x71e8), 1);
    assert_eq!(u32_at(&memory, 0x7238), 1, "the NUL of an empty command line");
}

/// Returns an image with a header of protocol 2.15. Each byte is its own offset, except the limit of the command line.
fn bzimage(limit: u32) -> LoadedImage {
    let mut header: Vec<u8> = (0xf1u8..=0xff).chain(0..0x6c).collect();
    header[0x238 - 0x1f1..0x23c - 0x1f1].copy_from_slice(&limit.to_le_bytes());
    LoadedImage {
        setup_header: Some(header),
        ..loaded(Protocol::Linux)
    }
}

#[test]
fn bzimage_header_is_kept() {
    let memory = memory(MIB);
    write(&memory, &bzimage(2047), c"quiet", &TABLES).unwrap();
    let header = bytes(&memory, 0x71f1, 0x26c - 0x1f1);
    let expected = bzimage(0).setup_header.unwrap();
    let changed = [0x210..0x211, 0x211..0x212, 0x228..0x22c, 0x238..0x23c];
    for (offset, (found, kept)) in (0x1f1..).zip(header.iter().zip(&expected)) {
        if !changed.iter().any(|field| field.contains(&offset)) {
            assert_eq!(found, kept, "{offset:#x}");
        }
    }
    assert_eq!(u8_at(&memory, 0x7211), 0x11, "flags are kept, LOADED_HIGH is set");
    assert_eq!(u32_at(&memory, 0x7238), 2047);
}

#[test]
fn bzimage_limits_are_enforced() {
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
    assert_eq!(u8_at(&memory, 0x726b), 0x6b, "last byte of the structure");
    assert_eq!(u32_at(&memory, 0x726c), 0, "no byte after the structure");
}

#[test]
fn pvh_start_info_describes_guest() {
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
    assert!(module >= map + 3 * 24, "the modules follow the map");
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
fn pvh_start_info_has_null_for_missing_tables() {
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
fn multiboot_info_describes_guest() {
    let memory = split_memory();
    let entry = write(&memory, &with_initrd(Protocol::Multiboot), c"k a", &TABLES).unwrap();
    let info = entry.regs().rbx;
    assert_eq!(u32_at(&memory, info), 0b10_0100_1101);
    assert_eq!(u32_at(&memory, info + 4), 636);
    assert_eq!(u32_at(&memory, info + 8), 3071 * 1024);
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

    // Multiboot 0.6.96, section 3.3: the size of each entry excludes the size field.
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
fn modules_follow_short_memory_map() {
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
fn addresses_above_4_gib_are_rejected_in_32_bit_protocols() {
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

fn memory_with(tables: &Tables<'_>) -> GuestMemory {
    let memory = memory(MIB);
    write(&memory, &loaded(Protocol::Linux), c"", tables).unwrap();
    memory
}

/// Reads the table at `address` and checks its header.
fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
    assert_eq!(address % 16, 0);
    let length = usize::try_from(u32_at(memory, address + 4)).unwrap();
    let table = bytes(memory, address, length);
    assert_eq!(sum(&table), 0, "{:?}", &table[..4]);
    assert_eq!(&table[10..16], b"MAYFLY");
    table
}

/// Finds a table through RSDP and XSDT.
fn find(memory: &GuestMemory, signature: &[u8; 4]) -> Vec<u8> {
    let rsdp = bytes(memory, 0xe_0000, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2);
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(memory, u64_at(memory, 0xe_0000 + 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    xsdt[36..]
        .chunks_exact(8)
        .map(|entry| table(memory, u64::from_le_bytes(entry.try_into().unwrap())))
        .find(|table| &table[..4] == signature)
        .unwrap()
}

fn u32_of(table: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
}

fn dsdt(memory: &GuestMemory) -> Vec<u8> {
    let fadt = find(memory, b"FACP");
    let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
    assert_eq!(u64::from(u32_of(&fadt, 40)), dsdt);
    let dsdt = table(memory, dsdt);
    assert_eq!(&dsdt[..4], b"DSDT");
    dsdt
}

fn positions(haystack: &[u8], needle: &[u8]) -> Vec<usize> {
    let windows = haystack.windows(needle.len()).enumerate();
    windows
        .filter(|(_, bytes)| bytes == &needle)
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn fadt_is_hardware_reduced() {
    let fadt = find(&memory_with(&TABLES), b"FACP");
    assert_eq!(fadt.len(), 276);
    let flags = u32_of(&fadt, 112);
    assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1);
    assert_eq!(fadt[109..111], [0b111, 0], "legacy devices, 8042, no VGA");
    let port = |low, high| [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0];
    assert_eq!(fadt[116..128], port(0x64, 0));
    assert_eq!(fadt[128], 0xfe);
    assert_eq!(fadt[244..256], port(0, 6), "sleep control");
    assert_eq!(fadt[256..268], port(0, 6), "sleep status");
    assert_eq!(
        fadt[148..244],
        [0; 96],
        "no event, timer or general-purpose blocks"
    );
}

#[test]
fn madt_lists_processors_and_ioapic() {
    for vcpus in [1, 32] {
        let madt = find(&memory_with(&Tables { vcpus, ..TABLES }), b"APIC");
        assert_eq!(u32_of(&madt, 36), 0xfee0_0000);
        assert_eq!(u32_of(&madt, 40), 1);
        let mut rest = &madt[44..];
        for processor in 0..vcpus {
            assert_eq!(rest[..8], [0, 8, processor, processor, 1, 0, 0, 0]);
            rest = &rest[8..];
        }
        assert_eq!(rest[..12], [1, 12, vcpus, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(rest[12..22], [2, 10, 0, 0, 2, 0, 0, 0, 5, 0]);
        assert_eq!(rest[22..], [4, 6, 0xff, 0, 0, 1]);
    }
}

#[test]
fn dsdt_defines_serial_port_keyboard_and_power_off() {
    let dsdt = dsdt(&memory_with(&TABLES));
    // Name (_S5_, Package (1) { 5 })
    assert_eq!(positions(&dsdt, b"\x08_S5_\x12\x04\x01\x0a\x05").len(), 1);
    assert_eq!(positions(&dsdt, b"COM1").len(), 1);
    // Ports 0x3f8 to 0x3ff, then interrupt 4: consumer, edge, high, exclusive.
    let resources = b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\x00\x00\x00\x79";
    assert_eq!(positions(&dsdt, resources).len(), 1);
    // Ports 0x60 and 0x64, then interrupt 1.
    let resources = b"\x47\x01\x60\x00\x60\x00\x01\x01\x47\x01\x64\x00\x64\x00\x01\x01\x89\x06\x00\x03\x01\x01\x00\x00\x00\x79";
    assert_eq!(positions(&dsdt, resources).len(), 1);
    assert_eq!(positions(&dsdt, b"KBD_").len(), 1);
    assert!(positions(&dsdt, b"LNRO0005").is_empty());
}

#[test]
fn dsdt_defines_mmio_devices_in_order() {
    let devices = mmio_devices(3, |number| 5 + number);
    let dsdt = dsdt(&memory_with(&Tables {
        mmio_devices: &devices,
        ..TABLES
    }));
    assert_eq!(positions(&dsdt, b"LNRO0005").len(), 3);
    let second = b"\x86\x09\x00\x01\x00\x10\x00\xd0\x00\x10\x00\x00\x89\x06\x00\x03\x01\x06\x00\x00\x00\x79";
    let at = positions(&dsdt, second);
    assert_eq!(at.len(), 1);
    let names: Vec<_> = [b"V000", b"V001", b"V002"]
        .iter()
        .map(|name| positions(&dsdt, *name)[0])
        .collect();
    // Name (_UID, ...): Zero, One, and a byte constant. The first two belong to the serial port and the keyboard.
    let uids = positions(&dsdt, b"_UID");
    let uids: Vec<_> = uids.iter().map(|at| &dsdt[at + 4..at + 6]).collect();
    assert_eq!(uids[..4], [b"\x00\x08", b"\x00\x08", b"\x00\x08", b"\x01\x08"]);
    assert_eq!(uids[4], b"\x0a\x02");
    assert!(names[0] < names[1] && names[1] < at[0] && at[0] < names[2]);
}

#[test]
fn dsdt_defines_generation_id_and_its_event() {
    let dsdt = dsdt(&memory_with(&TABLES));
    // Decoded by hand: ACPI 6.5, chapter 20.
    let generation_id = [
        b"\x5b\x82\x4d\x04VGEN".as_slice(),
        b"\x08_HID\x0dVMGENCTR\0",
        b"\x08_CID\x0dVM_Gen_Counter\0",
        b"\x08_DDN\x0dVM_Gen_Counter\0",
        // Package (2) { 0xff010, 0 }: the two halves of the address.
        b"\x08ADDR\x12\x08\x02\x0c\x10\xf0\x0f\x00\x00",
    ];
    assert_eq!(positions(&dsdt, &generation_id.concat()).len(), 1);
    let event_device = [
        b"\x5b\x82\x3cGED_".as_slice(),
        b"\x08_HID\x0dACPI0013\0",
        b"\x08_UID\0",
        // Buffer (11): interrupt 13: consumer, edge, high, exclusive.
        b"\x08_CRS\x11\x0e\x0a\x0b\x89\x06\x00\x03\x01\x0d\x00\x00\x00\x79\x00",
        // Method (_EVT, 1, Serialized) { Notify (VGEN, 0x80) }
        b"\x14\x0d_EVT\x09\x86VGEN\x0a\x80",
    ];
    assert_eq!(positions(&dsdt, &event_device.concat()).len(), 1);
}

#[test]
fn dsdt_without_record_defines_no_generation_id() {
    let dsdt = dsdt(&memory_with(&Tables {
        identity: None,
        ..TABLES
    }));
    assert!(positions(&dsdt, b"VGEN").is_empty());
    assert!(positions(&dsdt, b"ACPI0013").is_empty());
}

/// Finds and checks the configuration table as a guest does. Returns its entries.
fn mp_entries(tables: &Tables<'_>) -> Vec<Vec<u8>> {
    let memory = memory(MIB);
    write(&memory, &loaded(Protocol::Linux), c"", tables).unwrap();
    let area = u64::from(u16_at(&memory, 0x40e)) << 4;
    assert_eq!(area, 0x9_fc00);
    assert_eq!(u16_at(&memory, 0x413), 639);

    let pointer = bytes(&memory, area, 16);
    assert_eq!(&pointer[..4], b"_MP_");
    assert_eq!((pointer[8], pointer[9]), (1, 4));
    assert_eq!(sum(&pointer), 0);
    assert_eq!(pointer[11..], [0; 5], "configuration table; virtual wire mode");

    let table = u64::from(u32_at(&memory, area + 4));
    let length = usize::from(u16_at(&memory, table + 4));
    let table = bytes(&memory, table, length);
    assert_eq!(&table[..4], b"PCMP");
    assert_eq!(table[6], 4);
    assert_eq!(sum(&table), 0);
    assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());

    let mut rest = &table[44..];
    let mut entries = Vec::new();
    while let Some(kind) = rest.first() {
        let (entry, remainder) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        entries.push(entry.to_vec());
        rest = remainder;
    }
    assert_eq!(table[34..36], u16::try_from(entries.len()).unwrap().to_le_bytes());
    assert!(
        entries.is_sorted_by_key(|entry| entry[0]),
        "MP specification, section 4.3: ascending order of types"
    );
    entries
}

fn of_type(entries: &[Vec<u8>], entry_type: u8) -> Vec<&[u8]> {
    let of_type = entries.iter().filter(|entry| entry[0] == entry_type);
    of_type.map(Vec::as_slice).collect()
}

#[test]
fn mptable_lists_processors_bus_and_ioapic() {
    let entries = mp_entries(&TABLES);
    let processors = of_type(&entries, 0);
    assert_eq!(processors.len(), 2);
    assert_eq!(processors[0][1..4], [0, 0x14, 0b11], "the boot processor");
    assert_eq!(processors[1][1..4], [1, 0x14, 0b01]);
    assert_eq!(of_type(&entries, 1), [b"\x01\x00ISA   "]);
    assert_eq!(of_type(&entries, 2), [[2, 2, 0x20, 1, 0, 0, 0xc0, 0xfe]]);
    assert_eq!(
        of_type(&entries, 4),
        [[4, 3, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0xff, 1]]
    );
}

#[test]
fn mptable_maps_isa_interrupts_to_pins() {
    let entries = mp_entries(&TABLES);
    let pins: Vec<_> = of_type(&entries, 3)
        .iter()
        .map(|entry| {
            assert_eq!(entry[1..5], [0, 0, 0, 0], "INT, conforms to the bus, from bus 0");
            assert_eq!(entry[6], 2, "to the IOAPIC");
            (entry[5], entry[7])
        })
        .collect();
    let expected: Vec<_> = [(0, 2), (1, 1)]
        .into_iter()
        .chain((3..16).map(|irq| (irq, irq)))
        .collect();
    assert_eq!(pins, expected);
}

#[test]
fn mptable_lists_other_interrupts_once() {
    let devices = mmio_devices(4, |number| [5, 23, 16, 23][number as usize]);
    let entries = mp_entries(&Tables {
        mmio_devices: &devices,
        ..TABLES
    });
    let extra: Vec<_> = of_type(&entries, 3)
        .iter()
        .skip(15)
        .map(|entry| (entry[5], entry[7]))
        .collect();
    assert_eq!(extra, [(16, 16), (23, 23)]);
}

#[test]
fn largest_mptable_fits_in_ebda() {
    let devices = mmio_devices(24, |number| number);
    let length = mptable::build(&Tables {
        vcpus: 32,
        mmio_devices: &devices,
        ..TABLES
    })
    .len();
    assert_eq!(length, 16 + 44 + 32 * 20 + 8 + 8 + (15 + 8) * 8 + 2 * 8);
    assert!(length as u64 <= mptable::CAPACITY);
}
