use crate::boot::elf::{Elf, Error, MAX_TABLE, Note, PHYS32_ENTRY, parse, parse_notes};
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::segment::physical_entry;
use crate::boot::testing::{ElfFile, ElfSegment, Temporary, note, pattern, pvh_note};
use proptest::prelude::{any, prop_assert, proptest};
use snapshot::file::Architecture;

fn parsed(content: &[u8], architecture: Architecture) -> Result<Elf, Error> {
    let file = Temporary::with(content);
    parse(&RegularFile::open(file.path(), 8192).unwrap(), architecture)
}

fn parse_error(content: &[u8]) -> Error {
    parsed(content, Architecture::X86_64).unwrap_err()
}

fn simple() -> ElfFile {
    ElfFile::new(0x10_0010, vec![ElfSegment::load(0x10_0000, pattern(100), 50)])
}

/// Returns the file with the bytes at `at` replaced.
fn simple_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = simple().build();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

#[test]
fn widths_parse_alike() {
    let mut virtual_part = ElfSegment::load(0x20_0123, pattern(5000), 0);
    virtual_part.virtual_address = 0x8000_0123;
    let segments = vec![
        ElfSegment::load(0x10_0000, pattern(100), 50),
        ElfSegment::notes(pvh_note(0x10_0020)),
        ElfSegment::load(0x30_0000, Vec::new(), 0),
        virtual_part,
    ];
    let wide = parsed(
        &ElfFile::new(0x8000_0200, segments.clone()).build(),
        Architecture::X86_64,
    )
    .unwrap();
    let narrow = parsed(
        &ElfFile::new_32_bit(0x8000_0200, segments).build(),
        Architecture::X86_64,
    )
    .unwrap();
    assert!(wide.is_64_bit && !narrow.is_64_bit);
    assert_eq!(wide.segments, narrow.segments);
    assert_eq!(wide.notes, narrow.notes);
    let [first, second] = wide.segments.as_slice() else {
        panic!("an empty segment is ignored: {:?}", wide.segments)
    };
    assert_eq!((first.number, second.number), (0, 3));
    assert_eq!(first.physical, 0x10_0000..0x10_0000 + 150);
    assert_eq!(first.file.end - first.file.start, 100);
    assert_eq!(first.flags.to_string(), "rwx");
    assert_eq!(second.virtual_address, 0x8000_0123);
    assert_eq!(wide.notes[0].pvh_entry(), Some(0x10_0020));
    assert_eq!(wide.entry, 0x8000_0200);
    assert_eq!(physical_entry(&wide.segments, 0x8000_0200), Some(0x20_0200));
    assert_eq!(physical_entry(&wide.segments, 0x10_0001), Some(0x10_0001));
    assert_eq!(physical_entry(&wide.segments, 0x10_0096), None);
    assert_eq!(physical_entry(&wide.segments, u64::MAX), None);
}

#[test]
fn entry_far_behind_virtual_address_is_outside_segments() {
    let mut segment = ElfSegment::load(0xff00_0000_0010_0000, pattern(100), 50);
    segment.virtual_address = 0x10_0000;
    let elf = parsed(&ElfFile::new(0x10, vec![segment]).build(), Architecture::X86_64).unwrap();
    // The sum of physical address and distance exceeds 64 bits.
    assert_eq!(physical_entry(&elf.segments, 0xfe00_0000_0000_0000), None);
}

#[test]
fn other_architectures_are_rejected() {
    for (machine, required, matches) in [
        (62, Architecture::X86_64, true),
        (3, Architecture::X86_64, true),
        (183, Architecture::X86_64, false),
        (183, Architecture::Aarch64, true),
        (62, Architecture::Aarch64, false),
        (243, Architecture::Aarch64, false),
    ] {
        let image = ElfFile { machine, ..simple() }.build();
        assert_eq!(
            parsed(&image, required).is_ok(),
            matches,
            "{machine} on {required}"
        );
    }
    let error = parse_error(
        &ElfFile {
            machine: 183,
            ..simple()
        }
        .build(),
    );
    assert_eq!(
        error.to_string(),
        "the image is built for aarch64 (e_machine 183), and the machine is x86_64; build it for x86_64"
    );
}

#[test]
fn invalid_header_fields_are_rejected() {
    assert!(matches!(parse_error(&simple_with(4, &[3])), Error::Class(3)));
    let error = parse_error(&simple_with(5, &[2]));
    assert_eq!(
        error.to_string(),
        "ELF byte order 2 is unsupported; 1 (little-endian) is required; build the image little-endian"
    );
    assert!(matches!(
        parse_error(&simple_with(16, &[1, 0])),
        Error::Kind { kind: 1 }
    ));
    let error = parse_error(&simple_with(54, &[32, 0]));
    assert!(matches!(
        error,
        Error::HeaderSize {
            found: 32,
            expected: 56
        }
    ));
    assert!(matches!(
        parse_error(&simple_with(56, &[0, 0])),
        Error::NoSegments(0)
    ));
    assert!(matches!(
        parse_error(&simple_with(64, &[6])),
        Error::NoSegments(1)
    ));
    let error = parse_error(&simple_with(32, &u64::MAX.to_le_bytes()));
    assert!(matches!(error, Error::File(FileError::Truncated { .. })));
}

#[test]
fn too_many_program_headers_are_rejected() {
    let error = parse_error(&simple_with(56, &0xffff_u16.to_le_bytes()));
    assert_eq!(
        error.to_string(),
        "65535 program headers exceed the limit of 1170"
    );
    let max = u16::try_from(MAX_TABLE / 56).unwrap();
    let error = parse_error(&simple_with(56, &max.to_le_bytes()));
    assert!(matches!(error, Error::File(FileError::Truncated { .. })));
}

#[test]
fn program_headers_parse_at_end_of_file() {
    let mut content = simple().build();
    let table = content[64..64 + 56].to_vec();
    content.resize(20_000, 0);
    content.extend(table);
    content[32..40].copy_from_slice(&20_000_u64.to_le_bytes());
    content[64..64 + 56].fill(0);
    assert_eq!(parsed(&content, Architecture::X86_64).unwrap().segments.len(), 1);
}

#[test]
fn invalid_segments_are_rejected() {
    let error_of = |change: fn(&mut ElfSegment)| {
        let mut image = simple();
        image.segments.insert(0, ElfSegment::notes(pvh_note(1)));
        change(&mut image.segments[1]);
        parse_error(&image.build())
    };
    let error = error_of(|segment| segment.memory_size = 99);
    assert!(matches!(
        error,
        Error::Sizes {
            number: 1,
            file: 100,
            memory: 99
        }
    ));
    let error = error_of(|segment| segment.memory_size = u64::MAX);
    assert!(matches!(
        error,
        Error::Wraps {
            number: 1,
            start: 0x10_0000,
            size: u64::MAX
        }
    ));
    let content = simple().build();
    let error = parse_error(&content[..content.len() - 101]);
    assert!(matches!(
        error,
        Error::Segment {
            number: 0,
            source: FileError::Truncated { .. }
        }
    ));
}

#[test]
fn notes_beyond_limit_are_ignored() {
    let build_id = Note {
        name: "GNU".into(),
        kind: 3,
        description: vec![0; 4],
    };
    let many = note(&build_id, 4).repeat(MAX_TABLE / 20 + 100);
    let mut image = simple();
    image
        .segments
        .extend([ElfSegment::notes(many.clone()), ElfSegment::notes(many)]);
    let elf = parsed(&image.build(), Architecture::X86_64).unwrap();
    assert_eq!(elf.notes.len(), MAX_TABLE / 20);
}

fn build_id() -> Note {
    Note {
        name: "GNU".into(),
        kind: 3,
        description: vec![7; 5],
    }
}

fn pvh_entry_note(entry: &[u8]) -> Note {
    Note {
        name: "Xen".into(),
        kind: PHYS32_ENTRY,
        description: entry.to_vec(),
    }
}

#[test]
fn notes_parse_with_either_padding() {
    for alignment in [4, 8] {
        let expected = [build_id(), pvh_entry_note(&[1, 2, 3, 0]), build_id()];
        let bytes: Vec<u8> = expected.iter().flat_map(|each| note(each, alignment)).collect();
        assert_eq!(
            parse_notes(&bytes, alignment as u64),
            expected,
            "alignment {alignment}"
        );
        let unpadded = &bytes[..bytes.len() - 3];
        assert_eq!(
            parse_notes(unpadded, alignment as u64),
            expected,
            "alignment {alignment}"
        );
        assert_eq!(
            parse_notes(&bytes[..bytes.len() - 8], alignment as u64),
            expected[..2]
        );
    }
}

#[test]
fn pvh_entry_is_4_or_8_bytes() {
    assert_eq!(pvh_entry_note(&[1, 2, 3, 0]).pvh_entry(), Some(0x0003_0201));
    assert_eq!(
        pvh_entry_note(&[1, 2, 3, 0, 0, 0, 0, 4]).pvh_entry(),
        Some(0x0400_0000_0003_0201)
    );
    assert_eq!(pvh_entry_note(&[1, 2]).pvh_entry(), None);
    assert_eq!(build_id().pvh_entry(), None);
    let other = Note {
        kind: 17,
        ..pvh_entry_note(&[0; 4])
    };
    assert_eq!(other.pvh_entry(), None);
}

proptest! {
    #[test]
    fn random_notes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), wide: bool) {
        let total: usize = parse_notes(&bytes, if wide { 8 } else { 4 }).iter().map(|note| note.description.len()).sum();
        prop_assert!(total <= bytes.len());
    }
}
