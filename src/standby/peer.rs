//! Users whose connections are served.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Returns true if the process at the other end of `stream` belongs to the user of this process or to root. The mode of the
/// socket's file restricts connections only until another user gets access to it.
pub fn is_permitted(stream: &UnixStream) -> bool {
    // SAFETY: the call takes no pointer and cannot fail.
    let own = unsafe { libc::geteuid() };
    user(stream).is_ok_and(|user| user == 0 || user == own)
}

/// Returns the user that had connected `stream`.
fn user(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).unwrap_or_default();
    // SAFETY: `peer` is valid for writes of `length` bytes, and all bytes are valid in it.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(peer.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{is_permitted, user};

    #[test]
    fn own_user_is_permitted() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        // SAFETY: the call takes no pointer and cannot fail.
        assert_eq!(user(&stream).unwrap(), unsafe { libc::geteuid() });
        assert!(is_permitted(&stream));
    }
}
