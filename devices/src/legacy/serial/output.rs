//! The bounded buffer between the serial port and whoever reads it.
//!
//! A byte goes straight to the reader as long as the reader keeps up: one system call on a pipe. What the reader does
//! not take at once waits here and goes out when the event loop finds the file writable again. The buffer is bounded;
//! when it is full, the oldest byte in it goes, because the last words of a guest say why it ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

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

/// What a pipe takes as a whole once it reports room: PIPE_BUF, pipe(7). The most that one write carries.
const CHUNK_SIZE: usize = 4096;

/// Device number of /dev/null, the same on every Linux system.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// How a write is kept from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Nothing is written: the file is /dev/null.
    Discard,
    /// A plain write: regular files and block devices do not make their writers wait for a reader.
    Plain,
    /// send(2) with `MSG_DONTWAIT`.
    Send,
    /// pwritev2(2) with `RWF_NOWAIT`. Pipes know it from Linux 6.4 on, named ones not yet.
    NoWait,
    /// poll(2) for room, then at most so many bytes. Between the two calls another writer can take the room, which
    /// is why this is the last resort.
    Poll(usize),
}

/// A file that is written to without ever blocking.
#[derive(Debug)]
pub struct NonblockingWriter {
    file: File,
    method: Method,
}

impl NonblockingWriter {
    /// Takes `file`, of any kind.
    ///
    /// # Errors
    /// The kernel's answer when it does not say what `file` is.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let device = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        let method = if kind.is_fifo() {
            Method::NoWait
        } else if kind.is_socket() {
            Method::Send
        } else if kind.is_char_device() && device == NULL_DEVICE {
            Method::Discard
        } else if kind.is_char_device() {
            // A terminal that reports room takes one character, a line end and its carriage return included, but
            // waits in the middle of a longer write.
            Method::Poll(1)
        } else {
            Method::Plain
        };
        Ok(Self { file, method })
    }

    /// Writes the start of `bytes` and returns how many it took, at least one.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room now; [`wait`](Self::wait) tells when there is. Any other
    /// error means that later writes will not do better.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK_SIZE)];
        loop {
            let written = match self.method {
                Method::Discard => return Ok(bytes.len()),
                Method::Plain => (&self.file).write(piece),
                Method::Send => self.send(piece),
                Method::NoWait => self.write_nowait(piece),
                Method::Poll(most) => self.write_with_room(&piece[..piece.len().min(most)]),
            };
            match written {
                Ok(0) if !piece.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.method == Method::NoWait && lacks_nowait(&error) => {
                    self.method = Method::Poll(CHUNK_SIZE);
                }
                written => return written,
            }
        }
    }

    /// Waits at most `timeout` for a write to be worth a try, and tells whether it is. A reader that has gone makes
    /// it so.
    ///
    /// # Errors
    /// The kernel's answer; [`io::ErrorKind::Interrupted`] when a signal came first.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        // Rounded up, so that a short rest of a timeout does not become a busy loop.
        let milliseconds = timeout.as_micros().div_ceil(1000);
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd, valid and exclusively ours during the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, i32::try_from(milliseconds).unwrap_or(i32::MAX)) };
        if ready < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ready > 0)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are those of `bytes`, which outlives the call.
        let sent = unsafe {
            libc::send(
                self.file.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn write_nowait(&self, bytes: &[u8]) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // The system call itself, because older C libraries do not have the function. The offset goes in two halves,
        // of which 64-bit kernels read the first only; -1 stands for the file's own position.
        // SAFETY: `part` describes `bytes`, which outlives the call, and the kernel only reads from it.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                self.file.as_raw_fd(),
                &raw const part,
                1_usize,
                -1_isize,
                -1_isize,
                libc::RWF_NOWAIT,
            )
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn write_with_room(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.wait(Duration::ZERO)? {
            (&self.file).write(bytes)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

impl AsFd for NonblockingWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether `error` says that the file or the kernel does not know `RWF_NOWAIT`.
fn lacks_nowait(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

/// `RWF_NOWAIT` and the two halves of an offset as passed above are those of 64-bit kernels.
const _: () = assert!(size_of::<usize>() == 8);

#[cfg(test)]
mod tests;
