use crate::boot::bzimage::{Error, SETUP_HEADER, SetupHeader, is_bzimage, parse};
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::segment::Segment;
use crate::boot::testing::{Temporary, bzimage, pattern};
use snapshot::file::Architecture;

fn parsed(content: &[u8]) -> Result<(SetupHeader, Segment), Error> {
    let file = Temporary::with(content);
    parse(
        &RegularFile::open(file.path(), 8192).unwrap(),
        Architecture::X86_64,
    )
}

/// Returns the error of an image with the bytes at `at` replaced.
fn parse_error(at: usize, bytes: &[u8]) -> Error {
    let mut content = bzimage(&pattern(1600));
    content[at..at + bytes.len()].copy_from_slice(bytes);
    parsed(&content).unwrap_err()
}

#[test]
fn segment_is_at_preferred_address_with_memory_to_unpack() {
    let content = bzimage(&pattern(1600));
    assert!(is_bzimage(&content));
    let (setup, segment) = parsed(&content).unwrap();
    assert_eq!(segment.file, 2560..4160);
    assert_eq!(segment.physical, 0x100_0000..0x120_0000);
    assert_eq!(setup.header, content[SETUP_HEADER..0x202 + 0x6a]);
    assert_eq!((setup.version, setup.relocatable), (0x020f, true));
    assert_eq!((setup.alignment, setup.command_line_size), (0x20_0000, 2047));
    assert_eq!(setup.initrd_addr_max, 0x7fff_ffff);
}

#[test]
fn signature_after_kernel_is_loaded() {
    let mut content = bzimage(&pattern(1600));
    content.extend(pattern(777));
    assert_eq!(parsed(&content).unwrap().1.file, 2560..4160 + 777);
}

#[test]
fn kernels_without_64_bit_entry_are_rejected() {
    assert_eq!(
        parse_error(0x206, &[0x0b, 0x02]).to_string(),
        "boot protocol 2.11 has no 64-bit entry; 2.12 (Linux 3.8) or later is required"
    );
    assert!(matches!(parse_error(0x211, &[0x80]), Error::NotLoadedHigh(0x80)));
    assert!(matches!(parse_error(0x236, &[2, 0]), Error::Only32Bit(2)));
    let error = parse_error(0x258, &u64::MAX.to_le_bytes());
    assert!(matches!(
        error,
        Error::Wraps {
            address: u64::MAX,
            ..
        }
    ));
    let file = Temporary::with(&bzimage(&pattern(16)));
    let file = RegularFile::open(file.path(), 8192).unwrap();
    assert!(matches!(
        parse(&file, Architecture::Aarch64),
        Err(Error::Machine(Architecture::Aarch64))
    ));
}

#[test]
fn truncated_kernel_is_rejected() {
    let content = bzimage(&pattern(1600));
    for length in [0x206, 0x260, 2559, 2560, 4144] {
        let error = parsed(&content[..length]).unwrap_err();
        let is_short = matches!(
            error,
            Error::File(FileError::Truncated { .. }) | Error::ProtocolVersion(_)
        );
        assert!(is_short, "{length}: {error}");
    }
    // syssize counts paragraphs, and memtest86+ ends within one.
    assert_eq!(parsed(&content[..4145]).unwrap().1.file, 2560..4145);
}
