//! A request to the API, and the interpretation of its response.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use api::client::{self, Client, ClientResponse};
use serde_json::Value;

use super::args::RequestBody;
use crate::printable::printable;
use crate::terminal;

/// Maximum body read from stdin, in bytes.
pub(super) const MAX_STDIN: u64 = 16 << 20;

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no response.
    #[error(transparent)]
    Client(client::Error),
    /// The server rejects the request and gives a reason.
    #[error("{request} was rejected: {reason}")]
    Rejected {
        /// Method and path.
        request: String,
        /// Reason in the response.
        reason: String,
    },
    /// The server rejects the request without a reason.
    #[error(
        "cannot use the response to {request}: status {status} without a reason; check that the socket is that of mayfly or \
         Firecracker"
    )]
    Status {
        /// Method and path.
        request: String,
        /// Status code.
        status: u16,
    },
    /// The response is not JSON.
    #[error("cannot read the response to {request} as JSON; run with --json to print it unchanged")]
    Json {
        /// Method and path.
        request: String,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
    /// An instance of a supervisor does not change to the requested state.
    #[error("cannot {change} {id}: it is {state}: {reason}; see mayfly ctl instance {id}")]
    State {
        /// The requested change.
        change: &'static str,
        /// Identifier of the instance.
        id: String,
        /// Its state.
        state: String,
        /// Reason of the state.
        reason: String,
    },
    /// An instance of a supervisor is not in the requested state in time.
    #[error("cannot await the {change} of {id} within {} s: it is {state}: {reason}; raise --timeout", timeout.as_secs_f64())]
    Late {
        /// The requested change.
        change: &'static str,
        /// Identifier of the instance.
        id: String,
        /// Its state.
        state: String,
        /// Reason of the state.
        reason: String,
        /// Limit of the wait.
        timeout: Duration,
    },
    /// Clients cannot attach to the console.
    #[error(
        "cannot attach to the serial console: it is connected with {0}; start the VM with --serial unix:PATH or --serial pty"
    )]
    NoConsole(String),
    /// The connection to the console has failed.
    #[error("cannot use the serial console at {}; name the socket of --serial unix:PATH, or a pseudoterminal", path.display())]
    Console {
        /// Path of the socket or terminal.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The terminal of the user cannot be used.
    #[error("cannot attach this terminal to the console; redirect stdin")]
    Terminal(#[source] Box<terminal::Error>),
    /// The output cannot be printed.
    #[error("cannot write the output of the console to stdout")]
    Stdout(#[source] io::Error),
    /// The connection of a debugger has failed.
    #[error("cannot {operation} for gdb")]
    Gdb {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The body cannot be read.
    #[error("cannot read the request body from stdin")]
    Stdin(#[source] io::Error),
    /// The body is longer than any server accepts.
    #[error("cannot send the request body on stdin: it has more than {0} bytes; check the file")]
    Large(u64),
}

impl Error {
    /// Returns true if the server rejects the request.
    pub(super) fn is_rejection(&self) -> bool {
        matches!(self, Self::Rejected { .. } | Self::Status { .. })
    }
}

/// A request to the API.
pub(super) struct Request {
    method: String,
    path: String,
    body: Option<Vec<u8>>,
}

impl Request {
    pub(super) fn new(method: &str, path: &str, body: Option<Vec<u8>>) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            body,
        }
    }

    pub(super) fn get(path: &str) -> Self {
        Self::new("GET", path, None)
    }

    pub(super) fn put(path: &str, body: &Value) -> Self {
        Self::new("PUT", path, Some(body.to_string().into_bytes()))
    }

    pub(super) fn patch(path: &str, body: &Value) -> Self {
        Self::new("PATCH", path, Some(body.to_string().into_bytes()))
    }

    /// Sends the request and returns the body of a successful response.
    pub(super) fn send(&self, client: &Client) -> Result<Vec<u8>, Error> {
        let response = client.request(&self.method, &self.path, self.body.as_deref());
        let response = response.map_err(Error::Client)?;
        if response.is_success() {
            return Ok(response.body);
        }
        Err(match rejection(&response) {
            Some(reason) => Error::Rejected {
                request: self.name(),
                reason,
            },
            None => Error::Status {
                request: self.name(),
                status: response.status,
            },
        })
    }

    /// Sends the request and returns the body of a successful response as JSON.
    pub(super) fn json(&self, client: &Client) -> Result<Value, Error> {
        serde_json::from_slice(&self.send(client)?).map_err(|source| Error::Json {
            request: self.name(),
            source,
        })
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Returns the reason in the body of a rejection. Firecracker reports errors of its HTTP server under the second key.
pub(super) fn rejection(response: &ClientResponse) -> Option<String> {
    let body: Value = serde_json::from_slice(&response.body).ok()?;
    let text = ["fault_message", "error"]
        .iter()
        .find_map(|key| body[key].as_str())?;
    // Firecracker quotes parsers, whose messages have several lines.
    Some(printable(&text.trim_end().replace('\n', " ")))
}

/// Encodes `id` as one segment of a path, RFC 3986 section 3.3.
pub(super) fn encode_segment(id: &str) -> String {
    let mut segment = String::new();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

/// Returns the bytes of `body`, which may be on `stdin`.
pub(super) fn read_body(body: &RequestBody, stdin: &mut dyn Read) -> Result<Option<Vec<u8>>, Error> {
    match body {
        RequestBody::None => Ok(None),
        RequestBody::Text(text) => Ok(Some(text.as_bytes().to_vec())),
        RequestBody::Stdin => {
            let mut bytes = Vec::new();
            let read = stdin.take(MAX_STDIN + 1).read_to_end(&mut bytes);
            if read.map_err(Error::Stdin)? as u64 > MAX_STDIN {
                return Err(Error::Large(MAX_STDIN));
            }
            Ok(Some(bytes))
        }
    }
}
