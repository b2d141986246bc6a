//! Files that are in memory only.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;

/// Makes a file in memory that holds `bytes`. The `name` is for people who look at the process's descriptors.
///
/// # Errors
/// The kernel's answer.
pub fn memfd(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    // SAFETY: `name` is a valid C string for the length of the call.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else has it.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_given_is_in_it() {
        let file = super::memfd(c"test", b"bytes").unwrap();
        let mut bytes = [0; 5];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"bytes");
        assert_eq!(file.metadata().unwrap().len(), 5);
    }
}
