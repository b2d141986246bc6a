//! Pseudoterminal for the serial console.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use crate::system_call::check;

/// Permissions of the terminal. Those of the file system may admit the group of terminals.
const MODE: u32 = 0o600;

/// Pseudoterminal. Programs open it at its path; mayfly has the other side.
#[derive(Debug)]
pub(super) struct Pty {
    master: Arc<File>,
    /// Becomes readable when a program opens the terminal.
    opened: File,
    path: PathBuf,
}

/// Descriptors of a [`Pty`].
#[derive(Debug)]
pub(super) struct PtyFiles {
    /// Side of mayfly, which does not block.
    pub(super) master: Arc<File>,
    /// Inotify instance that becomes readable when a program opens the terminal.
    pub(super) opened: File,
}

impl Pty {
    /// Creates a pseudoterminal in raw mode.
    ///
    /// # Errors
    /// [`Error::Pty`]
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |operation| move |source| Error::Pty { operation, source };
        let master = open("/dev/ptmx", libc::O_NONBLOCK).map_err(failed("open /dev/ptmx"))?;
        let path = unlock(&master).map_err(failed("unlock a pseudoterminal"))?;
        let terminal = open(&path, 0).map_err(failed("open a pseudoterminal"))?;
        let private = terminal.set_permissions(Permissions::from_mode(MODE));
        private.map_err(failed("set the mode of a pseudoterminal"))?;
        set_raw(&terminal).map_err(failed("set a pseudoterminal to raw mode"))?;
        let opened = watch(&path).map_err(failed("watch a pseudoterminal"))?;
        // Closed from here on, until a program opens it: the master reports the hang-up. The mode stays as long as the master is open.
        drop(terminal);
        Ok(Self {
            master: Arc::new(master),
            opened,
            path,
        })
    }

    /// Returns the path at which programs open the terminal.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Duplicates the descriptors.
    pub(super) fn source(&self) -> io::Result<PtyFiles> {
        Ok(PtyFiles {
            master: self.master.clone(),
            opened: self.opened.try_clone()?,
        })
    }
}

/// Opens a terminal, which does not become the controlling terminal of this process.
fn open(path: impl AsRef<Path>, flags: libc::c_int) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | flags);
    options.open(path)
}

/// Lets programs open the terminal of `master`. Returns its path.
fn unlock(master: &File) -> io::Result<PathBuf> {
    let locked: libc::c_int = 0;
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })?;
    let mut number: libc::c_uint = 0;
    // SAFETY: the request writes one unsigned int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    Ok(format!("/dev/pts/{number}").into())
}

/// Passes each byte unchanged in both directions, without an echo.
fn set_raw(terminal: &File) -> io::Result<()> {
    let mut modes = MaybeUninit::uninit();
    // SAFETY: `modes` is valid for writes.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), modes.as_mut_ptr()) })?;
    // SAFETY: tcgetattr has succeeded and has initialized it.
    let mut modes = unsafe { modes.assume_init() };
    // SAFETY: `modes` is valid.
    unsafe { libc::cfmakeraw(&raw mut modes) };
    // SAFETY: `modes` is valid for reads.
    check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const modes) }).map(drop)
}

/// Returns an inotify instance that becomes readable when a program opens the file at `path`.
fn watch(path: &Path) -> io::Result<File> {
    // SAFETY: the call takes no pointer.
    let instance: RawFd = check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    let instance = File::from(unsafe { OwnedFd::from_raw_fd(instance) });
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.push(0);
    // SAFETY: `name` ends with a NUL and outlives the call.
    check(unsafe { libc::inotify_add_watch(instance.as_raw_fd(), name.as_ptr().cast(), libc::IN_OPEN) })?;
    Ok(instance)
}
