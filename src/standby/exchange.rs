//! Request to the API of an instance's process, without blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::sys;

/// Maximum length of a response in bytes.
const MAX_RESPONSE: usize = 64 << 10;

/// Reason without a response: the process has ended.
pub const CLOSED: &str = "it closed the connection";

/// Subject of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Learn that the guest runs: the process answers after the load.
    Ready,
    /// Suspend the guest.
    Suspend,
    /// Cancel a suspend.
    Cancel,
}

impl Purpose {
    fn request(self) -> Vec<u8> {
        let action = match self {
            Self::Ready => {
                return b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec();
            }
            Self::Suspend => "Suspend",
            Self::Cancel => "Cancel",
        };
        let body = format!("{{\"action\":\"{action}\"}}");
        let length = body.len();
        let head = "PATCH /scale-to-zero HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
        format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
    }
}

/// A request in progress.
#[derive(Debug)]
pub struct Exchange {
    /// The connection, readable when the response arrives.
    pub stream: UnixStream,
    /// Subject of the request.
    pub purpose: Purpose,
    received: Vec<u8>,
}

impl Exchange {
    /// Connects to the socket at `path` and sends a request.
    ///
    /// # Errors
    /// Fails if no process listens.
    pub fn begin(path: &Path, purpose: Purpose) -> io::Result<Self> {
        let mut stream = sys::connect(path)?;
        // An empty socket takes a request of this length at once.
        stream.write_all(&purpose.request())?;
        Ok(Self {
            stream,
            purpose,
            received: Vec::new(),
        })
    }

    /// Reads the response as far as it has arrived. Returns it once it is complete: nothing if the request is accepted, or the
    /// reason.
    pub fn receive(&mut self) -> Option<Result<(), String>> {
        let mut chunk = [0; 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    return Some(self.evaluate().unwrap_or_else(|| Err(CLOSED.into())));
                }
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.evaluate(),
                // The process has ended before it has read the request.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Some(Err(CLOSED.into())),
                Err(error) => return Some(Err(error.to_string())),
            }
            if self.received.len() > MAX_RESPONSE {
                return Some(Err("its response is too long".into()));
            }
        }
    }

    /// Evaluates the response if it is complete.
    fn evaluate(&self) -> Option<Result<(), String>> {
        let text = String::from_utf8_lossy(&self.received);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        });
        if body.len() < length.unwrap_or(0) {
            return None;
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        if matches!(status, Some(200..=299)) {
            return Some(Ok(()));
        }
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let reason = body["fault_message"]
            .as_str()
            .unwrap_or("its response has no reason");
        Some(Err(reason.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::{CLOSED, Exchange, Purpose};

    /// Returns the result of a request whose server sends `parts`.
    fn exchange(purpose: Purpose, parts: &[&str]) -> (String, Option<Result<(), String>>) {
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
            scratch::await_readable(exchange.stream.as_fd()).unwrap();
            result = exchange.receive();
        }
        (String::from_utf8_lossy(&request[..length]).into_owned(), result)
    }

    #[test]
    fn response_is_evaluated_once_it_is_complete() {
        let parts = ["HTTP/1.1 200 \r\nContent-Len", "gth: 5\r\n\r\n{\"a\"", "}"];
        let (request, result) = exchange(Purpose::Ready, &parts);
        assert!(request.starts_with("GET / HTTP/1.1\r\n"));
        assert_eq!(result, Some(Ok(())));
        let (request, result) = exchange(Purpose::Suspend, &["HTTP/1.1 204 \r\n\r\n"]);
        assert!(request.ends_with("\r\n\r\n{\"action\":\"Suspend\"}"), "{request}");
        assert_eq!(result, Some(Ok(())));
    }

    #[test]
    fn rejection_has_its_reason() {
        let body = r#"{"fault_message":"no"}"#;
        let response = format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(exchange(Purpose::Cancel, &[&response]).1, Some(Err("no".into())));
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
            assert_eq!(exchange.receive(), Some(Err(CLOSED.into())), "{is_read}");
        }
    }

    #[test]
    fn missing_process_is_an_error() {
        let directory = scratch::Directory::new();
        Exchange::begin(&directory.path("s"), Purpose::Ready).unwrap_err();
    }
}
