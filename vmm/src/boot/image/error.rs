//! What can go wrong with an image.

use std::path::PathBuf;

use crate::boot::bzimage;
use crate::boot::elf;
use crate::boot::file::Error as FileError;
use crate::boot::fit::Error as FitError;
use crate::boot::multiboot::Error as MultibootError;
use crate::boot::place::Error as PlaceError;
use crate::boot::protocol::Protocol;

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// Path of the image.
        path: PathBuf,
        /// What was in the way.
        #[source]
        source: FileError,
    },
    /// The file is no image.
    #[error("{path} is no image of a kernel or unikernel: {reason}")]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// What it is, and what to do about it.
        reason: &'static str,
    },
    /// An ELF file that cannot be an image.
    #[error("cannot load {path}")]
    Elf {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: elf::Error,
    },
    /// A bzImage that cannot be loaded.
    #[error("cannot load {path}")]
    BzImage {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: bzimage::Error,
    },
    /// A multiboot image, not ELF, that cannot be loaded.
    #[error("cannot load {path}")]
    Multiboot {
        /// Path of the image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MultibootError,
    },
    /// No protocol leads into the image.
    #[error("cannot boot {path} by any protocol: {reasons}")]
    NoProtocol {
        /// Path of the image.
        path: PathBuf,
        /// Each protocol with what it lacks.
        reasons: String,
    },
    /// The protocol that was asked for does not lead into the image.
    #[error("cannot boot {path} by {protocol}: {reason}; it offers {offered}")]
    NotOffered {
        /// Path of the image.
        path: PathBuf,
        /// What was asked for.
        protocol: Protocol,
        /// Why it cannot be.
        reason: String,
        /// What can be.
        offered: String,
    },
    /// The segments cannot be where they belong.
    #[error("cannot load {path}")]
    Fit {
        /// Path of the image.
        path: PathBuf,
        /// What is in the way.
        #[source]
        source: FitError,
    },
    /// A segment did not get into memory.
    #[error("cannot load segment {number} of {path}")]
    Place {
        /// Path of the image.
        path: PathBuf,
        /// Which segment.
        number: usize,
        /// What failed.
        #[source]
        source: PlaceError,
    },
}
