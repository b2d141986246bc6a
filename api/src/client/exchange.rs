//! One request and its answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use httparse::Status;

use super::{ClientResponse, Error};

/// The longest head of an answer, in bytes.
pub(super) const MAX_HEAD: usize = 16 << 10;
/// The longest body of an answer, in bytes.
pub(super) const MAX_BODY: usize = 16 << 20;
/// Headers in one head. Servers send about five.
const HEADERS: usize = 64;
/// Read in one go, in bytes.
const CHUNK_SIZE: usize = 16 << 10;

/// How long the server has had.
pub(super) struct Deadline<'a> {
    path: &'a Path,
    patience: Duration,
    start: Instant,
}

impl<'a> Deadline<'a> {
    pub(super) fn start(path: &'a Path, patience: Duration) -> Self {
        Self {
            path,
            patience,
            start: Instant::now(),
        }
    }

    /// How long it still has, which is more than nothing.
    pub(super) fn left(&self) -> Result<Duration, Error> {
        let left = self.patience.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(self.silence());
        }
        Ok(left)
    }

    pub(super) fn silence(&self) -> Error {
        Error::Silent {
            path: self.path.to_owned(),
            patience: self.patience,
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        let path = self.path.to_owned();
        match source.kind() {
            // What a socket says when its time is over.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.silence(),
            io::ErrorKind::ConnectionReset => Error::Closed(path),
            _ => Error::System {
                operation,
                path,
                source,
            },
        }
    }
}

/// The bytes of a request.
pub(super) fn request(method: &str, target: &str, body: Option<&[u8]>) -> Result<Vec<u8>, Error> {
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(Error::Request(method.to_owned()));
    }
    if !target.starts_with('/') || target.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::Request(target.to_owned()));
    }
    let mut request =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n");
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

/// How the end of a body is found, RFC 9112 section 6.3.
enum ResponseFraming {
    Length(usize),
    UntilEnd,
}

/// A connection with a request on its way.
pub(super) struct Exchange<'a> {
    stream: UnixStream,
    timer: Deadline<'a>,
    /// What has come and is not used yet.
    received: Vec<u8>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(stream: UnixStream, timer: Deadline<'a>) -> Self {
        Self {
            stream,
            timer,
            received: Vec::new(),
        }
    }

    /// Sends `request` and reads the answer, which has no body where there was only asked for the head.
    pub(super) fn run(mut self, request: &[u8], head_only: bool) -> Result<ClientResponse, Error> {
        self.send(request)?;
        loop {
            let (status, framing) = self.head()?;
            // An interim answer, of which any number may come before the one that counts, RFC 9110 section 15.2.
            if status < 200 {
                continue;
            }
            let body = match framing {
                _ if head_only || status == 204 || status == 304 => Vec::new(),
                ResponseFraming::Length(length) => self.body(length)?,
                ResponseFraming::UntilEnd => self.rest()?,
            };
            return Ok(ClientResponse { status, body });
        }
    }

    fn send(&mut self, mut request: &[u8]) -> Result<(), Error> {
        while !request.is_empty() {
            let left = Some(self.timer.left()?);
            let written = self
                .stream
                .set_write_timeout(left)
                .and_then(|()| self.stream.write(request));
            match written {
                Ok(count) => request = &request[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A server that refuses early does not read the rest, and has said why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(self.timer.failed("write to", error)),
            }
        }
        Ok(())
    }

    /// Waits for more bytes and returns how many there were; none at the end.
    fn receive(&mut self) -> Result<usize, Error> {
        let mut piece = [0; CHUNK_SIZE];
        loop {
            let left = Some(self.timer.left()?);
            let read = self
                .stream
                .set_read_timeout(left)
                .and_then(|()| self.stream.read(&mut piece));
            match read {
                Ok(count) => {
                    self.received.extend_from_slice(&piece[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.timer.failed("read from", error)),
            }
        }
    }

    /// As [`Self::receive`], when there has to be more.
    fn receive_more(&mut self) -> Result<(), Error> {
        match self.receive()? {
            0 => Err(Error::Closed(self.timer.path.to_owned())),
            _ => Ok(()),
        }
    }

    /// Takes one head.
    fn head(&mut self) -> Result<(u16, ResponseFraming), Error> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let parsed = response.parse(&self.received).map_err(Error::Head)?;
            if let (Status::Complete(length), Some(status)) = (parsed, response.code) {
                let framing = framing(response.headers)?;
                self.received.drain(..length);
                return Ok((status, framing));
            }
            if self.received.len() > MAX_HEAD {
                return Err(Error::Large(MAX_HEAD));
            }
            self.receive_more()?;
        }
    }

    fn body(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        while self.received.len() < length {
            self.receive_more()?;
        }
        self.received.truncate(length);
        Ok(std::mem::take(&mut self.received))
    }

    fn rest(&mut self) -> Result<Vec<u8>, Error> {
        while self.receive()? > 0 {
            if self.received.len() > MAX_BODY {
                return Err(Error::Large(MAX_BODY));
            }
        }
        Ok(std::mem::take(&mut self.received))
    }
}

fn framing(headers: &[httparse::Header<'_>]) -> Result<ResponseFraming, Error> {
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
            (Some(length), _) if length > MAX_BODY => return Err(Error::Large(MAX_BODY)),
            (Some(length), _) => ResponseFraming::Length(length),
            (None, _) => return Err(Error::Framing(format!("{digits:?} bytes"))),
        };
    }
    Ok(framing)
}
