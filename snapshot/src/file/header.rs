//! The header of a state file, in memory and in bytes.

use std::fmt;

use crc::{CRC_64_XZ, Crc, Table};

/// Length of the header's fixed part in bytes.
pub(super) const FIXED: usize = 48;

const MAGIC: [u8; 8] = *b"mayflyst";
/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The sections of a state file may be this long, in bytes.
pub const MAX_SECTIONS: u64 = 16 << 20;

/// The processor's identity may be this long, in bytes.
pub const MAX_CPU: u16 = 1024;

/// Where the checksum is; it covers what is before and what is behind.
const CHECKSUM: usize = 40;

/// Sixteen tables: some 2 GB a second, without asking the processor what it can do, which costs an exit in a virtual machine.
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_XZ);

/// What a machine's processors are.
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

/// Why a state file cannot be loaded.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// It is a folder, a pipe or a device.
    #[error("it is no regular file")]
    Irregular,
    /// It is shorter than a header.
    #[error(
        "it is {length} bytes long, too short for a state file; it may have been cut when it was copied: copy it again"
    )]
    Short {
        /// Its length in bytes.
        length: u64,
    },
    /// It does not begin as a state file does.
    #[error(
        "it is no state file of mayfly; snapshots of other monitors cannot be loaded, and the memory file is not the state file"
    )]
    Magic,
    /// It is in another version of the format.
    #[error(
        "its format has version {found}, and this mayfly reads version {expected}; load it with the mayfly that wrote it"
    )]
    Version {
        /// The file's version.
        found: u32,
        /// The version that can be read.
        expected: u32,
    },
    /// It says to hold more than a state file can.
    #[error(
        "its header says {sections} bytes of sections and {cpu} of the processor's identity, and at most {MAX_SECTIONS} and \
         {MAX_CPU} can be; it is damaged: take the snapshot again"
    )]
    TooLong {
        /// Length of the sections in bytes, as the header has it.
        sections: u64,
        /// Length of the processor's identity in bytes, as the header has it.
        cpu: u16,
    },
    /// It is not as long as its header says.
    #[error(
        "it is {found} bytes long where its header says {expected}; it may have been cut when it was copied: copy it again"
    )]
    Length {
        /// Its length in bytes.
        found: u64,
        /// The length that follows from the header, in bytes.
        expected: u64,
    },
    /// Its content is not what was written.
    #[error(
        "its checksum is {found:#018x} where {expected:#018x} is written; it is damaged: copy it or take the snapshot again"
    )]
    Checksum {
        /// The checksum of what is there.
        found: u64,
        /// The checksum that the header has.
        expected: u64,
    },
    /// A field has a value that no writer gives it.
    #[error("its field {field:?} is {value}, which means nothing; take the snapshot again")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The processor's identity is no text.
    #[error("its field \"processor\" is not UTF-8; take the snapshot again")]
    Name,
    /// It is of a machine of another architecture.
    #[error("it is of {found}, and this host is {expected}; restore it on a host of its own kind")]
    Architecture {
        /// The file's.
        found: Architecture,
        /// The host's.
        expected: Architecture,
    },
    /// It was made on a host with another page size.
    #[error(
        "it has pages of {found} bytes, and this host's are {expected}; restore it on a host like that where it was taken"
    )]
    PageSize {
        /// The file's, in bytes.
        found: u32,
        /// The host's, in bytes.
        expected: u32,
    },
    /// It was made on another processor.
    #[error(
        "it was taken on the processor {found:?}, and this host has {expected:?}; restore it on a host with that processor"
    )]
    Cpu {
        /// The file's.
        found: String,
        /// The host's.
        expected: String,
    },
}

/// What the memory file beside the state file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// All pages; holes are zeros.
    Whole,
    /// Pages that differ from those of a base, which it must be merged into; holes are the base's pages.
    Difference,
}

/// What a snapshot needs of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// The architecture.
    pub architecture: Architecture,
    /// Size of a page in bytes.
    pub page_size: u32,
    /// The processor, in words that are alike on two hosts exactly when a snapshot can move between them; at most
    /// [`MAX_CPU`] bytes.
    pub cpu: String,
}

impl HostIdentity {
    /// Compares with what `host` is.
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

/// What a state file says of its sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The host that the snapshot was taken on.
    pub host: HostIdentity,
    /// Size of guest memory, and so of the memory file, in bytes.
    pub memory: u64,
    /// What the memory file holds.
    pub contents: Contents,
}

/// Lengths that a header announces, once they agree with the file's.
#[derive(Debug)]
pub(super) struct Lengths {
    /// Of the processor's identity, in bytes.
    pub cpu: usize,
    /// Of all that follows the fixed part, in bytes.
    pub rest: usize,
}

impl Lengths {
    /// Takes the lengths out of the fixed part of a file of `length` bytes.
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

/// The version of the format, of a file that begins with the fixed part.
pub(super) fn version(fixed: &[u8; FIXED]) -> Result<u32, FormatError> {
    if bytes(fixed, 0) == MAGIC {
        Ok(u32::from_le_bytes(bytes(fixed, 8)))
    } else {
        Err(FormatError::Magic)
    }
}

impl Header {
    /// The bytes in front of `sections`; none when there is more than the format takes.
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
            Contents::Whole => 0,
            Contents::Difference => 1,
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

    /// Takes a header out of the fixed part of a file and of the `rest` that follows it.
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
        let contents = match u16::from_le_bytes(bytes(fixed, 22)) {
            0 => Contents::Whole,
            1 => Contents::Difference,
            other => return Err(field("contents", other.into())),
        };
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

/// The checksum that the fixed part of a file has.
pub(super) fn checksum_of(fixed: &[u8; FIXED]) -> u64 {
    u64::from_le_bytes(bytes(fixed, CHECKSUM))
}

fn checksum(parts: &[&[u8]]) -> u64 {
    let mut digest = CRC.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

/// `N` bytes at `offset`, both constants of the format and within the fixed part.
fn bytes<const N: usize>(fixed: &[u8; FIXED], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&fixed[offset..offset + N]);
    bytes
}

#[cfg(test)]
pub(super) fn refit(file: &mut [u8]) {
    let (front, rest) = file.split_at(FIXED);
    let checksum = checksum(&[&front[..CHECKSUM], rest]);
    file[CHECKSUM..FIXED].copy_from_slice(&checksum.to_le_bytes());
}
