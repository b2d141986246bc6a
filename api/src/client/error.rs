//! Why there is no answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing at the path.
    #[error(
        "there is no API socket at {}: is mayfly running, and was it started with this path?",
        .0.display()
    )]
    Missing(PathBuf),
    /// The socket is a left-over.
    #[error(
        "nobody listens on {}: whoever made the socket has ended; start it again, or name the socket of one that runs",
        .0.display()
    )]
    Refused(PathBuf),
    /// Something else is there.
    #[error("{} is no socket; name the one that mayfly was started with", .0.display())]
    NotSocket(PathBuf),
    /// This user may not.
    #[error(
        "no permission to use the API socket at {}: be the user that mayfly runs as, or have the socket and its \
         folders opened to this one",
        path.display()
    )]
    Denied {
        /// Path of the socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path does not fit into the address of a socket.
    #[error("the path of the API socket, {path:?}, has {length} bytes; name it by one of at most 107")]
    Long {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Nothing, or not everything, came in time.
    #[error(
        "no answer from {} within {} s: the server is stopped or busy, or it serves no HTTP; wait longer or look at it",
        path.display(),
        patience.as_secs_f64()
    )]
    Silent {
        /// Path of the socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The server has gone.
    #[error("the server at {} closed the connection before its answer was complete: has it ended?", .0.display())]
    Closed(PathBuf),
    /// The kernel refused.
    #[error("cannot {operation} the API socket at {}", path.display())]
    System {
        /// What was refused.
        operation: &'static str,
        /// Path of the socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What came is no HTTP.
    #[error("what came from the server is no HTTP answer: is it the API socket?")]
    Head(#[source] httparse::Error),
    /// The answer says of its length what cannot be.
    #[error("the answer has a body of {0}, which is not understood: is it the API socket?")]
    Framing(String),
    /// More than anybody needs.
    #[error("the answer has more than {0} bytes, so that it is not read")]
    Large(usize),
    /// It would not be a request.
    #[error(
        "{0:?} cannot stand in a request: a method is a word, a path starts with / and has neither blanks nor \
         control characters"
    )]
    Request(String),
}
