//! Images: format, supported protocols, and load into guest memory.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;

use snapshot::GuestMemory;
use snapshot::file::{Architecture, FileIdentity};

use super::arm64::{self, Arm64Header};
use super::bzimage::{self, SetupHeader};
use super::elf::{self, Elf, Note};
use super::file::{Error as FileError, RegularFile};
use super::multiboot::{self, Error as MultibootError, Header};
use super::protocol::{self, LoadedImage, Protocol, ProtocolSupport};
use super::segment::{self, LayoutError, LoadError, Segment};

/// Bytes read at the open of an image: the range searched for a multiboot header, which usually contains all other headers.
const HEAD_SIZE: usize = multiboot::SEARCHED;

/// Reason against the other protocols on aarch64.
const X86_ONLY: &str = "the protocol is defined for x86 only";

/// Upper limit of an initrd in most protocols, whose fields have 32 bits.
const LIMIT_32_BITS: u64 = 1 << 32;

/// Offset, magic bytes, and format of a file with the way out.
const FOREIGN_FORMATS: [(usize, &[u8], &str); 15] = [
    (
        0,
        b"\x1f\x8b",
        "the file is gzip-compressed; unpack it with gunzip",
    ),
    (0, b"\xfd7zXZ\0", "the file is xz-compressed; unpack it with unxz"),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "the file is zstd-compressed; unpack it with unzstd",
    ),
    (0, b"BZh", "the file is bzip2-compressed; unpack it with bunzip2"),
    (
        0,
        b"\x04\x22\x4d\x18",
        "the file is lz4-compressed; unpack it with unlz4",
    ),
    (
        0,
        b"\x02\x21\x4c\x18",
        "the file is lz4-compressed; unpack it with unlz4",
    ),
    (
        0,
        b"\x89LZO",
        "the file is lzo-compressed; unpack it with lzop -d",
    ),
    (
        0,
        b"PK\x03\x04",
        "the file is a zip archive; unpack it and use the kernel in it",
    ),
    (
        257,
        b"ustar",
        "the file is a tar archive; unpack it and use the kernel in it",
    ),
    (
        0,
        b"070701",
        "the file is a cpio archive; if it is an initrd, configure it as the initrd of a kernel",
    ),
    (0, b"#!", "the file is a script; use the kernel that it starts"),
    (
        0,
        b"{",
        "the file is text, possibly a configuration; use the kernel",
    ),
    (
        0,
        b"MZ",
        "the file is an EFI program without a Linux header; use the ELF file of the same build",
    ),
    (
        0,
        b"QFI\xfb",
        "the file is a qcow2 disk; convert it to raw and configure it as a drive of a kernel",
    ),
    (
        510,
        b"\x55\xaa",
        "the file is a disk with a boot sector; configure it as a drive of a kernel",
    ),
];

/// Error of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was not opened.
    #[error("cannot open {path}")]
    Open {
        /// Path of the image.
        path: PathBuf,
        /// Error of the file.
        #[source]
        source: FileError,
    },
    /// The file is no image.
    #[error("cannot load {path} as an image of a kernel or unikernel: {reason}")]
    NotAnImage {
        /// Path of the file.
        path: PathBuf,
        /// Format of the file, and the way out.
        reason: &'static str,
    },
    /// The ELF file is no image.
    #[error("cannot load {path}")]
    Elf {
        /// Path of the image.
        path: PathBuf,
        /// Error of the headers.
        #[source]
        source: elf::Error,
    },
    /// The bzImage is invalid or unsupported.
    #[error("cannot load {path}")]
    BzImage {
        /// Path of the image.
        path: PathBuf,
        /// Error of the headers.
        #[source]
        source: bzimage::Error,
    },
    /// The arm64 `Image` is invalid or unsupported.
    #[error("cannot load {path}")]
    Arm64 {
        /// Path of the image.
        path: PathBuf,
        /// Error of the header.
        #[source]
        source: arm64::Error,
    },
    /// The flat multiboot image is invalid or unsupported.
    #[error("cannot load {path}")]
    Multiboot {
        /// Path of the image.
        path: PathBuf,
        /// Error of the headers.
        #[source]
        source: MultibootError,
    },
    /// The image supports no protocol.
    #[error("cannot boot {path} by any protocol: {reasons}")]
    NoProtocol {
        /// Path of the image.
        path: PathBuf,
        /// Each protocol with the reason.
        reasons: String,
    },
    /// The image does not support the requested protocol.
    #[error("cannot boot {path} by {protocol}: {reason}; supported: {supported}")]
    UnsupportedProtocol {
        /// Path of the image.
        path: PathBuf,
        /// Requested protocol.
        protocol: Protocol,
        /// Reason.
        reason: String,
        /// Supported protocols.
        supported: String,
    },
    /// The image is made for multiboot 2, and for no supported protocol.
    #[error(
        "cannot boot {path}: its only header is for multiboot 2, which is not supported; build the image with a PVH note or a \
         multiboot 1 header, or force one of: {supported}"
    )]
    OnlyMultiboot2 {
        /// Path of the image.
        path: PathBuf,
        /// Protocols that can be forced.
        supported: String,
    },
    /// The addresses of the segments are invalid.
    #[error("cannot load {path}")]
    Layout {
        /// Path of the image.
        path: PathBuf,
        /// Error of the addresses.
        #[source]
        source: LayoutError,
    },
    /// A segment was not loaded.
    #[error("cannot load segment {number} of {path}")]
    Segment {
        /// Path of the image.
        path: PathBuf,
        /// Index of the segment.
        number: usize,
        /// Error of the load.
        #[source]
        source: LoadError,
    },
}

/// Format of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// ELF, 32 or 64 bits wide.
    Elf {
        /// 32 or 64.
        bits: u8,
    },
    /// Linux's compressed x86 kernel.
    BzImage(SetupHeader),
    /// `Image` of arm64. Its addresses count from a base that the loader chooses.
    Arm64(Arm64Header),
    /// Flat file with addresses in a multiboot header.
    Multiboot,
}

/// Information in the headers of an image.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// Format.
    pub format: Format,
    /// Architecture of the image.
    pub architecture: Architecture,
    /// Size of the file in bytes.
    pub size: u64,
    /// Entry in the header: physical, or virtual in some ELF files.
    pub entry: u64,
    /// Segments to load. [`Segment::mapped`] returns the part that is mapped.
    pub segments: Vec<Segment>,
    /// Segment to load by multiboot instead, if the multiboot header contains addresses.
    pub multiboot_segment: Option<Segment>,
    /// ELF notes.
    pub notes: Vec<Note>,
    /// Support of each protocol.
    pub protocol_support: [ProtocolSupport; 3],
    /// The image has a multiboot header of version 2, and none of version 1.
    pub is_multiboot_2: bool,
}

/// Open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: RegularFile,
    info: ImageInfo,
}

impl Image {
    /// Opens the file at `path` and reads its headers.
    ///
    /// # Errors
    /// [`Error`] for a file that `architecture` cannot load into any guest memory by any protocol.
    pub fn open(path: &Path, architecture: Architecture) -> Result<Self, Error> {
        let file = RegularFile::open(path, HEAD_SIZE).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::from_regular_file(path, file, architecture)
    }

    /// Reads the headers of `file`. Errors name it `path`.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_file(path: &Path, file: File, architecture: Architecture) -> Result<Self, Error> {
        let file = RegularFile::from_file(file, HEAD_SIZE).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::from_regular_file(path, file, architecture)
    }

    /// Returns the open file.
    pub(crate) fn into_file(self) -> File {
        self.file.into_file()
    }

    /// Returns the identity of the file.
    pub(crate) fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn from_regular_file(path: &Path, file: RegularFile, architecture: Architecture) -> Result<Self, Error> {
        let info = inspect(path, &file, architecture)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            info,
        })
    }

    /// Returns the information in the headers.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Returns the supported protocols.
    pub fn protocols(&self) -> Vec<Protocol> {
        self.info
            .protocol_support
            .iter()
            .filter(|each| each.entry.is_some())
            .map(|each| each.protocol)
            .collect()
    }

    /// Returns `forced`, or the first supported protocol of PVH, multiboot, Linux: a mark in the image decides before the Linux
    /// protocol, which every 64-bit ELF image supports.
    ///
    /// # Errors
    /// [`Error::UnsupportedProtocol`], [`Error::NoProtocol`] or [`Error::OnlyMultiboot2`].
    pub fn select_protocol(&self, forced: Option<Protocol>) -> Result<Protocol, Error> {
        if let Some(protocol) = forced {
            return self.entry(protocol).map(|_| protocol);
        }
        let order = [Protocol::Pvh, Protocol::Multiboot, Protocol::Linux];
        let supported = self.protocols();
        match order.into_iter().find(|protocol| supported.contains(protocol)) {
            Some(Protocol::Linux) if self.info.is_multiboot_2 => Err(Error::OnlyMultiboot2 {
                path: self.path.clone(),
                supported: protocol::supported_names(&self.info.protocol_support),
            }),
            Some(protocol) => Ok(protocol),
            None => Err(Error::NoProtocol {
                path: self.path.clone(),
                reasons: protocol::unsupported_reasons(&self.info.protocol_support),
            }),
        }
    }

    /// Loads the image into fresh memory, for an entry by `protocol`. No segment may overlap a `reserved` range.
    ///
    /// # Errors
    /// [`Error::UnsupportedProtocol`]; [`Error::Layout`], which leaves memory untouched; [`Error::Segment`], after which its
    /// content is undefined.
    pub fn load(
        &self,
        protocol: Protocol,
        memory: &GuestMemory,
        reserved: &[Range<u64>],
    ) -> Result<LoadedImage, Error> {
        self.load_at(0, protocol, memory, reserved)
    }

    /// As [`load`](Self::load), with all addresses of the image counted from `base`: 0 unless the image [has none of its
    /// own](Format::Arm64).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_at(
        &self,
        base: u64,
        protocol: Protocol,
        memory: &GuestMemory,
        reserved: &[Range<u64>],
    ) -> Result<LoadedImage, Error> {
        let entry = self.entry(protocol)?.saturating_add(base);
        let segments = &*self.segments_at(base, protocol);
        segment::check_segments(segments, memory, reserved).map_err(|source| Error::Layout {
            path: self.path.clone(),
            source,
        })?;
        for segment in segments {
            segment::load_segment(&self.file, segment, memory).map_err(|source| Error::Segment {
                path: self.path.clone(),
                number: segment.number,
                source,
            })?;
        }
        let end = segments.iter().map(|segment| segment.physical.end).max();
        let setup = match &self.info.format {
            Format::BzImage(setup) => Some(setup),
            Format::Elf { .. } | Format::Arm64(_) | Format::Multiboot => None,
        };
        Ok(LoadedImage {
            protocol,
            entry,
            end: end.unwrap_or(0),
            initrd_limit: setup.map_or(LIMIT_32_BITS, |setup| u64::from(setup.initrd_addr_max) + 1),
            setup_header: setup.map(|setup| setup.header.clone()),
            initrd: None,
        })
    }

    /// Returns the segments to load for an entry by `protocol`.
    pub fn segments(&self, protocol: Protocol) -> &[Segment] {
        match &self.info.multiboot_segment {
            Some(segment) if protocol == Protocol::Multiboot => slice::from_ref(segment),
            _ => &self.info.segments,
        }
    }

    /// Returns the segments to load for an entry by `protocol`, with addresses that count from `base`.
    pub fn segments_at(&self, base: u64, protocol: Protocol) -> Cow<'_, [Segment]> {
        let segments = self.segments(protocol);
        if base == 0 {
            return Cow::Borrowed(segments);
        }
        Cow::Owned(segments.iter().map(|segment| segment.moved(base)).collect())
    }

    fn entry(&self, protocol: Protocol) -> Result<u64, Error> {
        let all = &self.info.protocol_support;
        let support = all.iter().find(|each| each.protocol == protocol);
        support
            .and_then(|each| each.entry)
            .ok_or_else(|| Error::UnsupportedProtocol {
                path: self.path.clone(),
                protocol,
                reason: support.map(|each| each.reason.clone()).unwrap_or_default(),
                supported: protocol::supported_names(all),
            })
    }
}

/// Reads the headers of the file at `path`.
fn inspect(path: &Path, file: &RegularFile, architecture: Architecture) -> Result<ImageInfo, Error> {
    let head = file.head();
    let path_of = || path.to_owned();
    if head.starts_with(&elf::MAGIC) {
        let elf = elf::parse(file, architecture).map_err(|source| Error::Elf {
            path: path_of(),
            source,
        })?;
        return Ok(elf_info(elf, file, architecture));
    }
    if bzimage::is_bzimage(head) {
        let (setup, segment) = bzimage::parse(file, architecture).map_err(|source| Error::BzImage {
            path: path_of(),
            source,
        })?;
        return Ok(bzimage_info(setup, segment, file.size()));
    }
    if arm64::is_image(head) {
        let parsed = arm64::parse(head, file.size(), architecture);
        let (header, segment) = parsed.map_err(|source| Error::Arm64 {
            path: path_of(),
            source,
        })?;
        return Ok(arm64_info(header, segment, file.size()));
    }
    if let Some(source) = arm64::zboot_error(head) {
        return Err(Error::Arm64 {
            path: path_of(),
            source,
        });
    }
    let header = match multiboot::find(head) {
        Err(MultibootError::Missing) => {
            return Err(Error::NotAnImage {
                path: path_of(),
                reason: foreign_reason(head),
            });
        }
        found => found,
    };
    multiboot_info(header, file.size(), architecture).map_err(|source| Error::Multiboot {
        path: path_of(),
        source,
    })
}

fn elf_info(elf: Elf, file: &RegularFile, architecture: Architecture) -> ImageInfo {
    let multiboot = multiboot::find(file.head()).and_then(|header| {
        let segment = header
            .addresses
            .map(|addresses| multiboot::segment(header.offset, addresses, file.size()));
        Ok((header, segment.transpose()?))
    });
    let multiboot_segment = multiboot.as_ref().ok().and_then(|(_, segment)| segment.clone());
    let protocol_support = match architecture {
        Architecture::X86_64 => [
            protocol::linux_support(&elf),
            protocol::pvh_support(&elf),
            protocol::multiboot_support(&elf, &multiboot),
        ],
        Architecture::Aarch64 => [
            protocol::arm64_support(&elf),
            ProtocolSupport::unsupported(Protocol::Pvh, X86_ONLY),
            ProtocolSupport::unsupported(Protocol::Multiboot, X86_ONLY),
        ],
    };
    ImageInfo {
        format: Format::Elf {
            bits: if elf.is_64_bit { 64 } else { 32 },
        },
        architecture,
        size: file.size(),
        entry: elf.entry,
        segments: elf.segments,
        multiboot_segment,
        notes: elf.notes,
        protocol_support,
        is_multiboot_2: matches!(multiboot, Err(MultibootError::Version2(_))),
    }
}

fn bzimage_info(setup: SetupHeader, segment: Segment, size: u64) -> ImageInfo {
    let entry = segment.physical.start.saturating_add(bzimage::ENTRY_64);
    ImageInfo {
        format: Format::BzImage(setup),
        architecture: Architecture::X86_64,
        size,
        entry,
        segments: vec![segment],
        multiboot_segment: None,
        notes: Vec::new(),
        protocol_support: [
            ProtocolSupport::supported(Protocol::Linux, entry, "bzImage with a 64-bit entry"),
            ProtocolSupport::unsupported(
                Protocol::Pvh,
                "a bzImage has no notes; use the vmlinux of the same build",
            ),
            ProtocolSupport::unsupported(Protocol::Multiboot, "a bzImage has no multiboot header"),
        ],
        is_multiboot_2: false,
    }
}

fn arm64_info(header: Arm64Header, segment: Segment, size: u64) -> ImageInfo {
    let entry = segment.physical.start;
    ImageInfo {
        format: Format::Arm64(header),
        architecture: Architecture::Aarch64,
        size,
        entry,
        segments: vec![segment],
        multiboot_segment: None,
        notes: Vec::new(),
        protocol_support: [
            ProtocolSupport::supported(Protocol::Linux, entry, "arm64 Image"),
            ProtocolSupport::unsupported(Protocol::Pvh, X86_ONLY),
            ProtocolSupport::unsupported(Protocol::Multiboot, X86_ONLY),
        ],
        is_multiboot_2: false,
    }
}

fn multiboot_info(
    header: Result<Header, MultibootError>,
    size: u64,
    architecture: Architecture,
) -> Result<ImageInfo, MultibootError> {
    let header = header?;
    let addresses = header.addresses.ok_or(MultibootError::Missing)?;
    let segment = multiboot::segment(header.offset, addresses, size)?;
    let reason = "the image is neither ELF nor a bzImage";
    let support = match architecture {
        Architecture::X86_64 => {
            protocol::multiboot_support_at(addresses.entry.into(), slice::from_ref(&segment), &header)
        }
        Architecture::Aarch64 => ProtocolSupport::unsupported(Protocol::Multiboot, X86_ONLY),
    };
    Ok(ImageInfo {
        format: Format::Multiboot,
        architecture: Architecture::X86_64,
        size,
        entry: addresses.entry.into(),
        segments: vec![segment.clone()],
        multiboot_segment: Some(segment),
        notes: Vec::new(),
        protocol_support: [
            ProtocolSupport::unsupported(Protocol::Linux, reason),
            ProtocolSupport::unsupported(Protocol::Pvh, reason),
            support,
        ],
        is_multiboot_2: false,
    })
}

/// Returns the format of a file that begins with `head` and is no image, with the way out.
fn foreign_reason(head: &[u8]) -> &'static str {
    FOREIGN_FORMATS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or(
            "the file has no magic of ELF, bzImage, arm64 Image or multiboot",
            |(_, _, reason)| reason,
        )
}

#[cfg(test)]
mod tests {
    use super::{FOREIGN_FORMATS, foreign_reason};

    #[test]
    fn foreign_formats_are_recognised() {
        for (offset, magic, reason) in FOREIGN_FORMATS {
            let mut head = vec![0; offset];
            head.extend_from_slice(magic);
            assert_eq!(foreign_reason(&head), reason);
            assert_ne!(foreign_reason(&head[..head.len() - 1]), reason);
        }
    }
}
