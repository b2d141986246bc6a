use super::{Elf, Error, TABLE_LIMIT, parse};
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::notes::Note;
use crate::boot::segment::physical_entry;
use crate::boot::testing::{ElfFile, Part, Temporary, note, pattern, pvh_note};
use snapshot::file::Architecture;

fn parsed(content: &[u8], machine: Architecture) -> Result<Elf, Error> {
    let file = Temporary::with(content);
    parse(&RegularFile::open(file.path(), 8192).unwrap(), machine)
}

fn refused(content: &[u8]) -> Error {
    parsed(content, Architecture::X86_64).unwrap_err()
}

fn simple() -> ElfFile {
    ElfFile::new(0x10_0010, vec![Part::load(0x10_0000, pattern(100), 50)])
}

/// The file with the bytes at `at` replaced.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = simple().build();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

#[test]
fn both_widths_say_the_same() {
    let mut virtual_part = Part::load(0x20_0123, pattern(5000), 0);
    virtual_part.virtual_address = 0x8000_0123;
    let parts = vec![
        Part::load(0x10_0000, pattern(100), 50),
        Part::notes(pvh_note(0x10_0020)),
        Part::load(0x30_0000, Vec::new(), 0),
        virtual_part,
    ];
    let wide = parsed(
        &ElfFile::new(0x8000_0200, parts.clone()).build(),
        Architecture::X86_64,
    )
    .unwrap();
    let narrow = parsed(&ElfFile::narrow(0x8000_0200, parts).build(), Architecture::X86_64).unwrap();
    assert!(wide.is_64_bit && !narrow.is_64_bit);
    assert_eq!(wide.segments, narrow.segments);
    assert_eq!(wide.notes, narrow.notes);
    let [first, second] = wide.segments.as_slice() else {
        panic!("a segment without memory is none: {:?}", wide.segments)
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
fn the_machine_must_fit() {
    for (machine, wanted, fits) in [
        (62, Architecture::X86_64, true),
        (3, Architecture::X86_64, true),
        (183, Architecture::X86_64, false),
        (183, Architecture::Aarch64, true),
        (62, Architecture::Aarch64, false),
        (243, Architecture::Aarch64, false),
    ] {
        let image = ElfFile { machine, ..simple() }.build();
        assert_eq!(parsed(&image, wanted).is_ok(), fits, "{machine} on {wanted}");
    }
    let error = refused(
        &ElfFile {
            machine: 183,
            ..simple()
        }
        .build(),
    );
    assert_eq!(
        error.to_string(),
        "it is made for aarch64 (e_machine 183), but this machine is x86_64; build the image for x86_64"
    );
}

#[test]
fn a_wrong_header_is_refused_by_its_field() {
    assert!(matches!(refused(&with(4, &[3])), Error::Class(3)));
    assert!(matches!(refused(&with(5, &[2])), Error::ByteOrder(2)));
    assert!(matches!(refused(&with(16, &[1, 0])), Error::Kind { kind: 1 }));
    let error = refused(&with(54, &[32, 0]));
    assert!(matches!(
        error,
        Error::HeaderSize {
            found: 32,
            expected: 56
        }
    ));
    assert!(matches!(refused(&with(56, &[0, 0])), Error::NoSegments(0)));
    assert!(matches!(refused(&with(64, &[6])), Error::NoSegments(1)));
    let error = refused(&with(32, &u64::MAX.to_le_bytes()));
    assert!(matches!(error, Error::File(FileError::Truncated { .. })));
}

#[test]
fn a_huge_number_of_program_headers_is_refused_by_its_number() {
    let error = refused(&with(56, &0xffff_u16.to_le_bytes()));
    assert_eq!(
        error.to_string(),
        "it has 65535 program headers; at most 1170 are read"
    );
    let most = u16::try_from(TABLE_LIMIT / 56).unwrap();
    let error = refused(&with(56, &most.to_le_bytes()));
    assert!(matches!(error, Error::File(FileError::Truncated { .. })));
}

#[test]
fn program_headers_need_not_be_at_the_beginning() {
    let mut content = simple().build();
    let table = content[64..64 + 56].to_vec();
    content.resize(20_000, 0);
    content.extend(table);
    content[32..40].copy_from_slice(&20_000_u64.to_le_bytes());
    content[64..64 + 56].fill(0);
    assert_eq!(parsed(&content, Architecture::X86_64).unwrap().segments.len(), 1);
}

#[test]
fn a_wrong_segment_is_refused_by_its_number() {
    let part = |change: fn(&mut Part)| {
        let mut image = simple();
        image.parts.insert(0, Part::notes(pvh_note(1)));
        change(&mut image.parts[1]);
        refused(&image.build())
    };
    let error = part(|part| part.memory_size = 99);
    assert!(matches!(
        error,
        Error::Sizes {
            number: 1,
            file: 100,
            memory: 99
        }
    ));
    let error = part(|part| part.memory_size = u64::MAX);
    assert!(matches!(
        error,
        Error::Wraps {
            number: 1,
            start: 0x10_0000,
            size: u64::MAX
        }
    ));
    let content = simple().build();
    let error = refused(&content[..content.len() - 101]);
    assert!(matches!(
        error,
        Error::Segment {
            number: 0,
            source: FileError::Truncated { .. }
        }
    ));
}

#[test]
fn only_so_many_notes_are_read() {
    let build_id = Note {
        name: "GNU".into(),
        kind: 3,
        description: vec![0; 4],
    };
    let many = note(&build_id, 4).repeat(TABLE_LIMIT / 20 + 100);
    let mut image = simple();
    image.parts.extend([Part::notes(many.clone()), Part::notes(many)]);
    let elf = parsed(&image.build(), Architecture::X86_64).unwrap();
    assert_eq!(elf.notes.len(), TABLE_LIMIT / 20);
}
