//! Why bytes of a client are no request that the server takes.

use std::error::Error as _;

/// What is wrong. The client reads these texts.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("The {part} of the request is longer than the {limit} bytes allowed by server.")]
    Long { part: &'static str, limit: usize },
    #[error("A line of the request does not end with a carriage return and a line feed.")]
    LineEnd,
    #[error("The head of the request is not UTF-8.")]
    NotText,
    #[error("The head of the request is not HTTP/1.1")]
    Head(#[source] httparse::Error),
    #[error("Invalid Content-Length: {0:?} is not a number of bytes.")]
    ContentLength(String),
    #[error("The length of the body is given twice, and differently; send Content-Length or chunks.")]
    Conflict,
    #[error(
        "Transfer-Encoding {0:?} is not supported; send chunks, or Content-Length and the body as it is."
    )]
    TransferEncoding(String),
    #[error(
        "Invalid path {0:?}: after each % come two hexadecimal digits, and together they are UTF-8 text."
    )]
    Path(String),
    #[error("Invalid chunk of a body: {0:?}.")]
    Chunk(String),
    // Firecracker's words, without an end to them as it has none.
    #[error(
        "Request payload with size {size} is larger than the limit of {limit} allowed by server.\n\
         All previous unanswered requests will be dropped."
    )]
    Large { size: u64, limit: usize },
    #[error("The request ends before its head or its body does.")]
    Cut,
}

impl RequestError {
    /// All that is known of it, in one text.
    pub(super) fn text(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}."),
            None => self.to_string(),
        }
    }
}
