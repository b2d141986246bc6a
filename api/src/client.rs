//! HTTP client of a server on a Unix socket, with one request per connection.
//!
//! A [`Client`] limits the time of a request and the memory of a response, also with a faulty server. A [`NonblockingRequest`] does not
//! block; the caller limits its time.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use httparse::Status;

use crate::http::MAX_SOCKET_PATH;

/// Default path of the API socket, that of Firecracker.
pub const DEFAULT_SOCKET: &str = "/run/firecracker.socket";

/// Client of the server on one socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Creates a client of the server whose socket is at `path`. `timeout` limits a request, from the connection to
    /// the last byte of the response.
    pub fn new(path: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self {
            path: path.into(),
            timeout,
        }
    }

    /// Sends a request and returns the response with any status. `target` is a path with an optional query, as in the
    /// request line. `body` is a JSON text.
    ///
    /// # Errors
    /// All variants of [`Error`]; after [`Error::Silent`] and [`Error::Closed`] the request may be executed or not.
    pub fn request(&self, method: &str, target: &str, body: Option<&[u8]>) -> Result<ClientResponse, Error> {
        let request = encode_request(method, target, body)?;
        let deadline = Deadline::start(&self.path, self.timeout);
        let stream = connect(&self.path, &deadline)?;
        Exchange { stream, deadline }.run(&request, method == "HEAD")
    }
}

/// Response of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResponse {
    /// Status code: 101, or at least 200.
    pub status: u16,
    /// Body, empty if absent.
    pub body: Vec<u8>,
}

impl ClientResponse {
    /// Returns true for a status from 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Status of a response after which the connection has another protocol.
const SWITCH: u16 = 101;

/// Sends the request `PUT target` with `body` to the server at `path`, for a connection with `protocol`. Returns the response, and the
/// connection, which has this protocol if the status is 101. The server must not send before the client does.
///
/// # Errors
/// As [`Client::request`].
pub fn switch(
    path: &Path,
    timeout: Duration,
    protocol: &str,
    target: &str,
    body: &[u8],
) -> Result<(ClientResponse, UnixStream), Error> {
    let connection = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
    let request = encode_request_with(&connection, "PUT", target, Some(body))?;
    let deadline = Deadline::start(path, timeout);
    let stream = connect(path, &deadline)?;
    let mut exchange = Exchange { stream, deadline };
    let response = exchange.run(&request, false)?;
    let Exchange { stream, deadline } = exchange;
    stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(None))
        .map_err(|error| deadline.failed("configure", error))?;
    Ok((response, stream))
}

/// Connects to the socket at `path` within the `deadline`.
fn connect(path: &Path, deadline: &Deadline<'_>) -> Result<UnixStream, Error> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        return Err(Error::Long {
            path: path.to_owned(),
            length,
        });
    }
    // connect(2) blocks while the queue of a server that does not accept is full, and a Unix socket has no timeout for
    // it. The thread may outlive this function; a connection that comes too late is closed at once.
    let slot = Arc::new((Mutex::new(None), Condvar::new()));
    let (target, thread_slot) = (path.to_owned(), slot.clone());
    let waiting = thread::Builder::new().name("connect".into()).spawn(move || {
        let connected = UnixStream::connect(target);
        let (result, filled) = &*thread_slot;
        *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(connected);
        filled.notify_one();
    });
    waiting.map_err(|source| Error::System {
        operation: "start a thread to connect to",
        path: path.to_owned(),
        source,
    })?;
    let (result, filled) = &*slot;
    let empty = result.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = filled.wait_timeout_while(empty, deadline.remaining()?, |result| result.is_none());
    let mut waited = waited.unwrap_or_else(PoisonError::into_inner).0;
    let connected = waited.take().ok_or_else(|| deadline.timeout_error())?;
    connected.map_err(|source| connect_error(path, source))
}

fn connect_error(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    let is_socket = |path: &Path| fs::metadata(path).map_or(true, |file| file.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing(path),
        // The kernel has the same error for a file that is no socket.
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

/// Maximum length of the body of a response in bytes.
const MAX_BODY: usize = 16 << 20;
/// Size of one read in bytes.
const CHUNK_SIZE: usize = 16 << 10;

/// Limit for the time of a request.
struct Deadline<'a> {
    path: &'a Path,
    timeout: Duration,
    start: Instant,
}

impl<'a> Deadline<'a> {
    fn start(path: &'a Path, timeout: Duration) -> Self {
        Self {
            path,
            timeout,
            start: Instant::now(),
        }
    }

    /// Returns the remaining time, which is not zero.
    fn remaining(&self) -> Result<Duration, Error> {
        let remaining = self.timeout.saturating_sub(self.start.elapsed());
        if remaining.is_zero() {
            return Err(self.timeout_error());
        }
        Ok(remaining)
    }

    fn timeout_error(&self) -> Error {
        Error::Silent {
            path: self.path.to_owned(),
            timeout: self.timeout,
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        match source.kind() {
            // Errors of a socket at its timeout.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timeout_error(),
            _ => lost(self.path, operation, source),
        }
    }
}

/// Encodes a request.
fn encode_request(method: &str, target: &str, body: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    encode_request_with("Connection: close\r\n", method, target, body)
}

/// Encodes a request with the header lines `connection`.
fn encode_request_with(
    connection: &str,
    method: &str,
    target: &str,
    body: Option<&[u8]>,
) -> Result<Vec<u8>, Error> {
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(Error::Request(method.to_owned()));
    }
    if !target.starts_with('/') || target.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::Request(target.to_owned()));
    }
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{connection}");
    if let Some(body) = body {
        request.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body.unwrap_or_default());
    Ok(request)
}

/// Maximum length of the head of a response in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Maximum number of headers in a response. Servers send about five.
const HEADERS: usize = 64;

/// Delimitation of a body, RFC 9112 §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseFraming {
    Length(usize),
    UntilEnd,
}

/// Parser of the response to one request.
#[derive(Debug)]
struct ResponseParser {
    /// Received bytes that are not yet consumed.
    received: Vec<u8>,
    /// Status and framing of the final response, once its head is consumed.
    head: Option<(u16, ResponseFraming)>,
    /// The response has no body, as for HEAD.
    head_only: bool,
    /// Maximum length of the body in bytes.
    max_body: usize,
}

impl ResponseParser {
    fn new(head_only: bool, max_body: usize) -> Self {
        Self {
            received: Vec::new(),
            head: None,
            head_only,
            max_body,
        }
    }

    /// Adds received bytes. Returns the response once it is complete.
    ///
    /// # Errors
    /// [`Error::Head`], [`Error::Framing`] and [`Error::Large`].
    fn feed(&mut self, bytes: &[u8]) -> Result<Option<ClientResponse>, Error> {
        self.received.extend_from_slice(bytes);
        let Some((status, framing)) = self.parse_head()? else {
            return Ok(None);
        };
        match framing {
            ResponseFraming::Length(length) if self.received.len() < length => return Ok(None),
            ResponseFraming::Length(length) => self.received.truncate(length),
            ResponseFraming::UntilEnd if self.received.len() > self.max_body => {
                return Err(Error::Large(self.max_body));
            }
            ResponseFraming::UntilEnd => return Ok(None),
        }
        let body = std::mem::take(&mut self.received);
        Ok(Some(ClientResponse { status, body }))
    }

    /// Returns the response at the end of the connection, unless it is incomplete.
    fn finish(self) -> Option<ClientResponse> {
        match self.head? {
            (status, ResponseFraming::UntilEnd) => Some(ClientResponse {
                status,
                body: self.received,
            }),
            (_, ResponseFraming::Length(_)) => None,
        }
    }

    /// Returns the head of the final response, and consumes it and those of interim responses, as far as they are complete.
    fn parse_head(&mut self) -> Result<Option<(u16, ResponseFraming)>, Error> {
        while self.head.is_none() {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let parsed = response.parse(&self.received).map_err(Error::Head)?;
            let (Status::Complete(length), Some(status)) = (parsed, response.code) else {
                return match self.received.len() > MAX_HEAD {
                    true => Err(Error::Large(MAX_HEAD)),
                    false => Ok(None),
                };
            };
            let framing = framing(response.headers, self.max_body)?;
            self.received.drain(..length);
            // RFC 9110 §15.2: any number of interim responses precedes the final response.
            if status >= 200 || status == SWITCH {
                let is_empty = self.head_only || matches!(status, SWITCH | 204 | 304);
                let framing = if is_empty {
                    ResponseFraming::Length(0)
                } else {
                    framing
                };
                self.head = Some((status, framing));
            }
        }
        Ok(self.head)
    }
}

fn framing(headers: &[httparse::Header<'_>], max_body: usize) -> Result<ResponseFraming, Error> {
    let mut framing = ResponseFraming::UntilEnd;
    for header in headers {
        let value = String::from_utf8_lossy(header.value);
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Error::Framing(format!("transfer encoding {value:?}")));
        }
        if !header.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let digits = value.trim();
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let length: Option<usize> = plain.then(|| digits.parse().ok()).flatten();
        framing = match (length, &framing) {
            (Some(length), ResponseFraming::Length(other)) if length != *other => {
                return Err(Error::Framing(format!("{other} and of {length} bytes")));
            }
            (Some(length), _) if length > max_body => return Err(Error::Large(max_body)),
            (Some(length), _) => ResponseFraming::Length(length),
            (None, _) => return Err(Error::Framing(format!("{digits:?} bytes"))),
        };
    }
    Ok(framing)
}

/// Connection with a request in progress, which blocks until its deadline.
struct Exchange<'a> {
    stream: UnixStream,
    deadline: Deadline<'a>,
}

impl Exchange<'_> {
    /// Sends `request` and reads the response, without a body if `head_only` is true.
    fn run(&mut self, request: &[u8], head_only: bool) -> Result<ClientResponse, Error> {
        self.send(request)?;
        let mut parser = ResponseParser::new(head_only, MAX_BODY);
        let mut chunk = [0; CHUNK_SIZE];
        loop {
            let count = self.receive(&mut chunk)?;
            if count == 0 {
                let path = self.deadline.path.to_owned();
                return parser.finish().ok_or(Error::Closed(path));
            }
            if let Some(response) = parser.feed(&chunk[..count])? {
                return Ok(response);
            }
        }
    }

    fn send(&mut self, mut request: &[u8]) -> Result<(), Error> {
        while !request.is_empty() {
            let remaining = Some(self.deadline.remaining()?);
            let written = self
                .stream
                .set_write_timeout(remaining)
                .and_then(|()| self.stream.write(request));
            match written {
                Ok(count) => request = &request[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A server that rejects a request early does not read the rest, but has sent the response.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(self.deadline.failed("write to", error)),
            }
        }
        Ok(())
    }

    /// Waits for bytes and returns their number, 0 at the end.
    fn receive(&mut self, chunk: &mut [u8]) -> Result<usize, Error> {
        loop {
            let remaining = Some(self.deadline.remaining()?);
            let read = self
                .stream
                .set_read_timeout(remaining)
                .and_then(|()| self.stream.read(chunk));
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(|error| self.deadline.failed("read from", error)),
            }
        }
    }
}

/// Request whose response is awaited without blocking, by the event loop of the caller.
#[derive(Debug)]
pub struct NonblockingRequest {
    stream: UnixStream,
    path: PathBuf,
    /// None after the response.
    parser: Option<ResponseParser>,
}

impl NonblockingRequest {
    /// Sends a request on `stream`, a new non-blocking connection to the socket at `path`. `method`, `target` and `body` are those of
    /// [`Client::request`]; together they must fit into the empty queue of the socket. `max_body` limits the body of the response in
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Request`], [`Error::Closed`] and [`Error::System`].
    pub fn send(
        mut stream: UnixStream,
        path: &Path,
        (method, target, body): (&str, &str, Option<&[u8]>),
        max_body: usize,
    ) -> Result<Self, Error> {
        let request = encode_request(method, target, body)?;
        let sent = stream.write_all(&request);
        sent.map_err(|source| lost(path, "write to", source))?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            parser: Some(ResponseParser::new(method == "HEAD", max_body)),
        })
    }

    /// Reads the response as far as it has arrived. Returns it, with any status, once it is complete. Call it when the descriptor is
    /// readable; after a result it returns nothing.
    pub fn receive(&mut self) -> Option<Result<ClientResponse, Error>> {
        let result = self.read_response().transpose()?;
        self.parser = None;
        Some(result)
    }

    fn read_response(&mut self) -> Result<Option<ClientResponse>, Error> {
        let mut chunk = [0; 1024];
        while let Some(parser) = &mut self.parser {
            let response = match self.stream.read(&mut chunk) {
                Ok(0) => {
                    let response = self.parser.take().and_then(ResponseParser::finish);
                    return response.map(Some).ok_or_else(|| Error::Closed(self.path.clone()));
                }
                Ok(count) => parser.feed(&chunk[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(lost(&self.path, "read from", error)),
            };
            if response.is_some() {
                return Ok(response);
            }
        }
        Ok(None)
    }
}

impl AsRawFd for NonblockingRequest {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Converts the failure of an `operation` on a connection. The server has ended if it did not read the request.
fn lost(path: &Path, operation: &'static str, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Error::Closed(path),
        _ => Error::System {
            operation,
            path,
            source,
        },
    }
}

/// Failure to get a response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not exist.
    #[error(
        "cannot connect to the API socket {}: it does not exist; start mayfly with this path",
        .0.display()
    )]
    Missing(PathBuf),
    /// No process listens: the server that created the socket has exited.
    #[error(
        "cannot connect to the API socket {}: no process listens; start mayfly again, or name another socket",
        .0.display()
    )]
    Refused(PathBuf),
    /// The file is no socket.
    #[error("cannot connect to {}: it is no socket; name the API socket of mayfly", .0.display())]
    NotSocket(PathBuf),
    /// This user lacks a permission.
    #[error(
        "cannot connect to the API socket {}: no permission; run as the user of mayfly, or grant access to the \
         socket and its directories",
        path.display()
    )]
    Denied {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error(
        "cannot connect to the API socket {path:?}: the path has {length} bytes; use one of at most {MAX_SOCKET_PATH}"
    )]
    Long {
        /// Path.
        path: PathBuf,
        /// Length in bytes.
        length: usize,
    },
    /// The response did not arrive completely in time.
    #[error(
        "no response from {} within {} s: the server is stopped or busy, or is no HTTP server; increase the timeout or \
         check the server",
        path.display(),
        timeout.as_secs_f64()
    )]
    Silent {
        /// Path of the socket.
        path: PathBuf,
        /// Time limit.
        timeout: Duration,
    },
    /// The server closed the connection.
    #[error("no complete response from {}: the server closed the connection; check if it has exited", .0.display())]
    Closed(PathBuf),
    /// The kernel rejected an operation.
    #[error("cannot {operation} the API socket at {}", path.display())]
    System {
        /// Rejected operation.
        operation: &'static str,
        /// Path of the socket.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The response is no HTTP.
    #[error("invalid response: it is no HTTP; name the API socket of mayfly")]
    Head(#[source] httparse::Error),
    /// The length of the response is invalid or unsupported.
    #[error("invalid response: unsupported body of {0}; name the API socket of mayfly")]
    Framing(String),
    /// The response is above the limit in bytes.
    #[error("invalid response: it has more than {0} bytes; name the API socket of mayfly")]
    Large(usize),
    /// The method or the target is invalid.
    #[error(
        "{0:?} is invalid in a request: a method is one word; a path starts with / and has no spaces or control \
         characters"
    )]
    Request(String),
}

#[cfg(test)]
mod tests;
