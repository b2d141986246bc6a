use super::{MIB, TABLES, Tables, bytes, loaded, memory, sum, u32_at, u64_at, windows, write};
use crate::GuestMemory;
use crate::boot::Protocol;

fn written(tables: &Tables<'_>) -> GuestMemory {
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

/// Finds a table by RSDP and XSDT.
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
fn the_fadt_is_hardware_reduced() {
    let fadt = find(&written(&TABLES), b"FACP");
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
fn the_madt_has_every_processor_and_the_ioapic() {
    for vcpus in [1, 32] {
        let madt = find(&written(&Tables { vcpus, ..TABLES }), b"APIC");
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
fn the_dsdt_has_serial_port_keyboard_and_power_off() {
    let dsdt = dsdt(&written(&TABLES));
    // Name (_S5_, Package (4) { 5, 0, 0, 0 })
    assert_eq!(
        positions(&dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00").len(),
        1
    );
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
fn windows_are_devices_in_their_order() {
    let windows = windows(3, |number| 5 + number);
    let dsdt = dsdt(&written(&Tables {
        windows: &windows,
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
    // Name (_UID, ...): Zero, One, and a byte constant. The first two are the serial port's and the keyboard's.
    let uids = positions(&dsdt, b"_UID");
    let uids: Vec<_> = uids.iter().map(|at| &dsdt[at + 4..at + 6]).collect();
    assert_eq!(uids[..4], [b"\x00\x08", b"\x00\x08", b"\x00\x08", b"\x01\x08"]);
    assert_eq!(uids[4], b"\x0a\x02");
    assert!(names[0] < names[1] && names[1] < at[0] && at[0] < names[2]);
}
