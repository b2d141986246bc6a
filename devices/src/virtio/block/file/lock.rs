//! Who else may use a disk meanwhile.
//!
//! A disk is locked as long as it is open, by an open-file-description lock: against everybody else for writing, against
//! writers for reading. So a disk that two drives or two virtual machines would write to is refused to the second, by
//! whatever name it goes. It is the file that is locked: of a block device that has two nodes, each is locked by itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::error::Error;

/// Locks `file`, which was opened at `path`, until it is closed.
///
/// # Errors
/// [`Error::InUse`]
pub(super) fn hold(path: &Path, file: &File, read_only: bool) -> Result<(), Error> {
    match lock(file, read_only) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(Error::InUse(path.to_owned()))
        }
        // Some network file systems have no locks at all; their disks are still of use.
        Err(error) => {
            log::warn!("the disk {path:?} cannot be locked, so that nobody notices a second writer: {error}");
            Ok(())
        }
    }
}

fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `whole` is the structure that the command reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
