//! One client: its bytes in, its answers out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::Handler;
use super::limits::HttpLimits;
use super::parser::{KEPT, Parser, Step};
use super::refusal::RequestError;
use super::response::{CONTINUE, Response, TOO_MANY};

/// Requests of one client that are answered before others get their turn.
const REQUESTS: usize = 16;

/// Bytes of answers above which no more requests of the client are answered before it reads those.
const ANSWERS: usize = 16384;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Bytes of the client.
    Input,
    /// Room for answers, or just its next turn.
    Output,
    /// Nothing, it is over.
    Nothing,
}

/// How far the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests come.
    Open,
    /// The client sends no more, and gets what it still waits for.
    Ended,
    /// No request is taken any more. The client is told so once its answers are out.
    Closing,
    /// The client knows. What it had under way is read and dropped, since closing before would take from it the
    /// answers that it has not read: the kernel then resets the connection.
    Draining,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    parser: Parser,
    phase: Phase,
    /// Answers, of which `sent` bytes are out.
    output: Vec<u8>,
    sent: usize,
    /// Whether the parser may hold requests that have not had their turn.
    more: bool,
}

impl Connection {
    /// Starts to serve a client.
    ///
    /// # Errors
    /// The kernel's, when the socket cannot be made non-blocking.
    pub(super) fn new(stream: UnixStream, limits: HttpLimits) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            parser: Parser::new(limits),
            phase: Phase::Open,
            output: Vec::new(),
            sent: 0,
            more: false,
        })
    }

    /// Tells a client at once that there is no room for it.
    ///
    /// # Errors
    /// The kernel's, when the socket cannot be made non-blocking or the client has gone already.
    pub(super) fn turn_away(stream: UnixStream, limits: HttpLimits) -> io::Result<Self> {
        let mut connection = Self::new(stream, limits)?;
        connection.output.extend_from_slice(TOO_MANY);
        // A new socket has room for it.
        connection.flush()?;
        connection.end_output()?;
        Ok(connection)
    }

    /// Whether it is only there for the client to read its last answers.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Does one bounded piece of work without blocking: at most one read, into `scratch`, and the requests in it.
    pub(super) fn process(&mut self, scratch: &mut [u8], handler: &mut dyn Handler) -> Wait {
        match self.advance(scratch, handler) {
            Ok(wait) => wait,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Wait::Input,
            // A client that has gone has no use for anything more.
            Err(_) => Wait::Nothing,
        }
    }

    fn advance(&mut self, scratch: &mut [u8], handler: &mut dyn Handler) -> io::Result<Wait> {
        // A client that does not read its answers is not read either, so that it cannot pile them up here.
        if !self.flush()? {
            return Ok(Wait::Output);
        }
        match self.phase {
            Phase::Open => {
                if !self.more {
                    self.read(scratch)?;
                }
                self.answer(handler);
            }
            Phase::Draining => {
                let ended = self.receive(scratch)? == 0;
                return Ok(if ended { Wait::Nothing } else { Wait::Input });
            }
            Phase::Ended | Phase::Closing => {}
        }
        if !self.flush()? || self.more {
            return Ok(Wait::Output);
        }
        match self.phase {
            Phase::Open => Ok(Wait::Input),
            Phase::Closing => {
                self.end_output()?;
                Ok(Wait::Input)
            }
            Phase::Ended | Phase::Draining => Ok(Wait::Nothing),
        }
    }

    fn read(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        let count = self.receive(scratch)?;
        if count > 0 {
            self.parser.feed(&scratch[..count]);
            return Ok(());
        }
        if self.parser.is_partial() {
            self.refuse(&RequestError::Cut);
        }
        self.phase = Phase::Ended;
        Ok(())
    }

    /// Reads once; a signal that comes between is nothing to give up for.
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(scratch) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Answers the requests that are there, a bounded number of them.
    fn answer(&mut self, handler: &mut dyn Handler) {
        let mut left = REQUESTS;
        self.more = false;
        while self.phase == Phase::Open {
            if left == 0 || self.output.len() > ANSWERS {
                self.more = true;
                return;
            }
            match self.parser.next() {
                Ok(Step::Incomplete) => return,
                Ok(Step::Continue) => self.output.extend_from_slice(CONTINUE),
                Ok(Step::Request { request, last }) => {
                    left -= 1;
                    let head_only = request.method.name() == "HEAD";
                    handler.answer(&request).write(&mut self.output, head_only);
                    // Firecracker goes on after `Connection: close`, which harms nobody who closes; who reads until the
                    // end instead, as HTTP/1.0 has it, would wait for ever.
                    if last {
                        self.close();
                    }
                }
                Err(refusal) => self.refuse(&refusal),
            }
        }
    }

    /// Says why, and gives the connection up, because where the next request would start is not known.
    fn refuse(&mut self, refusal: &RequestError) {
        let text = refusal.text();
        log::debug!("api: refused a request: {text}");
        Response::refusal(&text).write(&mut self.output, false);
        self.close();
    }

    /// Takes no more requests, and keeps no memory for them.
    fn close(&mut self) {
        self.phase = Phase::Closing;
        self.parser.clear();
    }

    /// Tells the client that nothing more comes.
    fn end_output(&mut self) -> io::Result<()> {
        self.phase = Phase::Draining;
        self.output = Vec::new();
        self.stream.shutdown(Shutdown::Write)
    }

    /// Sends answers, and tells whether all of them are out.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.output.shrink_to(KEPT);
        self.sent = 0;
        Ok(true)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
