//! Memory file of a snapshot, from which guest memory is mapped.
//!
//! A truncation removes the guest's private copies of the truncated pages too, even if the file grows again. The kernel then reports
//! these pages as unchanged, so that a diff would lack them. Every snapshot therefore checks the file.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use devices::{Medium, lock};
use snapshot::file::{FileIdentity, Links};

use super::map::Bytes;

/// Change of a memory file while guest memory is mapped from it.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The file could not be inspected.
    #[error("cannot inspect the memory file {path:?}")]
    Inspect {
        /// Path of the file.
        path: PathBuf,
        /// Error of `fstat`.
        #[source]
        source: io::Error,
    },
    /// The file has another length.
    #[error(
        "cannot read guest memory from the memory file {path:?}: its length has changed from {} to {} since the load, and pages of \
         the guest are lost; load an intact snapshot",
        Bytes(*.loaded), Bytes(*.found)
    )]
    Length {
        /// Path of the file.
        path: PathBuf,
        /// Length at the load.
        loaded: u64,
        /// Present length.
        found: u64,
    },
    /// The file was written.
    #[error(
        "cannot read guest memory from the memory file {path:?}: another process has written it since the load, and pages of the \
         guest may be lost; load an intact snapshot, and keep its memory file unchanged"
    )]
    Written {
        /// Path of the file.
        path: PathBuf,
    },
}

/// File, and its length and time of the last write. A file with the same stamp has the same content, unless the clock is coarse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    identity: FileIdentity,
    stamp: Stamp,
}

impl FileStamp {
    /// Returns the stamp of the file of `metadata`, or `None` if that is no regular file.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            identity: FileIdentity::of(metadata)?,
            stamp: Stamp::of(metadata),
        })
    }

    /// Returns the stamp of the file to which `path` leads, or `None` if there is no regular file.
    pub fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }

    /// Returns the identity of the file.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }
}

/// Length and time of the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    /// Seconds and nanoseconds. Not the time of the last status change: a rename of the file is harmless.
    written: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Open memory file, and its state when it was opened.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    path: PathBuf,
    identity: Option<FileIdentity>,
    stamp: Mutex<Stamp>,
    is_remote: bool,
}

impl MemoryFile {
    /// Opens the file at `path`. Open it before it is mapped: [`check`](Self::check) detects changes from here on.
    ///
    /// # Errors
    /// Fails if `open` or `fstat` fails.
    pub fn open(path: PathBuf, links: Links) -> Result<Self, (PathBuf, io::Error)> {
        // O_NONBLOCK: open(2) of a FIFO would wait for a writer. The flag has no effect on regular files.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | links.flags();
        match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(file) => Self::new(file, path),
            Err(error) => Err((path, error)),
        }
    }

    /// Uses `file`, which is open at `path`, as [`open`](Self::open) does.
    ///
    /// # Errors
    /// Fails if `fstat` fails.
    pub fn new(file: File, path: PathBuf) -> Result<Self, (PathBuf, io::Error)> {
        match file.metadata() {
            Ok(metadata) => Ok(Self {
                is_remote: Medium::of(&file) == Medium::Remote,
                file,
                path,
                identity: FileIdentity::of(&metadata),
                stamp: Mutex::new(Stamp::of(&metadata)),
            }),
            Err(error) => Err((path, error)),
        }
    }

    /// Returns the open file alone, to pass it to another process.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the path at the load.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the identity, by which the file is found under any of its names.
    pub fn identity(&self) -> Option<FileIdentity> {
        self.identity
    }

    /// Returns true if the file is on a server, which may not answer.
    pub fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Returns the stamp at the load, or after the last [accepted](Self::accept_write) write.
    pub fn stamp(&self) -> Option<FileStamp> {
        Some(FileStamp {
            identity: self.identity?,
            stamp: *lock(&self.stamp),
        })
    }

    /// Checks that the file has not changed since it was opened or [accepted](Self::accept_write).
    ///
    /// # Errors
    /// [`ChangeError`]
    pub fn check(&self) -> Result<(), ChangeError> {
        let loaded = *lock(&self.stamp);
        let found = self.stamp_now()?;
        if found.length != loaded.length {
            return Err(ChangeError::Length {
                path: self.path.clone(),
                loaded: loaded.length,
                found: found.length,
            });
        }
        if found != loaded {
            return Err(ChangeError::Written {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Accepts a write of this process. The length stays that of the load.
    ///
    /// # Errors
    /// [`ChangeError::Inspect`], or [`ChangeError::Length`] if another process has truncated the file meanwhile.
    pub fn accept_write(&self) -> Result<(), ChangeError> {
        let length = lock(&self.stamp).length;
        let written = self.stamp_now()?.written;
        *lock(&self.stamp) = Stamp { length, written };
        self.check()
    }

    fn stamp_now(&self) -> Result<Stamp, ChangeError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|source| ChangeError::Inspect {
            path: self.path.clone(),
            source,
        })?;
        Ok(Stamp::of(&metadata))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::time::{Duration, SystemTime};

    use scratch::Directory;

    use super::{ChangeError, Links, MemoryFile};

    /// Returns a memory file that was written long ago: later writes change its time even if the clock is coarse.
    fn memory_file(directory: &Directory) -> (MemoryFile, File) {
        let path = directory.path("memory");
        fs::write(&path, [7; 8192]).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        writer.set_times(FileTimes::new().set_modified(hour_ago)).unwrap();
        (MemoryFile::open(path, Links::Follow).unwrap(), writer)
    }

    #[test]
    fn link_is_rejected_by_its_open() {
        let directory = Directory::new();
        let (file, _writer) = memory_file(&directory);
        let link = directory.path("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        MemoryFile::open(link.clone(), Links::Follow).unwrap();
        let (path, error) = MemoryFile::open(link.clone(), Links::Reject).unwrap_err();
        assert_eq!((path, error.raw_os_error()), (link, Some(libc::ELOOP)));
    }

    #[test]
    fn truncated_memory_file_is_detected() {
        let directory = Directory::new();
        let (file, writer) = memory_file(&directory);
        file.check().unwrap();
        writer.set_len(4096).unwrap();
        for error in [file.check().unwrap_err(), file.accept_write().unwrap_err()] {
            assert!(
                matches!(
                    error,
                    ChangeError::Length {
                        loaded: 8192,
                        found: 4096,
                        ..
                    }
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn truncated_and_extended_memory_file_is_detected() {
        let directory = Directory::new();
        let (file, writer) = memory_file(&directory);
        writer.set_len(4096).unwrap();
        writer.set_len(8192).unwrap();
        let error = file.check().unwrap_err();
        assert!(matches!(error, ChangeError::Written { .. }), "{error}");
        file.accept_write().unwrap();
        file.check().unwrap();
    }

    #[test]
    fn renamed_memory_file_is_unchanged() {
        let directory = Directory::new();
        let (file, _writer) = memory_file(&directory);
        fs::rename(directory.path("memory"), directory.path("other")).unwrap();
        file.check().unwrap();
        fs::remove_file(directory.path("other")).unwrap();
        file.check().unwrap();
    }
}
