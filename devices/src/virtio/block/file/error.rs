//! Why a file cannot be a disk.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("there is no disk {0:?}: make it, for example with `truncate -s 1G`, or correct the path")]
    Missing(PathBuf),
    /// This user may not open it.
    #[error("the disk {0:?} may not be opened for reading: give this user the right")]
    NotReadable(PathBuf),
    /// This user may not open it for writing too.
    #[error(
        "the disk {0:?} may not be opened for reading and writing: give this user the right, or make the drive read-only"
    )]
    NotWritable(PathBuf),
    /// It can only be read.
    #[error("the disk {0:?} is on a read-only file system or device: make the drive read-only")]
    ReadOnly(PathBuf),
    /// It is a folder.
    #[error("{0:?} is a folder: a disk is a raw image file or a block device")]
    Folder(PathBuf),
    /// It is a pipe, a socket, a terminal or the like.
    #[error("{0:?} is neither a file nor a block device")]
    Kind(PathBuf),
    /// There is nothing in it.
    #[error("the disk {0:?} is empty: give it a size, for example with `truncate -s 1G`")]
    Empty(PathBuf),
    /// Its end is within a sector.
    #[error("the disk {path:?} has {size} bytes, which is no multiple of 512: is it a raw image?")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Somebody else has it open.
    #[error(
        "the disk {0:?} is in use by another drive or virtual machine: only read-only drives can share one"
    )]
    InUse(PathBuf),
    /// Requests are with the kernel that it does not finish.
    #[error(
        "the drive has requests in flight that do not end, so that it stays with its disk: try again later"
    )]
    Busy,
    /// Anything else.
    #[error("cannot {operation} the disk {path:?}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What is wrong when opening the disk at `path` has failed with `source`.
pub(in super::super) fn opening(path: &Path, read_only: bool, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Error::Missing(path),
        Some(libc::EACCES | libc::EPERM) if read_only => Error::NotReadable(path),
        Some(libc::EACCES | libc::EPERM) => Error::NotWritable(path),
        Some(libc::EROFS) if !read_only => Error::ReadOnly(path),
        _ => Error::System {
            operation: "open",
            path,
            source,
        },
    }
}

/// Whether something with `metadata` can be a disk.
pub(super) fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_dir() => Err(Error::Folder(path.to_owned())),
        _ if kind.is_file() || kind.is_block_device() => Ok(()),
        _ => Err(Error::Kind(path.to_owned())),
    }
}
