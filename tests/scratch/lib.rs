//! Temporary files for tests, removed on drop, and requirements of tests on their host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fifo;
mod requirement;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

pub use fifo::{Reader, make_fifo};
pub use requirement::{Requirement, require, skip};

/// Returns an unused path, short enough for socket addresses below it.
fn unique_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("mayfly-test-{}-{count}", process::id()))
}

/// A temporary directory. Drop removes it with its content.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Creates an empty directory.
    ///
    /// # Panics
    /// Panics if `mkdir` fails.
    #[allow(
        clippy::new_without_default,
        reason = "`new` creates a directory, which a default must not"
    )]
    pub fn new() -> Self {
        loop {
            let path = unique_path();
            match fs::create_dir(&path) {
                // A killed process with the same PID has left its directory.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                result => {
                    result.unwrap();
                    return Self(path);
                }
            }
        }
    }

    /// Returns the path of the directory.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Returns the path of `name` in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the path of `name` in the directory as text.
    ///
    /// # Panics
    /// Panics if the path is not UTF-8.
    pub fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// Writes `content` to the file `name` and returns its path.
    ///
    /// # Panics
    /// Panics if the write fails.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// Creates the FIFO `name` and returns its path.
    ///
    /// # Panics
    /// Panics if `mkfifo` fails.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        make_fifo(&path);
        path
    }

    /// Returns the sorted names of the entries.
    ///
    /// # Panics
    /// Panics if the directory is unreadable or a name is not UTF-8.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A temporary path. Drop removes the file or empty directory at it.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// Creates a file with `content`.
    ///
    /// # Panics
    /// Panics if the write fails.
    pub fn with(content: &[u8]) -> Self {
        let temporary = Self::missing();
        fs::write(&temporary.0, content).unwrap();
        temporary
    }

    /// Returns a path without a file.
    pub fn missing() -> Self {
        let path = unique_path();
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        Self(path)
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens the file for reading.
    ///
    /// # Panics
    /// Panics if `open` fails.
    pub fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}
