//! What an image says of itself.

use std::path::Path;
use std::slice;

use super::Error;
use crate::boot::bzimage::{self, SetupHeader};
use crate::boot::elf::{self, Elf};
use crate::boot::file::RegularFile;
use crate::boot::foreign;
use crate::boot::multiboot::{self, Error as MultibootError, Header};
use crate::boot::notes::Note;
use crate::boot::offer::{self, ProtocolSupport};
use crate::boot::protocol::Protocol;
use crate::boot::segment::Segment;
use snapshot::file::Architecture;

/// What kind of file an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// ELF, 32 or 64 bits wide.
    Elf {
        /// 32 or 64.
        bits: u8,
    },
    /// Linux's compressed x86 kernel.
    BzImage(SetupHeader),
    /// No ELF, but with a multiboot header that says where it belongs.
    Multiboot,
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// What kind of file it is.
    pub format: Format,
    /// What it is made for.
    pub machine: Architecture,
    /// Size of the file in bytes.
    pub size: u64,
    /// Entry as in its header: physical or, in ELF, perhaps virtual.
    pub entry: u64,
    /// What is loaded. [`Segment::mapped`] says how.
    pub segments: Vec<Segment>,
    /// What is loaded by multiboot instead, if its header gives addresses.
    pub multiboot_segment: Option<Segment>,
    /// ELF notes.
    pub notes: Vec<Note>,
    /// For each protocol, whether it leads into the image and why.
    pub offers: [ProtocolSupport; 3],
}

/// Finds out what the file at `path` is.
pub(super) fn inspect(path: &Path, file: &RegularFile, machine: Architecture) -> Result<ImageInfo, Error> {
    let head = file.head();
    let path_of = || path.to_owned();
    if head.starts_with(&elf::MAGIC) {
        let elf = elf::parse(file, machine).map_err(|source| Error::Elf {
            path: path_of(),
            source,
        })?;
        return Ok(elf_facts(elf, file, machine));
    }
    if bzimage::is_bzimage(head) {
        let (setup, segment) = bzimage::parse(file, machine).map_err(|source| Error::BzImage {
            path: path_of(),
            source,
        })?;
        return Ok(bzimage_facts(setup, segment, file.size()));
    }
    let header = match multiboot::find(head) {
        Err(MultibootError::Missing) => {
            return Err(Error::Foreign {
                path: path_of(),
                reason: foreign::describe(head),
            });
        }
        found => found,
    };
    multiboot_facts(header, file.size(), machine).map_err(|source| Error::Multiboot {
        path: path_of(),
        source,
    })
}

fn elf_facts(elf: Elf, file: &RegularFile, machine: Architecture) -> ImageInfo {
    let multiboot = multiboot::find(file.head()).and_then(|header| {
        let segment = header
            .addresses
            .map(|addresses| multiboot::segment(header.offset, addresses, file.size()));
        Ok((header, segment.transpose()?))
    });
    let multiboot_segment = multiboot.as_ref().ok().and_then(|(_, segment)| segment.clone());
    let offers = match machine {
        Architecture::X86_64 => [
            offer::linux(&elf),
            offer::pvh(&elf),
            offer::multiboot(&elf, &multiboot),
        ],
        Architecture::Aarch64 => [
            offer::linux(&elf),
            ProtocolSupport::unsupported(Protocol::Pvh, "it is a protocol of x86"),
            ProtocolSupport::unsupported(Protocol::Multiboot, "it is a protocol of x86"),
        ],
    };
    ImageInfo {
        format: Format::Elf {
            bits: if elf.is_64_bit { 64 } else { 32 },
        },
        machine,
        size: file.size(),
        entry: elf.entry,
        segments: elf.segments,
        multiboot_segment,
        notes: elf.notes,
        offers,
    }
}

fn bzimage_facts(setup: SetupHeader, segment: Segment, size: u64) -> ImageInfo {
    let entry = segment.physical.start.saturating_add(bzimage::ENTRY_64);
    ImageInfo {
        format: Format::BzImage(setup),
        machine: Architecture::X86_64,
        size,
        entry,
        segments: vec![segment],
        multiboot_segment: None,
        notes: Vec::new(),
        offers: [
            ProtocolSupport::supported(Protocol::Linux, entry, "a bzImage with a 64-bit entry"),
            ProtocolSupport::unsupported(
                Protocol::Pvh,
                "a bzImage has no notes; use the vmlinux of the same build",
            ),
            ProtocolSupport::unsupported(Protocol::Multiboot, "a bzImage has no multiboot header"),
        ],
    }
}

fn multiboot_facts(
    header: Result<Header, MultibootError>,
    size: u64,
    machine: Architecture,
) -> Result<ImageInfo, MultibootError> {
    let header = header?;
    let addresses = header.addresses.ok_or(MultibootError::Missing)?;
    let segment = multiboot::segment(header.offset, addresses, size)?;
    let none = "the image is neither ELF nor a bzImage";
    let offer = match machine {
        Architecture::X86_64 => {
            offer::multiboot_at(addresses.entry.into(), slice::from_ref(&segment), &header)
        }
        Architecture::Aarch64 => ProtocolSupport::unsupported(Protocol::Multiboot, "it is a protocol of x86"),
    };
    Ok(ImageInfo {
        format: Format::Multiboot,
        machine: Architecture::X86_64,
        size,
        entry: addresses.entry.into(),
        segments: vec![segment.clone()],
        multiboot_segment: Some(segment),
        notes: Vec::new(),
        offers: [
            ProtocolSupport::unsupported(Protocol::Linux, none),
            ProtocolSupport::unsupported(Protocol::Pvh, none),
            offer,
        ],
    })
}
