//! A client of the serial console.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use super::history::{CAPACITY, History};

/// Maximum number of bytes of one write to a client.
const MAX_WRITE: usize = 4096;
/// Maximum number of bytes of one read from a client.
pub(super) const MAX_READ: usize = 1024;

/// A client of the serial console, by a file that does not block.
#[derive(Debug)]
pub(super) struct Client {
    file: Arc<File>,
    /// Offset of the next byte of output for this client.
    next: u64,
    /// Bytes of output that this client has lost, and no notice states.
    lost: u64,
    /// Message to this client, before the next output.
    notice: Vec<u8>,
    /// Input of this client goes to the guest. Input of all others is dropped.
    is_writer: bool,
    /// This client has received the notice that another client is the writer.
    is_informed: bool,
    /// This client sends nothing more.
    input_ended: bool,
    /// This client takes no more output.
    output_ended: bool,
}

impl Client {
    /// Returns a client that receives the output from `offset` on.
    pub(super) fn new(file: Arc<File>, offset: u64) -> Self {
        Self {
            file,
            next: offset,
            lost: 0,
            notice: Vec::new(),
            is_writer: false,
            is_informed: false,
            input_ended: false,
            output_ended: false,
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

    pub(super) fn output_ended(&self) -> bool {
        self.output_ended
    }

    /// Returns true if the client can receive output up to `end`, and has not received all of it.
    pub(super) fn is_behind(&self, end: u64) -> bool {
        !self.output_ended && (self.next < end || self.lost > 0 || !self.notice.is_empty())
    }

    /// Makes this client the one whose input goes to the guest.
    pub(super) fn set_writer(&mut self) {
        self.is_writer = true;
        self.is_informed = false;
    }

    /// Informs the client, once, that its input has no effect.
    pub(super) fn inform(&mut self) {
        if !std::mem::replace(&mut self.is_informed, true) {
            self.notify("another client has the input until it detaches; input of this client is dropped");
        }
    }

    /// Sends `message` before the next output.
    pub(super) fn notify(&mut self, message: &str) {
        self.notice
            .extend_from_slice(format!("\r\n[mayfly: {message}]\r\n").as_bytes());
    }

    /// Reads input, at most as much as `buffer` takes. Returns nothing if none is available, or at the end of the input.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        match (&*self.file).read(buffer) {
            Ok(count @ 1..) => &buffer[..count],
            Err(error) if is_transient(&error) => &[],
            Ok(_) => {
                self.end_input();
                &[]
            }
            Err(_) => {
                self.end_input();
                self.end_output();
                &[]
            }
        }
    }

    /// Ends the input: another client may be the writer.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
        self.is_writer = false;
    }

    /// Ends the output.
    pub(super) fn end_output(&mut self) {
        self.output_ended = true;
    }

    /// Writes some of the output that the client has not received. If the client was too slow for `history`, a message states the loss.
    pub(super) fn write(&mut self, history: &History) {
        if self.next < history.start() {
            // Half of the history is left for the output that follows meanwhile: the client would lose bytes again at once.
            let next = history.end() - CAPACITY as u64 / 2;
            self.lost += next - self.next;
            self.next = next;
        }
        if self.notice.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.notify(&format!("dropped {lost} bytes: this client was too slow"));
        }
        if !self.notice.is_empty() {
            let written = self.try_write(&self.notice);
            self.notice.drain(..written.unwrap_or(0));
            self.output_ended |= written.is_none();
            if self.output_ended || !self.notice.is_empty() {
                return;
            }
        }
        let bytes = history.bytes_from(self.next);
        let written = self.try_write(&bytes[..bytes.len().min(MAX_WRITE)]);
        self.next += written.unwrap_or(0) as u64;
        self.output_ended |= written.is_none();
    }

    /// Returns the number of written bytes, or nothing if the client takes no more output.
    fn try_write(&self, bytes: &[u8]) -> Option<usize> {
        if bytes.is_empty() {
            return Some(0);
        }
        match (&*self.file).write(bytes) {
            Ok(written) => Some(written),
            Err(error) if is_transient(&error) => Some(0),
            Err(_) => None,
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
