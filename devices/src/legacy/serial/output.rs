//! The bounded buffer between the serial port and its reader, and nonblocking writes to any kind of file.
//!
//! While the reader keeps up, a byte reaches it with one system call. A write to a file on a disk may wait for the disk: unless the
//! kernel can write without a wait, a thread writes. Bytes that the file does not accept are buffered, and the event loop writes them
//! when the file is writable again, or every second while the disk is full, the file is at its size limit, or the disk fails: the user
//! can repair each while the guest runs. A full buffer drops its oldest byte: the last output of a guest explains its exit.
//!
//! A rate limit drops each byte for which there is no token, before the buffer.
//!
//! `O_NONBLOCK` is a flag of the open file description, which standard output shares with the shell and other
//! processes; their writes would fail. Each kind of file therefore has its own way to write without blocking. The
//! process must ignore SIGPIPE and SIGXFSZ, so that a closed reader and a file at its size limit are errors.

mod disk_thread;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use snapshot::file::FileIdentity;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock::{Clock, MonotonicClock};
use crate::counter::Counter;
use crate::limiter::{Bucket, DropLimiter};
use crate::medium::Medium;
use disk_thread::DiskThread;

/// Size of the buffer in bytes.
pub const CAPACITY: usize = 64 * 1024;

/// Time between two attempts to write to a full disk. No event reports free space, and a failed write may be slow.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time without progress of the disk, after which [`SerialOutput::discard`] drops the bytes.
const DISK_TIMEOUT: Duration = Duration::from_millis(50);

/// Maximum number of bytes per [`SerialOutput::flush`]: it bounds the time that a vCPU thread waits for the lock.
const MAX_FLUSH: usize = 4096;

/// Failure of the output. It is invisible to the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `fstat` failed.
    #[error("cannot determine the file type of the serial output")]
    Inspect {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// `eventfd` failed.
    #[error("cannot create the eventfd of the serial output")]
    EventFd {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The reader or the disk was too slow, or the disk was full for too long.
    #[error(
        "dropped {bytes} bytes of serial output: the reader or the disk stalled, the disk was full or failed, or no memory was left"
    )]
    Overflow {
        /// Number of bytes dropped since the last report.
        bytes: u64,
    },
    /// A write failed for lack of space, at the size limit of the file, or by a failure of the disk.
    #[error(
        "cannot write the serial output; the last {} KiB are kept, and written once the file accepts them",
        CAPACITY / 1024
    )]
    Full {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A write failed permanently, for example because the reader is closed.
    #[error("cannot write the serial output; further output is dropped")]
    Broken {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Output of a serial port.
///
/// No method blocks except [`finish`](Self::finish) and [`discard`](Self::discard), and none logs: standard error is often the same stalled pipe. The
/// event loop
/// - watches [`flush_needed`](Self::flush_needed) and calls [`flush`](Self::flush) when it becomes readable;
/// - while [`flush`](Self::flush) returns true, watches the file itself ([`AsFd`]) for writability, level-triggered,
///   and calls it again;
/// - while [`is_full`](Self::is_full) returns true, calls [`flush`](Self::flush) again after [`RETRY_INTERVAL`];
/// - logs the result of [`report`](Self::report) after each of these calls and after [`finish`](Self::finish).
///
/// A file on a disk needs no watch for writability: the end of its write makes [`flush_needed`](Self::flush_needed) readable.
#[derive(Debug)]
pub struct SerialOutput {
    writer: NonblockingWriter,
    buffer: VecDeque<u8>,
    flush_needed: Arc<EventFd>,
    reported: u64,
    broken: bool,
    /// Number of the last error, if the last write failed with one that the user can repair, mostly a lack of space.
    full: Option<i32>,
    /// The lack of space was reported, or will be. Set until all bytes are written.
    full_reported: bool,
    cause: Option<io::Error>,
    first_write: Arc<OnceLock<Instant>>,
    limit: Option<RateLimit>,
    recorder: Arc<OutputRecorder>,
}

/// Rate limit with its time source.
#[derive(Debug)]
struct RateLimit {
    limiter: DropLimiter,
    clock: MonotonicClock,
}

/// Counters of a serial output, written under the lock of the port.
#[derive(Debug, Default)]
pub(super) struct OutputRecorder {
    /// Bytes dropped for any reason but the rate limit.
    pub(super) dropped: Counter,
    /// Bytes beyond the rate limit.
    pub(super) limited: Counter,
    /// Failed writes.
    pub(super) errors: Counter,
    /// Writes of buffered bytes.
    pub(super) flushes: Counter,
}

impl SerialOutput {
    /// Creates an output to `file`, which may be of any kind.
    ///
    /// # Errors
    /// [`Error::Inspect`] if `fstat` fails, [`Error::EventFd`] if `eventfd` fails.
    pub fn new(file: OwnedFd) -> Result<Self, Error> {
        let flush_needed =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| Error::EventFd { source })?;
        let flush_needed = Arc::new(flush_needed);
        let writer = NonblockingWriter::with_thread(file, flush_needed.clone());
        Ok(Self {
            writer: writer.map_err(|source| Error::Inspect { source })?,
            buffer: VecDeque::new(),
            flush_needed,
            reported: 0,
            broken: false,
            full: None,
            full_reported: false,
            cause: None,
            first_write: Arc::default(),
            limit: None,
            recorder: Arc::default(),
        })
    }

    /// Limits the output to `bucket`, which is full; a bucket without a limit removes the limit. Bytes beyond the limit are dropped
    /// without a [`report`](Self::report): the user has requested it, and the metrics count them.
    pub fn set_limit(&mut self, bucket: Bucket) {
        let limiter = DropLimiter::new(bucket);
        self.limit = limiter.map(|limiter| RateLimit {
            limiter,
            clock: MonotonicClock::new(),
        });
    }

    /// Writes or buffers `bytes`. A full buffer drops its oldest bytes, the rate limit those beyond it.
    pub fn write(&mut self, bytes: &[u8]) {
        self.first_write.get_or_init(Instant::now);
        let mut rest = self.take_within_limit(bytes);
        while self.buffer.is_empty() && !self.broken && !rest.is_empty() {
            let written = self.writer.write(rest);
            match self.check(written) {
                Some(written) => rest = &rest[written..],
                None => break,
            }
        }
        if self.broken {
            self.drop_bytes(rest.len());
        } else if !rest.is_empty() {
            self.buffer_bytes(rest);
        }
    }

    /// Writes buffered bytes without blocking, to a reader at most about 4 KiB. Returns true while bytes remain and the disk is not
    /// full: the caller then watches the file for writability.
    pub fn flush(&mut self) -> bool {
        // Fails with EAGAIN if no notification is pending: a call for writability needs none.
        let _ = self.flush_needed.read();
        self.write_buffered();
        !self.buffer.is_empty() && self.full.is_none() && !self.writer.reports_end()
    }

    /// Returns true if bytes are buffered because the disk is full or fails, or the file is at its size limit.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Writes all buffered bytes, and blocks while the reader makes progress. Drops the rest if the reader makes none
    /// within `timeout`, or if the disk is full.
    pub fn finish(&mut self, timeout: Duration) {
        self.finish_by(timeout, Instant::now);
    }

    /// Drops all buffered bytes. Writes those for a disk before, and blocks while the disk makes progress: it usually accepts them
    /// at once.
    pub fn discard(&mut self) {
        let timeout = if self.writer.reports_end() {
            DISK_TIMEOUT
        } else {
            Duration::ZERO
        };
        self.finish(timeout);
    }

    fn finish_by(&mut self, timeout: Duration, mut now: impl FnMut() -> Instant) {
        let mut progress = now();
        let mut pending = self.buffered_bytes();
        while pending > 0 {
            self.write_buffered();
            let before = std::mem::replace(&mut pending, self.buffered_bytes());
            if pending < before {
                progress = now();
                continue;
            }
            let left = timeout.saturating_sub(now() - progress);
            if let Some(number) = self.full {
                // A full file counts as writable: waiting would be a busy loop.
                self.fail(io::Error::from_raw_os_error(number));
            } else if left.is_zero() {
                self.drop_buffered();
            } else if let Err(error) = self.writer.wait(left)
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.fail(error);
            }
        }
    }

    /// Returns the time of the first write of the guest, once there was one, for threads that read it without the lock of the port.
    pub fn first_write(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.first_write)
    }

    /// Returns the number of bytes that are neither written nor dropped.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() + self.writer.pending()
    }

    /// Returns the number of bytes dropped so far, for any reason but the rate limit.
    pub fn dropped(&self) -> u64 {
        self.recorder.dropped.get()
    }

    /// Returns the recorder of the metrics.
    pub(super) fn recorder(&self) -> Arc<OutputRecorder> {
        Arc::clone(&self.recorder)
    }

    /// Returns the start of `bytes` that is within the limit, and counts the others as dropped.
    fn take_within_limit<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(RateLimit { limiter, clock }) = &mut self.limit else {
            return bytes;
        };
        let (passed, limited) = bytes.split_at(limiter.consume_available(bytes.len(), clock.now()));
        self.recorder.limited.add(limited.len() as u64);
        passed
    }

    fn drop_bytes(&self, count: usize) {
        self.recorder.dropped.add(count as u64);
    }

    /// Returns the failure that the caller has to log, once.
    ///
    /// A permanent failure is reported at once, and no report follows it. A full disk is reported at once, and again only
    /// after the buffer was empty. Dropped bytes are reported as one number when the buffer is empty again or
    /// [`finish`](Self::finish) has timed out.
    pub fn report(&mut self) -> Option<Error> {
        let cause = self.cause.take();
        if self.broken {
            return cause.map(|source| Error::Broken { source });
        }
        if self.buffered_bytes() > 0 {
            return cause.map(|source| Error::Full { source });
        }
        self.full_reported = false;
        let bytes = self.dropped() - self.reported;
        if bytes == 0 {
            return None;
        }
        self.reported = self.dropped();
        Some(Error::Overflow { bytes })
    }

    /// Returns the eventfd that becomes readable when the caller has to call [`flush`](Self::flush).
    pub fn flush_needed(&self) -> &EventFd {
        &self.flush_needed
    }

    /// Writes at most [`MAX_FLUSH`] buffered bytes. A disk gets all bytes, or reports the end of a write.
    fn write_buffered(&mut self) {
        let mut written = 0;
        while self.buffered_bytes() > 0 {
            let max = if self.writer.reports_end() {
                CAPACITY
            } else {
                MAX_FLUSH - written
            };
            if max == 0 {
                break;
            }
            let (front, _) = self.buffer.as_slices();
            let result = self.writer.write(&front[..front.len().min(max)]);
            let Some(count) = self.check(result) else { break };
            self.recorder.flushes.add(1);
            self.buffer.drain(..count);
            written += count;
        }
    }

    /// Returns the number of written bytes, or `None` if the file takes none now or fails for good.
    fn check(&mut self, written: io::Result<usize>) -> Option<usize> {
        self.full = None;
        let error = match written {
            Ok(count) => return Some(count),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            return None;
        }
        self.recorder.errors.add(1);
        self.full = self.writer.repairable(&error);
        if self.full.is_none() {
            self.fail(error);
        } else if !self.full_reported {
            self.full_reported = true;
            self.cause = Some(error);
        }
        None
    }

    fn buffer_bytes(&mut self, bytes: &[u8]) {
        if self.buffer.is_empty() {
            // Allocated on the first stall: most guests never need the buffer.
            if self.buffer.try_reserve_exact(CAPACITY).is_err() {
                self.drop_bytes(bytes.len());
                return;
            }
            // A disk reports the end of its write.
            if !self.writer.reports_end() {
                self.notify_event_loop();
            }
        }
        for byte in bytes {
            if self.buffer.len() == CAPACITY {
                self.buffer.pop_front();
                self.drop_bytes(1);
            }
            self.buffer.push_back(*byte);
        }
    }

    fn fail(&mut self, cause: io::Error) {
        self.broken = true;
        self.full = None;
        self.cause = Some(cause);
        self.drop_buffered();
        self.notify_event_loop();
    }

    /// Returns the identity of the file, or `None` if it is no regular file.
    pub fn identity(&self) -> Option<FileIdentity> {
        self.writer.identity
    }

    fn drop_buffered(&mut self) {
        self.drop_bytes(self.buffered_bytes());
        self.buffer.clear();
        self.writer.abandon();
    }

    fn notify_event_loop(&self) {
        // The counter stays far below its limit, so that the write cannot fail.
        let _ = self.flush_needed.write(1);
    }
}

impl AsFd for SerialOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }
}

/// Maximum size of one write: PIPE_BUF, which a writable pipe accepts at once (pipe(7)).
const CHUNK_SIZE: usize = 4096;

/// Device number of /dev/null, the same on every Linux system.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Way to write without blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// No write: the file is /dev/null.
    Discard,
    /// write(2): regular files and block devices have no reader to wait for, but a disk.
    Plain,
    /// pwritev2(2) with `RWF_NOWAIT` as far as the file system supports it, and a thread for the other bytes: regular files on a disk
    /// and block devices.
    Disk,
    /// send(2) with `MSG_DONTWAIT`.
    Send,
    /// pwritev2(2) with `RWF_NOWAIT`. Pipes support it since Linux 6.4, FIFOs do not.
    NoWait,
    /// poll(2) for room, then write(2) of at most this number of bytes. The last resort: another writer can use the
    /// room between the two calls.
    Poll(usize),
}

/// Writer to a file of any kind that waits for no reader.
#[derive(Debug)]
pub struct NonblockingWriter {
    file: Arc<File>,
    identity: Option<FileIdentity>,
    method: Method,
    /// The file system does not support `RWF_NOWAIT` for writes.
    lacks_nowait: bool,
    /// Set from the first write that may wait for the disk.
    thread: Option<DiskThread>,
    /// Signalled by the thread.
    ended: Option<Arc<EventFd>>,
}

impl NonblockingWriter {
    /// Creates a writer to `file`, which may be of any kind. It does not wait for a disk either: if it must, a thread writes, and signals
    /// `ended`.
    ///
    /// # Errors
    /// Fails if `fstat` fails.
    fn with_thread(file: OwnedFd, ended: Arc<EventFd>) -> io::Result<Self> {
        let mut writer = Self::new(file)?;
        if writer.method == Method::Plain && Medium::of(&writer.file) != Medium::Memory {
            writer.method = Method::Disk;
            writer.ended = Some(ended);
        }
        Ok(writer)
    }

    /// Creates a writer to `file`, which may be of any kind. It may wait for the disk of a regular file.
    ///
    /// # Errors
    /// Fails if `fstat` fails.
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
            // A writable terminal accepts one character, also a line feed with its carriage return, but blocks within
            // a longer write.
            Method::Poll(1)
        } else {
            Method::Plain
        };
        Ok(Self {
            identity: FileIdentity::of(&metadata),
            file: Arc::new(file),
            method,
            lacks_nowait: false,
            thread: None,
            ended: None,
        })
    }

    /// Writes the first of `bytes` and returns their number, at least one unless `bytes` is empty. A thread may write them later, see
    /// `pending`; then its errors are those of the next call, which repeats the write.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the file has no room; [`wait`](Self::wait) waits for it.
    /// An error that is not [repairable](Self::repairable) is permanent.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK_SIZE)];
        loop {
            let written = match self.method {
                Method::Discard => return Ok(bytes.len()),
                Method::Plain => (&*self.file).write(chunk),
                Method::Disk => self.write_to_disk(bytes),
                Method::Send => self.send(chunk),
                Method::NoWait => self.write_nowait(chunk),
                Method::Poll(max) => self.write_with_room(&chunk[..chunk.len().min(max)]),
            };
            match written {
                Ok(0) if !chunk.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.method == Method::NoWait && is_nowait_unsupported(&error) => {
                    self.method = Method::Poll(CHUNK_SIZE);
                }
                written => return written,
            }
        }
    }

    /// Returns the number of `error` if a later write may succeed: the disk is full, the file is at its size limit, or the disk
    /// fails. Failures of other files, such as the hang-up of a terminal, are permanent.
    pub fn repairable(&self, error: &io::Error) -> Option<i32> {
        let number = error.raw_os_error()?;
        match number {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Some(number),
            // ENOMEM: the thread does not start.
            libc::EIO | libc::ENOMEM if matches!(self.method, Method::Plain | Method::Disk) => Some(number),
            _ => None,
        }
    }

    /// Returns the number of bytes that the thread has taken and not written.
    fn pending(&self) -> usize {
        self.thread.as_ref().map_or(0, DiskThread::pending)
    }

    /// Returns true if a thread writes, which reports the end of its writes.
    fn reports_end(&self) -> bool {
        self.thread.is_some()
    }

    /// Forgets the bytes that the thread has not written, though the thread goes on with them.
    fn abandon(&mut self) {
        self.thread = None;
    }

    /// Waits at most `timeout` until the file is writable, and returns true if it is. A closed reader counts as
    /// writable.
    ///
    /// # Errors
    /// Fails if `poll` fails; [`io::ErrorKind::Interrupted`] if a signal interrupts it.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        if let Some(thread) = &self.thread {
            return Ok(thread.wait(timeout));
        }
        // Rounded up: zero for a rest below 1 ms would become a busy loop.
        let milliseconds = timeout.as_micros().div_ceil(1000);
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd, valid and exclusively borrowed during the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, i32::try_from(milliseconds).unwrap_or(i32::MAX)) };
        if ready < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ready > 0)
    }

    fn write_to_disk(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(thread) = &self.thread {
            thread.check()?;
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        if !self.lacks_nowait {
            match self.write_nowait(bytes) {
                Err(error) if is_nowait_unsupported(&error) => self.lacks_nowait = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
        if self.thread.is_none() {
            let Some(ended) = self.ended.clone() else {
                return (&*self.file).write(bytes);
            };
            let thread = DiskThread::start(self.file.clone(), ended);
            // The error of a missing thread is EAGAIN, which stands for a file without room here.
            self.thread = Some(thread.map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?);
        }
        Ok(self.thread.as_ref().map_or(0, |thread| thread.submit(bytes)))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length describe `bytes`, which outlives the call.
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
        let iovec = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // A raw system call, because older C libraries lack the function. It takes the offset in two halves, and 64-bit
        // kernels ignore the second; -1 is the current file position.
        // SAFETY: `iovec` describes `bytes`, which outlives the call, and the kernel only reads from it.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                self.file.as_raw_fd(),
                &raw const iovec,
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
            (&*self.file).write(bytes)
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

/// Returns true if `error` means that the file or the kernel does not support `RWF_NOWAIT`.
fn is_nowait_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

// `write_nowait` passes the offset as 64-bit kernels expect it.
const _: () = assert!(size_of::<usize>() == 8);

#[cfg(test)]
mod tests;
