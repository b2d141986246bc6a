use std::error::Error as _;
use std::ops::Range;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::boot::image::{Error, Format, Image};
use crate::boot::multiboot::{Addresses, Error as MultibootError};
use crate::boot::protocol::{LoadedImage, Protocol};
use crate::boot::segment::{LayoutError, MAP_THRESHOLD};
use crate::boot::testing::{
    ElfFile, ElfSegment, Temporary, bzimage, multiboot_2_header, multiboot_header, pattern, pvh_note,
};
use crate::memory::{allocate, page_size};
use snapshot::file::Architecture;

const MEMORY: u64 = 32 << 20;
const RESERVED: [Range<u64>; 2] = [0..0x2_1000, 0x9_fc00..0x10_0000];

fn open(content: &[u8]) -> Result<Image, Error> {
    Image::open(Temporary::with(content).path(), Architecture::X86_64)
}

fn memory() -> GuestMemory {
    allocate(&[(GuestAddress(0), 32 << 20), (GuestAddress(1 << 32), 1 << 20)]).unwrap()
}

fn load(content: &[u8], protocol: Option<Protocol>) -> Result<(LoadedImage, GuestMemory), Error> {
    let image = open(content)?;
    let memory = memory();
    let loaded = image.load(image.select_protocol(protocol)?, &memory, &RESERVED)?;
    Ok((loaded, memory))
}

fn layout_error(segments: Vec<ElfSegment>) -> LayoutError {
    match load(&ElfFile::new(segments[0].physical, segments).build(), None) {
        Err(Error::Layout { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

/// Asserts that memory contains the content of each segment and is zero elsewhere.
fn assert_holds(memory: &GuestMemory, segments: &[ElfSegment], case: &str) {
    let mut expected = vec![0; usize::try_from(MEMORY).unwrap()];
    for segment in segments {
        let start = usize::try_from(segment.physical).unwrap();
        expected[start..start + segment.content.len()].copy_from_slice(&segment.content);
    }
    let mut found = vec![0; expected.len()];
    memory.read_slice(&mut found, GuestAddress(0)).unwrap();
    if found != expected {
        let differs = (0..found.len()).find(|at| found[*at] != expected[*at]);
        panic!("{case}: byte {differs:#x?}");
    }
}

#[test]
fn segments_are_loaded_and_rest_is_zero() {
    let page = page_size();
    let large = usize::try_from(MAP_THRESHOLD + 3 * page).unwrap();
    for (start, length, skew) in [
        (0, 100, 0),
        (0x123, 100, 0),
        (0, large, 0),
        (0x123, large, 0),
        (0x123, large + 17, 0),
        (page - 1, large + 17, 0),
        (0, large, 16),
        (0x123, large, page - 1),
    ] {
        let first = 0x10_0000 + start;
        let second = first + length as u64 + 100;
        let segments = vec![
            ElfSegment {
                skew,
                ..ElfSegment::load(first, pattern(length), 100)
            },
            // Shares a page with the first segment, and other content follows it in the file.
            ElfSegment {
                skew,
                ..ElfSegment::load(second, pattern(large + 1), 3 * page)
            },
        ];
        let case = format!("start {start:#x} length {length:#x} skew {skew:#x}");
        let image = ElfFile::new(first, segments.clone()).build();
        let opened = open(&image).unwrap();
        let can_map = skew == 0 && length >= large;
        assert_eq!(!opened.info().segments[0].mapped().is_empty(), can_map, "{case}");
        let (loaded, memory) = load(&image, None).unwrap();
        assert_holds(&memory, &segments, &case);
        assert_eq!(loaded.end, second + large as u64 + 1 + 3 * page);
        assert_eq!((loaded.entry, loaded.protocol), (first, Protocol::Linux));
    }
}

#[test]
fn guest_writes_do_not_reach_image() {
    let length = usize::try_from(MAP_THRESHOLD).unwrap();
    let content = ElfFile::new(0x10_0000, vec![ElfSegment::load(0x10_0000, pattern(length), 0)]).build();
    let file = Temporary::with(&content);
    let image = Image::open(file.path(), Architecture::X86_64).unwrap();
    let memory = memory();
    image.load(Protocol::Linux, &memory, &RESERVED).unwrap();
    memory.write_slice(&[0; 4096], GuestAddress(0x10_0000)).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), content);
}

#[test]
fn image_selects_protocol() {
    let code = ElfSegment::load(0x10_0000, pattern(100), 0);
    let marked = ElfSegment::load(0x10_0000, multiboot_header(3, None), 0);
    let pvh = ElfSegment::notes(pvh_note(0x10_0004));
    use Protocol::{Linux, Multiboot, Pvh};
    for (is_64_bit, segments, expected) in [
        (true, vec![code.clone()], vec![Linux]),
        (true, vec![code.clone(), pvh.clone()], vec![Pvh, Linux]),
        (true, vec![marked.clone()], vec![Multiboot, Linux]),
        (
            true,
            vec![marked.clone(), pvh.clone()],
            vec![Pvh, Multiboot, Linux],
        ),
        (false, vec![marked.clone()], vec![Multiboot]),
        (false, vec![marked.clone(), pvh.clone()], vec![Pvh, Multiboot]),
        (false, vec![code.clone(), pvh.clone()], vec![Pvh]),
    ] {
        let wide = ElfFile::new(0x10_0008, segments.clone());
        let narrow = ElfFile::new_32_bit(0x10_0008, segments);
        let content = if is_64_bit { wide.build() } else { narrow.build() };
        let image = open(&content).unwrap();
        assert_eq!(image.select_protocol(None).unwrap(), expected[0], "{expected:?}");
        for protocol in Protocol::ALL {
            assert_eq!(
                image.protocols().contains(&protocol),
                expected.contains(&protocol)
            );
            assert_eq!(
                image.select_protocol(Some(protocol)).is_ok(),
                expected.contains(&protocol)
            );
        }
        for protocol in expected {
            let entry = if protocol == Pvh { 0x10_0004 } else { 0x10_0008 };
            assert_eq!(load(&content, Some(protocol)).unwrap().0.entry, entry);
        }
    }
}

#[test]
fn image_for_multiboot_2_needs_forced_protocol() {
    let mut content = multiboot_2_header();
    content.resize(100, 0x90);
    let code = ElfSegment::load(0x10_0000, content.clone(), 0);
    let image = open(&ElfFile::new(0x10_0010, vec![code.clone()]).build()).unwrap();
    let error = image.select_protocol(None).unwrap_err();
    assert!(matches!(error, Error::OnlyMultiboot2 { .. }), "{error}");
    assert!(error.to_string().ends_with("force one of: linux"), "{error}");
    assert_eq!(
        image.select_protocol(Some(Protocol::Linux)).unwrap(),
        Protocol::Linux
    );
    let error = image.select_protocol(Some(Protocol::Multiboot)).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");

    let pvh = ElfSegment::notes(pvh_note(0x10_0010));
    let image = open(&ElfFile::new(0x10_0010, vec![code.clone(), pvh]).build()).unwrap();
    assert_eq!(image.select_protocol(None).unwrap(), Protocol::Pvh);
    let image = open(&ElfFile::new_32_bit(0x10_0010, vec![code]).build()).unwrap();
    let error = image.select_protocol(None).unwrap_err();
    assert!(matches!(error, Error::NoProtocol { .. }), "{error}");
    assert!(error.to_string().contains("has version 2"), "{error}");
    let error = open(&content).unwrap_err();
    assert!(
        error.source().unwrap().to_string().contains("has version 2"),
        "{error}"
    );
}

#[test]
fn unsupported_protocol_error_lists_supported_ones() {
    let image = ElfFile::new(0x10_0000, vec![ElfSegment::load(0x10_0000, pattern(100), 0)]).build();
    let error = load(&image, Some(Protocol::Pvh)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("by pvh: no note of a PVH entry"), "{text}");
    assert!(text.ends_with("supported: linux"), "{text}");
    let error = open(&image)
        .unwrap()
        .load(Protocol::Multiboot, &memory(), &[])
        .unwrap_err();
    assert!(matches!(
        error,
        Error::UnsupportedProtocol {
            protocol: Protocol::Multiboot,
            ..
        }
    ));
}

#[test]
fn entry_outside_segments_is_rejected() {
    let segments = vec![
        ElfSegment::load(0x10_0000, pattern(100), 0),
        ElfSegment::notes(pvh_note(0x20_0000)),
    ];
    let image = open(&ElfFile::new(0x10_0064, segments).build()).unwrap();
    let text = image.select_protocol(None).unwrap_err().to_string();
    assert!(
        text.contains("linux: entry 0x100064 is outside all segments"),
        "{text}"
    );
    assert!(text.contains("pvh: PVH entry 0x200000 is outside"), "{text}");
    assert!(text.contains("multiboot: no multiboot header"), "{text}");
}

#[test]
fn x86_protocols_are_unsupported_on_aarch64() {
    let segments = vec![
        ElfSegment::load(0x10_0000, multiboot_header(0, None), 0),
        ElfSegment::notes(pvh_note(0x10_0000)),
    ];
    let mut file = ElfFile::new(0x10_0000, segments);
    file.machine = 183;
    let file = Temporary::with(&file.build());
    let image = Image::open(file.path(), Architecture::Aarch64).unwrap();
    assert_eq!(image.protocols(), [Protocol::Linux]);
}

#[test]
fn flat_multiboot_image_loads() {
    let addresses = Addresses {
        header: 0x20_0010,
        load: 0x20_0000,
        load_end: 0x20_0000 + 300,
        bss_end: 0x20_1000,
        entry: 0x20_0040,
    };
    let mut content = pattern(400);
    content[32..64].copy_from_slice(&multiboot_header(3, Some(addresses)));
    let (loaded, memory) = load(&content, None).unwrap();
    assert_eq!((loaded.entry, loaded.end), (0x20_0040, 0x20_1000));
    assert_eq!(loaded.protocol, Protocol::Multiboot);
    assert_eq!(open(&content).unwrap().info().format, Format::Multiboot);
    let expected = ElfSegment::load(0x20_0000, content[16..316].to_vec(), 0);
    assert_holds(&memory, &[expected], "flat");

    content[32..64].copy_from_slice(&multiboot_header(3, None));
    let error = open(&content).unwrap_err();
    assert!(matches!(
        error,
        Error::Multiboot {
            source: MultibootError::Missing,
            ..
        }
    ));
}

#[test]
fn multiboot_addresses_override_elf_segments() {
    let addresses = Addresses {
        header: 0x40_0000,
        load: 0x40_0000,
        load_end: 0x40_0064,
        bss_end: 0,
        entry: 0x40_0020,
    };
    let header = multiboot_header(0, Some(addresses));
    let segment = ElfSegment::load(0x10_0000, [header, pattern(68)].concat(), 0);
    let image = ElfFile::new_32_bit(0x10_0000, vec![segment.clone()]).build();
    let (loaded, memory) = load(&image, None).unwrap();
    assert_eq!(loaded.entry, 0x40_0020);
    assert_holds(
        &memory,
        &[ElfSegment {
            physical: 0x40_0000,
            ..segment
        }],
        "addresses",
    );
}

#[test]
fn bzimage_load_returns_setup_header() {
    let kernel = pattern(usize::try_from(MAP_THRESHOLD).unwrap());
    let content = bzimage(&kernel);
    let (loaded, memory) = load(&content, None).unwrap();
    assert_eq!((loaded.entry, loaded.end), (0x100_0200, 0x120_0000));
    assert_eq!(loaded.setup_header.unwrap(), content[0x1f1..0x26c]);
    assert_holds(&memory, &[ElfSegment::load(0x100_0000, kernel, 0)], "bzImage");
    assert!(load(&content, Some(Protocol::Pvh)).is_err());
}

#[test]
fn small_memory_error_states_sufficient_size() {
    let error = layout_error(vec![ElfSegment::load(0x10_0000, pattern(10), 1 << 30)]);
    assert_eq!(
        error.to_string(),
        "segment 0 (0x100000..0x4010000a): guest memory of 33 MiB is too small; 1026 MiB suffice"
    );
    let segments = vec![
        ElfSegment::load(0x10_0000, pattern(10), 0),
        ElfSegment::load(MEMORY - 5, pattern(10), 0),
    ];
    assert!(matches!(
        layout_error(segments),
        LayoutError::MemoryTooSmall {
            number: 1,
            sufficient_mib: 34,
            ..
        }
    ));
}

#[test]
fn segments_outside_free_memory_are_rejected() {
    let entry_part = || ElfSegment::load(0x20_0000, pattern(10), 0);
    let error = layout_error(vec![
        entry_part(),
        ElfSegment::load(0xffff_ffff_8000_0000, pattern(10), 0),
    ]);
    assert!(matches!(error, LayoutError::OutsideMemory { .. }), "{error}");
    let error = layout_error(vec![ElfSegment::load((1 << 32) - 5, pattern(10), 0)]);
    assert!(matches!(error, LayoutError::OutsideMemory { .. }), "{error}");
    for start in [0, 0x2_0fff, 0x9_fbff, 0xf_ffff] {
        let error = layout_error(vec![ElfSegment::load(start, pattern(10), 0)]);
        assert!(
            matches!(error, LayoutError::Reserved { free: 0x10_0000, .. }),
            "{error}"
        );
    }
    let segments = vec![
        ElfSegment::load(0x10_0000, pattern(10), 100),
        ElfSegment::load(0x10_006d, pattern(10), 0),
    ];
    let error = layout_error(segments);
    assert!(
        matches!(
            error,
            LayoutError::Overlap {
                first: 0,
                second: 1,
                ..
            }
        ),
        "{error}"
    );
    let one_too_many = ElfSegment::load(MEMORY - 9, pattern(10), 0);
    let error = layout_error(vec![one_too_many]);
    assert!(
        matches!(
            error,
            LayoutError::MemoryTooSmall {
                sufficient_mib: 34,
                ..
            }
        ),
        "{error}"
    );
    let free = [
        (1 << 32, 10),
        ((1 << 32) + (1 << 20) - 10, 10),
        (MEMORY - 10, 10),
        (0x2_1000, 10),
    ];
    for (start, length) in free {
        let image = ElfFile::new(
            0x20_0000,
            vec![entry_part(), ElfSegment::load(start, pattern(length), 0)],
        )
        .build();
        assert!(load(&image, None).is_ok(), "{start:#x}");
    }
}

#[test]
fn foreign_files_are_identified() {
    for (content, expected) in [
        (&b"\x1f\x8b\x08\0"[..], "gunzip"),
        (b"#!/bin/sh\n", "script"),
        (b"nothing in particular", "no magic of ELF"),
    ] {
        let error = open(content).unwrap_err();
        assert!(matches!(error, Error::NotAnImage { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = open(b"").unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "the file is empty");
    let error = Image::open(Path::new("/nowhere/kernel"), Architecture::X86_64).unwrap_err();
    assert_eq!(error.to_string(), "cannot open /nowhere/kernel");
    let error = Image::open(Path::new("/tmp"), Architecture::X86_64).unwrap_err();
    assert!(error.source().unwrap().to_string().contains("directory"));
}

#[test]
fn shrunk_image_is_rejected() {
    let length = usize::try_from(MAP_THRESHOLD + page_size()).unwrap();
    for bytes in [length, 10_000] {
        let content = ElfFile::new(0x10_0000, vec![ElfSegment::load(0x10_0000, pattern(bytes), 0)]).build();
        let file = Temporary::with(&content);
        let image = Image::open(file.path(), Architecture::X86_64).unwrap();
        let writer = std::fs::File::options().write(true).open(file.path()).unwrap();
        writer.set_len(8192).unwrap();
        let error = image.load(Protocol::Linux, &memory(), &RESERVED).unwrap_err();
        assert!(matches!(error, Error::Segment { number: 0, .. }), "{error}");
        assert!(
            error.to_string().starts_with("cannot load segment 0 of "),
            "{error}"
        );
    }
}

#[test]
fn entry_above_4_gib_is_rejected() {
    let high = ElfSegment::load(1 << 32, pattern(10), 0);
    let error = load(&ElfFile::new(1 << 32, vec![high]).build(), Some(Protocol::Linux)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("entry 0x100000000 is outside all segments or above 4 GiB"),
        "{error}"
    );
}
