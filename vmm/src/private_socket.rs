//! Unix sockets for this user alone.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{self, Path, PathBuf};
use std::sync::Mutex;

use devices::lock;

use crate::system_call::check;

/// Permissions of the file of a socket.
const MODE: u32 = 0o600;

/// Connections that wait until they are accepted.
const BACKLOG: libc::c_int = 16;

/// Paths of the files that this process removes.
static PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Listening stream socket whose file only this user can open. It does not block. Dropping it removes the file.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// File of a socket. Dropping it removes the file, unless another one has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Owns the file at `path`, which has `metadata`.
    pub fn new(path: &Path, metadata: &Metadata) -> Self {
        // The working directory may change.
        let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
        lock(&PATHS).push(path.clone());
        Self {
            path,
            identity: identity(metadata),
        }
    }
}

/// Returns the paths of all [`SocketFile`]s of this process.
pub fn paths() -> Vec<PathBuf> {
    lock(&PATHS).clone()
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        let mut paths = lock(&PATHS);
        if let Some(index) = paths.iter().position(|path| *path == self.path) {
            paths.swap_remove(index);
        }
    }
}

impl PrivateSocket {
    /// Listens at `path`. Replaces a socket there on which no process listens.
    ///
    /// # Errors
    /// [`ErrorKind::AddrInUse`] if a process listens at `path`, or the file there is no socket; other errors of the kernel.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = match listen(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path)
            }
            result => result,
        }?;
        Ok(Self {
            listener,
            file: SocketFile::new(path, &fs::symlink_metadata(path)?),
        })
    }

    /// Returns the absolute path of the file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Duplicates the listener, which does not block. The file stays with `self`.
    ///
    /// # Errors
    /// Fails at the limit of descriptors.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Accepts a pending client.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] without a pending client, and other errors of the kernel.
    #[allow(clippy::disallowed_methods, reason = "the listener does not block")]
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }
}

impl AsRawFd for PrivateSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Listens on a new socket with the permissions [`MODE`] from its creation on.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no pointer.
    let socket = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    let socket = File::from(unsafe { OwnedFd::from_raw_fd(socket) });
    // bind(2) gives the file the permissions of the socket. A umask would apply to all threads.
    socket.set_permissions(Permissions::from_mode(MODE))?;
    let (address, length) = address(path)?;
    // SAFETY: `address` is valid for reads of `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// Returns the address of `path` and its length in bytes, with the terminating NUL.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.is_empty() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the path has {} bytes, and a socket allows 1 to {}",
                bytes.len(),
                address.sun_path.len() - 1
            ),
        ));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let length = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
    Ok((address, length))
}

/// Removes a socket without a listener.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.file_type().is_socket() || is_live(path)? {
        return Err(ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}

/// Returns true if a process listens at `path`.
///
/// A stream would become a client, or wait while the queue is full. The kernel rejects a datagram socket immediately: with EPROTOTYPE
/// if a process listens, with ECONNREFUSED otherwise.
///
/// # Errors
/// Those of the kernel, such as the lack of a permission.
pub fn is_live(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound().and_then(|probe| probe.connect(path)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::PrivateSocket;

    #[test]
    fn socket_is_private_and_removes_its_file() {
        let directory = scratch::Directory::new();
        let path = directory.path("socket");
        let socket = PrivateSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(socket.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        socket.accept().unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn only_stale_sockets_are_replaced() {
        let directory = scratch::Directory::new();
        let path = directory.path("socket");
        let in_use = |path| PrivateSocket::bind(path).unwrap_err().kind() == ErrorKind::AddrInUse;
        fs::write(&path, "text").unwrap();
        assert!(in_use(&path));
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        assert!(in_use(&path));
        drop(other);
        // A child that another test starts keeps the listener until its `execve`.
        let socket = scratch::wait_for("the path", || match PrivateSocket::bind(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => None,
            result => Some(result.unwrap()),
        });
        // The file of another socket stays.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn long_path_is_rejected() {
        let directory = scratch::Directory::new();
        let error = PrivateSocket::bind(&directory.path(&"s".repeat(200))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("a socket allows 1 to 107"), "{error}");
    }
}
