//! Errors of serial consoles.

use std::io;
use std::path::PathBuf;

/// Failure to open a serial console.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file for the output cannot be opened.
    #[error("cannot open {} for the guest's serial output", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another process listens, or the file is no socket.
    #[error(
        "cannot listen for clients of the serial console at {0:?}: the file is in use, or is no socket; remove it or name another path"
    )]
    InUse(PathBuf),
    /// The socket cannot be created.
    #[error("cannot listen for clients of the serial console at {path:?}; name another path")]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The pseudoterminal cannot be created.
    #[error("cannot {operation} for the serial console; use a Unix socket instead")]
    Pty {
        /// Operation that failed.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The relay cannot start.
    #[error("cannot start the relay between the serial port and its clients")]
    Relay(#[source] io::Error),
}
