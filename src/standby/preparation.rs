//! Files of a start: the directory of the next snapshot, the generation in it, and the place of the API socket.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Path, PathBuf};

use super::inspection::Inspection;

/// Maximum number of threads that prepare files.
pub const MAX_THREADS: usize = 64;

/// Prepared files of a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Name of the generation in the directory, empty without one.
    pub generation: Box<str>,
    /// The generation exists.
    pub has_snapshot: bool,
}

/// Preparation of the files of an instance, or read of the generation at the end of a process of an earlier supervisor.
#[derive(Debug, Default)]
pub enum Preparation {
    /// None: the directory is in the state directory.
    #[default]
    None,
    /// The next tick begins it.
    Waiting,
    /// A thread accesses the directory.
    Begun(Inspection<Result<Prepared, String>>),
    /// The files are prepared.
    Done(Prepared),
    /// The file system has not responded in time.
    Unknown,
}

/// Files to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Directory of the next snapshot.
    pub directory: PathBuf,
    /// Path of the API socket, which must be free.
    pub socket: PathBuf,
    /// User and group of the directory, if they are others.
    pub owner: Option<(u32, u32)>,
}

impl Files {
    /// Creates the directory, removes the socket of an earlier process, and reads the generation. May block.
    ///
    /// # Errors
    /// A text with the cause, for example a full disk.
    pub fn prepare(&self) -> Result<Prepared, String> {
        let path = &self.directory;
        create_directory(path, self.owner)
            .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        // A name from an earlier process would not be reported again.
        let _ = fs::remove_file(&self.socket);
        Ok(self.read())
    }

    /// Reads the generation. May block.
    pub fn read(&self) -> Prepared {
        Prepared {
            generation: generation(&self.directory),
            has_snapshot: self.directory.join("current").exists(),
        }
    }
}

/// Returns the generation of the snapshots in `directory`, which is empty without one.
fn generation(directory: &Path) -> Box<str> {
    let current = fs::read_link(directory.join("current"));
    current.map_or_else(|_| "".into(), |name| name.to_string_lossy().into())
}

/// Creates a directory that only its owner may use: the user and group of `owner`, or this user.
fn create_directory(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => match owner {
            Some((user, group)) => lchown(path, Some(user), Some(group)),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{Files, Prepared};

    #[test]
    fn directory_is_created_and_its_generation_read() {
        let directory = scratch::Directory::new();
        let files = Files {
            directory: directory.path("web"),
            socket: directory.write("sock", "").into(),
            owner: None,
        };
        assert_eq!(files.prepare(), Ok(Prepared::default()));
        assert_eq!(directory.names(), ["web"]);
        symlink("gen-3", directory.path("web/current")).unwrap();
        let dangling = files.prepare().unwrap();
        assert_eq!((&*dangling.generation, dangling.has_snapshot), ("gen-3", false));
        std::fs::create_dir(directory.path("web/gen-3")).unwrap();
        assert!(files.read().has_snapshot);
        let missing = Files {
            directory: directory.path("missing/web"),
            ..files
        };
        let reason = missing.prepare().unwrap_err();
        assert!(reason.contains("missing/web: No such file"), "{reason}");
    }
}
