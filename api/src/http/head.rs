//! The request line and the headers, of which those count that say how long the request and the connection are.

use std::str;

use super::limits::HttpLimits;
use super::refusal::RequestError;
use super::request::{Method, Request};

/// Headers in one head. Clients send about five.
const HEADERS: usize = 64;

/// How the body is delimited, RFC 9112 section 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// That many bytes.
    Length(usize),
    /// Each part after its own length.
    Chunked,
}

/// A head, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Its body is still to come.
    pub(super) request: Request,
    pub(super) framing: Framing,
    /// Whether the client waits for a word before it sends the body.
    pub(super) expects: bool,
    /// Whether the client sends nothing after this request.
    pub(super) last: bool,
}

/// Reads a complete head, its empty last line included.
pub(super) fn parse(bytes: &[u8], limits: &HttpLimits) -> Result<Head, RequestError> {
    str::from_utf8(bytes).map_err(|_| RequestError::NotText)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(bytes).map_err(RequestError::Head)?;
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(RequestError::Head(httparse::Error::Token));
    };
    let (path, query) = split(target)?;
    let fields = Fields::read(parsed.headers)?;
    let framing = fields.framing(limits)?;
    Ok(Head {
        request: Request {
            method: Method::new(method),
            path,
            query,
            body: Vec::new(),
        },
        framing,
        // HTTP/1.0 has no such answer, RFC 9110 section 10.1.1.
        expects: fields.expects && version == 1 && framing != Framing::Length(0),
        last: fields.close || (version == 0 && !fields.keep_alive),
    })
}

/// What the headers say, as far as it matters here. What they say beyond is ignored, as Firecracker does.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    expects: bool,
    close: bool,
    keep_alive: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, RequestError> {
        let mut fields = Self::default();
        for header in headers {
            let value = str::from_utf8(header.value)
                .map_err(|_| RequestError::NotText)?
                .trim_matches([' ', '\t']);
            fields.note(header.name, value)?;
        }
        Ok(fields)
    }

    fn note(&mut self, name: &str, value: &str) -> Result<(), RequestError> {
        let is = |other| name.eq_ignore_ascii_case(other);
        if is("content-length") {
            let length = number(value).ok_or_else(|| RequestError::ContentLength(value.to_owned()))?;
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
        } else if is("connection") {
            for token in value.split(',').map(str::trim) {
                self.close |= token.eq_ignore_ascii_case("close");
                self.keep_alive |= token.eq_ignore_ascii_case("keep-alive");
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
                    _ => Err(RequestError::Large { size, limit }),
                }
            }
        }
    }
}

/// A number in decimal digits and nothing else, so without the sign that Rust would take.
fn number(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Splits the target of a request into its path, decoded, and its query.
fn split(target: &str) -> Result<(String, Option<String>), RequestError> {
    let (address, query) = match target.split_once('?') {
        Some((address, query)) => (address, Some(query.to_owned())),
        None => (target, None),
    };
    let path = match address.split_once("://") {
        // In http://host/path the path starts at the first slash after the host, and there may be none.
        Some((_, rest)) if !address.starts_with('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => address,
    };
    let decoded = decode(path).ok_or_else(|| RequestError::Path(path.to_owned()))?;
    Ok((decoded, query))
}

/// Decodes percent signs, RFC 3986 section 2.1. Control characters are in no path that means anything.
fn decode(path: &str) -> Option<String> {
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

#[cfg(test)]
mod tests;
