//! A file that gets its name when it is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Temporary names that are tried. More than a few are taken only where earlier writers were killed.
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
/// with a dot, and what was at `path` as it was.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Replacement {
    /// Makes an empty file beside `path`, open for reading and writing. If `path` is a link, what it leads to is replaced.
    ///
    /// # Errors
    /// [`Error::Nameless`], [`Error::Irregular`], and [`Error::Create`] when the folder takes no file.
    pub fn beside(path: &Path) -> Result<Self, Error> {
        // What is not there yet is what it is called.
        let found = fs::canonicalize(path);
        let path = found.as_deref().unwrap_or(path);
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::Irregular(path.to_owned()));
        }
        let nameless = || Error::Nameless(path.to_owned());
        let name = path.file_name().ok_or_else(nameless)?;
        for number in 0.. {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".part{number}"));
            let temporary = path.with_file_name(hidden);
            // Never one that exists: another process may be writing it, or it may be a link to elsewhere.
            let made = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&temporary);
            match made {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                        temporary: Some(temporary),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < NAMES => {}
                Err(source) => {
                    return Err(Error::Create {
                        path: temporary,
                        source,
                    });
                }
            }
        }
        Err(nameless())
    }

    /// The file, to be filled.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the content to the disk, gives the file its name, and brings the name to the disk.
    ///
    /// # Errors
    /// [`Error::Sync`] or [`Error::Rename`]; what was at the path is then still there and whole, unless only the folder
    /// could not be synced: then the new file is there, and may be gone after a loss of power.
    pub fn commit(mut self) -> Result<(), Error> {
        let sync = |path: &Path, source| Error::Sync {
            path: path.to_owned(),
            source,
        };
        self.file.sync_all().map_err(|source| sync(&self.path, source))?;
        self.rename()?;
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|opened| opened.sync_all())
            .map_err(|source| sync(folder, source))
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

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}
