use super::{MIB, TABLES, Tables, bytes, loaded, memory, sum, u16_at, u32_at, windows, write};
use crate::arch::x86_64::handoff::mptable::{CAPACITY, build};
use crate::boot::Protocol;

/// The configuration table's entries, found and checked as a guest does.
fn entries(tables: &Tables<'_>) -> Vec<Vec<u8>> {
    let memory = memory(MIB);
    write(&memory, &loaded(Protocol::Linux), c"", tables).unwrap();
    let area = u64::from(u16_at(&memory, 0x40e)) << 4;
    assert_eq!(area, 0x9_fc00);
    assert_eq!(u16_at(&memory, 0x413), 639);

    let pointer = bytes(&memory, area, 16);
    assert_eq!(&pointer[..4], b"_MP_");
    assert_eq!((pointer[8], pointer[9]), (1, 4));
    assert_eq!(sum(&pointer), 0);
    assert_eq!(pointer[11..], [0; 5], "a table follows; virtual wire mode");

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
        let (entry, behind) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        entries.push(entry.to_vec());
        rest = behind;
    }
    assert_eq!(table[34..36], u16::try_from(entries.len()).unwrap().to_le_bytes());
    assert!(entries.is_sorted_by_key(|entry| entry[0]), "section 4.3");
    entries
}

fn of_kind(entries: &[Vec<u8>], kind: u8) -> Vec<&[u8]> {
    let of_kind = entries.iter().filter(|entry| entry[0] == kind);
    of_kind.map(Vec::as_slice).collect()
}

#[test]
fn processors_bus_and_ioapic_are_listed() {
    let entries = entries(&TABLES);
    let processors = of_kind(&entries, 0);
    assert_eq!(processors.len(), 2);
    assert_eq!(processors[0][1..4], [0, 0x14, 0b11], "the boot processor");
    assert_eq!(processors[1][1..4], [1, 0x14, 0b01]);
    assert_eq!(of_kind(&entries, 1), [b"\x01\x00ISA   "]);
    assert_eq!(of_kind(&entries, 2), [[2, 2, 0x20, 1, 0, 0, 0xc0, 0xfe]]);
    assert_eq!(
        of_kind(&entries, 4),
        [[4, 3, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0xff, 1]]
    );
}

#[test]
fn isa_interrupts_have_their_own_pins_but_for_the_timer() {
    let entries = entries(&TABLES);
    let wires: Vec<_> = of_kind(&entries, 3)
        .iter()
        .map(|entry| {
            assert_eq!(entry[1..5], [0, 0, 0, 0], "INT, conforming, from bus 0");
            assert_eq!(entry[6], 2, "to the IOAPIC");
            (entry[5], entry[7])
        })
        .collect();
    let expected: Vec<_> = [(0, 2), (1, 1)]
        .into_iter()
        .chain((3..16).map(|irq| (irq, irq)))
        .collect();
    assert_eq!(wires, expected);
}

#[test]
fn windows_beyond_isas_interrupts_are_listed_once() {
    let windows = windows(4, |number| [5, 23, 16, 23][number as usize]);
    let entries = entries(&Tables {
        windows: &windows,
        ..TABLES
    });
    let extra: Vec<_> = of_kind(&entries, 3)
        .iter()
        .skip(15)
        .map(|entry| (entry[5], entry[7]))
        .collect();
    assert_eq!(extra, [(16, 16), (23, 23)]);
}

#[test]
fn the_largest_table_fits_in_the_extended_bios_data_area() {
    let windows = windows(24, |number| number);
    let length = build(&Tables {
        vcpus: 32,
        windows: &windows,
        ..TABLES
    })
    .len();
    assert_eq!(length, 16 + 44 + 32 * 20 + 8 + 8 + (15 + 8) * 8 + 2 * 8);
    assert!(length as u64 <= CAPACITY);
}
