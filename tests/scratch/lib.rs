//! Files of tests, which go with them.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod fifo;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

pub use fifo::{Reader, make_fifo};

/// A path that no test has had, short enough for the addresses of sockets below it.
fn unique() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("mayfly-test-{}-{count}", process::id()))
}

/// A folder of its own. Dropped, it is gone with all that is in it.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// An empty folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[allow(clippy::new_without_default, reason = "it is made by making a folder")]
    pub fn new() -> Self {
        loop {
            let path = unique();
            match fs::create_dir(&path) {
                // A process of the same number was killed before it could remove its own.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.unwrap();
                    return Self(path);
                }
            }
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Where `name` is in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as text.
    ///
    /// # Panics
    /// When the path is not UTF-8.
    pub fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// The file `name` with `content`; where it is.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// The FIFO `name`; where it is.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        make_fifo(&path);
        path
    }

    /// What is in it, sorted.
    ///
    /// # Panics
    /// When it cannot be read, or a name is not UTF-8.
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

/// A path of its own. Dropped, the file or empty folder that is there is gone.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// A file with this content.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn with(content: &[u8]) -> Self {
        let temporary = Self::missing();
        fs::write(&temporary.0, content).unwrap();
        temporary
    }

    /// A path at which there is nothing yet.
    pub fn missing() -> Self {
        let path = unique();
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file, to be read.
    ///
    /// # Panics
    /// When it cannot be opened.
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
