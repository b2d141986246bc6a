//! FIFOs and their read ends.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Creates a FIFO at `path`.
///
/// # Panics
/// Panics if `mkfifo` fails.
pub fn make_fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a C string that outlives the call.
    let result = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(result, 0, "{}: {}", path.display(), io::Error::last_os_error());
}

/// Read end of a FIFO. It never blocks.
#[derive(Debug)]
pub struct Reader(File);

impl Reader {
    /// Opens the FIFO at `path`.
    ///
    /// # Panics
    /// Panics if `open` fails.
    pub fn open(path: impl AsRef<Path>) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        Self(options.open(path).unwrap())
    }

    /// Returns the size of the FIFO in bytes.
    ///
    /// # Panics
    /// Panics if `fcntl` fails.
    pub fn size(&self) -> usize {
        // SAFETY: the call takes no pointer.
        let size = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETPIPE_SZ) };
        usize::try_from(size).unwrap()
    }

    /// Shrinks the FIFO to the minimum, one page, and returns its size in bytes.
    ///
    /// # Panics
    /// Panics if `fcntl` fails.
    pub fn shrink(&self) -> usize {
        // SAFETY: the call takes no pointer.
        let size = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETPIPE_SZ, 1) };
        usize::try_from(size).unwrap()
    }

    /// Reads all available bytes.
    ///
    /// # Panics
    /// Panics if `read` fails.
    pub fn read(&mut self) -> Vec<u8> {
        self.take(u64::MAX)
    }

    /// Reads the available bytes, at most `max`.
    ///
    /// # Panics
    /// Panics if `read` fails.
    pub fn take(&mut self, max: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (&self.0).take(max).read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => drop(result.unwrap()),
        }
        bytes
    }
}
