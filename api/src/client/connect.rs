//! The way to the server.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use super::Error;
use super::exchange::Deadline;

/// Bytes of a path in the address of a socket: `sun_path`, unix(7), without the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

/// Connects to the socket at `path`, in the time that `timer` leaves.
pub(super) fn connect(path: &Path, timer: &Deadline<'_>) -> Result<UnixStream, Error> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        return Err(Error::Long {
            path: path.to_owned(),
            length,
        });
    }
    // A server that accepts nobody has a queue in front of it, and connect(2) waits until there is room in that. So a
    // thread waits, and stays behind if need be: what it gets too late is closed at once.
    let (sender, receiver) = mpsc::sync_channel(1);
    let target = path.to_owned();
    let waiting = thread::Builder::new().name("connect".into()).spawn(move || {
        // The error is that nobody waits any more.
        let _ = sender.send(UnixStream::connect(target));
    });
    waiting.map_err(|source| Error::System {
        operation: "start a thread to connect to",
        path: path.to_owned(),
        source,
    })?;
    let connected = receiver
        .recv_timeout(timer.left()?)
        .map_err(|_| timer.silence())?;
    connected.map_err(|source| refused(path, source))
}

fn refused(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    let is_socket = |path: &Path| fs::metadata(path).map_or(true, |file| file.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing(path),
        // The same answer for what is no socket at all.
        io::ErrorKind::ConnectionRefused if is_socket(&path) => Error::Refused(path),
        io::ErrorKind::ConnectionRefused => Error::NotSocket(path),
        io::ErrorKind::PermissionDenied => Error::Denied { path, source },
        _ => Error::System {
            operation: "connect to",
            path,
            source,
        },
    }
}
