//! Files of every kind, for the tests.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A pipe with room for one page: (reader, writer).
pub fn small_pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the call takes no pointer.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    (OwnedFd::from(reader).into(), writer.into())
}

/// A pipe that was opened again by its name in /proc, which makes it a named one: (reader, writer).
pub fn named_pipe() -> (File, OwnedFd) {
    let (reader, writer) = small_pipe();
    let name = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let file = File::options().write(true).open(name).unwrap();
    (reader, file.into())
}

/// A pseudoterminal: (master, slave). The slave is as a shell finds it: it turns line ends into two characters.
pub fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both descriptors are valid to write to, and the optional pointers are null.
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
    // SAFETY: openpty has just made this descriptor for us.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as above.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    (master, slave)
}

/// Exactly `length` bytes.
pub fn read(reader: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).unwrap();
    bytes
}

/// All bytes up to the end, which the writer must have reached.
pub fn rest(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// `length` bytes, none of which equals one that is less than 251 places away.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}
