//! Multiboot 1 headers: specification 0.6.96, section 3.1.

use super::fields::HeaderFields;
use super::segment::{Flags, Segment};

/// Bytes at the beginning of a file within which a header lies as a whole.
pub const SEARCHED: usize = 8192;

const MAGIC: u32 = 0x1bad_b002;
/// Modules on page boundaries (bit 0), where they are anyway, and information on memory (bit 1), which is always given.
const KNOWN_DEMANDS: u32 = 0b11;
/// Demands are bits 0 to 15: who does not know one must not load the image.
const DEMANDS: u32 = 0xffff;
/// The header says where the image belongs.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Why an image offers no multiboot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no header.
    #[error("there is no multiboot header in the first 8 KiB")]
    Missing,
    /// The header asks for what this monitor does not have.
    #[error("the multiboot header demands features {0:#x}; only 0x1 and 0x2 are known here")]
    Demands(u32),
    /// The header's addresses contradict each other.
    #[error(
        "the multiboot header's addresses cannot be: header {:#x}, load {:#x} to {:#x}, bss to {:#x}",
        .0.header, .0.load, .0.load_end, .0.bss_end
    )]
    Addresses(Addresses),
    /// The header asks for more bytes than the file has.
    #[error("the multiboot header asks for bytes {start:#x}..{end:#x}, but the file ends at {size:#x}")]
    Truncated {
        /// First byte.
        start: u64,
        /// Where it should end.
        end: u64,
        /// Size of the file.
        size: u64,
    },
}

/// Where an image says that it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Guest-physical address of the header itself.
    pub header: u32,
    /// Guest-physical address of the first byte.
    pub load: u32,
    /// End of what is taken from the file, 0 for all of it.
    pub load_end: u32,
    /// End of what is zero after that, 0 for nothing.
    pub bss_end: u32,
    /// Guest-physical address of the first instruction.
    pub entry: u32,
}

/// A header with a right checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file.
    pub offset: usize,
    /// Demands and announcements.
    pub flags: u32,
    /// Where the image belongs, if it does not leave that to its ELF headers.
    pub addresses: Option<Addresses>,
}

/// Finds the header in the first bytes of a file.
///
/// # Errors
/// [`Error::Missing`], or [`Error::Demands`] when the image wants what there is not.
pub fn find(head: &[u8]) -> Result<Header, Error> {
    let searched = &head[..head.len().min(SEARCHED)];
    let header = (0..searched.len())
        .step_by(4)
        .find_map(|offset| header_at(searched, offset))
        .ok_or(Error::Missing)?;
    let unknown = header.flags & DEMANDS & !KNOWN_DEMANDS;
    if unknown != 0 {
        return Err(Error::Demands(unknown));
    }
    Ok(header)
}

fn header_at(searched: &[u8], offset: usize) -> Option<Header> {
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

/// The one segment of an image of `size` bytes whose header at `offset` gives `addresses`.
///
/// # Errors
/// [`Error::Addresses`] or [`Error::Truncated`].
pub fn segment(offset: usize, addresses: Addresses, size: u64) -> Result<Segment, Error> {
    let impossible = || Error::Addresses(addresses);
    let load = u64::from(addresses.load);
    let before_header = u64::from(addresses.header)
        .checked_sub(load)
        .ok_or_else(impossible)?;
    let start = (offset as u64)
        .checked_sub(before_header)
        .ok_or_else(impossible)?;
    let length = match addresses.load_end {
        0 => size.saturating_sub(start),
        end => u64::from(end).checked_sub(load).ok_or_else(impossible)?,
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
        return Err(impossible());
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
    use crate::boot::testing::multiboot_header;

    const ADDRESSES: Addresses = Addresses {
        header: 0x10_0100,
        load: 0x10_0000,
        load_end: 0x10_2000,
        bss_end: 0x10_4000,
        entry: 0x10_0200,
    };

    #[test]
    fn a_header_lies_on_4_bytes_within_8_kib() {
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
    fn a_wrong_checksum_is_no_header() {
        let mut image = multiboot_header(0, None);
        image[8] ^= 1;
        assert!(matches!(find(&image), Err(Error::Missing)));
        image.extend(multiboot_header(1, None));
        assert_eq!(find(&image).unwrap().offset, 32, "the search goes on");
    }

    #[test]
    fn a_demand_that_is_not_known_is_refused() {
        for flags in [0, 1, 2, 3, 1 << 17, 1 << 31] {
            assert!(find(&multiboot_header(flags, None)).is_ok(), "{flags:#x}");
        }
        let error = find(&multiboot_header(0x107, None)).unwrap_err();
        assert!(matches!(error, Error::Demands(0x104)), "{error}");
    }

    #[test]
    fn addresses_give_one_segment() {
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
    fn addresses_that_contradict_are_refused() {
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
            let refused = segment(0x1100, addresses, 0x9000);
            assert!(matches!(refused, Err(Error::Addresses(_))), "{addresses:x?}");
        }
        let refused = segment(0x1100, ADDRESSES, 0x2fff);
        assert!(matches!(refused, Err(Error::Truncated { end: 0x3000, .. })));
    }

    proptest! {
        #[test]
        fn no_addresses_make_a_segment_beyond_the_file(
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
