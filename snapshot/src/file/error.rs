//! What can go wrong with a state file.

use std::io;
use std::path::PathBuf;

use super::{Architecture, MAX_CPU, MAX_SECTIONS};
use crate::replacement;

/// Why a state file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is more state than the format takes.
    #[error(
        "the state for {path:?} is too long: {sections} bytes of sections, of which {MAX_SECTIONS} fit, and a processor's identity of \
         {cpu} bytes, of which {MAX_CPU} fit"
    )]
    TooLong {
        /// The file that was to be.
        path: PathBuf,
        /// Length of the sections in bytes.
        sections: usize,
        /// Length of the processor's identity in bytes.
        cpu: usize,
    },
    /// The content could not be written.
    #[error("cannot write the state file {path:?}")]
    Write {
        /// The file that was to be.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be made or get its name.
    #[error("cannot put the state file {path:?} in place")]
    Replace {
        /// The file that was to be.
        path: PathBuf,
        /// What could not be done.
        #[source]
        source: replacement::Error,
    },
    /// An earlier file could not be removed.
    #[error("cannot remove the state file {path:?}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read the state file {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file is no state file that can be loaded here.
    #[error("{path:?} cannot be loaded")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
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
