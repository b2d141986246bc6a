//! A file that gets its name when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Temporary names that are tried: as many writers can be at work on one file at a time.
const NAMES: u32 = 100;

/// Why a file could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path ends in no file name.
    #[error("{0:?} names no file")]
    Nameless(PathBuf),
    /// What has the name is no file to be replaced.
    #[error("{0:?} is a folder, a pipe or a device; name a file")]
    Irregular(PathBuf),
    /// No file could be made in the folder.
    #[error("cannot make {0:?}; its folder must exist and be writable", .path)]
    Create {
        /// The temporary name.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The content or the name could not be brought to the disk.
    #[error("cannot bring {path:?} to the disk")]
    Sync {
        /// The file, or its folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be given its name.
    #[error("cannot give a new file the name {path:?}")]
    Rename {
        /// The name.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A new file beside `path`, under a temporary name until [`commit`](Self::commit) lets it take the place of what has the name.
///
/// Dropped before that, it is removed. A process that is killed in between leaves the temporary file, whose name begins
/// with a dot, and what was at `path` as it was. The next writer removes what such a process left: a writer's file is
/// locked, as flock(2) does it, for as long as the writer lives.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
    synced: bool,
}

impl AtomicFile {
    /// Makes an empty file beside `path`, open for reading and writing. If `path` is a link, what it leads to is replaced.
    ///
    /// # Errors
    /// [`Error::Nameless`], [`Error::Irregular`], and [`Error::Create`] when the folder takes no file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let mut found = fs::symlink_metadata(path);
        let mut followed = None;
        if found.as_ref().is_ok_and(fs::Metadata::is_symlink) {
            // A link to what is not there yet is what it is called.
            followed = fs::canonicalize(path).ok();
            found = fs::metadata(path);
        }
        let path = followed.as_deref().unwrap_or(path);
        if found.is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::Irregular(path.to_owned()));
        }
        let name = path.file_name().ok_or_else(|| Error::Nameless(path.to_owned()))?;
        let names = || (0..NAMES).map(|number| hidden(path, name, number));
        names()
            .take_while(|temporary| fs::symlink_metadata(temporary).is_ok())
            .for_each(|temporary| remove_stale(&temporary));
        let mut refused = Error::Nameless(path.to_owned());
        for temporary in names() {
            match make(&temporary) {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                        temporary: Some(temporary),
                        synced: false,
                    });
                }
                Err(source) => {
                    let taken = source.kind() == io::ErrorKind::AlreadyExists;
                    refused = Error::Create {
                        path: temporary,
                        source,
                    };
                    if !taken {
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    /// The file, to be filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the content to the disk. Nothing may be written after that.
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

    /// Brings the content to the disk, gives the file its name, and brings the name to the disk.
    ///
    /// # Errors
    /// [`Error::Sync`] or [`Error::Rename`]; what was at the path is then still there and whole, unless only the folder
    /// could not be synced: then the new file is there, and may be gone after a loss of power.
    pub fn commit(mut self) -> Result<(), Error> {
        self.sync()?;
        self.rename()?;
        sync_names(&self.path)
    }

    /// As [`commit`](Self::commit), but leaves it to the kernel when the content gets to the disk, and does not wait: for what
    /// can be made anew. A loss of power soon after may leave a file that is cut short.
    ///
    /// # Errors
    /// [`Error::Rename`]
    pub fn commit_unsynced(mut self) -> Result<(), Error> {
        self.rename()
    }

    fn rename(&mut self) -> Result<(), Error> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path).map_err(|source| Error::Rename {
                path: self.path.clone(),
                source,
            })?;
        }
        // From here on the temporary name may be another process's.
        self.temporary = None;
        Ok(())
    }
}

/// Brings the names in the folder of `path` to the disk.
///
/// # Errors
/// [`Error::Sync`]
pub fn sync_names(path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|opened| opened.sync_all());
    synced.map_err(|source| Error::Sync {
        path: folder.to_owned(),
        source,
    })
}

fn hidden(path: &Path, name: &std::ffi::OsStr, number: u32) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".part{number}"));
    path.with_file_name(hidden)
}

/// Makes a file that is locked. Never one that exists: another process may be writing it, or it may be a link to elsewhere.
fn make(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    match file.try_lock() {
        // Without locks nobody takes it for a killed writer's.
        Ok(()) | Err(TryLockError::Error(_)) if is_at(&file, path) => Ok(file),
        // Before it was locked, another writer has.
        _ => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Removes the file at `path` if it is a writer's that is gone. If not, the name is taken, which is no error.
fn remove_stale(path: &Path) {
    // Asked before it is opened, because to open a pipe is to wait for its writer.
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

/// Whether `file` still has the name `path`.
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

    use super::{AtomicFile, Error, NAMES};

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let folder = Directory::new();
        let path = folder.path("state");
        fs::write(&path, "old").unwrap();
        let replacement = AtomicFile::create(&path).unwrap();
        replacement.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        replacement.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(folder.names(), ["state"]);
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let folder = Directory::new();
        let replacement = AtomicFile::create(&folder.path("state")).unwrap();
        assert_eq!(folder.names(), [".state.part0"]);
        drop(replacement);
        assert!(folder.names().is_empty());
    }

    #[test]
    fn writers_do_not_disturb_each_other() {
        let folder = Directory::new();
        let path = folder.path("state");
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
    fn what_killed_writers_left_is_neither_used_nor_followed() {
        let folder = Directory::new();
        let elsewhere = folder.path("elsewhere");
        fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, folder.path(".state.part0")).unwrap();
        // Who still has it open writes to nobody's file.
        fs::write(folder.path(".state.part1"), "left").unwrap();
        let mut left = fs::File::options()
            .write(true)
            .open(folder.path(".state.part1"))
            .unwrap();
        let replacement = AtomicFile::create(&folder.path("state")).unwrap();
        left.write_all(b"more").unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.commit().unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
        assert_eq!(fs::read(folder.path("state")).unwrap(), b"new");
        assert_eq!(folder.names(), [".state.part0", "elsewhere", "state"]);
    }

    #[test]
    fn what_killed_writers_left_is_in_nobodys_way() {
        let folder = Directory::new();
        for number in 0..NAMES {
            fs::write(folder.path(&format!(".state.part{number}")), "left").unwrap();
        }
        fs::write(folder.path(".memory.part0"), "another's").unwrap();
        AtomicFile::create(&folder.path("state"))
            .unwrap()
            .commit()
            .unwrap();
        assert_eq!(folder.names(), [".memory.part0", "state"]);
        for number in 0..NAMES {
            symlink("state", folder.path(&format!(".state.part{number}"))).unwrap();
        }
        let error = AtomicFile::create(&folder.path("state")).unwrap_err();
        assert!(matches!(error, Error::Create { .. }), "{error}");
    }

    #[test]
    fn only_files_are_replaced() {
        let folder = Directory::new();
        let path = folder.path("state");
        fs::create_dir(&path).unwrap();
        for path in [&path, Path::new("/dev/null"), Path::new("/")] {
            let error = AtomicFile::create(path).unwrap_err();
            assert!(matches!(error, Error::Irregular(_)), "{error}");
        }
        let missing = folder.path("missing/state");
        assert!(matches!(AtomicFile::create(&missing), Err(Error::Create { .. })));
        assert!(matches!(
            AtomicFile::create(&folder.path("missing/..")),
            Err(Error::Nameless(_))
        ));
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_is_an_error() {
        let folder = Directory::new();
        let path = folder.path("state");
        let replacement = AtomicFile::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = replacement.commit().unwrap_err();
        assert!(matches!(error, Error::Rename { .. }), "{error}");
        assert_eq!(folder.names(), ["state"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = Directory::new();
        let (path, link) = (folder.path("state"), folder.path("link"));
        fs::write(&path, "old").unwrap();
        symlink("state", &link).unwrap();
        let replacement = AtomicFile::create(&link).unwrap();
        replacement.file().write_all(b"new").unwrap();
        replacement.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
