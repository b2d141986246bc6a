use std::ops::Range;

use super::{
    DEVICE_TREE_SIZE, Error, FC, IDENTITY_INTERRUPT, IDENTITY_SIZE, Layout, REDISTRIBUTOR_SIZE,
    REDISTRIBUTORS, VIRT, address_bits, plan, select, vm_type,
};
use crate::boot::testing::{ElfFile, ElfSegment, Temporary, arm64_image};
use crate::boot::{Image, Protocol};
use crate::config::{AddressLayout, MAX_DEVICES, MAX_VCPUS, MemoryMap};
use snapshot::file::Architecture;

const MIB: u64 = 1 << 20;

fn open(content: &[u8]) -> Image {
    Image::open(Temporary::with(content).path(), Architecture::Aarch64).unwrap()
}

/// Returns an ELF image at `start` with `size` bytes of memory.
fn elf(start: u64, size: u64) -> Image {
    let mut file = ElfFile::new(start, vec![ElfSegment::load(start, vec![1; 16], size - 16)]);
    file.machine = 183;
    open(&file.build())
}

fn image(text_offset: u64, size: u64, is_relocatable: bool) -> Image {
    open(&arm64_image(
        text_offset,
        size,
        u64::from(is_relocatable) << 3,
        0x1000,
    ))
}

/// Returns base of the image and address of the device tree.
fn places(layout: AddressLayout, size: u64, image: &Image) -> Result<(u64, u64), Error> {
    let plan = plan(layout, size, image, Protocol::Linux)?;
    let tree = plan.boot_data..plan.boot_data + DEVICE_TREE_SIZE;
    let end = Layout::of(layout).memory + size;
    let identity = Layout::of(layout).identity(size).map(|start| start..end);
    let expected: Vec<Range<u64>> = [tree].into_iter().chain(identity).collect();
    assert_eq!(plan.reserved[..], expected);
    Ok((plan.image_base, plan.boot_data))
}

#[test]
fn address_selects_map() {
    let selected = |image: &Image| select(image, None).map(|(layout, _)| layout);
    for (start, layout) in [
        (0x4000_0000, AddressLayout::ArmVirt2),
        (0x7fff_f000, AddressLayout::ArmVirt2),
        (0x8000_0000, AddressLayout::ArmFc2),
        (0x1_0000_0000, AddressLayout::ArmFc2),
    ] {
        assert_eq!(selected(&elf(start, 0x1000)), Ok(layout), "{start:#x}");
    }
    assert_eq!(selected(&image(0, 0x1000, false)), Ok(AddressLayout::ArmFc2));
    let error = selected(&elf(0x3fff_f000, 0x1000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image is linked at 0x3ffff000, outside memory of both memory maps: virt has memory from 0x40000000, fc from \
         0x80000000; link it for one of them"
    );
    let (_, reason) = select(&elf(0x4010_0000, 0x1000), None).unwrap();
    assert_eq!(reason, "the image is linked at 0x40100000");
}

#[test]
fn request_overrides_address() {
    let image = elf(0x8000_0000, 0x1000);
    let forced = select(&image, Some(MemoryMap::Virt)).unwrap();
    assert_eq!(forced, (AddressLayout::ArmVirt2, "as requested".into()));
    assert_eq!(
        places(AddressLayout::ArmVirt2, 2048 * MIB, &image),
        Ok((0, VIRT.memory))
    );
    let error = places(AddressLayout::ArmFc2, 128 * MIB, &elf(0x4000_0000, 0x1000)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("memory map fc has memory from 0x80000000"),
        "{error}"
    );
}

#[test]
fn fc_reserves_end_of_memory_only() {
    let layout = AddressLayout::ArmFc2;
    let end = FC.memory + 128 * MIB - IDENTITY_SIZE - DEVICE_TREE_SIZE;
    assert_eq!(places(layout, 128 * MIB, &elf(FC.memory, MIB)), Ok((0, end)));
    assert_eq!(
        places(layout, 128 * MIB, &image(0, MIB, true)),
        Ok((FC.memory, end))
    );
    assert_eq!(
        places(layout, 128 * MIB, &image(0xf_ffc0, MIB, true)),
        Ok((FC.memory, end))
    );
    assert_eq!(
        places(layout, MIB + 0x3000, &elf(FC.memory, 0x1000)),
        Ok((0, FC.memory + MIB - IDENTITY_SIZE - DEVICE_TREE_SIZE))
    );
}

#[test]
fn virt_reserves_start_of_memory() {
    let layout = AddressLayout::ArmVirt2;
    for (start, size) in [
        (VIRT.memory + DEVICE_TREE_SIZE, MIB),
        (VIRT.memory + MIB, 100 * MIB),
    ] {
        assert_eq!(places(layout, 128 * MIB, &elf(start, size)), Ok((0, VIRT.memory)));
    }
    let moved = VIRT.memory + 2 * MIB;
    assert_eq!(
        places(layout, 128 * MIB, &image(0, MIB, true)),
        Ok((moved, VIRT.memory))
    );
    let offset = image(0x8_0000, MIB, false);
    assert_eq!(places(layout, 128 * MIB, &offset), Ok((VIRT.memory, VIRT.memory)));
    let end = VIRT.memory + 128 * MIB - IDENTITY_SIZE - DEVICE_TREE_SIZE;
    let fixed = image(0, MIB, false);
    assert_eq!(places(layout, 128 * MIB, &fixed), Ok((VIRT.memory, end)));
}

#[test]
fn elf_image_over_device_tree_is_rejected() {
    for start in [VIRT.memory, VIRT.memory + DEVICE_TREE_SIZE - 0x1000] {
        let error = places(AddressLayout::ArmVirt2, 128 * MIB, &elf(start, 0x2000)).unwrap_err();
        assert!(matches!(error, Error::DeviceTree { .. }), "{error}");
        assert!(
            error.to_string().ends_with("link it at 0x40010000 or above"),
            "{error}"
        );
    }
}

#[test]
fn small_memory_error_states_sufficient_size() {
    let layout = AddressLayout::ArmFc2;
    let image = elf(FC.memory, 4 * MIB);
    let behind = DEVICE_TREE_SIZE + IDENTITY_SIZE;
    for size in [2 * MIB, 4 * MIB, 4 * MIB + behind - 0x1000] {
        let error = places(layout, size, &image).unwrap_err();
        assert!(
            matches!(
                error,
                Error::MemoryTooSmall {
                    sufficient_mib: 5,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert!(places(layout, 4 * MIB + behind, &image).is_ok());
    assert!(places(layout, 5 * MIB, &image).is_ok());
    // The least size that contains image, device tree and record, rounded up.
    for (size, sufficient) in [(5 * MIB - behind, 5), (5 * MIB - behind + 0x1000, 6)] {
        let image = elf(FC.memory, size);
        let error = places(layout, 4 * MIB, &image).unwrap_err();
        assert!(
            matches!(error, Error::MemoryTooSmall { sufficient_mib, .. } if sufficient_mib == sufficient),
            "{error}"
        );
        assert!(places(layout, sufficient * MIB, &image).is_ok());
    }
}

#[test]
fn image_covers_no_identity_record() {
    let layout = AddressLayout::ArmVirt2;
    let start = VIRT.memory + MIB;
    let image = elf(start, 7 * MIB - IDENTITY_SIZE);
    assert!(places(layout, 8 * MIB, &image).is_ok());
    let image = elf(start, 7 * MIB - IDENTITY_SIZE + 0x1000);
    let error = places(layout, 8 * MIB, &image).unwrap_err();
    assert!(
        matches!(
            error,
            Error::MemoryTooSmall {
                sufficient_mib: 9,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn identity_record_ends_memory_of_each_size() {
    for (layout, memory) in [
        (AddressLayout::ArmFc2, 0x8000_0000),
        (AddressLayout::ArmVirt2, 0x4000_0000),
    ] {
        let layout = Layout::of(layout);
        for (size, offset) in [
            (MIB, 0xf_0000),
            (128 * MIB, 0x7ff_0000),
            (MIB + 0x3000, 0xf_0000),
            (5 << 30, 0x1_3fff_0000),
        ] {
            assert_eq!(layout.identity(size), Some(memory + offset));
            assert_eq!(layout.usable_end(size), memory + offset);
        }
        let mut interrupts = layout.mmio_devices().map(|device| device.gsi);
        assert!(!interrupts.any(|number| number == IDENTITY_INTERRUPT));
        assert_ne!(layout.serial_interrupt, IDENTITY_INTERRUPT);
    }
}

#[test]
fn layout_of_older_snapshots_never_changes() {
    for (old, new) in [
        (AddressLayout::ArmFc, AddressLayout::ArmFc2),
        (AddressLayout::ArmVirt, AddressLayout::ArmVirt2),
    ] {
        let (old, new) = (Layout::of(old), Layout::of(new));
        assert_eq!(old.identity(128 * MIB), None);
        assert_eq!(old.usable_end(128 * MIB), old.memory + 128 * MIB);
        assert!(old.mmio_devices().eq(new.mmio_devices()));
        let addresses = |layout: &Layout| {
            (
                layout.map,
                layout.memory,
                layout.serial,
                layout.serial_interrupt,
                layout.rtc,
            )
        };
        assert_eq!(addresses(old), addresses(new));
    }
}

#[test]
fn addresses_use_fewest_bits() {
    for (end, bits) in [
        (0, 32),
        (1 << 32, 32),
        ((1 << 32) + 1, 33),
        (1 << 40, 40),
        (u64::MAX, 64),
    ] {
        assert_eq!(address_bits(end, 64), Ok(bits), "{end:#x}");
    }
    let error = address_bits(1 << 37, 36).unwrap_err();
    assert_eq!(
        error.to_string(),
        "guest memory ends at 0x2000000000, and KVM on this host has guest-physical addresses of 36 bits; use less memory, or a \
         host with larger ones"
    );
}

#[test]
fn host_without_choice_of_address_size_has_40_bits() {
    assert_eq!(vm_type(1 << 40, 0), Ok(0));
    assert_eq!(vm_type(1 << 40, 44), Ok(40));
    let error = vm_type((1 << 40) + 1, 0).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("guest-physical addresses of 40 bits; use less memory"),
        "{error}"
    );
    // Memory of 64 GiB ends above addresses of 36 bits.
    let error = vm_type(FC.memory + (64 << 30), 36).unwrap_err();
    assert!(
        error.to_string().contains("of 36 bits; use less memory"),
        "{error}"
    );
}

#[test]
fn devices_do_not_overlap() {
    for layout in [AddressLayout::ArmFc2, AddressLayout::ArmVirt2] {
        let layout = Layout::of(layout);
        let mut ranges: Vec<Range<u64>> = layout
            .mmio_devices()
            .map(|device| device.base..device.base + device.size)
            .collect();
        assert_eq!(ranges.len(), MAX_DEVICES);
        ranges.push(layout.serial..layout.serial + 0x1000);
        ranges.push(layout.rtc..layout.rtc + 0x1000);
        ranges.push(REDISTRIBUTORS..REDISTRIBUTORS + u64::from(MAX_VCPUS) * REDISTRIBUTOR_SIZE);
        ranges.sort_by_key(|range| range.start);
        assert!(
            ranges.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "{ranges:x?}"
        );
        assert!(ranges.iter().all(|range| range.end <= layout.memory));
    }
}
