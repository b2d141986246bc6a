//! Multiboot 1 headers: specification 0.6.96, section 3.1. Headers of multiboot 2 are recognised only.

use super::file::HeaderFields;
use super::segment::{Flags, Segment};

/// Bytes at the start of a file that contain the complete header.
pub const SEARCHED: usize = 8192;

const MAGIC: u32 = 0x1bad_b002;
/// Magic of a multiboot 2 header: specification 2.0, section 3.1.1.
const MAGIC_2: u32 = 0xe852_50d6;
/// Alignment of a multiboot 2 header.
const ALIGNMENT_2: usize = 8;
/// Page-aligned modules (bit 0) and memory information (bit 1), both always provided.
const SUPPORTED_REQUIREMENTS: u32 = 0b11;
/// Requirements, bits 0 to 15: a boot loader must not load an image with an unsupported one.
const REQUIREMENTS: u32 = 0xffff;
/// The header contains addresses.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Error of a multiboot header.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file has no header.
    #[error("no multiboot header in the first 8 KiB")]
    Missing,
    /// The file has only a header of version 2, at this offset.
    #[error("the multiboot header at byte {0:#x} has version 2; only version 1 is supported")]
    Version2(usize),
    /// The header has unsupported requirements.
    #[error("the multiboot header requires features {0:#x}; only 0x1 and 0x2 are supported")]
    Requirements(u32),
    /// The addresses in the header contradict each other.
    #[error(
        "addresses in the multiboot header contradict each other: header {:#x}, load {:#x} to {:#x}, bss to {:#x}",
        .0.header, .0.load, .0.load_end, .0.bss_end
    )]
    Addresses(Addresses),
    /// The segment exceeds the file.
    #[error("the multiboot header requires bytes {start:#x}..{end:#x}: the file is truncated at {size:#x}")]
    Truncated {
        /// First byte.
        start: u64,
        /// Required end.
        end: u64,
        /// Size of the file.
        size: u64,
    },
}

/// Addresses in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Guest-physical address of the header itself.
    pub header: u32,
    /// Guest-physical address of the first byte.
    pub load: u32,
    /// End of the content of the file, 0 for the complete file.
    pub load_end: u32,
    /// End of the zeros after the content, 0 for none.
    pub bss_end: u32,
    /// Guest-physical address of the first instruction.
    pub entry: u32,
}

/// Header with a valid checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file.
    pub offset: usize,
    /// Flags.
    pub flags: u32,
    /// Addresses of the image, or `None` to use those in its ELF headers.
    pub addresses: Option<Addresses>,
}

/// Finds the header in the first bytes of a file.
///
/// # Errors
/// [`Error::Missing`], [`Error::Version2`], or [`Error::Requirements`] for unsupported requirements.
pub fn find(head: &[u8]) -> Result<Header, Error> {
    let searched = &head[..head.len().min(SEARCHED)];
    let header = (0..searched.len())
        .step_by(4)
        .find_map(|offset| parse_at(searched, offset))
        .ok_or_else(|| find_version_2(searched).map_or(Error::Missing, Error::Version2))?;
    let unsupported = header.flags & REQUIREMENTS & !SUPPORTED_REQUIREMENTS;
    if unsupported != 0 {
        return Err(Error::Requirements(unsupported));
    }
    Ok(header)
}

/// Returns the offset of a multiboot 2 header: magic, architecture, length and checksum.
fn find_version_2(searched: &[u8]) -> Option<usize> {
    let is_header = |offset: &usize| {
        let fields = searched.get(*offset..*offset + 16).map(HeaderFields);
        fields.is_some_and(|fields| {
            let sum = (4..16)
                .step_by(4)
                .fold(MAGIC_2, |sum, field| sum.wrapping_add(fields.u32(field)));
            fields.u32(0) == MAGIC_2 && sum == 0
        })
    };
    (0..searched.len()).step_by(ALIGNMENT_2).find(is_header)
}

fn parse_at(searched: &[u8], offset: usize) -> Option<Header> {
    let fields = HeaderFields(searched.get(offset..)?);
    let flags = fields.u32(4);
    if fields.u32(0) != MAGIC || MAGIC.wrapping_add(flags).wrapping_add(fields.u32(8)) != 0 {
        return None;
    }
    let has_addresses = flags & HAS_ADDRESSES != 0;
    let length = if has_addresses { 32 } else { 12 };
    if fields.0.len() < length {
        return None;
    }
    Some(Header {
        offset,
        flags,
        addresses: has_addresses.then(|| Addresses {
            header: fields.u32(12),
            load: fields.u32(16),
            load_end: fields.u32(20),
            bss_end: fields.u32(24),
            entry: fields.u32(28),
        }),
    })
}

/// Returns the only segment of an image of `size` bytes whose header at `offset` contains `addresses`.
///
/// # Errors
/// [`Error::Addresses`] or [`Error::Truncated`].
pub fn segment(offset: usize, addresses: Addresses, size: u64) -> Result<Segment, Error> {
    let contradiction = || Error::Addresses(addresses);
    let load = u64::from(addresses.load);
    let before_header = u64::from(addresses.header)
        .checked_sub(load)
        .ok_or_else(contradiction)?;
    let start = (offset as u64)
        .checked_sub(before_header)
        .ok_or_else(contradiction)?;
    let length = match addresses.load_end {
        0 => size.saturating_sub(start),
        end => u64::from(end).checked_sub(load).ok_or_else(contradiction)?,
    };
    let end = start + length;
    if end > size {
        return Err(Error::Truncated { start, end, size });
    }
    let memory_end = match addresses.bss_end {
        0 => load + length,
        end => end.into(),
    };
    if length == 0 || memory_end < load + length {
        return Err(contradiction());
    }
    Ok(Segment {
        number: 0,
        file: start..end,
        physical: load..memory_end,
        virtual_address: load,
        flags: Flags {
            read: true,
            write: true,
            execute: true,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::{Addresses, Error, find, segment};
    use crate::boot::testing::{multiboot_2_header, multiboot_header};

    const ADDRESSES: Addresses = Addresses {
        header: 0x10_0100,
        load: 0x10_0000,
        load_end: 0x10_2000,
        bss_end: 0x10_4000,
        entry: 0x10_0200,
    };

    #[test]
    fn header_is_aligned_within_8_kib() {
        for (offset, found) in [
            (0, true),
            (4, true),
            (6, false),
            (8192 - 32, true),
            (8192 - 28, false),
        ] {
            let mut image = vec![0; 10_000];
            image[offset..offset + 32].copy_from_slice(&multiboot_header(3, Some(ADDRESSES)));
            assert_eq!(find(&image).is_ok(), found, "offset {offset}");
        }
        let mut image = vec![0; 10_000];
        image[8192 - 12..8192].copy_from_slice(&multiboot_header(3, None)[..12]);
        let header = find(&image).unwrap();
        assert_eq!((header.offset, header.addresses), (8192 - 12, None));
    }

    #[test]
    fn header_with_invalid_checksum_is_skipped() {
        let mut image = multiboot_header(0, None);
        image[8] ^= 1;
        assert!(matches!(find(&image), Err(Error::Missing)));
        image.extend(multiboot_header(1, None));
        assert_eq!(find(&image).unwrap().offset, 32, "the search continues");
    }

    #[test]
    fn header_of_version_2_is_recognised() {
        let mut image = vec![0; 10_000];
        image[0x1008..0x1018].copy_from_slice(&multiboot_2_header());
        assert!(matches!(find(&image), Err(Error::Version2(0x1008))));
        assert!(matches!(find(&image[4..]), Err(Error::Missing)), "misaligned");
        assert!(matches!(find(&image[..0x1017]), Err(Error::Missing)), "truncated");
        image[0x1010] ^= 1;
        assert!(matches!(find(&image), Err(Error::Missing)), "checksum");
        image[0x1010] ^= 1;
        image[..32].copy_from_slice(&multiboot_header(3, None));
        assert_eq!(find(&image).unwrap().offset, 0, "an image with both headers");
    }

    #[test]
    fn unsupported_requirements_are_rejected() {
        for flags in [0, 1, 2, 3, 1 << 17, 1 << 31] {
            assert!(find(&multiboot_header(flags, None)).is_ok(), "{flags:#x}");
        }
        let error = find(&multiboot_header(0x107, None)).unwrap_err();
        assert!(matches!(error, Error::Requirements(0x104)), "{error}");
    }

    #[test]
    fn addresses_define_one_segment() {
        let found = segment(0x1100, ADDRESSES, 0x9000).unwrap();
        assert_eq!(
            (found.file, found.physical),
            (0x1000..0x3000, 0x10_0000..0x10_4000)
        );
        let open = Addresses {
            load_end: 0,
            bss_end: 0,
            ..ADDRESSES
        };
        let found = segment(0x1100, open, 0x9000).unwrap();
        assert_eq!(
            (found.file, found.physical),
            (0x1000..0x9000, 0x10_0000..0x10_8000)
        );
    }

    #[test]
    fn contradictory_addresses_are_rejected() {
        let cases = [
            Addresses {
                header: 0xf_ffff,
                ..ADDRESSES
            },
            Addresses {
                header: 0x10_1104,
                ..ADDRESSES
            },
            Addresses {
                load_end: 0xf_ffff,
                ..ADDRESSES
            },
            Addresses {
                load_end: 0x10_0000,
                ..ADDRESSES
            },
            Addresses {
                bss_end: 0x10_1fff,
                ..ADDRESSES
            },
        ];
        for addresses in cases {
            let result = segment(0x1100, addresses, 0x9000);
            assert!(matches!(result, Err(Error::Addresses(_))), "{addresses:x?}");
        }
        let result = segment(0x1100, ADDRESSES, 0x2fff);
        assert!(matches!(result, Err(Error::Truncated { end: 0x3000, .. })));
    }

    proptest! {
        #[test]
        fn segments_stay_within_file(
            offset in 0_usize..8192, fields in any::<[u32; 5]>(), size in 1_u64..1 << 33,
        ) {
            let [header, load, load_end, bss_end, entry] = fields;
            let addresses = Addresses { header, load, load_end, bss_end, entry };
            if let Ok(segment) = segment(offset, addresses, size) {
                prop_assert!(segment.file.start < segment.file.end && segment.file.end <= size);
                let length = segment.file.end - segment.file.start;
                prop_assert!(segment.physical.end - segment.physical.start >= length);
            }
        }
    }
}
