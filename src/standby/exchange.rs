//! Request to the API of an instance's process, without blocking.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use api::client::{ClientResponse, Error as ClientError, NonblockingRequest};
use serde_json::Value;
use vmm::ErrorChain;

use super::sys;

/// Maximum length of the body of a response in bytes.
const MAX_BODY: usize = 64 << 10;

/// Path of the suspend in the API of a process.
const SCALE_TO_ZERO: &str = "/scale-to-zero";

/// Subject of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Learn that the guest runs: the process answers after the load.
    Ready,
    /// Suspend the guest.
    Suspend,
    /// Cancel a suspend.
    Cancel,
    /// Learn if the guest is still being suspended.
    State,
}

impl Purpose {
    /// Returns method, target and body of the request.
    fn request(self) -> (&'static str, &'static str, Option<&'static [u8]>) {
        match self {
            Self::Ready => ("GET", "/", None),
            Self::State => ("GET", SCALE_TO_ZERO, None),
            Self::Suspend => ("PATCH", SCALE_TO_ZERO, Some(b"{\"action\":\"Suspend\"}")),
            Self::Cancel => ("PATCH", SCALE_TO_ZERO, Some(b"{\"action\":\"Cancel\"}")),
        }
    }
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The process has executed it. The body of the response, null without one.
    Accepted(Value),
    /// The process has rejected it with this reason, or its response is invalid.
    Rejected(String),
    /// The process has closed the connection: it has ended, or ends.
    Closed,
}

/// A request in progress.
#[derive(Debug)]
pub struct Exchange {
    /// Subject of the request.
    pub purpose: Purpose,
    request: NonblockingRequest,
}

impl Exchange {
    /// Connects to the socket at `path` and sends a request.
    ///
    /// # Errors
    /// Fails if no process listens.
    pub fn begin(path: &Path, purpose: Purpose) -> io::Result<Self> {
        let stream = sys::connect(path)?;
        let request = NonblockingRequest::send(stream, path, purpose.request(), MAX_BODY);
        Ok(Self {
            purpose,
            request: request.map_err(io::Error::other)?,
        })
    }

    /// Reads the response as far as it has arrived. Returns the result once it is complete.
    pub fn receive(&mut self) -> Option<Outcome> {
        Some(match self.request.receive()? {
            Ok(response) => evaluate(&response),
            Err(ClientError::Closed(_)) => Outcome::Closed,
            Err(error) => Outcome::Rejected(ErrorChain(&error).to_string()),
        })
    }
}

impl AsRawFd for Exchange {
    fn as_raw_fd(&self) -> RawFd {
        self.request.as_raw_fd()
    }
}

fn evaluate(response: &ClientResponse) -> Outcome {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    if response.is_success() {
        return Outcome::Accepted(body);
    }
    let reason = body["fault_message"].as_str();
    Outcome::Rejected(reason.unwrap_or("its response has no reason").to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::{Exchange, Outcome, Purpose};

    /// Returns the result of a request whose server sends `parts`.
    fn exchange(purpose: Purpose, parts: &[&str]) -> (String, Option<Outcome>) {
        let directory = scratch::Directory::new();
        let listener = UnixListener::bind(directory.path("s")).unwrap();
        let mut exchange = Exchange::begin(&directory.path("s"), purpose).unwrap();
        let mut server = scratch::accept(&listener);
        assert_eq!(exchange.receive(), None);
        let mut request = [0; 512];
        let length = server.read(&mut request).unwrap();
        let mut result = None;
        for part in parts {
            assert_eq!(result, None);
            server.write_all(part.as_bytes()).unwrap();
            // SAFETY: the exchange has the descriptor open.
            let descriptor = unsafe { BorrowedFd::borrow_raw(exchange.as_raw_fd()) };
            scratch::await_readable(descriptor).unwrap();
            result = exchange.receive();
        }
        (String::from_utf8_lossy(&request[..length]).into_owned(), result)
    }

    #[test]
    fn response_is_evaluated_once_it_is_complete() {
        let parts = ["HTTP/1.1 200 \r\nContent-Len", "gth: 7\r\n\r\n{\"a\":", "1}"];
        let (request, result) = exchange(Purpose::Ready, &parts);
        assert!(request.starts_with("GET / HTTP/1.1\r\n"));
        assert_eq!(result, Some(Outcome::Accepted(json!({"a": 1}))));
        let (request, result) = exchange(Purpose::Suspend, &["HTTP/1.1 204 \r\n\r\n"]);
        assert!(request.ends_with("\r\n\r\n{\"action\":\"Suspend\"}"), "{request}");
        assert_eq!(result, Some(Outcome::Accepted(Value::Null)));
    }

    #[test]
    fn rejection_has_its_reason() {
        let body = r#"{"fault_message":"no"}"#;
        let response = format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let rejected = Outcome::Rejected("no".into());
        assert_eq!(exchange(Purpose::Cancel, &[&response]).1, Some(rejected));
    }

    #[test]
    fn ended_process_closes_the_connection() {
        for is_read in [false, true] {
            let directory = scratch::Directory::new();
            let listener = UnixListener::bind(directory.path("s")).unwrap();
            let mut exchange = Exchange::begin(&directory.path("s"), Purpose::Ready).unwrap();
            let mut server = scratch::accept(&listener);
            if is_read {
                let _ = server.read(&mut [0; 512]).unwrap();
            }
            drop(server);
            // Not at once: a child that another test starts keeps the connection open until its `execve`.
            let outcome = scratch::wait_for("the end of the connection", || exchange.receive());
            assert_eq!(outcome, Outcome::Closed, "{is_read}");
        }
    }

    #[test]
    fn missing_process_is_an_error() {
        let directory = scratch::Directory::new();
        Exchange::begin(&directory.path("s"), Purpose::Ready).unwrap_err();
    }
}
