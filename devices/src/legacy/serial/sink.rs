//! Writes to any file descriptor that never block.
//!
//! `O_NONBLOCK` belongs to the open file description, which standard output shares with the shell and with whatever
//! else writes there: setting it would make their writes fail. So every kind of file gets its own way of not
//! blocking. SIGPIPE and SIGXFSZ must be ignored by the process, so that a reader that has gone and a file that has
//! reached its limit are errors instead of the end.

use std::fs::File;
use std::io::{self, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

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
