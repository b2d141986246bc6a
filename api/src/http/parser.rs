//! Parser of the byte stream of a client. The boundaries of reads do not matter.

use std::error::Error as _;
use std::{mem, str};

use super::message::{Method, Request};

/// Limits of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Maximum length of a body in bytes.
    pub body: usize,
    /// Maximum length of a head (request line and headers) in bytes.
    pub head: usize,
    /// Maximum length of a line of the head in bytes, without its end.
    pub line: usize,
    /// Maximum number of connected clients.
    pub connections: usize,
}

impl Default for HttpLimits {
    /// Limits of Firecracker, and a limit of the head.
    fn default() -> Self {
        Self {
            body: 51200,
            head: 8192,
            line: 1024,
            connections: 10,
        }
    }
}

/// Maximum length in bytes of a too long body that is discarded, so that the connection can go on.
const MAX_DISCARDED: u64 = 1 << 20;

/// Capacity that an empty buffer keeps, enough for frequent small requests.
pub(super) const KEPT_CAPACITY: usize = 1024;

/// Result of a parser step.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub(super) enum Step {
    /// More bytes are required.
    Incomplete,
    /// The client waits for the response 100 before it sends the body.
    Continue,
    /// A complete request.
    Request {
        request: Request,
        /// True if the client ends the connection after this request.
        last: bool,
    },
    /// A request whose body is too long. The next steps discard the body.
    Rejected {
        /// Reason.
        error: RequestError,
        /// True if the client ends the connection after this request.
        last: bool,
    },
}

/// Bytes of a client that are not yet a complete request.
#[derive(Debug)]
pub(super) struct Parser {
    limits: HttpLimits,
    buffer: Vec<u8>,
    /// Start of the next request, or of the rest of its body, in `buffer`.
    start: usize,
    /// Start of the first incomplete line in `buffer`.
    line: usize,
    /// Request with an incomplete body.
    pending: Option<(Head, Body)>,
    /// Bytes of a rejected body that are still to be discarded.
    discard: u64,
}

impl Parser {
    pub(super) fn new(limits: HttpLimits) -> Self {
        Self {
            limits,
            buffer: Vec::new(),
            start: 0,
            line: 0,
            pending: None,
            discard: 0,
        }
    }

    /// Returns true if a request is incomplete.
    pub(super) fn is_partial(&self) -> bool {
        self.is_discarding() || self.pending.is_some() || self.start < self.buffer.len()
    }

    /// Returns true if the body of a rejected request is incomplete.
    pub(super) fn is_discarding(&self) -> bool {
        self.discard > 0
    }

    /// Appends bytes of the client.
    ///
    /// To bound the buffer, first call [`next`](Self::next) until it returns [`Step::Incomplete`].
    ///
    /// # Errors
    /// [`RequestError::NoMemory`]
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        reserve(&mut self.buffer, bytes.len())?;
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Removes the next request from the buffer.
    ///
    /// # Errors
    /// [`RequestError`] for an invalid request. The start of the next request is then unknown.
    pub(super) fn next(&mut self) -> Result<Step, RequestError> {
        let mut expects = false;
        if self.is_discarding() {
            self.discard_body();
            if self.is_discarding() {
                return Ok(Step::Incomplete);
            }
        }
        if self.pending.is_none() {
            let Some(head) = self.head()? else {
                self.release_parsed();
                return Ok(Step::Incomplete);
            };
            if let Framing::Excess(size) = head.framing {
                let (last, limit) = (head.last, self.limits.body);
                self.discard = size;
                let error = RequestError::Large { size, limit };
                return Ok(Step::Rejected { error, last });
            }
            expects = head.expects;
            let body = Body::new(head.framing);
            self.pending = Some((head, body));
        }
        if expects {
            return Ok(Step::Continue);
        }
        if let Some((head, body)) = &mut self.pending {
            let input = &self.buffer[self.start..];
            self.start += body.consume(input, &mut head.request.body, &self.limits)?;
            self.line = self.start;
        }
        match self.pending.take() {
            Some((Head { request, last, .. }, body)) if body.is_complete() => {
                Ok(Step::Request { request, last })
            }
            pending => {
                self.pending = pending;
                self.release_parsed();
                Ok(Step::Incomplete)
            }
        }
    }

    /// Removes a complete head from the buffer.
    fn head(&mut self) -> Result<Option<Head>, RequestError> {
        while let Some(line) = first_line(&self.buffer[self.line..], self.limits.line)? {
            let empty = line.is_empty();
            let first = self.line == self.start;
            self.line += line.len() + LINE_END;
            let head = self.start..self.line;
            if empty && first {
                // RFC 9112 §2.2: some clients send an empty line after a body.
                self.start = self.line;
            } else if head.len() > self.limits.head {
                let (part, limit) = ("head", self.limits.head);
                return Err(RequestError::Long { part, limit });
            } else if empty {
                let head = parse_head(&self.buffer[head], &self.limits)?;
                self.start = self.line;
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// Removes the received part of a rejected body from the buffer.
    fn discard_body(&mut self) {
        let received = self.buffer.len() - self.start;
        let count = usize::try_from(self.discard).map_or(received, |count| count.min(received));
        // Lossless: the count is at most `discard`.
        self.discard -= count as u64;
        self.start += count;
        self.line = self.start;
        self.release_parsed();
    }

    /// Drops all bytes.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Releases the memory of parsed bytes.
    fn release_parsed(&mut self) {
        if self.start == self.buffer.len() && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..self.start);
        }
        self.line -= mem::take(&mut self.start);
    }

    /// Returns the capacity of all buffers in bytes.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let body = |(head, _): &(Head, Body)| head.request.body.capacity();
        self.buffer.capacity() + self.pending.as_ref().map_or(0, body)
    }
}

/// Maximum number of headers in a head. Clients send about five.
const HEADERS: usize = 64;

/// Delimitation of a body, RFC 9112 §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Length in bytes.
    Length(usize),
    /// Chunks, each after its length.
    Chunked,
    /// Length in bytes, above the limit.
    Excess(u64),
}

/// Parsed head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// Request with an empty body.
    request: Request,
    framing: Framing,
    /// True if the client waits for the response 100 before it sends the body.
    expects: bool,
    /// True if the client ends the connection after this request.
    last: bool,
}

/// Parses a complete head, including the empty line at the end.
fn parse_head(bytes: &[u8], limits: &HttpLimits) -> Result<Head, RequestError> {
    str::from_utf8(bytes).map_err(|_| RequestError::NotText)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(bytes).map_err(RequestError::Head)?;
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(RequestError::Head(httparse::Error::Token));
    };
    let (path, query) = split_target(target)?;
    let fields = Fields::read(parsed.headers)?;
    let framing = fields.framing(limits)?;
    // RFC 9110 §10.1.1: HTTP/1.0 has no response 100.
    let expects = fields.expects && version == 1 && framing != Framing::Length(0);
    if let Framing::Excess(size) = framing
        // After a rejection instead of the response 100 the client may send the body, or leave it out.
        && (expects || size > MAX_DISCARDED)
    {
        let limit = limits.body;
        return Err(RequestError::Large { size, limit });
    }
    Ok(Head {
        request: Request {
            method: Method::new(method),
            path,
            query,
            body: Vec::new(),
            upgrade: fields.upgrade,
        },
        framing,
        expects,
        // Firecracker keeps each connection. Clients of HTTP/1.0 without keep-alive rely on it.
        last: fields.close,
    })
}

/// Headers that delimit the request and the connection. Others are ignored, as Firecracker does.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    expects: bool,
    close: bool,
    upgrade: Option<String>,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, RequestError> {
        let mut fields = Self::default();
        for header in headers {
            let value = str::from_utf8(header.value)
                .map_err(|_| RequestError::NotText)?
                .trim_matches([' ', '\t']);
            fields.record(header.name, value)?;
        }
        Ok(fields)
    }

    fn record(&mut self, name: &str, value: &str) -> Result<(), RequestError> {
        let is = |other| name.eq_ignore_ascii_case(other);
        if is("content-length") {
            let length = parse_decimal(value).ok_or_else(|| RequestError::ContentLength(value.to_owned()))?;
            if self.length.replace(length).is_some_and(|other| other != length) {
                return Err(RequestError::Conflict);
            }
        } else if is("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err(RequestError::TransferEncoding(value.to_owned()));
            }
            self.chunked = true;
        } else if is("expect") {
            self.expects |= value.eq_ignore_ascii_case("100-continue");
        } else if is("upgrade") {
            self.upgrade = Some(value.to_owned());
        } else if is("connection") {
            for token in value.split(',').map(str::trim) {
                self.close |= token.eq_ignore_ascii_case("close");
            }
        }
        Ok(())
    }

    fn framing(&self, limits: &HttpLimits) -> Result<Framing, RequestError> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(RequestError::Conflict),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => {
                let size = length.unwrap_or(0);
                let limit = limits.body;
                match usize::try_from(size) {
                    Ok(length) if length <= limit => Ok(Framing::Length(length)),
                    _ => Ok(Framing::Excess(size)),
                }
            }
        }
    }
}

/// Parses decimal digits. `str::parse` would also accept a sign.
fn parse_decimal(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Splits the target of a request into the decoded path and the query.
fn split_target(target: &str) -> Result<(String, Option<String>), RequestError> {
    let (address, query) = match target.split_once('?') {
        Some((address, query)) => (address, Some(query.to_owned())),
        None => (target, None),
    };
    let path = match address.split_once("://") {
        // In http://host/path the path starts at the first slash after the host; there may be none.
        Some((_, rest)) if !address.starts_with('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => address,
    };
    let decoded = decode_path(path).ok_or_else(|| RequestError::Path(path.to_owned()))?;
    Ok((decoded, query))
}

/// Decodes percent-encoding, RFC 3986 §2.1. Rejects control characters, which no path of the API has.
fn decode_path(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let code = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(code).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    let decoded = String::from_utf8(decoded).ok()?;
    (!decoded.contains(char::is_control)).then_some(decoded)
}

/// Position in the body of a request.
#[derive(Debug)]
struct Body {
    at: Position,
    /// Length of the trailers so far in bytes.
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Before this number of bytes, the last of the body.
    Rest(usize),
    /// Before the length of a chunk.
    Size,
    /// Before this number of bytes of a chunk.
    Chunk(usize),
    /// Before the line end of a chunk.
    ChunkEnd,
    /// In the trailers after the last chunk.
    Trailers,
    /// After the body.
    End,
}

impl Body {
    fn new(framing: Framing) -> Self {
        let at = match framing {
            Framing::Length(0) | Framing::Excess(_) => Position::End,
            Framing::Length(length) => Position::Rest(length),
            Framing::Chunked => Position::Size,
        };
        Self { at, trailers: 0 }
    }

    /// Returns true at the end of the body.
    fn is_complete(&self) -> bool {
        self.at == Position::End
    }

    /// Appends the body bytes of `input` to `content`. Returns the number of consumed bytes of `input`.
    ///
    /// # Errors
    /// [`RequestError::Large`] as soon as an announced length is above the limit; [`RequestError::Chunk`],
    /// [`RequestError::Long`] and [`RequestError::LineEnd`] for invalid chunks; [`RequestError::NoMemory`].
    fn consume(
        &mut self,
        input: &[u8],
        content: &mut Vec<u8>,
        limits: &HttpLimits,
    ) -> Result<usize, RequestError> {
        let mut used = 0;
        while let Some(step) = self.step(&input[used..], content, limits)? {
            used += step;
        }
        Ok(used)
    }

    /// Performs one step of [`consume`](Self::consume). Returns `None` if more bytes are required.
    fn step(
        &mut self,
        input: &[u8],
        content: &mut Vec<u8>,
        limits: &HttpLimits,
    ) -> Result<Option<usize>, RequestError> {
        match self.at {
            Position::Rest(remaining) | Position::Chunk(remaining) => {
                let count = remaining.min(input.len());
                if content.is_empty() && count > 0 {
                    let reserved = content.try_reserve_exact(remaining);
                    reserved.map_err(|_| RequestError::NoMemory(remaining))?;
                }
                reserve(content, count)?;
                content.extend_from_slice(&input[..count]);
                self.at = match (self.at, remaining - count) {
                    (Position::Rest(_), 0) => Position::End,
                    (Position::Rest(_), remaining) => Position::Rest(remaining),
                    (_, 0) => Position::ChunkEnd,
                    (_, remaining) => Position::Chunk(remaining),
                };
                Ok((count > 0).then_some(count))
            }
            Position::End => Ok(None),
            Position::Size | Position::ChunkEnd | Position::Trailers => {
                let Some(line) = first_line(input, limits.line)? else {
                    return Ok(None);
                };
                self.at = self.next_position(line, content.len(), limits)?;
                Ok(Some(line.len() + LINE_END))
            }
        }
    }

    /// Returns the position after `line`, a line between chunks. Counts the length of trailers.
    fn next_position(
        &mut self,
        line: &[u8],
        length: usize,
        limits: &HttpLimits,
    ) -> Result<Position, RequestError> {
        let invalid = || RequestError::Chunk(String::from_utf8_lossy(line).into_owned());
        match self.at {
            Position::Size => {
                let size = chunk_size(line).ok_or_else(invalid)?;
                let limit = limits.body;
                let room = limit - length.min(limit);
                match usize::try_from(size) {
                    Ok(0) => Ok(Position::Trailers),
                    Ok(size) if size <= room => Ok(Position::Chunk(size)),
                    _ => {
                        let size = size.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
                        Err(RequestError::Large { size, limit })
                    }
                }
            }
            Position::Trailers if !line.is_empty() => {
                // Trailers are headers that no route uses.
                self.trailers += line.len() + LINE_END;
                if self.trailers > limits.head {
                    let (part, limit) = ("trailer", limits.head);
                    return Err(RequestError::Long { part, limit });
                }
                is_field(line).then_some(Position::Trailers).ok_or_else(invalid)
            }
            Position::Trailers => Ok(Position::End),
            _ => line.is_empty().then_some(Position::Size).ok_or_else(invalid),
        }
    }
}

/// Parses the hexadecimal length at the start of `line`. Extensions may follow, RFC 9112 §7.1.1.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = str::from_utf8(line).ok().filter(|text| is_printable(text))?;
    let digits = match text.split_once(';') {
        Some((digits, _)) => digits.trim_end_matches([' ', '\t']),
        None => text,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Returns true if `line` is a name, a colon and an optional value.
fn is_field(line: &[u8]) -> bool {
    let text = str::from_utf8(line).ok().filter(|text| is_printable(text));
    let name = text.and_then(|text| text.split_once(':'));
    name.is_some_and(|(name, _)| !name.is_empty() && !name.contains([' ', '\t']))
}

fn is_printable(text: &str) -> bool {
    text.chars()
        .all(|character| character == '\t' || !character.is_control())
}

/// Makes room for `length` more bytes.
fn reserve(buffer: &mut Vec<u8>, length: usize) -> Result<(), RequestError> {
    let reserved = buffer.try_reserve(length);
    reserved.map_err(|_| RequestError::NoMemory(length))
}

/// Length of carriage return and line feed.
const LINE_END: usize = 2;

/// Returns the first line of `input` without its end, or `None` if it is incomplete.
///
/// # Errors
/// [`RequestError::Long`] above `limit` bytes; [`RequestError::LineEnd`] for a line feed without carriage return. Other
/// parsers may end the line there or not, and would then see different requests.
fn first_line(input: &[u8], limit: usize) -> Result<Option<&[u8]>, RequestError> {
    let max = limit.saturating_add(LINE_END);
    let window = &input[..input.len().min(max)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => window[..end]
            .strip_suffix(b"\r")
            .map(Some)
            .ok_or(RequestError::LineEnd),
        None if window.len() == max => {
            let part = "line";
            Err(RequestError::Long { part, limit })
        }
        None => Ok(None),
    }
}

/// Rejection of bytes that are no valid request. The client receives the text.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(test, derive(PartialEq, Eq))]
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
        "Invalid path {0:?}: each % must precede two hexadecimal digits, and the decoded path must be UTF-8 without control characters."
    )]
    Path(String),
    #[error("Invalid chunk of a body: {0:?}.")]
    Chunk(String),
    // Firecracker's sentences.
    #[error(
        "Request payload with size {size} is larger than the limit of {limit} allowed by server.\n\
         All previous unanswered requests will be dropped."
    )]
    Large { size: u64, limit: usize },
    #[error("The request ends before its head and body are complete.")]
    Truncated,
    #[error("The request is not complete in time; send it at once.")]
    Slow,
    #[error(
        "The server has no memory for a request or response of {0} bytes; raise its RLIMIT_AS (ulimit -v), or free memory of the \
         host."
    )]
    NoMemory(usize),
}

impl RequestError {
    /// Returns the status of the response.
    pub(super) fn status(&self) -> u16 {
        match self {
            // RFC 9110 §15.5.9.
            Self::Slow => 408,
            Self::NoMemory(_) => 503,
            _ => 400,
        }
    }

    /// Returns the message with its cause.
    pub(super) fn text(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}."),
            None => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
