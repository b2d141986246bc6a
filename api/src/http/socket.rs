//! File of the API socket.
//!
//! Some clients send one request as soon as the path exists, without a retry. bind(2) creates the path before listen(2)
//! accepts connections. Therefore the socket is bound under a temporary name, and link(2) gives it the final name.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use vmm::control::{SocketFile, is_live};

use super::holder::Holder;

/// Maximum length of a path in `sockaddr_un` in bytes, without the terminating NUL (unix(7)).
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// Maximum number of temporary names to try. Left-over files of killed processes may occupy some.
const ATTEMPTS: u32 = 64;

/// Number and interval of attempts to lock the directory.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// `None` for a socket whose creator removes the file.
    _file: Option<SocketFile>,
}

impl Socket {
    /// Listens at `path`. A client that finds the path can always connect.
    ///
    /// # Errors
    /// All variants but [`Error::Events`] and [`Error::Inherited`].
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::Long {
                path: path.to_owned(),
                length,
            });
        }
        let (listener, hidden) = listen(path)?;
        let linked = fs::symlink_metadata(&hidden)
            .map_err(|source| Error::at(path, "inspect", source))
            .and_then(|metadata| link_socket(&hidden, path).map(|()| SocketFile::new(path, &metadata)));
        // After a rename the name is gone. If the removal fails, later processes skip the name.
        let _ = fs::remove_file(&hidden);
        let socket = Self {
            listener,
            _file: Some(linked?),
        };
        socket
            .listener
            .set_nonblocking(true)
            .map_err(|source| Error::at(path, "configure", source))?;
        Ok(socket)
    }

    /// Uses the listening socket of another process, which removes its file.
    ///
    /// # Errors
    /// [`Error::Inherited`]
    pub fn inherited(listener: UnixListener) -> Result<Self, Error> {
        listener.set_nonblocking(true).map_err(Error::Inherited)?;
        Ok(Self {
            listener,
            _file: None,
        })
    }

    /// Accepts a pending client.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] without a pending client, and other errors of the kernel.
    #[allow(clippy::disallowed_methods, reason = "the listener does not block")]
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// Duplicates the descriptor of the socket.
    pub(super) fn spare(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

/// Listens under a temporary name in the directory of `path`.
fn listen(path: &Path) -> Result<(UnixListener, PathBuf), Error> {
    for hidden in names(path) {
        match UnixListener::bind(&hidden) {
            Ok(listener) => return Ok((listener, hidden)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(Error::at(path, "create", error)),
        }
    }
    let error = ErrorKind::AddrInUse.into();
    Err(Error::at(path, "find a temporary name for", error))
}

/// Returns temporary names in the directory of `path` that other processes are unlikely to use.
fn names(path: &Path) -> impl Iterator<Item = PathBuf> {
    let directory = path.parent().unwrap_or(Path::new(""));
    // Length that the directory leaves in an address; at least 1, because `path` fits.
    let room = (MAX_SOCKET_PATH + 1).saturating_sub(directory.join("x").as_os_str().len());
    let first = process::id().wrapping_mul(ATTEMPTS);
    let names = (0..ATTEMPTS).map(move |attempt| {
        // The bits that differ come first, so that truncated names differ too.
        let mut name = format!("{:08x}-mayfly", first.wrapping_add(attempt).reverse_bits());
        name.truncate(room);
        directory.join(name)
    });
    names.filter(move |name| name != path)
}

/// Renames `hidden` to `path`. Replaces a socket there, unless a process listens on it.
fn link_socket(hidden: &Path, path: &Path) -> Result<(), Error> {
    let failed = |outcome: io::Result<()>| outcome.map_err(|source| Error::at(path, "link", source));
    match link_or_rename(hidden, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        outcome => return failed(outcome),
    }
    // Two processes that find the same stale socket must not remove the new socket of each other.
    let _lock = lock(path);
    remove_stale(path)?;
    match link_or_rename(hidden, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Error::in_use(path)),
        outcome => failed(outcome),
    }
}

/// Renames `hidden` to `path`, unless that exists.
fn link_or_rename(hidden: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(hidden, path) {
        // Without hard links in the file system: rename(2) is also atomic, but would replace an existing file.
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

/// Locks the directory of `path` against other mayfly processes until the result is dropped.
///
/// Other processes hold the lock for microseconds, so a longer wait is useless. Returns `None` after that time, for a
/// file system without locks, and for a directory that this user may not read.
fn lock(path: &Path) -> Option<File> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    let file = File::open(directory.unwrap_or(Path::new("."))).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Removes a socket without a listener from `path`.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(Error::NotSocket(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::at(path, "inspect", error)),
    }
    if is_live(path).map_err(|source| Error::at(path, "probe", source))? {
        return Err(Error::in_use(path));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::at(path, "replace", error)),
        _ => Ok(()),
    }
}

/// Failure to start the server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process listens at the path. Firecracker's sentences, and the process.
    #[error(
        "Failed to open the API socket at: {}. Check that it is not already used.{}",
        path.display(),
        holder.as_ref().map(|holder| format!(" It belongs to {holder}; end it or choose another path")).unwrap_or_default()
    )]
    InUse {
        /// Path of the socket.
        path: PathBuf,
        /// Process that listens, if it can be found.
        holder: Option<Holder>,
    },
    /// The file at the path is no socket.
    #[error("cannot create the socket {0:?}: another file exists; remove it or choose another path")]
    NotSocket(PathBuf),
    /// The path does not fit into a socket address.
    #[error(
        "cannot create the socket {path:?}: the path has {length} bytes; choose one of at most {MAX_SOCKET_PATH}"
    )]
    Long {
        /// Path.
        path: PathBuf,
        /// Length in bytes.
        length: usize,
    },
    /// The directory does not exist.
    #[error("cannot create the socket {0:?}: the directory does not exist; create it or choose another path")]
    NoDirectory(PathBuf),
    /// This user lacks a permission.
    #[error(
        "cannot {operation} the socket {path:?}: no permission; make the directory writable for this user, or \
         choose another path"
    )]
    Denied {
        /// Path of the socket.
        path: PathBuf,
        /// Operation without permission.
        operation: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The kernel rejected an operation.
    #[error("cannot {operation} the socket {path:?}; choose another path")]
    System {
        /// Path of the socket.
        path: PathBuf,
        /// Rejected operation.
        operation: &'static str,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The inherited socket cannot be used.
    #[error("cannot use the inherited API socket")]
    Inherited(#[source] io::Error),
    /// The socket cannot be watched.
    #[error("cannot watch the API socket")]
    Events(#[source] io::Error),
}

impl Error {
    fn in_use(path: &Path) -> Self {
        Self::InUse {
            path: path.to_owned(),
            holder: Holder::at(path),
        }
    }

    /// Converts `source`, the failure of `operation` on the socket at `path`.
    pub(super) fn at(path: &Path, operation: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoDirectory(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied {
                path,
                operation,
                source,
            },
            _ => Self::System {
                path,
                operation,
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests;
