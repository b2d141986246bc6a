//! Listener for gdb: a Unix socket or a TCP port.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gdb::Stream;

use crate::private_socket::PrivateSocket;

/// Address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugAddress {
    /// Path of a Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for DebugAddress {
    type Err = &'static str;

    /// Parses `HOST:PORT`, or else a path. A path with a colon needs a slash.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("expected PATH or HOST:PORT");
        }
        match text.rsplit_once(':') {
            Some((_, port)) if !text.contains('/') => match port.parse::<u16>() {
                Ok(_) => Ok(Self::Tcp(text.to_owned())),
                Err(_) => Err("expected PATH or HOST:PORT, with a port from 0 to 65535"),
            },
            _ => Ok(Self::Unix(text.into())),
        }
    }
}

/// Reason why the debugger cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket cannot be created.
    #[error("cannot listen for gdb at {path:?}; name another path")]
    Unix {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// Another process listens, or the file is no socket.
    #[error(
        "cannot listen for gdb at {0:?}: the file is in use, or is no socket; remove it or name another path"
    )]
    InUse(PathBuf),
    /// The port cannot be opened.
    #[error("cannot listen for gdb at {address}; name an address of this host and a free port")]
    Tcp {
        /// Host and port.
        address: String,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The host is a name.
    #[error("cannot listen for gdb at {0}: the host is a name; use its IP address, or localhost")]
    Name(String),
    /// Other hosts could debug the VM.
    #[error(
        "cannot listen for gdb at {0}: hosts that reach this address would control the VM; use 127.0.0.1 or a Unix socket, or permit it"
    )]
    Public(String),
}

/// Listener for gdb. Dropping it removes the file of its socket.
#[derive(Debug)]
pub enum DebugListener {
    /// Unix socket.
    Unix(PrivateSocket),
    /// TCP port.
    Tcp(TcpListener),
}

impl DebugListener {
    /// Listens at `address`: on a Unix socket for this user alone, or on a port, which only programs of this host reach unless
    /// `is_public`.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind(address: &DebugAddress, is_public: bool) -> Result<Self, ListenError> {
        match address {
            DebugAddress::Unix(path) => bind_unix(path).map(Self::Unix),
            DebugAddress::Tcp(address) => bind_tcp(address, is_public).map(Self::Tcp),
        }
    }

    /// Accepts a pending debugger.
    ///
    /// # Errors
    /// Those of the kernel.
    #[allow(clippy::disallowed_methods, reason = "the listener does not block")]
    pub(super) fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(socket) => socket.accept().map(Connection::Unix),
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Connection::Tcp(stream)),
        }
    }
}

/// The address at which gdb on this host attaches.
impl fmt::Display for DebugListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(socket) => socket.path().display().fmt(f),
            // The kernel has chosen the port for port 0.
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) if address.ip() == Ipv4Addr::LOCALHOST || address.ip().is_unspecified() => {
                    write!(f, ":{}", address.port())
                }
                Ok(address) => address.fmt(f),
                Err(_) => Ok(()),
            },
        }
    }
}

fn bind_unix(path: &Path) -> Result<PrivateSocket, ListenError> {
    PrivateSocket::bind(path).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => ListenError::InUse(path.to_owned()),
        _ => ListenError::Unix {
            path: path.to_owned(),
            source,
        },
    })
}

fn bind_tcp(address: &str, is_public: bool) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp {
        address: address.to_owned(),
        source,
    };
    // Without a name server, whose client in the C library is larger than the debugger.
    let number = match address.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    };
    let parsed = number.parse::<SocketAddr>();
    let socket = parsed.map_err(|_| ListenError::Name(address.to_owned()))?;
    if !is_public && !socket.ip().is_loopback() {
        return Err(ListenError::Public(address.to_owned()));
    }
    let listener = TcpListener::bind(socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl AsRawFd for DebugListener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(socket) => socket.as_raw_fd(),
            Self::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

/// Connection to gdb.
#[derive(Debug)]
pub enum Connection {
    /// Unix socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}

impl Stream for &Connection {
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Unix(stream) => (&mut &*stream).read(bytes),
            Connection::Tcp(stream) => (&mut &*stream).read(bytes),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Connection::Unix(stream) => (&mut &*stream).write_all(bytes),
            Connection::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DebugAddress, DebugListener};

    #[test]
    fn listener_shows_address_for_gdb() {
        for (address, shown) in [
            ("127.0.0.1:0", ":"),
            ("localhost:0", ":"),
            ("0.0.0.0:0", ":"),
            ("127.0.0.2:0", "127.0.0.2:"),
        ] {
            let listener = DebugListener::bind(&DebugAddress::Tcp(address.into()), true).unwrap();
            let DebugListener::Tcp(socket) = &listener else {
                panic!("{listener:?}")
            };
            let port = socket.local_addr().unwrap().port();
            assert_eq!(listener.to_string(), format!("{shown}{port}"));
        }
    }
}
