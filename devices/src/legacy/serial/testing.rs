//! Files of several kinds for tests.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use scratch::Limited;

/// Creates a pipe with a capacity of one page. Returns reader and writer.
pub fn small_pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the call takes no pointer.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    (OwnedFd::from(reader).into(), writer.into())
}

/// Creates a FIFO: a pipe whose writer is opened again by its name in /proc. Returns reader and writer.
pub fn named_pipe() -> (File, OwnedFd) {
    let (reader, writer) = small_pipe();
    let name = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let file = File::options().write(true).open(name).unwrap();
    (reader, file.into())
}

/// Creates a pseudoterminal with default settings: a line feed becomes two characters. Returns master and slave.
pub fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both descriptors are writable, and null is valid for the other pointers.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty has just returned this descriptor, which has no other owner.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as above.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    (master, slave)
}

/// Reads exactly `length` bytes.
pub fn read(reader: &mut (impl Read + AsFd), length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Limited(&mut *reader).read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads all bytes up to the end of the file. The writer must be closed.
pub fn read_to_end(reader: impl Read + AsFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    Limited(reader).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Returns `length` bytes with a period of 251.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}
