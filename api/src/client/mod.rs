//! The other end of [`crate::http`]: asks a server on a unix socket, one request a connection.
//!
//! A [`Client`] never waits longer than it was told to and never takes more memory than an answer may have, whoever is
//! at the other end.

mod answer;
mod connect;
mod error;
mod exchange;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use answer::ClientResponse;
pub use error::Error;

/// Whoever asks the server on one socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the server whose socket is at `path`. `patience` is how long a request may take from the first
    /// attempt to connect to the last byte of the answer.
    pub fn new(path: impl Into<PathBuf>, patience: Duration) -> Self {
        Self {
            path: path.into(),
            patience,
        }
    }

    /// Sends a request and returns what it is answered with, whatever its status. `target` is a path, with a query
    /// where there is one, as it is to stand in the request line. `body` is a JSON text.
    ///
    /// # Errors
    /// [`Error`]; after [`Error::Silent`] and [`Error::Closed`] the request may have been done or not.
    pub fn request(&self, method: &str, target: &str, body: Option<&[u8]>) -> Result<ClientResponse, Error> {
        let request = exchange::request(method, target, body)?;
        let timer = exchange::Deadline::start(&self.path, self.patience);
        let stream = connect::connect(&self.path, &timer)?;
        exchange::Exchange::new(stream, timer).run(&request, method == "HEAD")
    }
}
