//! System calls on a disk.

use std::io;

use libc::{c_int, iovec};

/// Calls until no signal interrupts.
pub(super) fn retried(mut call: impl FnMut() -> isize) -> io::Result<u64> {
    loop {
        if let Ok(result) = u64::try_from(call()) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The number of `pieces` as the kernel takes it.
pub(super) fn count_of(pieces: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(pieces.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A place or a length as the kernel takes it.
pub(super) fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
