//! Generations: snapshots of one VM that is suspended again and again, of which a kill at any time leaves a complete one.
//!
//! ```text
//! DIR/gen-7/{state,memory}    complete
//! DIR/current -> gen-7        symbolic link, replaced by rename(2)
//! DIR/gen-8/{state,memory}    in creation
//! ```
//! A suspend creates the next generation, syncs its files, replaces the link, syncs the directory and removes the generation before. Two
//! complete generations need more space for a moment than a difference beside its base. In exchange a load maps one file, and no
//! interrupted merge is to be repeated. A VM that has mapped the memory file of a removed generation keeps the file by its inode.
//!
//! A name belongs to one complete generation only: the next number is that behind the link.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use snapshot::file::{Links, atomic};

/// Name of the link to the last complete generation.
const CURRENT: &str = "current";
/// Name of a new link, before it replaces the old one.
const NEXT: &str = ".current.next";
/// Start of the name of a generation, before its number.
const PREFIX: &str = "gen-";
/// Name of the state file in the directory of a snapshot.
pub const STATE_NAME: &str = "state";
/// Name of the memory file in the directory of a snapshot.
pub const MEMORY_NAME: &str = "memory";

/// Attempts to open a generation. Each further one follows the replacement of the generation by another process.
const ATTEMPTS: u32 = 16;

/// Reason why a directory with generations cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used for suspends.
    #[error("cannot suspend to directory {path:?}; name a directory that this process can write")]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another process suspends to the directory.
    #[error("cannot suspend to directory {0:?}: another VM does; name a directory for each VM")]
    InUse(PathBuf),
    /// The link does not name a generation.
    #[error("cannot follow {path:?} to {target:?}: it is no generation; remove the link")]
    Link {
        /// Path of the link.
        path: PathBuf,
        /// Target of the link.
        target: PathBuf,
    },
    /// The link cannot be read.
    #[error("cannot read the link {path:?}")]
    ReadLink {
        /// Path of the link.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of the generation cannot be opened.
    #[error("cannot open {path:?} of the current generation")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The directory of a generation cannot be created.
    #[error("cannot create the directory {path:?}")]
    Create {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The new generation cannot become the current one.
    #[error("cannot make {path:?} the current generation")]
    Replace {
        /// Path of the generation.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be synced.
    #[error(transparent)]
    Sync(atomic::Error),
}

/// Returns the number in the name of a generation.
fn number_of(name: &Path) -> Option<u64> {
    let digits = name.to_str()?.strip_prefix(PREFIX)?;
    let is_canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    is_canonical.then(|| digits.parse().ok()).flatten()
}

/// Returns the number of the current generation in `directory`; `None` if it has no link. Any other target is rejected: the directory
/// may come from an archive.
fn current_number(directory: &Path) -> Result<Option<u64>, Error> {
    let path = directory.join(CURRENT);
    let target = match fs::read_link(&path) {
        Ok(target) => target,
        // EINVAL: no link, and the directory is not one of generations.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
            ) =>
        {
            return Ok(None);
        }
        Err(source) if source.raw_os_error() == Some(libc::ENOTDIR) => {
            return match directory.is_dir() {
                true => Err(Error::ReadLink { path, source }),
                false => Ok(None),
            };
        }
        Err(source) => return Err(Error::ReadLink { path, source }),
    };
    match number_of(&target) {
        Some(number) => Ok(Some(number)),
        None => Err(Error::Link { path, target }),
    }
}

fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{number}"))
}

/// Returns the directory of the current generation in `directory`, or `directory` itself if it has no generations.
///
/// # Errors
/// [`Error::Link`] and [`Error::ReadLink`].
pub fn resolve_generation(directory: &Path) -> Result<PathBuf, Error> {
    let number = current_number(directory)?;
    Ok(number.map_or_else(|| directory.to_owned(), |number| path_of(directory, number)))
}

/// Files of one generation.
#[derive(Debug)]
pub(super) struct GenerationFiles {
    pub state: File,
    pub memory: File,
}

/// Opens both files of the current generation in `directory`; `None` if it has no generations. Another process may replace the generation
/// meanwhile: both files are of the same one.
pub(super) fn open_current(directory: &Path, links: Links) -> Result<Option<GenerationFiles>, Error> {
    let mut number = current_number(directory)?;
    let mut attempt = 1;
    loop {
        let Some(current) = number else { return Ok(None) };
        let path = path_of(directory, current);
        match open_files(&path, links) {
            Ok(files) => return Ok(Some(files)),
            Err(error) => {
                let newer = current_number(directory)?;
                if newer == number || attempt == ATTEMPTS {
                    return Err(error);
                }
                number = newer;
                attempt += 1;
            }
        }
    }
}

fn open_files(generation: &Path, links: Links) -> Result<GenerationFiles, Error> {
    let open = |name| {
        let path = generation.join(name);
        // O_NONBLOCK: open(2) of a FIFO would wait for a writer. The flag has no effect on regular files.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | links.flags();
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        opened.map_err(|source| Error::Open { path, source })
    };
    Ok(GenerationFiles {
        state: open(STATE_NAME)?,
        memory: open(MEMORY_NAME)?,
    })
}

/// Directory to which one VM suspends.
#[derive(Debug)]
pub struct SuspendDirectory {
    path: PathBuf,
    /// Locked: no other VM suspends there, and the removal of the older generation concerns no other VM.
    lock: File,
    /// Number of the current generation, 0 for none.
    current: u64,
}

impl SuspendDirectory {
    /// Opens the directory at `path`, checks that it can be written, and removes generations that a killed process has left.
    ///
    /// # Errors
    /// [`Error::Directory`], [`Error::InUse`], [`Error::Link`] and [`Error::ReadLink`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory {
            path: path.to_owned(),
            source,
        };
        // Absolute: the process may change its working directory.
        let path = fs::canonicalize(path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        if !lock.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        match lock.try_lock() {
            // A file system without locks.
            Ok(()) | Err(fs::TryLockError::Error(_)) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse(path)),
        }
        let current = current_number(&path)?.unwrap_or(0);
        let directory = Self { path, lock, current };
        directory.remove_others(current).map_err(failed)?;
        // A suspend is too late to refuse it.
        check_writable(&directory.lock).map_err(failed)?;
        Ok(directory)
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn next_path(&self) -> PathBuf {
        path_of(&self.path, self.current + 1)
    }

    /// Begins the next generation.
    ///
    /// # Errors
    /// [`Error::Create`]
    pub(crate) fn begin(&self) -> Result<PendingGeneration<'_>, Error> {
        let path = self.next_path();
        let created = create_directory(&path).or_else(|error| match error.kind() {
            // A suspend that has failed could not remove it. Its files are replaced.
            io::ErrorKind::AlreadyExists if path.is_dir() => Ok(()),
            _ => Err(error),
        });
        match created {
            Ok(()) => Ok(PendingGeneration {
                directory: self,
                path,
                is_current: false,
            }),
            Err(source) => Err(Error::Create { path, source }),
        }
    }

    /// Removes all generations except `kept`.
    fn remove_others(&self, kept: u64) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if number_of(Path::new(&name)).is_some_and(|number| number != kept) {
                remove_generation(&self.path.join(name))?;
            }
        }
        Ok(())
    }
}

/// Removes the directory of a generation and all files in it.
// Not by `fs::remove_dir_all`, which removes directories in it too, and needs more system calls.
fn remove_generation(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path)
}

/// Checks that this process may create files in `directory`. Changes nothing: a start would wait for the journal of the file system.
pub(crate) fn check_writable(directory: &File) -> io::Result<()> {
    let rights = libc::W_OK | libc::X_OK;
    // SAFETY: the descriptor is open, and the pointer is to a constant C string.
    match unsafe { libc::faccessat(directory.as_raw_fd(), c".".as_ptr(), rights, libc::AT_EACCESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates a directory that only its owner can use: it holds guest memory.
fn create_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Generation in creation. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct PendingGeneration<'a> {
    directory: &'a SuspendDirectory,
    path: PathBuf,
    is_current: bool,
}

impl PendingGeneration<'_> {
    /// Returns the paths of state file and memory file.
    pub fn files(&self) -> (PathBuf, PathBuf) {
        (self.path.join(STATE_NAME), self.path.join(MEMORY_NAME))
    }

    /// Makes the generation, whose files are complete and synced, the current one, and removes the one before.
    ///
    /// # Errors
    /// [`Error::Replace`]; the old generation stays the current one. [`Error::Sync`]; the generation is the current one, but a power
    /// loss may revert it, and the old one stays.
    pub fn commit(mut self) -> Result<(), Error> {
        let SuspendDirectory { path, current, .. } = self.directory;
        let (next, link) = (path.join(NEXT), path.join(CURRENT));
        let target = PathBuf::from(format!("{PREFIX}{}", current + 1));
        let create = || match symlink(&target, &next) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&next).and_then(|()| symlink(&target, &next))
            }
            created => created,
        };
        // The directory entries of the generation precede the link to it.
        atomic::sync_directory(&self.path.join(STATE_NAME)).map_err(Error::Sync)?;
        let replaced = create().and_then(|()| fs::rename(&next, &link));
        replaced.map_err(|source| Error::Replace {
            path: self.path.clone(),
            source,
        })?;
        self.is_current = true;
        atomic::sync_directory(&link).map_err(Error::Sync)?;
        if *current != 0 {
            // The next suspend, or the next open of the directory, removes what stays.
            let _ = remove_generation(&path_of(path, *current));
        }
        Ok(())
    }
}

impl Drop for PendingGeneration<'_> {
    fn drop(&mut self) {
        if !self.is_current {
            let _ = remove_generation(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use scratch::{Directory, Requirement};
    use snapshot::file::Links;

    use super::{Error, SuspendDirectory, number_of, open_current, resolve_generation};

    /// Opens the directory at `path` once it is not in use: a child that another test starts keeps the lock of a closed one until its
    /// `execve`.
    fn open(path: &Path) -> Result<SuspendDirectory, Error> {
        scratch::wait_for("the lock", || match SuspendDirectory::open(path) {
            Err(Error::InUse(_)) => None,
            result => Some(result),
        })
    }

    fn create(directory: &SuspendDirectory, content: &str) {
        let generation = directory.begin().unwrap();
        let (state, memory) = generation.files();
        fs::write(state, content).unwrap();
        fs::write(memory, content).unwrap();
        generation.commit().unwrap();
    }

    fn content(directory: &Path) -> Option<[String; 2]> {
        let files = open_current(directory, Links::Reject).unwrap()?;
        Some([files.state, files.memory].map(|mut file| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        }))
    }

    #[test]
    fn suspend_replaces_generation() {
        let scratch = Directory::new();
        let path = scratch.path("");
        assert_eq!(
            (content(&path), resolve_generation(&path).unwrap()),
            (None, path.clone())
        );
        for (content_before, text, names) in [
            (None, "first", ["current", "gen-1"]),
            (Some("first"), "second", ["current", "gen-2"]),
        ] {
            let directory = open(&path).unwrap();
            let pending = directory.begin().unwrap();
            fs::write(pending.files().0, "incomplete").unwrap();
            assert_eq!(
                content(&path),
                content_before.map(|text| [text; 2].map(String::from))
            );
            drop(pending);
            create(&directory, text);
            assert_eq!(content(&path), Some([text; 2].map(String::from)));
            assert_eq!(scratch.names(), names);
            assert_eq!(resolve_generation(&path).unwrap(), scratch.path(names[1]));
        }
    }

    #[test]
    fn rest_of_killed_process_is_removed() {
        let scratch = Directory::new();
        let path = scratch.path("");
        create(&SuspendDirectory::open(&path).unwrap(), "complete");
        for rest in ["gen-2", "gen-9"] {
            fs::create_dir(scratch.path(rest)).unwrap();
            fs::write(scratch.path(&format!("{rest}/.memory.part0")), "rest").unwrap();
        }
        symlink("gen-2", scratch.path(".current.next")).unwrap();
        for other in ["gen-02", "gen-x", "kept"] {
            fs::create_dir(scratch.path(other)).unwrap();
        }
        let directory = open(&path).unwrap();
        assert_eq!(
            scratch.names(),
            [".current.next", "current", "gen-02", "gen-1", "gen-x", "kept"]
        );
        // A rest that appears later, and the old link, are replaced.
        fs::create_dir(scratch.path("gen-2")).unwrap();
        create(&directory, "next");
        assert_eq!(content(&path), Some(["next"; 2].map(String::from)));
    }

    #[test]
    fn directory_belongs_to_one_process() {
        let scratch = Directory::new();
        let path = scratch.path("");
        let first = SuspendDirectory::open(&path).unwrap();
        assert!(matches!(SuspendDirectory::open(&path), Err(Error::InUse(_))));
        drop(first);
        open(&path).unwrap();
        for missing in ["missing", "file"] {
            fs::write(scratch.path("file"), "").unwrap();
            let error = SuspendDirectory::open(&scratch.path(missing)).unwrap_err();
            assert!(matches!(error, Error::Directory { .. }), "{error}");
        }
    }

    #[test]
    fn link_to_anything_but_a_generation_is_rejected() {
        let scratch = Directory::new();
        let path = scratch.path("");
        for target in ["..", "gen-1/..", "/gen-1", "gen-", "gen-01", "gen-1x", "gen-0"] {
            symlink(target, scratch.path("current")).unwrap();
            let errors = [
                open_current(&path, Links::Follow).map(|_| ()).unwrap_err(),
                resolve_generation(&path).map(|_| ()).unwrap_err(),
                open(&path).map(|_| ()).unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, Error::Link { .. }), "{target}: {error}");
            }
            fs::remove_file(scratch.path("current")).unwrap();
        }
        // A file or directory of this name is none of ours.
        fs::create_dir(scratch.path("current")).unwrap();
        assert_eq!(resolve_generation(&path).unwrap(), path);
        assert_eq!(number_of(Path::new("gen-18446744073709551616")), None);
    }

    #[test]
    fn incomplete_generation_is_reported() {
        let scratch = Directory::new();
        symlink("gen-1", scratch.path("current")).unwrap();
        let error = open_current(&scratch.path(""), Links::Follow).unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error}");
    }

    #[test]
    fn directory_of_another_user_is_refused() {
        if !scratch::require(Requirement::Root) {
            return;
        }
        let scratch = Directory::new();
        fs::set_permissions(scratch.root(), fs::Permissions::from_mode(0o755)).unwrap();
        let opened = std::thread::spawn({
            let path = scratch.root().to_owned();
            move || {
                // SAFETY: the call takes no pointer, and affects this thread alone.
                let result = unsafe { libc::syscall(libc::SYS_setresuid, 0, 65534, 0) };
                assert_eq!(result, 0);
                SuspendDirectory::open(&path).map(drop)
            }
        });
        match scratch::join(opened) {
            Err(Error::Directory { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
            }
            other => panic!("{other:?}"),
        }
    }
}
