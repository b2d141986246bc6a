//! What can go wrong with a state file.

use std::io;
use std::path::PathBuf;

use super::atomic;
use super::header::{FormatError, MAX_CPU, MAX_SECTIONS};

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
        source: atomic::Error,
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
