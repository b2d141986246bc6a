//! What can go wrong with a memory file.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::memory::map::Bytes;
use crate::memory::pagemap;

/// Why memory could not be written to a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be made or get its name.
    #[error("cannot put the memory file in place")]
    Replace(#[source] snapshot::file::atomic::Error),
    /// A file that is there already could not be opened.
    #[error("cannot open the memory file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file system takes no file of that length.
    #[error("cannot make the memory file {path:?} {} long", Bytes(*.size))]
    Extend {
        /// The file.
        path: PathBuf,
        /// The length in bytes.
        size: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The disk is full, the file is too large for a limit, or the disk has failed.
    #[error("cannot write {length:#x} bytes at {offset:#x} of the memory file {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Offset in the file.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file under guest memory has been cut short.
    #[error(
        "guest memory from {address:#x} on is not there any more; the file that it is mapped from has been cut short, and the \
         guest is lost"
    )]
    Gone {
        /// Guest-physical address.
        address: u64,
    },
    /// What another file holds could not be brought into the memory file.
    #[error(
        "cannot copy to the memory file {path:?}, at {offset:#x}, from the difference or from what the memory was restored from"
    )]
    Copy {
        /// The memory file.
        path: PathBuf,
        /// Offset in both files.
        offset: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A difference and its base are not of the same guest.
    #[error("{path:?} is {} long where the difference has {}; it is not its base", Bytes(*.found), Bytes(*.needed))]
    Length {
        /// The base.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// Length of the difference in bytes.
        needed: u64,
    },
    /// The kernel does not say which pages there are.
    #[error("cannot find out what is in the guest's memory")]
    Pages(#[source] pagemap::Error),
    /// Without /proc, and with swap, what a handler has served is not known.
    #[error(
        "which pages have been served is not known without /proc where there is swap; mount /proc, turn swap off, or take a Full \
         snapshot"
    )]
    Unknown,
    /// The file system stores more than the pages that were written.
    #[error(
        "the file system of {path:?} keeps no holes of single pages, by which a difference tells what has changed; write it to \
         another, such as ext4, xfs or tmpfs, or take a Full snapshot"
    )]
    Holes {
        /// The file that was to be.
        path: PathBuf,
    },
    /// A range that is to be written does not lie within one region.
    #[error("{:#x}..{:#x} does not lie within one region of guest memory", .0.start, .0.end)]
    Outside(Range<u64>),
    /// The file could not be brought to the disk.
    #[error("cannot bring the memory file {path:?} to the disk")]
    Sync {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
