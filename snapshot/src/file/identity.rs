//! Identity of a file, independent of its names.

use std::fs::{self, File, Metadata};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Returns the identity of the file of `metadata`, or `None` if that is no regular file.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        metadata.is_file().then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Returns the identity of an open file, or `None` if that is no regular file.
    pub fn of_descriptor(file: BorrowedFd<'_>) -> Option<Self> {
        // The duplicate is needed for its type alone.
        let file = File::from(file.try_clone_to_owned().ok()?);
        Self::of(&file.metadata().ok()?)
    }

    /// Returns the identity of the file to which `path` leads, or `None` if there is no regular file.
    pub fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }
}
