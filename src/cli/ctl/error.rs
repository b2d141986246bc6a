//! Why it is not done.

use std::io;

use api::client;

use super::metrics;

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no answer.
    #[error(transparent)]
    Client(client::Error),
    /// The server does not do it, and says why.
    #[error("refused: {0}")]
    Refused(String),
    /// The server does not do it and does not say why.
    #[error("the answer to {request} is the status {status}, without a reason: is it mayfly's API?")]
    Status {
        /// Method and path.
        request: String,
        /// The status code.
        status: u16,
    },
    /// An answer that cannot be shown.
    #[error("the answer to {request} is no JSON: is it mayfly's API? --json shows it as it came")]
    Json {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Numbers that cannot be shown.
    #[error("the metrics are not understood; --json shows them as they came")]
    Metrics(#[source] metrics::Error),
    /// The body cannot be read.
    #[error("cannot read the body from stdin")]
    Stdin(#[source] io::Error),
    /// The body is longer than any server takes.
    #[error("the body on stdin has more than {0} bytes: is it the right file?")]
    Large(u64),
}
