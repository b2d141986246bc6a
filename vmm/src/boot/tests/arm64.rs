use std::error::Error as _;

use vm_memory::{Bytes, GuestAddress};

use crate::boot::Protocol;
use crate::boot::arm64::{Arm64Header, Error as Arm64Error};
use crate::boot::image::{Error, Format, Image};
use crate::boot::testing::{ElfFile, ElfSegment, Temporary, arm64_image};
use crate::memory::allocate;
use snapshot::file::Architecture;

const BASE: u64 = 0x4000_0000;

fn open(content: &[u8]) -> Result<Image, Error> {
    Image::open(Temporary::with(content).path(), Architecture::Aarch64)
}

fn arm64_error(content: &[u8], architecture: Architecture) -> Arm64Error {
    match Image::open(Temporary::with(content).path(), architecture) {
        Err(Error::Arm64 { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn image_loads_at_offset_from_base() {
    let content = arm64_image(0x8_0000, 0x9_0000, 1 << 3, 0x8_1234);
    let image = open(&content).unwrap();
    let header = Arm64Header {
        text_offset: 0x8_0000,
        is_relocatable: true,
    };
    assert_eq!(image.info().format, Format::Arm64(header));
    assert_eq!(image.select_protocol(None).unwrap(), Protocol::Linux);
    let memory = allocate(&[(GuestAddress(BASE), 4 << 20)]).unwrap();
    let loaded = image.load_at(BASE, Protocol::Linux, &memory, &[]).unwrap();
    let start = BASE + 0x8_0000;
    assert_eq!((loaded.entry, loaded.end), (start, start + 0x9_0000));
    let mut found = vec![0; content.len() + 0x1000];
    memory.read_slice(&mut found, GuestAddress(start)).unwrap();
    assert_eq!(found[..content.len()], content);
    assert!(found[content.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn image_without_size_has_old_offset() {
    let image = open(&arm64_image(0x1234_0000, 0, 0xff, 0x1000)).unwrap();
    let segment = &image.info().segments[0];
    assert_eq!(segment.physical, 0x8_0000..0x8_1000);
    assert!(matches!(image.info().format, Format::Arm64(header) if !header.is_relocatable));
}

#[test]
fn image_size_below_file_size_loads_complete_file() {
    let image = open(&arm64_image(0, 0x100, 0, 0x1000)).unwrap();
    assert_eq!(image.info().segments[0].physical, 0..0x1000);
}

#[test]
fn invalid_images_are_rejected() {
    let big_endian = arm64_image(0, 0x1000, 1, 0x1000);
    assert!(matches!(
        arm64_error(&big_endian, Architecture::Aarch64),
        Arm64Error::BigEndian(1)
    ));
    let wraps = arm64_image(u64::MAX - 0xfff, 0x1001, 0, 0x1000);
    assert!(matches!(
        arm64_error(&wraps, Architecture::Aarch64),
        Arm64Error::Wraps { .. }
    ));
    let other = arm64_error(&arm64_image(0, 0x1000, 0, 0x1000), Architecture::X86_64);
    assert_eq!(
        other.to_string(),
        "an arm64 Image is built for aarch64, and the machine is x86_64; build the image for x86_64"
    );
}

#[test]
fn zboot_image_error_has_command_to_unpack() {
    let mut content = vec![0; 0x1000];
    content[..8].copy_from_slice(b"MZ\0\0zimg");
    content[8..12].copy_from_slice(&0x800_u32.to_le_bytes());
    content[12..16].copy_from_slice(&0x345_u32.to_le_bytes());
    content[24..29].copy_from_slice(b"gzip\0");
    for architecture in [Architecture::Aarch64, Architecture::X86_64] {
        assert_eq!(
            arm64_error(&content, architecture).to_string(),
            "the file is an EFI zboot image, compressed with gzip; unpack it: tail -c +2049 FILE | head -c 837 | gunzip >Image"
        );
    }
    content.truncate(12);
    assert!(matches!(
        arm64_error(&content, Architecture::Aarch64),
        Arm64Error::Zboot { .. }
    ));
}

#[test]
fn elf_entry_above_4_gib_is_supported() {
    let entry = 0x1_8000_0000;
    let mut file = ElfFile::new(entry, vec![ElfSegment::load(entry, vec![1; 16], 0)]);
    file.machine = 183;
    assert_eq!(open(&file.build()).unwrap().protocols(), [Protocol::Linux]);
    file.entry = 0x40;
    let error = open(&file.build()).unwrap().select_protocol(None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("linux: entry 0x40 is outside all segments"),
        "{error}"
    );
    assert!(error.source().is_none());
}
