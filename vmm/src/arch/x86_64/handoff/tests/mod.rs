//! Reads back from memory what was written, as a guest does.

mod acpi;
mod mptable;
mod protocols;

use vm_memory::{Bytes, GuestAddress};

use super::{Error, MmioDeviceInfo, Tables, write};
use crate::GuestMemory;
use crate::boot::{LoadedImage, Protocol};

const MIB: usize = 1 << 20;

const TABLES: Tables<'static> = Tables {
    acpi: true,
    mptable: true,
    vcpus: 2,
    windows: &[],
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

/// As many windows as `count`, as the machine places them.
fn windows(count: u64, gsi: impl Fn(u32) -> u32) -> Vec<MmioDeviceInfo> {
    (0..count)
        .map(|number| MmioDeviceInfo {
            base: 0xd000_0000 + number * 0x1000,
            size: 0x1000,
            gsi: gsi(u32::try_from(number).unwrap()),
        })
        .collect()
}

#[test]
fn tables_that_are_not_wanted_are_not_there() {
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
fn nothing_is_written_from_one_megabyte_on() {
    let memory = memory(2 * MIB);
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        write(&memory, &loaded(protocol), c"a=b", &TABLES).unwrap();
    }
    assert_eq!(bytes(&memory, MIB as u64, MIB), vec![0; MIB]);
}

#[test]
fn the_smallest_machine_has_room_for_everything() {
    let windows = windows(64, |number| number % 24);
    let full = Tables {
        vcpus: 32,
        windows: &windows,
        ..TABLES
    };
    for protocol in [Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
        write(&memory(MIB), &loaded(protocol), c"", &full).unwrap();
    }
}

#[test]
fn a_guest_too_small_is_an_error() {
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
fn the_command_line_fits_or_is_refused() {
    let memory = memory(MIB);
    let line = |length: usize| std::ffi::CString::new(vec![b'x'; length]).unwrap();
    write(&memory, &loaded(Protocol::Linux), &line(4095), &TABLES).unwrap();
    assert_eq!(bytes(&memory, 0x2_0ffe, 2), [b'x', 0]);
    assert_eq!(u32_at(&memory, 0x7238), 4095);
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
fn machines_that_cannot_be_described_are_refused() {
    let try_with = |tables: Tables<'_>| write(&memory(MIB), &loaded(Protocol::Linux), c"", &tables);
    for vcpus in [0, 33] {
        let error = try_with(Tables { vcpus, ..TABLES }).unwrap_err();
        assert!(matches!(error, Error::Vcpus(_)), "{error}");
    }
    for (base, size, gsi) in [
        (0xd000_0000, 0x1000, 24),
        (0xd000_0000, 0, 5),
        (0xcfff_f000, 0x1000, 5),
        (0xfebf_f000, 0x2000, 5),
        (u64::MAX, 0x1000, 5),
    ] {
        let windows = [MmioDeviceInfo { base, size, gsi }];
        let error = try_with(Tables {
            windows: &windows,
            ..TABLES
        })
        .unwrap_err();
        assert!(matches!(error, Error::Window { .. }), "{error}");
    }
    let windows = windows(4096, |_| 5);
    let error = try_with(Tables {
        windows: &windows,
        ..TABLES
    })
    .unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
}

#[test]
fn the_reset_vector_resets() {
    let memory = memory(1 << 20);
    let tables = Tables {
        acpi: false,
        mptable: false,
        vcpus: 1,
        windows: &[],
    };
    write(&memory, &loaded(Protocol::Linux), c"", &tables).unwrap();
    // mov al, 0xfe; out 0x64, al
    assert_eq!(bytes(&memory, 0xf_fff0, 4), [0xb0, 0xfe, 0xe6, 0x64]);
}
