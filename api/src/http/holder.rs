//! The process that listens at the path of a socket.

use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Process that listens at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    id: u32,
    name: Option<String>,
}

impl Holder {
    /// Finds the process that listens at `path`. It sees a client that disconnects at once: the kernel knows the listener of a
    /// connection only. Returns `None` for a full queue, a socket of another type, and a process in another PID namespace.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let id = peer(&connect(path).ok()?).ok()?;
        let id = u32::try_from(id).ok().filter(|id| *id > 0)?;
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok();
        let name = name.map(|name| name.trim_end().escape_debug().to_string());
        Some(Self { id, name })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.id),
            None => write!(f, "process {}", self.id),
        }
    }
}

/// Connects to the stream socket at `path`. Fails instead of waiting for room in its queue.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: zeros are valid values of the integers and bytes of the structure.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: the descriptor is open, and `address` has `length` bytes and outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    match result {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the process at the other end of the connection `socket`, 0 if it is in another PID namespace.
fn peer(socket: &OwnedFd) -> io::Result<libc::pid_t> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or_default();
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes to `peer`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(peer.pid),
        _ => Err(io::Error::last_os_error()),
    }
}
