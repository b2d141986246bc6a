//! Help for the tests of all crates: temporary files, waits with a limit, and requirements on the host.
//!
//! A program that links this crate starts with the default action of all signals.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fifo;
mod permissions;
mod program;
mod requirement;
mod signals;
mod wait;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, process};

pub use fifo::{Reader, make_fifo};
pub use permissions::bound_by_permissions;
pub use program::write_program;
pub use requirement::{Requirement, require, skip};
pub use signals::ignore_file_size_signal;
pub use wait::{
    AbortTimer, KillDaemon, KillOnDrop, Limited, Listener, TIMEOUT, Thread, accept, await_hangup,
    await_readable, finish, join, kill, limited, read_in_background, receive, run, run_with_input,
    run_within, wait_exit, wait_for, wait_until,
};

/// Returns an unused path in `parent`, short enough for socket addresses below it. Another container may use the same directory and
/// the same PID, so that the name also has the time of the first call.
fn unique_path(parent: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static START: LazyLock<u32> = LazyLock::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.subsec_nanos())
    });
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("mayfly-{}-{:x}-{count}", process::id(), *START));
        // A killed process with the same PID has left its file.
        if fs::symlink_metadata(&path).is_err() {
            return path;
        }
    }
}

/// Returns the path of `name` in a temporary directory of this process, which the exit of the process removes. Each test uses other
/// names.
///
/// # Panics
/// Panics if the directory cannot be created.
pub fn process_path(name: &str) -> PathBuf {
    static ROOT: OnceLock<Directory> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(root) = ROOT.get() {
            let _ = fs::remove_dir_all(root.root());
        }
    }
    let root = ROOT.get_or_init(|| {
        // SAFETY: the function is valid for the life of the process. Statics are never dropped.
        let result = unsafe { libc::atexit(remove) };
        assert_eq!(result, 0, "cannot register a function for the exit");
        Directory::new()
    });
    root.path(name)
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
        Self::new_in(&env::temp_dir())
    }

    /// Creates an empty directory in `parent`.
    ///
    /// # Panics
    /// Panics if `mkdir` fails.
    pub fn new_in(parent: &Path) -> Self {
        let path = unique_path(parent);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        Self(path)
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
        Self(unique_path(&env::temp_dir()))
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
