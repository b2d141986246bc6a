//! Header of a state file, and its encoding.

use std::fmt;

use crc::{CRC_64_XZ, Crc, Table};

/// Length of the fixed part of the header in bytes.
pub(super) const FIXED: usize = 48;

const MAGIC: [u8; 8] = *b"mayflyst";
/// Version of the format: the written one, and the only supported one.
pub const VERSION: u32 = 1;

/// Maximum length of the sections in bytes.
pub const MAX_SECTIONS: u64 = 16 << 20;

/// Maximum length of the CPU identity in bytes.
pub const MAX_CPU: u16 = 1024;

/// Offset of the checksum, which covers all other bytes.
const CHECKSUM: usize = 40;

/// Table-driven: some 2 GB/s. A CRC with CPU instructions needs CPUID, which causes an exit in a virtual machine.
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

/// CPU architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// Reason for the rejection of a state file.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// The path is a directory, pipe or device.
    #[error("it is not a regular file; name a state file")]
    NotRegular,
    /// The file is shorter than a header.
    #[error("file of {length} bytes is too short for a state file; it may be truncated: copy it again")]
    Short {
        /// Length of the file in bytes.
        length: u64,
    },
    /// The magic is wrong.
    #[error(
        "it is not a state file of mayfly; snapshots of other VMMs are not supported, and the memory file is a separate file"
    )]
    Magic,
    /// The format version is not supported.
    #[error(
        "format version {found} is not supported, only version {expected}; use the mayfly that wrote the file"
    )]
    Version {
        /// Version of the file.
        found: u32,
        /// Supported version.
        expected: u32,
    },
    /// The header declares more than the format allows.
    #[error(
        "header with {sections} bytes of sections (at most {MAX_SECTIONS}) and {cpu} bytes of CPU identity (at most {MAX_CPU}) is \
         damaged; create the snapshot again"
    )]
    TooLong {
        /// Declared length of the sections in bytes.
        sections: u64,
        /// Declared length of the CPU identity in bytes.
        cpu: u16,
    },
    /// The length of the file differs from the header.
    #[error("file of {found} bytes has a header for {expected} bytes; it may be truncated: copy it again")]
    Length {
        /// Length of the file in bytes.
        found: u64,
        /// Length declared by the header in bytes.
        expected: u64,
    },
    /// The checksum does not match the content.
    #[error(
        "checksum {found:#018x} of the content differs from {expected:#018x} in the header; copy the file or create the snapshot again"
    )]
    Checksum {
        /// Checksum of the content.
        found: u64,
        /// Checksum in the header.
        expected: u64,
    },
    /// A field has a value outside the format.
    #[error("header field {field:?} has the invalid value {value}; create the snapshot again")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The CPU identity is not UTF-8.
    #[error("header field \"cpu\" is not UTF-8; create the snapshot again")]
    Name,
    /// The architecture differs from the host.
    #[error(
        "snapshot of {found} does not fit this host, which is {expected}; load it on a host of the same architecture"
    )]
    Architecture {
        /// Architecture of the snapshot.
        found: Architecture,
        /// Architecture of the host.
        expected: Architecture,
    },
    /// The page size differs from the host.
    #[error(
        "snapshot with pages of {found} bytes does not fit this host, which has {expected}; load it on a host with the same page size"
    )]
    PageSize {
        /// Page size of the snapshot in bytes.
        found: u32,
        /// Page size of the host in bytes.
        expected: u32,
    },
    /// The CPU identity differs from the host.
    #[error(
        "snapshot of the CPU {found:?} does not fit this host, which has {expected:?}; load it on a host with the same CPU"
    )]
    Cpu {
        /// CPU identity of the snapshot.
        found: String,
        /// CPU identity of the host.
        expected: String,
    },
}

/// Content of the memory file of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// All pages; a hole is zeros.
    Full,
    /// Pages that differ from a base, into which the file must be merged; a hole is pages of the base.
    Diff,
}

impl Contents {
    fn decode(value: u16) -> Option<Self> {
        match value {
            0 => Some(Self::Full),
            1 => Some(Self::Diff),
            _ => None,
        }
    }
}

/// Properties of a host that a snapshot depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Architecture.
    pub architecture: Architecture,
    /// Page size in bytes.
    pub page_size: u32,
    /// CPU identity: equal on two hosts if and only if a snapshot can move between them; at most [`MAX_CPU`] bytes.
    pub cpu: String,
}

impl HostIdentity {
    /// Checks that all properties equal those of `host`.
    ///
    /// # Errors
    /// [`FormatError::Architecture`], [`FormatError::PageSize`] or [`FormatError::Cpu`].
    pub fn check(&self, host: &HostIdentity) -> Result<(), FormatError> {
        if self.architecture != host.architecture {
            return Err(FormatError::Architecture {
                found: self.architecture,
                expected: host.architecture,
            });
        }
        if self.page_size != host.page_size {
            return Err(FormatError::PageSize {
                found: self.page_size,
                expected: host.page_size,
            });
        }
        if self.cpu != host.cpu {
            return Err(FormatError::Cpu {
                found: self.cpu.clone(),
                expected: host.cpu.clone(),
            });
        }
        Ok(())
    }
}

/// Header of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Host that created the snapshot.
    pub host: HostIdentity,
    /// Size of guest memory and of the memory file in bytes.
    pub memory: u64,
    /// Content of the memory file.
    pub contents: Contents,
}

/// Lengths in a header, after a check against the length of the file.
#[derive(Debug)]
pub(super) struct Lengths {
    /// Length of the CPU identity in bytes.
    pub cpu: usize,
    /// Length of all data after the fixed part in bytes.
    pub rest: usize,
}

impl Lengths {
    /// Decodes the lengths from the fixed part of a file of `length` bytes.
    pub fn decode(fixed: &[u8; FIXED], length: u64) -> Result<Self, FormatError> {
        let version = version(fixed)?;
        if version != VERSION {
            return Err(FormatError::Version {
                found: version,
                expected: VERSION,
            });
        }
        let cpu = u16::from_le_bytes(bytes(fixed, 20));
        let sections = u64::from_le_bytes(bytes(fixed, 32));
        let too_long = || FormatError::TooLong { sections, cpu };
        if sections > MAX_SECTIONS || cpu > MAX_CPU {
            return Err(too_long());
        }
        let rest = sections + u64::from(cpu);
        let expected = rest + FIXED as u64;
        if length != expected {
            return Err(FormatError::Length {
                found: length,
                expected,
            });
        }
        Ok(Self {
            cpu: cpu.into(),
            rest: usize::try_from(rest).map_err(|_| too_long())?,
        })
    }
}

/// Decodes the format version from the fixed part of a file.
pub(super) fn version(fixed: &[u8; FIXED]) -> Result<u32, FormatError> {
    if bytes(fixed, 0) == MAGIC {
        Ok(u32::from_le_bytes(bytes(fixed, 8)))
    } else {
        Err(FormatError::Magic)
    }
}

/// Decodes the contents of the memory file from the fixed part of a file. Returns `None` for another file.
pub(super) fn contents(fixed: &[u8; FIXED]) -> Option<Contents> {
    (bytes(fixed, 0) == MAGIC).then(|| Contents::decode(u16::from_le_bytes(bytes(fixed, 22))))?
}

impl Header {
    /// Encodes the bytes before `sections`. Returns `None` if a length exceeds the format.
    pub(super) fn encode(&self, sections: &[u8]) -> Option<Vec<u8>> {
        let length = sections.len() as u64;
        let cpu = u16::try_from(self.host.cpu.len()).ok()?;
        if length > MAX_SECTIONS || cpu > MAX_CPU {
            return None;
        }
        let architecture: u32 = match self.host.architecture {
            Architecture::X86_64 => 1,
            Architecture::Aarch64 => 2,
        };
        let contents: u16 = match self.contents {
            Contents::Full => 0,
            Contents::Diff => 1,
        };
        let mut front = Vec::with_capacity(FIXED + self.host.cpu.len());
        front.extend(MAGIC);
        front.extend(VERSION.to_le_bytes());
        front.extend(architecture.to_le_bytes());
        front.extend(self.host.page_size.to_le_bytes());
        front.extend(cpu.to_le_bytes());
        front.extend(contents.to_le_bytes());
        front.extend(self.memory.to_le_bytes());
        front.extend(length.to_le_bytes());
        let checksum = checksum(&[&front, self.host.cpu.as_bytes(), sections]);
        front.extend(checksum.to_le_bytes());
        front.extend(self.host.cpu.as_bytes());
        Some(front)
    }

    /// Decodes a header from the fixed part of a file and the `rest` after it.
    pub(super) fn decode(fixed: &[u8; FIXED], rest: &[u8], lengths: &Lengths) -> Result<Self, FormatError> {
        let found = checksum(&[&fixed[..CHECKSUM], rest]);
        let expected = checksum_of(fixed);
        if found != expected {
            return Err(FormatError::Checksum { found, expected });
        }
        let field = |field, value| FormatError::Field { field, value };
        let architecture = match u32::from_le_bytes(bytes(fixed, 12)) {
            1 => Architecture::X86_64,
            2 => Architecture::Aarch64,
            other => return Err(field("architecture", other.into())),
        };
        let contents = u16::from_le_bytes(bytes(fixed, 22));
        let contents = Contents::decode(contents).ok_or_else(|| field("contents", contents.into()))?;
        let page_size = u32::from_le_bytes(bytes(fixed, 16));
        if !page_size.is_power_of_two() || page_size < 4096 {
            return Err(field("page size", page_size.into()));
        }
        let memory = u64::from_le_bytes(bytes(fixed, 24));
        if memory == 0 || !memory.is_multiple_of(page_size.into()) {
            return Err(field("memory", memory));
        }
        let cpu = std::str::from_utf8(rest.get(..lengths.cpu).unwrap_or_default());
        let host = HostIdentity {
            architecture,
            page_size,
            cpu: cpu.map_err(|_| FormatError::Name)?.to_owned(),
        };
        Ok(Self {
            host,
            memory,
            contents,
        })
    }
}

/// Decodes the checksum from the fixed part of a file.
pub(super) fn checksum_of(fixed: &[u8; FIXED]) -> u64 {
    u64::from_le_bytes(bytes(fixed, CHECKSUM))
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut digest = CRC.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

/// Returns `N` bytes at `offset`, both constants of the format and within the fixed part.
fn bytes<const N: usize>(fixed: &[u8; FIXED], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&fixed[offset..offset + N]);
    bytes
}

/// Updates the checksum of a file.
#[cfg(test)]
pub(super) fn update_checksum(file: &mut [u8]) {
    let (front, rest) = file.split_at(FIXED);
    let checksum = checksum(&[&front[..CHECKSUM], rest]);
    file[CHECKSUM..FIXED].copy_from_slice(&checksum.to_le_bytes());
}
