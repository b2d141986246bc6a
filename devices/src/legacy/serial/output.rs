//! The bounded buffer between the serial port and whoever reads it.
//!
//! A byte goes straight to the reader as long as the reader keeps up: one system call on a pipe. What the reader does
//! not take at once waits here and goes out when the event loop finds the file writable again. The buffer is bounded;
//! when it is full, the oldest byte in it goes, because the last words of a guest say why it ended.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::sink::NonblockingWriter;

/// How many bytes wait at most.
pub const CAPACITY: usize = 64 * 1024;

/// What one [`SerialOutput::flush`] writes at most, so that a vCPU that wants to print never waits long for the lock.
const FLUSH: usize = 4096;

/// What went wrong with the output. The guest never sees any of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say what kind of file the output is.
    #[error("cannot use this file for the serial output")]
    Inspect {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no eventfd to be had.
    #[error("cannot make the eventfd of the serial output")]
    Notify {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The reader was too slow.
    #[error("{bytes} bytes of serial output were dropped, because their reader stalled")]
    Overflow {
        /// How many bytes were dropped since the last report.
        bytes: u64,
    },
    /// A write failed in a way that will not pass, for example because the reader has gone or the disk is full.
    #[error("serial output cannot be written and is dropped from here on")]
    Broken {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Where the bytes of a serial port go.
///
/// Nothing in here blocks, [`finish`](Self::finish) excepted, and nothing here logs: standard error is often the very
/// pipe that is stalled. The event loop
/// - watches [`notify`](Self::notify) and calls [`flush`](Self::flush) when it becomes readable;
/// - watches the file itself ([`AsFd`]) for room, level-triggered, as long as [`flush`](Self::flush) returns true,
///   and calls it again when there is some;
/// - says what [`report`](Self::report) returns after each of these calls and after [`finish`](Self::finish).
#[derive(Debug)]
pub struct SerialOutput {
    sink: NonblockingWriter,
    waiting: VecDeque<u8>,
    notify: EventFd,
    dropped: u64,
    reported: u64,
    broken: bool,
    cause: Option<io::Error>,
    first: Option<Instant>,
}

impl SerialOutput {
    /// Output to `file`, of any kind.
    ///
    /// # Errors
    /// [`Error::Inspect`] or [`Error::Notify`].
    pub fn new(file: OwnedFd) -> Result<Self, Error> {
        Ok(Self {
            sink: NonblockingWriter::new(file).map_err(|source| Error::Inspect { source })?,
            waiting: VecDeque::new(),
            notify: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| Error::Notify { source })?,
            dropped: 0,
            reported: 0,
            broken: false,
            cause: None,
            first: None,
        })
    }

    /// Writes or buffers `bytes`, and drops what there is no room for.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.first.is_none() {
            self.first = Some(Instant::now());
        }
        let mut rest = bytes;
        while self.waiting.is_empty() && !self.broken && !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.fail(error),
            }
        }
        if self.broken {
            self.dropped += rest.len() as u64;
        } else if !rest.is_empty() {
            self.hold(rest);
        }
    }

    /// Writes what waits, as far as there is room, some 4 KiB at a time. Returns whether there is more: then the file
    /// is to be watched for room.
    pub fn flush(&mut self) -> bool {
        // Fails when nothing was announced, which does not matter.
        let _ = self.notify.read();
        self.write_waiting();
        !self.waiting.is_empty()
    }

    /// Writes what waits, and waits for the reader as long as it makes some progress. Gives up, and drops the rest,
    /// when it makes none for as long as `patience`.
    pub fn finish(&mut self, patience: Duration) {
        self.finish_by(patience, Instant::now);
    }

    fn finish_by(&mut self, patience: Duration, mut now: impl FnMut() -> Instant) {
        let mut progress = now();
        while !self.waiting.is_empty() {
            if self.write_waiting() > 0 {
                progress = now();
                continue;
            }
            let left = patience.saturating_sub(now() - progress);
            if left.is_zero() {
                self.discard();
            } else if let Err(error) = self.sink.wait(left)
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.fail(error);
            }
        }
    }

    /// When the guest printed for the first time, if it has.
    pub fn first_write(&self) -> Option<Instant> {
        self.first
    }

    /// How many bytes wait for the reader.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many bytes were dropped in all, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What is to be said on standard error and has not been said yet. A failed write is said at once and is the last
    /// that is said; bytes dropped because of a stalled reader are said in one number when the reader has taken what
    /// waited, or when [`finish`](Self::finish) has given it up.
    pub fn report(&mut self) -> Option<Error> {
        if let Some(source) = self.cause.take() {
            return Some(Error::Broken { source });
        }
        let bytes = self.dropped - self.reported;
        if self.broken || !self.waiting.is_empty() || bytes == 0 {
            return None;
        }
        self.reported = self.dropped;
        Some(Error::Overflow { bytes })
    }

    /// Becomes readable when [`flush`](Self::flush) is to be called.
    pub fn notify(&self) -> &EventFd {
        &self.notify
    }

    /// Returns how many bytes were written, [`FLUSH`] at most.
    fn write_waiting(&mut self) -> usize {
        let mut written = 0;
        while written < FLUSH && !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match self.sink.write(&front[..front.len().min(FLUSH - written)]) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    written += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.fail(error),
            }
        }
        written
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.waiting.is_empty() {
            // Only a guest whose reader ever stalls pays for the buffer.
            self.waiting.reserve_exact(CAPACITY);
            self.announce();
        }
        for byte in bytes {
            if self.waiting.len() == CAPACITY {
                self.waiting.pop_front();
                self.dropped += 1;
            }
            self.waiting.push_back(*byte);
        }
    }

    fn fail(&mut self, cause: io::Error) {
        self.broken = true;
        self.cause = Some(cause);
        self.discard();
        self.announce();
    }

    fn discard(&mut self) {
        self.dropped += self.waiting.len() as u64;
        self.waiting.clear();
    }

    fn announce(&self) {
        // The counter is far from its limit, so that the write cannot fail.
        let _ = self.notify.write(1);
    }
}

impl AsFd for SerialOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sink.as_fd()
    }
}

#[cfg(test)]
mod tests;
