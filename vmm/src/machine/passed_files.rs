//! Files that another process has opened for a load and passed to this one.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use devices::virtio::net::FirstFrames;

/// Open files by the names that the parameters of a load have for them. A load opens the others itself.
#[derive(Debug, Default)]
pub struct PassedFiles {
    files: Vec<(PathBuf, File)>,
    descriptors: Vec<(RawFd, OwnedFd)>,
    /// First frames by the IDs of their interfaces.
    first_frames: Vec<(String, FirstFrames)>,
    /// Numbers of descriptors belong to another process.
    is_from_other_process: bool,
}

impl PassedFiles {
    /// Returns files by their paths, and descriptors by their numbers in the process that has passed them.
    pub fn new(files: Vec<(PathBuf, File)>, descriptors: Vec<(RawFd, OwnedFd)>) -> Self {
        Self {
            files,
            descriptors,
            first_frames: Vec::new(),
            is_from_other_process: true,
        }
    }

    /// Adds `file`, which this process has opened in place of that at `path`.
    pub(crate) fn add(&mut self, path: PathBuf, file: File) {
        self.files.push((path, file));
    }

    /// Returns true if there is a file at `path`.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|(name, _)| name == path)
    }

    /// Takes the file at `path`. A path can have several files: one for each device.
    pub fn take(&mut self, path: &Path) -> Option<File> {
        let index = self.files.iter().position(|(name, _)| name == path)?;
        Some(self.files.remove(index).1)
    }

    /// Returns the descriptor of `number`: that of another process if it has passed its descriptors, otherwise a duplicate. The number
    /// comes from the user: it may be closed, or belong to a file that this process has opened since, so that the original is never
    /// closed.
    ///
    /// # Errors
    /// Fails if the descriptor is closed, or was not passed.
    pub(crate) fn open_descriptor(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if self.is_from_other_process {
            let missing = || io::Error::from_raw_os_error(libc::EBADF);
            return self.take_descriptor(number).ok_or_else(missing);
        }
        // SAFETY: the call takes no pointer and closes no descriptor; the kernel checks the number.
        let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        if duplicate < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
    }

    /// Takes the descriptor with this number in the other process.
    fn take_descriptor(&mut self, number: RawFd) -> Option<OwnedFd> {
        let index = self.descriptors.iter().position(|(name, _)| *name == number)?;
        Some(self.descriptors.remove(index).1)
    }

    /// Adds the first frames of interface `id`.
    pub(crate) fn add_first_frames(&mut self, id: String, frames: FirstFrames) {
        self.first_frames.push((id, frames));
    }

    /// Returns true if there are first frames of interface `id`.
    pub(crate) fn has_first_frames(&self, id: &str) -> bool {
        self.first_frames.iter().any(|(name, _)| name == id)
    }

    /// Takes the first frames of interface `id`.
    pub(crate) fn take_first_frames(&mut self, id: &str) -> Option<FirstFrames> {
        let index = self.first_frames.iter().position(|(name, _)| name == id)?;
        Some(self.first_frames.remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use super::PassedFiles;

    #[test]
    fn each_file_is_taken_once() {
        let open = || File::open("/dev/null").unwrap();
        let files = ["/a", "/a", "/b"].map(|path| (path.into(), open())).into();
        let mut passed = PassedFiles::new(files, vec![(7, open().into())]);
        let mut take = |path| passed.take(Path::new(path)).is_some();
        assert_eq!(
            ["/a", "/b", "/a", "/b", "/a"].map(&mut take),
            [true, true, true, false, false]
        );
        assert!(passed.take_descriptor(3).is_none());
        assert!(passed.take_descriptor(7).is_some());
        assert!(passed.take_descriptor(7).is_none());
        // Without a number of another process, the number is that of this one.
        let file = open();
        assert!(PassedFiles::default().open_descriptor(file.as_raw_fd()).is_ok());
        assert!(passed.open_descriptor(file.as_raw_fd()).is_err());
    }
}
