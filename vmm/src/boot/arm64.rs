//! `Image` of arm64: flat file with a header of 64 bytes. Linux, Documentation/arch/arm64/booting.rst; the compressed form of EFI,
//! zboot, is in Linux, drivers/firmware/efi/libstub/zboot-header.S.
//!
//! An `Image` has no addresses of its own: it is loaded at an offset from a base that the loader chooses.

use super::file::HeaderFields;
use super::segment::{Flags, Segment};
use snapshot::file::Architecture;

/// Alignment of the base.
pub const BASE_ALIGNMENT: u64 = 2 << 20;

const MAGIC: &[u8] = b"ARM\x64";
const MAGIC_OFFSET: usize = 56;
/// Offset from the base of an image whose header has no size: booting.rst, before Linux 3.17.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// Bit 0 of the flags: big-endian.
const BIG_ENDIAN: u64 = 1;
/// Bit 3 of the flags: the base may be anywhere in memory.
const ANY_BASE: u64 = 1 << 3;

/// Error of an `Image`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine is not aarch64.
    #[error("an arm64 Image is built for aarch64, and the machine is {0}; build the image for {0}")]
    Machine(Architecture),
    /// The image is big-endian.
    #[error("flags {0:#x} declare a big-endian image; build the image little-endian")]
    BigEndian(u64),
    /// The image exceeds the address space.
    #[error("{length:#x} bytes at offset {offset:#x} exceed the address space: the file is damaged")]
    Wraps {
        /// `text_offset`.
        offset: u64,
        /// `image_size`, or the size of the file.
        length: u64,
    },
    /// The image is compressed.
    #[error(
        "the file is an EFI zboot image, compressed with {compression}; unpack it: tail -c +{start} FILE | head -c {length} | \
         {command} >Image"
    )]
    Zboot {
        /// Compression in the header.
        compression: String,
        /// First byte of the kernel, counted from 1.
        start: u64,
        /// Length of the compressed kernel in bytes.
        length: u32,
        /// Command that unpacks it.
        command: &'static str,
    },
}

/// Header of an `Image`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm64Header {
    /// Offset of the image from its base.
    pub text_offset: u64,
    /// The image also runs at bases other than the start of memory.
    pub is_relocatable: bool,
}

/// Returns true if a file that begins with `head` is an `Image`.
pub fn is_image(head: &[u8]) -> bool {
    head.get(MAGIC_OFFSET..)
        .is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Returns the error for a file that begins with `head` and is a zboot image of any architecture.
pub fn zboot_error(head: &[u8]) -> Option<Error> {
    if !head.starts_with(b"MZ") || head.get(4..8) != Some(b"zimg") {
        return None;
    }
    let fields = HeaderFields(head);
    let name = head.get(24..56).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let compression = String::from_utf8_lossy(name).escape_debug().to_string();
    let command = match compression.as_str() {
        "gzip" => "gunzip",
        "zstd" | "zstd22" => "unzstd",
        "xz" | "xzkern" => "unxz",
        "lz4" => "unlz4",
        "lzma" => "unlzma",
        "lzo" => "lzop -d",
        _ => "DECOMPRESSOR",
    };
    Some(Error::Zboot {
        start: u64::from(fields.u32(8)) + 1,
        length: fields.u32(12),
        command,
        compression,
    })
}

/// Reads the header of an `Image` of `size` bytes that begins with `head`. Returns it with the segment, whose addresses count from
/// the base.
///
/// # Errors
/// [`Error`] for a file that `architecture` cannot load into any guest memory.
pub fn parse(head: &[u8], size: u64, architecture: Architecture) -> Result<(Arm64Header, Segment), Error> {
    if architecture != Architecture::Aarch64 {
        return Err(Error::Machine(architecture));
    }
    let fields = HeaderFields(head);
    let (offset, length, flags) = (fields.u64(8), fields.u64(16), fields.u64(24));
    let (offset, flags) = match length {
        0 => (OLD_TEXT_OFFSET, 0),
        _ => (offset, flags),
    };
    if flags & BIG_ENDIAN != 0 {
        return Err(Error::BigEndian(flags));
    }
    let length = length.max(size);
    let end = offset
        .checked_add(length)
        .ok_or(Error::Wraps { offset, length })?;
    let header = Arm64Header {
        text_offset: offset,
        is_relocatable: flags & ANY_BASE != 0,
    };
    let segment = Segment {
        number: 0,
        file: 0..size,
        physical: offset..end,
        virtual_address: offset,
        flags: Flags {
            read: true,
            write: true,
            execute: true,
        },
    };
    Ok((header, segment))
}
