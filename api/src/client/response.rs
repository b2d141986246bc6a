//! Parser of one response.

use httparse::Status;

use super::{ClientResponse, Error};

/// Maximum length of the head of a response in bytes.
pub(super) const MAX_HEAD: usize = 16 << 10;
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
pub(super) struct ResponseParser {
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
    pub(super) fn new(head_only: bool, max_body: usize) -> Self {
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
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<ClientResponse>, Error> {
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
    pub(super) fn finish(self) -> Option<ClientResponse> {
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
            if status >= 200 {
                let is_empty = self.head_only || status == 204 || status == 304;
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
