//! A client of the serial console.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use super::history::History;

/// Maximum number of bytes of one write to a client.
const MAX_WRITE: usize = 4096;
/// Maximum number of bytes of one read from a client.
pub(super) const MAX_READ: usize = 1024;

/// Result of a read of a client's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientInput<'a> {
    /// Nothing is available now.
    Nothing,
    /// Input for the guest.
    Bytes(&'a [u8]),
    /// The client sends nothing more. It may still receive output.
    Ended,
    /// The client has detached.
    Detached,
}

/// A client of the serial console, by a file that does not block.
#[derive(Debug)]
pub(super) struct Client {
    file: Arc<File>,
    /// Offset of the next byte of output for this client.
    next: u64,
    /// Message to the client, before the next output.
    notice: Vec<u8>,
    /// Its input goes to the guest, that of the others does not.
    is_writer: bool,
    /// It was informed that another client is the writer.
    is_informed: bool,
    input_ended: bool,
}

impl Client {
    /// Returns a client that receives the output from `offset` on.
    pub(super) fn new(file: Arc<File>, offset: u64) -> Self {
        Self {
            file,
            next: offset,
            notice: Vec::new(),
            is_writer: false,
            is_informed: false,
            input_ended: false,
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_writer(&self) -> bool {
        self.is_writer
    }

    pub(super) fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Returns true if the client has not received all output up to `end`.
    pub(super) fn is_behind(&self, end: u64) -> bool {
        self.next < end || !self.notice.is_empty()
    }

    /// Makes this client the one whose input goes to the guest.
    pub(super) fn set_writer(&mut self) {
        self.is_writer = true;
        self.is_informed = false;
    }

    /// Informs the client, once, that its input has no effect.
    pub(super) fn inform(&mut self) {
        if !std::mem::replace(&mut self.is_informed, true) {
            self.notify("another client has the input; it is free when that client detaches");
        }
    }

    /// Sends `message` before the next output.
    pub(super) fn notify(&mut self, message: &str) {
        self.notice
            .extend_from_slice(format!("\r\n[mayfly: {message}]\r\n").as_bytes());
    }

    /// Reads input, at most as much as `buffer` takes.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> ClientInput<'a> {
        match (&*self.file).read(buffer) {
            Ok(0) => {
                self.input_ended = true;
                self.is_writer = false;
                ClientInput::Ended
            }
            Ok(count) => ClientInput::Bytes(&buffer[..count]),
            Err(error) if is_transient(&error) => ClientInput::Nothing,
            Err(_) => ClientInput::Detached,
        }
    }

    /// Writes some of the output that the client has not received. If the client was too slow for `history`, a message states the loss.
    ///
    /// # Errors
    /// The client has detached.
    pub(super) fn write(&mut self, history: &History) -> io::Result<()> {
        let lost = history.start().saturating_sub(self.next);
        if lost > 0 {
            self.next = history.start();
            self.notify(&format!("dropped {lost} bytes: this client was too slow"));
        }
        let is_notice = !self.notice.is_empty();
        let bytes = match is_notice {
            true => &self.notice[..],
            false => history.bytes_from(self.next),
        };
        let written = match (&*self.file).write(&bytes[..bytes.len().min(MAX_WRITE)]) {
            Err(error) if is_transient(&error) => return Ok(()),
            result => result?,
        };
        match is_notice {
            true => drop(self.notice.drain(..written)),
            false => self.next += written as u64,
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
