//! Why there is no server.

use std::io;
use std::path::{Path, PathBuf};

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has the socket open.
    #[error("Failed to open the API socket at: {}. Check that it is not already used.", .0.display())]
    InUse(PathBuf),
    /// There is something that is no socket.
    #[error(
        "cannot put the API socket at {0:?}, where something else is; remove that or choose another path"
    )]
    NotSocket(PathBuf),
    /// The path does not fit into the address of a socket.
    #[error("the path of the API socket, {path:?}, has {length} bytes; choose one of at most 107")]
    Long {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The folder that it is to be in is not there.
    #[error("there is no folder for the API socket at {0:?}; make it or choose another path")]
    NoFolder(PathBuf),
    /// This user may not.
    #[error(
        "the API socket at {path:?}: no permission to {operation}; let this user write to its folder, or choose \
         another path"
    )]
    Denied {
        /// Path of the socket.
        path: PathBuf,
        /// What is not permitted.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the API socket at {path:?}: cannot {operation}; choose another path")]
    System {
        /// Path of the socket.
        path: PathBuf,
        /// What was refused.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be watched.
    #[error("cannot watch the API socket")]
    Events(#[source] io::Error),
}

impl Error {
    /// The error that `source` is when `operation` is done for the socket at `path`.
    pub(super) fn at(path: &Path, operation: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoFolder(path),
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
