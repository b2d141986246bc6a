//! Errors of a memory dump.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::cancellation::Cancelled;
use crate::memory::map::Bytes;
use crate::memory::pagemap;

/// Error while guest memory is written to a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another thread has cancelled the dump.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The file could not be created or renamed.
    #[error("cannot replace the memory file")]
    Replace(#[source] snapshot::file::atomic::Error),
    /// An existing file could not be opened.
    #[error("cannot open the memory file {path:?}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Error of `open` or `fstat`.
        #[source]
        source: io::Error,
    },
    /// The file system does not support files of that length.
    #[error("cannot extend the memory file {path:?} to {}", Bytes(*.size))]
    Extend {
        /// Path of the file.
        path: PathBuf,
        /// Length in bytes.
        size: u64,
        /// Error of `ftruncate`.
        #[source]
        source: io::Error,
    },
    /// The disk is full, the file exceeds a size limit, or the disk failed.
    #[error("cannot write {length:#x} bytes at {offset:#x} of the memory file {path:?}")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Error of `pwrite` or `fallocate`.
        #[source]
        source: io::Error,
    },
    /// A file mapped as guest memory was truncated.
    #[error(
        "cannot read guest memory from {address:#x} on: the file that is mapped there was truncated, and the VM cannot continue"
    )]
    Gone {
        /// Guest-physical address.
        address: u64,
    },
    /// Data of a base or diff could not be copied to the memory file.
    #[error("cannot copy data at {offset:#x} of a base or diff to the memory file {path:?}")]
    Copy {
        /// Path of the memory file.
        path: PathBuf,
        /// Offset in both files.
        offset: u64,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A diff and its base differ in length.
    #[error(
        "cannot merge a diff into {path:?}: the file has {}, the diff {}; use the base of the diff",
        Bytes(*.found), Bytes(*.needed)
    )]
    Length {
        /// Path of the base.
        path: PathBuf,
        /// Length of the base in bytes.
        found: u64,
        /// Length of the diff in bytes.
        needed: u64,
    },
    /// The content of an existing memory file is unknown.
    #[error(
        "cannot merge a diff into {path:?}: without a state file, the content of the memory file is unknown; remove it, or name \
         another"
    )]
    UnknownBase {
        /// Path of the file.
        path: PathBuf,
    },
    /// The kernel did not list the pages.
    #[error("cannot list the pages of guest memory")]
    Pages(#[source] pagemap::Error),
    /// Without /proc and with swap, the set of served pages is unknown.
    #[error(
        "cannot determine the pages that the fault handler has served: /proc is absent and swap is in use; mount /proc, disable \
         swap, or create a full snapshot"
    )]
    Unknown,
    /// The file system stores more than the written pages.
    #[error(
        "cannot write a diff to {path:?}: its file system does not keep holes of single pages; use another, such as ext4, xfs \
         or tmpfs, or create a full snapshot"
    )]
    Holes {
        /// Path of the file.
        path: PathBuf,
    },
    /// The range to write is not within one region.
    #[error("cannot access guest memory {:#x}..{:#x}: the range is not within one region", .0.start, .0.end)]
    Outside(Range<u64>),
    /// The file could not be synced.
    #[error("cannot sync the memory file {path:?} to disk")]
    Sync {
        /// Path of the file.
        path: PathBuf,
        /// Error of `fsync`.
        #[source]
        source: io::Error,
    },
}
