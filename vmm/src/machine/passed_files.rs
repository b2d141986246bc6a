//! Files that another process has opened for a load and passed to this one.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Open files by the names that the parameters of a load have for them. A load opens the others itself.
#[derive(Debug, Default)]
pub struct PassedFiles {
    files: Vec<(PathBuf, File)>,
    descriptors: Vec<(RawFd, OwnedFd)>,
    /// Numbers of descriptors belong to another process.
    is_from_other_process: bool,
}

impl PassedFiles {
    /// Returns files by their paths, and descriptors by their numbers in the process that has passed them.
    pub fn new(files: Vec<(PathBuf, File)>, descriptors: Vec<(RawFd, OwnedFd)>) -> Self {
        Self {
            files,
            descriptors,
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

    /// Returns false if `number` is the number of a descriptor in this process.
    pub(super) fn has_numbers_of_other_process(&self) -> bool {
        self.is_from_other_process
    }

    /// Takes the descriptor with this number in the other process.
    pub(super) fn take_descriptor(&mut self, number: RawFd) -> Option<OwnedFd> {
        let index = self.descriptors.iter().position(|(name, _)| *name == number)?;
        Some(self.descriptors.remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
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
        assert!(passed.has_numbers_of_other_process());
        assert!(!PassedFiles::default().has_numbers_of_other_process());
    }
}
