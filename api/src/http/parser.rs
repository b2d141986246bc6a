//! Makes requests of bytes, wherever these are cut.

use std::mem;

use super::body::Body;
use super::head::{self, Head};
use super::limits::HttpLimits;
use super::line;
use super::refusal::RequestError;
use super::request::Request;

/// Memory that is kept while nothing is in it: enough for the requests that clients send again and again.
pub(super) const KEPT: usize = 1024;

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Incomplete,
    /// The client is to be told that its body is welcome.
    Continue,
    /// A whole request.
    Request {
        request: Request,
        /// Whether the client sends nothing after it.
        last: bool,
    },
}

/// The bytes of a client that are no request yet.
#[derive(Debug)]
pub(super) struct Parser {
    limits: HttpLimits,
    buffer: Vec<u8>,
    /// Where in `buffer` the next request, or the rest of its body, starts.
    start: usize,
    /// Where in `buffer` the first line starts that has not been seen whole.
    line: usize,
    /// The request whose body is coming.
    pending: Option<(Head, Body)>,
}

impl Parser {
    pub(super) fn new(limits: HttpLimits) -> Self {
        Self {
            limits,
            buffer: Vec::new(),
            start: 0,
            line: 0,
            pending: None,
        }
    }

    /// Whether a request has started and is not complete.
    pub(super) fn is_partial(&self) -> bool {
        self.pending.is_some() || self.start < self.buffer.len()
    }

    /// Takes bytes of the client.
    ///
    /// To hold what it holds within bounds, call [`next`](Self::next) first until that is [`Step::Incomplete`].
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next request out of what was fed.
    ///
    /// # Errors
    /// The bytes are no request. Nothing is known about those that follow.
    pub(super) fn next(&mut self) -> Result<Step, RequestError> {
        let mut announced = false;
        if self.pending.is_none() {
            let Some(head) = self.head()? else {
                self.tidy();
                return Ok(Step::Incomplete);
            };
            announced = head.expects;
            let body = Body::new(head.framing);
            self.pending = Some((head, body));
        }
        if announced {
            return Ok(Step::Continue);
        }
        if let Some((head, body)) = &mut self.pending {
            let input = &self.buffer[self.start..];
            self.start += body.take(input, &mut head.request.body, &self.limits)?;
            self.line = self.start;
        }
        match self.pending.take() {
            Some((Head { request, last, .. }, body)) if body.is_complete() => {
                Ok(Step::Request { request, last })
            }
            pending => {
                self.pending = pending;
                self.tidy();
                Ok(Step::Incomplete)
            }
        }
    }

    /// Takes a head out of what was fed, if all of it is there.
    fn head(&mut self) -> Result<Option<Head>, RequestError> {
        while let Some(line) = line::first(&self.buffer[self.line..], self.limits.line)? {
            let empty = line.is_empty();
            let first = self.line == self.start;
            self.line += line.len() + line::END;
            let head = self.start..self.line;
            if empty && first {
                // Some clients end a body with an empty line that is not part of it, RFC 9112 section 2.2.
                self.start = self.line;
            } else if head.len() > self.limits.head {
                let (part, limit) = ("head", self.limits.head);
                return Err(RequestError::Long { part, limit });
            } else if empty {
                let head = head::parse(&self.buffer[head], &self.limits)?;
                self.start = self.line;
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// Drops what is there.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Gives back the room of what was used up.
    fn tidy(&mut self) {
        if self.start == self.buffer.len() && self.buffer.capacity() > KEPT {
            self.buffer = Vec::new();
        } else {
            self.buffer.drain(..self.start);
        }
        self.line -= mem::take(&mut self.start);
    }

    /// Bytes of memory that it holds for the client.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let body = |(head, _): &(Head, Body)| head.request.body.capacity();
        self.buffer.capacity() + self.pending.as_ref().map_or(0, body)
    }
}

#[cfg(test)]
mod tests;
