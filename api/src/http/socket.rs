//! The file by which clients find the server.
//!
//! Some clients send their first request the moment the path appears, and never again. bind(2) makes it appear before
//! listen(2) makes it answer; so both are done under another name, and link(2) gives the socket its own.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use super::error::Error;

/// Bytes of a path in `sockaddr_un`, its final zero not counted.
const MAX_SOCKET_PATH: usize = 107;

/// Names that are tried before giving up, as each may be taken by what another process left.
const ATTEMPTS: u32 = 64;

/// How often, and how long, a lock that another process has is waited for.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// A socket that listens, and its file, which goes when this goes.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A client that finds the path is never refused.
    ///
    /// # Errors
    /// All but [`Error::Events`].
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::Long {
                path: path.to_owned(),
                length,
            });
        }
        let (listener, hidden) = listen(path)?;
        let published = fs::symlink_metadata(&hidden)
            .map_err(|source| Error::at(path, "look at its file", source))
            .and_then(|metadata| link_socket(&hidden, path).map(|()| identity(&metadata)));
        // After a rename it is gone already; one that stays is an empty name that the next process passes by.
        let _ = fs::remove_file(&hidden);
        let socket = Self {
            listener,
            path: path.to_owned(),
            identity: published?,
        };
        socket
            .listener
            .set_nonblocking(true)
            .map_err(|source| Error::at(path, "make it non-blocking", source))?;
        Ok(socket)
    }

    /// Takes a client, if one waits.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if none waits, and the kernel's others.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// Another descriptor for the socket.
    pub(super) fn spare(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Socket {
    /// Removes the file, unless somebody else has put another in its place.
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Listens under a name of its own in the folder of `path`.
fn listen(path: &Path) -> Result<(UnixListener, PathBuf), Error> {
    for hidden in names(path) {
        match UnixListener::bind(&hidden) {
            Ok(listener) => return Ok((listener, hidden)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(Error::at(path, "create it", error)),
        }
    }
    let error = ErrorKind::AddrInUse.into();
    Err(Error::at(path, "find a free name in its folder", error))
}

/// Names in the folder of `path` that no other process is likely to use.
fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    // What the folder leaves of an address; as `path` fits into one, that is at least one letter.
    let room = (MAX_SOCKET_PATH + 1).saturating_sub(folder.join("x").as_os_str().len());
    let first = process::id().wrapping_mul(ATTEMPTS);
    let names = (0..ATTEMPTS).map(move |attempt| {
        // The bits that differ come first, so that names cut short differ as well.
        let mut name = format!("{:08x}-mayfly", first.wrapping_add(attempt).reverse_bits());
        name.truncate(room);
        folder.join(name)
    });
    names.filter(move |name| name != path)
}

/// Gives what is at `hidden` the name `path`, which nobody may be listening at.
fn link_socket(hidden: &Path, path: &Path) -> Result<(), Error> {
    let named =
        |outcome: io::Result<()>| outcome.map_err(|source| Error::at(path, "give it its name", source));
    match name(hidden, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        outcome => return named(outcome),
    }
    // Two processes that both find the same stale socket must not take away each other's new one.
    let _lock = lock(path);
    remove_stale(path)?;
    match name(hidden, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::InUse(path.to_owned())),
        outcome => named(outcome),
    }
}

/// Renames what is at `hidden` unless there is something at `path`.
fn name(hidden: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(hidden, path) {
        // A file system without links: rename(2) is as sudden, but takes the place of what is there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
            rename(hidden, path)
        }
        outcome => outcome,
    }
}

fn rename(hidden: &Path, path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    fs::rename(hidden, path)
}

/// Keeps others like this one from taking sockets away in the folder of `path`, as long as what it returns lives.
///
/// They hold it for microseconds, so that there is nothing left to wait for if one has it much longer than that; nor if
/// the file system has no locks, or this user may not read the folder.
fn lock(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = File::open(folder.unwrap_or(Path::new("."))).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Takes a socket at which nobody listens away from `path`.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(Error::NotSocket(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::at(path, "look at what is there", error)),
    }
    if is_live(path)? {
        return Err(Error::InUse(path.to_owned()));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::at(path, "take the stale socket away", error))
        }
        _ => Ok(()),
    }
}

/// Whether a process has the socket at `path` open.
///
/// Connecting for good would block while its queue is full, and be a connection to serve. A datagram socket is refused
/// at once, and differently: for its type if there is somebody, as a connection if there is nobody.
fn is_live(path: &Path) -> Result<bool, Error> {
    let connected = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    match connected {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(Error::at(path, "find out who listens", error)),
    }
}

#[cfg(test)]
mod tests;
