//! Malicious files.

use proptest::prelude::{Strategy, any, prop_assert, prop_oneof, proptest};
use vm_memory::GuestAddress;

use crate::boot::image::Image;
use crate::boot::multiboot::Addresses;
use crate::boot::protocol::Protocol;
use crate::boot::testing::{ElfFile, ElfSegment, Temporary, bzimage, multiboot_header, pattern, pvh_note};
use crate::memory::allocate;
use snapshot::file::Architecture;

/// Opens the file, reads all information, and loads it by every protocol. Returns true if a load succeeds.
fn loads(content: &[u8], architecture: Architecture) -> bool {
    let file = Temporary::with(content);
    let Ok(image) = Image::open(file.path(), architecture) else {
        return false;
    };
    let total: usize = image.info().notes.iter().map(|note| note.description.len()).sum();
    assert!(total <= content.len());
    let _ = format!("{:?} {:?}", image.info(), image.select_protocol(None));
    Protocol::ALL.into_iter().any(|protocol| {
        let memory = allocate(&[(GuestAddress(0), 32 << 20)]).unwrap();
        image
            .load(protocol, &memory, &[0..0x1000, 0x9_f000..0x10_0000])
            .is_ok()
    })
}

fn elf(is_64_bit: bool) -> Vec<u8> {
    let segments = vec![
        ElfSegment::load(0x10_0000, multiboot_header(3, None), 100),
        ElfSegment::notes(pvh_note(0x10_0000)),
        ElfSegment::load(0x20_0123, pattern(70_000), 0x1_0000),
    ];
    let wide = ElfFile::new(0x10_0010, segments.clone());
    if is_64_bit {
        wide.build()
    } else {
        ElfFile::new_32_bit(0x10_0010, segments).build()
    }
}

fn flat() -> Vec<u8> {
    let addresses = Addresses {
        header: 0x20_0010,
        load: 0x20_0000,
        load_end: 0x20_0400,
        bss_end: 0x20_1000,
        entry: 0x20_0040,
    };
    let mut content = pattern(0x410);
    content[32..64].copy_from_slice(&multiboot_header(3, Some(addresses)));
    content
}

fn images() -> [Vec<u8>; 4] {
    [elf(true), elf(false), bzimage(&pattern(3200)), flat()]
}

/// Returns values at the limits of integers and addresses.
fn edge_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0_u64..10,
        (0_u64..64).prop_map(|bit| 1 << bit),
        (0_u64..0x2000).prop_map(|distance| u64::MAX - distance),
        (0_u64..0x2000).prop_map(|distance| 0xffff_ffff - distance),
        (0_u64..1 << 25),
    ]
}

#[test]
fn truncated_images_are_rejected() {
    // Optional: the padding at the end of an ELF file, and 15 bytes of the last paragraph of a bzImage.
    for (image, spare) in images().into_iter().zip([100, 100, 15, 0]) {
        assert!(loads(&image, Architecture::X86_64));
        let step = (image.len() / 600).max(1);
        for length in (0..image.len().min(700)).chain((700..image.len()).step_by(step)) {
            let is_complete = length + spare >= image.len();
            assert_eq!(
                loads(&image[..length], Architecture::X86_64),
                is_complete,
                "{length} bytes"
            );
        }
    }
}

proptest! {
    #[test]
    fn random_files_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic in 0..5_usize) {
        let mut content = bytes;
        let image = images();
        // Random bytes behind a valid magic reach more code.
        if let Some(real) = image.get(magic) {
            let length = [20, 20, 0x212, 64][magic];
            content.resize(content.len().max(length), 0);
            content[..length].copy_from_slice(&real[..length]);
        }
        loads(&content, Architecture::X86_64);
        loads(&content, Architecture::Aarch64);
    }

    #[test]
    fn random_header_changes_do_not_panic(
        which in 0..4_usize,
        changes in proptest::collection::vec((0..0x280_usize, edge_value(), 1..=8_usize), 1..4),
    ) {
        let mut content = images()[which].clone();
        for (at, value, length) in changes {
            content[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
        }
        loads(&content, Architecture::X86_64);
    }

    #[test]
    fn loaded_segments_stay_within_file_and_memory(
        offset in edge_value(), address in edge_value(), file_size in edge_value(), memory_size in edge_value(),
    ) {
        let mut content = elf(true);
        let header = 64 + 2 * 56;
        for (at, value) in [(8, offset), (24, address), (32, file_size), (40, memory_size)] {
            content[header + at..header + at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if loads(&content, Architecture::X86_64) && memory_size != 0 {
            prop_assert!(address.checked_add(memory_size).is_some_and(|end| end <= 32 << 20));
            prop_assert!(offset.checked_add(file_size).is_some_and(|end| end <= content.len() as u64));
        }
    }
}
