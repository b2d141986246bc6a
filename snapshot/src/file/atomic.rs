//! File that replaces another when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Number of temporary names per path: the maximum number of concurrent writers.
const NAMES: u32 = 100;

/// Error while a file is replaced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path has no file name.
    #[error("cannot create {0:?}: the path has no file name")]
    Nameless(PathBuf),
    /// The path is a symbolic link.
    #[error("cannot replace {0:?}: it is a link; name a regular file")]
    Link(PathBuf),
    /// The path exists and is not a regular file.
    #[error("cannot replace {0:?}: it is a directory, pipe or device; name a file")]
    NotRegular(PathBuf),
    /// The temporary file could not be created.
    #[error("cannot create {path:?}; its directory must exist and be writable")]
    Create {
        /// Temporary path.
        path: PathBuf,
        /// Error of `open`.
        #[source]
        source: io::Error,
    },
    /// The file or its directory could not be synced.
    #[error("cannot sync {path:?} to disk")]
    Sync {
        /// Path of the file or directory.
        path: PathBuf,
        /// Error of `open` or `fsync`.
        #[source]
        source: io::Error,
    },
    /// The file could not be renamed.
    #[error("cannot rename a temporary file to {path:?}")]
    Rename {
        /// Final path.
        path: PathBuf,
        /// Error of `rename`.
        #[source]
        source: io::Error,
    },
}

/// Treatment of a symbolic link at a path. Links of its directories are followed in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The target of the link is used.
    Follow,
    /// The file is rejected: its directory may come from an attacker.
    Reject,
}

impl Links {
    /// Returns the flags of open(2). The kernel itself rejects the link, so that no other process can put one there after a check.
    pub const fn flags(self) -> libc::c_int {
        match self {
            Self::Follow => 0,
            Self::Reject => libc::O_NOFOLLOW,
        }
    }
}

/// New file under a temporary name in the directory of `path`; [`commit`](Self::commit) renames it to `path`.
///
/// Dropping it before that removes the file. A killed process leaves the temporary file, whose name starts with a dot,
/// and the old file at `path`. The next writer removes temporary files of killed processes: a live writer holds a lock
/// (flock(2)) on its file.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
    synced: bool,
}

impl AtomicFile {
    /// Creates an empty file for `path`, open for reading and writing. If `path` is a symbolic link, its target is replaced.
    ///
    /// # Errors
    /// [`Error::Nameless`], [`Error::NotRegular`], and [`Error::Create`] if no file can be created in the directory.
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::create_with(path, Links::Follow)
    }

    /// As [`create`](Self::create), with a choice of the treatment of a link. A link that is not followed cannot lead the writer
    /// elsewhere later: the commit replaces the link itself.
    ///
    /// # Errors
    /// Those of [`create`](Self::create), and [`Error::Link`].
    pub fn create_with(path: &Path, links: Links) -> Result<Self, Error> {
        let mut found = fs::symlink_metadata(path);
        let mut target = None;
        if found.as_ref().is_ok_and(fs::Metadata::is_symlink) {
            if links == Links::Reject {
                return Err(Error::Link(path.to_owned()));
            }
            // A dangling link is replaced itself.
            target = fs::canonicalize(path).ok();
            found = fs::metadata(path);
        }
        let path = target.as_deref().unwrap_or(path);
        if found.is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::NotRegular(path.to_owned()));
        }
        let name = path.file_name().ok_or_else(|| Error::Nameless(path.to_owned()))?;
        let names = || (0..NAMES).map(|number| temporary_path(path, name, number));
        names()
            .take_while(|temporary| fs::symlink_metadata(temporary).is_ok())
            .for_each(|temporary| remove_stale(&temporary));
        let mut failure = Error::Nameless(path.to_owned());
        for temporary in names() {
            match create_locked(&temporary) {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                        temporary: Some(temporary),
                        synced: false,
                    });
                }
                Err(source) => {
                    let exists = source.kind() == io::ErrorKind::AlreadyExists;
                    failure = Error::Create {
                        path: temporary,
                        source,
                    };
                    if !exists {
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the final path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the content to disk. No write may follow.
    ///
    /// # Errors
    /// [`Error::Sync`]
    pub fn sync(&mut self) -> Result<(), Error> {
        if !self.synced {
            self.file.sync_all().map_err(|source| Error::Sync {
                path: self.path.clone(),
                source,
            })?;
            self.synced = true;
        }
        Ok(())
    }

    /// Syncs the content, renames the file to its final path, and syncs the directory.
    ///
    /// # Errors
    /// [`Error::Sync`] or [`Error::Rename`]. The old file then stays at the path, unless only the sync of the directory
    /// failed: the new file is then at the path, but a power loss may revert it.
    pub fn commit(mut self) -> Result<(), Error> {
        self.sync()?;
        self.rename()?;
        sync_directory(&self.path)
    }

    /// Renames the file to its final path without a sync, for content that can be created again. A power loss soon
    /// afterwards may leave a truncated file.
    ///
    /// # Errors
    /// [`Error::Rename`]
    pub fn commit_unsynced(mut self) -> Result<(), Error> {
        self.rename()
    }

    /// Replaces the open file by one that the kernel cannot sync.
    #[cfg(test)]
    pub(super) fn break_sync(&mut self) {
        let device = File::options().read(true).write(true).open("/dev/null");
        self.file = device.unwrap();
    }

    fn rename(&mut self) -> Result<(), Error> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path).map_err(|source| Error::Rename {
                path: self.path.clone(),
                source,
            })?;
        }
        // Another process may create the temporary name again: drop() must not remove it.
        self.temporary = None;
        Ok(())
    }
}

/// Syncs the directory of `path` to disk.
///
/// # Errors
/// [`Error::Sync`]
pub fn sync_directory(path: &Path) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|source| Error::Sync {
        path: directory.to_owned(),
        source,
    })
}

fn temporary_path(path: &Path, name: &OsStr, number: u32) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".part{number}"));
    path.with_file_name(hidden)
}

/// Creates and locks a file. Fails if the path exists: it may belong to another writer or be a link to another directory.
fn create_locked(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    match file.try_lock() {
        // On a file system without locks, remove_stale() cannot lock the file either and keeps it.
        Ok(()) | Err(TryLockError::Error(_)) if is_at(&file, path) => Ok(file),
        // Another writer took the file for stale between open and lock.
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Removes the temporary file at `path` if its writer is gone. Otherwise the name stays in use.
fn remove_stale(path: &Path) {
    // Before the open: open(2) of a pipe would wait for a writer.
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return;
    }
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
        && is_at(&file, path)
    {
        let _ = fs::remove_file(path);
    }
}

/// Returns true if `path` still refers to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |file: fs::Metadata, named: fs::Metadata| (file.dev(), file.ino()) == (named.dev(), named.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(file), Ok(named)) => same(file, named),
        _ => false,
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use scratch::Directory;

    use super::{AtomicFile, Error, Links, NAMES, is_at, sync_directory};

    #[test]
    fn old_file_stays_until_commit() {
        let directory = Directory::new();
        let path = directory.path("state");
        fs::write(&path, "old").unwrap();
        let replacement = AtomicFile::create(&path).unwrap();
        replacement.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        replacement.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(directory.names(), ["state"]);
    }

    #[test]
    fn failed_sync_keeps_old_file() {
        let directory = Directory::new();
        let path = directory.path("state");
        fs::write(&path, "old").unwrap();
        let mut replacement = AtomicFile::create(&path).unwrap();
        replacement.break_sync();
        for _ in 0..2 {
            assert!(matches!(replacement.sync(), Err(Error::Sync { path: found, .. }) if found == path));
        }
        assert!(matches!(replacement.commit(), Err(Error::Sync { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(directory.names(), ["state"]);
    }

    #[test]
    fn synced_file_needs_no_sync_at_commit() {
        let directory = Directory::new();
        let path = directory.path("state");
        let mut replacement = AtomicFile::create(&path).unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.sync().unwrap();
        replacement.break_sync();
        replacement.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn unsynced_commit_renames_without_sync() {
        let directory = Directory::new();
        let path = directory.path("state");
        fs::write(&path, "old").unwrap();
        let mut replacement = AtomicFile::create(&path).unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.break_sync();
        replacement.commit_unsynced().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(directory.names(), ["state"]);
    }

    #[test]
    fn failed_sync_names_directory() {
        let directory = Directory::new();
        let missing = directory.path("missing");
        let error = sync_directory(&missing.join("state")).unwrap_err();
        assert!(matches!(error, Error::Sync { path, .. } if path == missing));
        sync_directory(&directory.path("state")).unwrap();
        // In the current directory.
        sync_directory(Path::new("state")).unwrap();
    }

    #[test]
    fn file_is_only_at_its_own_path() {
        let directory = Directory::new();
        let (path, other) = (directory.path("state"), directory.path("other"));
        let file = fs::File::create(&path).unwrap();
        assert!(is_at(&file, &path));
        symlink(&path, &other).unwrap();
        assert!(!is_at(&file, &other), "a link");
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path), "no file");
        fs::write(&path, "another's").unwrap();
        assert!(!is_at(&file, &path), "another file");
    }

    #[test]
    fn dropped_file_is_removed() {
        let directory = Directory::new();
        let replacement = AtomicFile::create(&directory.path("state")).unwrap();
        assert_eq!(directory.names(), [".state.part0"]);
        drop(replacement);
        assert!(directory.names().is_empty());
    }

    #[test]
    fn concurrent_writers_are_independent() {
        let directory = Directory::new();
        let path = directory.path("state");
        let first = AtomicFile::create(&path).unwrap();
        let second = AtomicFile::create(&path).unwrap();
        first.file().write_all(b"first").unwrap();
        second.file().write_all(b"second").unwrap();
        second.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn stale_files_are_not_reused() {
        let directory = Directory::new();
        let elsewhere = directory.path("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, directory.path(".state.part0")).unwrap();
        // The open file is stale; writes to it must not reach the new file.
        fs::write(directory.path(".state.part1"), "left").unwrap();
        let mut left = fs::File::options()
            .write(true)
            .open(directory.path(".state.part1"))
            .unwrap();
        let replacement = AtomicFile::create(&directory.path("state")).unwrap();
        left.write_all(b"more").unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.commit().unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
        assert_eq!(fs::read(directory.path("state")).unwrap(), b"new");
        assert_eq!(directory.names(), [".state.part0", "elsewhere", "state"]);
    }

    #[test]
    fn stale_files_are_removed() {
        let directory = Directory::new();
        for number in 0..NAMES {
            fs::write(directory.path(&format!(".state.part{number}")), "left").unwrap();
        }
        fs::write(directory.path(".memory.part0"), "another's").unwrap();
        AtomicFile::create(&directory.path("state"))
            .unwrap()
            .commit()
            .unwrap();
        assert_eq!(directory.names(), [".memory.part0", "state"]);
        for number in 0..NAMES {
            symlink("state", directory.path(&format!(".state.part{number}"))).unwrap();
        }
        let error = AtomicFile::create(&directory.path("state")).unwrap_err();
        assert!(matches!(error, Error::Create { .. }), "{error}");
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let directory = Directory::new();
        let path = directory.path("state");
        fs::create_dir(&path).unwrap();
        for path in [&path, Path::new("/dev/null"), Path::new("/")] {
            let error = AtomicFile::create(path).unwrap_err();
            assert!(matches!(error, Error::NotRegular(_)), "{error}");
        }
        let missing = directory.path("missing/state");
        assert!(matches!(AtomicFile::create(&missing), Err(Error::Create { .. })));
        assert!(matches!(
            AtomicFile::create(&directory.path("missing/..")),
            Err(Error::Nameless(_))
        ));
    }

    #[test]
    fn commit_over_new_directory_fails() {
        let directory = Directory::new();
        let path = directory.path("state");
        let replacement = AtomicFile::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = replacement.commit().unwrap_err();
        assert!(matches!(error, Error::Rename { .. }), "{error}");
        assert_eq!(directory.names(), ["state"]);
    }

    #[test]
    fn link_is_rejected_or_replaced_itself() {
        let directory = Directory::new();
        let (path, link) = (directory.path("state"), directory.path("link"));
        fs::write(&path, "old").unwrap();
        symlink("state", &link).unwrap();
        let rejected = AtomicFile::create_with(&link, Links::Reject).unwrap_err();
        assert!(matches!(&rejected, Error::Link(at) if *at == link), "{rejected}");
        // A link that appears after the check is replaced itself.
        fs::remove_file(&link).unwrap();
        let replacement = AtomicFile::create_with(&link, Links::Reject).unwrap();
        symlink("state", &link).unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn symlink_target_is_replaced() {
        let directory = Directory::new();
        let (path, link) = (directory.path("state"), directory.path("link"));
        fs::write(&path, "old").unwrap();
        symlink("state", &link).unwrap();
        let replacement = AtomicFile::create(&link).unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
