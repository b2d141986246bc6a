//! FIFOs, and their reading ends.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes a FIFO at `path`.
///
/// # Panics
/// When it cannot be made.
pub fn make_fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a C string for the length of the call.
    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(made, 0, "{}: {}", path.display(), io::Error::last_os_error());
}

/// The reading end of a FIFO, which never waits.
#[derive(Debug)]
pub struct Reader(File);

impl Reader {
    /// Opens the FIFO at `path`.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        Self(options.open(path).unwrap())
    }

    /// Makes the FIFO as small as it can be, one page, and returns its size.
    ///
    /// # Panics
    /// When that cannot be.
    pub fn shrink(&self) -> usize {
        // SAFETY: the call takes no pointer.
        let size = unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETPIPE_SZ, 1) };
        usize::try_from(size).unwrap()
    }

    /// All that is there.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&mut self) -> Vec<u8> {
        self.take(u64::MAX)
    }

    /// What is there, at most `most` bytes.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn take(&mut self, most: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (&self.0).take(most).read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            end => drop(end.unwrap()),
        }
        bytes
    }
}
