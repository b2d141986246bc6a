//! Errors of state file operations.

use std::io;
use std::path::PathBuf;

use super::atomic;
use super::header::{FormatError, MAX_CPU, MAX_SECTIONS};

/// Error while a state file is written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state exceeds the limits of the format.
    #[error(
        "cannot write the state file {path:?}: {sections} bytes of sections (at most {MAX_SECTIONS}) or {cpu} bytes of CPU identity \
         (at most {MAX_CPU}) are too long"
    )]
    TooLong {
        /// Path of the file.
        path: PathBuf,
        /// Length of the sections in bytes.
        sections: usize,
        /// Length of the CPU identity in bytes.
        cpu: usize,
    },
    /// The content could not be written.
    #[error("cannot write the state file {path:?}")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of `write`.
        #[source]
        source: io::Error,
    },
    /// The file could not be created, synced or renamed.
    #[error("cannot replace the state file {path:?}")]
    Replace {
        /// Path of the file.
        path: PathBuf,
        /// Error of the replacement.
        #[source]
        source: atomic::Error,
    },
    /// An earlier file could not be removed.
    #[error("cannot remove the state file {path:?}")]
    Remove {
        /// Path of the file.
        path: PathBuf,
        /// Error of `unlink`.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read the state file {path:?}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of `open`, `fstat` or `read`.
        #[source]
        source: io::Error,
    },
    /// The file is not a state file for this host.
    #[error("cannot load {path:?}")]
    Rejected {
        /// Path of the file.
        path: PathBuf,
        /// Reason of the rejection.
        #[source]
        source: FormatError,
    },
}
