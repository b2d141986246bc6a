//! Results of system calls.

use std::io;

/// Returns `result` of a system call, or its error if it is negative.
///
/// # Errors
/// That of the last system call of this thread.
pub(crate) fn check<T: Default + PartialOrd>(result: T) -> io::Result<T> {
    match result < T::default() {
        true => Err(io::Error::last_os_error()),
        false => Ok(result),
    }
}
