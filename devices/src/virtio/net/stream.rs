//! Frames on a unix stream socket, each after its length as a big-endian 32-bit number: the protocol of passt
//! and of QEMU's `-netdev stream`. There is no packet header and thus no offload.

use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::warn;

use super::backend::{Backend, Link, Received, Sent};
use super::buffers::RxBuffers;
use super::features::{HEADER, MAX_FRAME};
use crate::sync::lock;
use crate::virtio::queue::chain::IoVecBuffer;

/// Bytes of the length before a frame.
const PREFIX: usize = 4;
/// Bytes of the receive buffer: a frame of maximum length and its prefix.
const INBOX_SIZE: usize = PREFIX + MAX_FRAME;

/// Maximum time that [`connect`] waits for a listener with a full backlog. The event loop waits with it.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// Error of a stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens at the path.
    #[error(
        "cannot connect to {path:?}; start the network process first, for example `passt --socket {path:?}`"
    )]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The backlog of the listener stays full.
    #[error(
        "cannot connect to {path:?} within {CONNECT_TIMEOUT:?}: the backlog of the socket is full; check that the network process accepts connections"
    )]
    Backlog {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The socket cannot be made non-blocking.
    #[error("cannot make the network socket non-blocking")]
    Nonblocking(#[source] io::Error),
}

/// Connection to the process that provides the network.
///
/// The link is up until the other end closes the connection or sends an invalid length: 0, or more than
/// [`MAX_FRAME`]. Then it is down for good, and an incomplete frame is dropped. A kernel that is short of
/// memory loses packets but not the connection.
pub struct Stream {
    socket: UnixStream,
    /// Description for log messages.
    name: String,
    /// Standard error of the other end, for the reason of its exit.
    stderr: Option<StderrExcerpt>,
    /// Received bytes are at `start..end`.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// Length and copied start of the frame to send.
    head: Vec<u8>,
    /// Bytes of one frame that the socket has not accepted yet.
    outbox: Vec<u8>,
    /// Bytes of `outbox` that the socket has accepted.
    flushed: usize,
    link: Link,
}

impl Stream {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Fails with any variant.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let socket = connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::TimedOut => Error::Backlog { path },
                _ => Error::Connect { path, source },
            }
        })?;
        let name = format!("stream {}", path.display());
        Self::with_name(socket, name, None)
    }

    /// Creates a stream on a connected socket.
    ///
    /// # Errors
    /// [`Error::Nonblocking`] if the socket cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> Result<Self, Error> {
        Self::with_name(socket, "stream".to_owned(), None)
    }

    /// Creates a stream on a connected socket, with a description and, optionally, the standard error of the other end.
    pub(super) fn with_name(
        socket: UnixStream,
        name: String,
        stderr: Option<StderrExcerpt>,
    ) -> Result<Self, Error> {
        socket.set_nonblocking(true).map_err(Error::Nonblocking)?;
        Ok(Self {
            socket,
            name,
            stderr,
            inbox: vec![0; INBOX_SIZE],
            start: 0,
            end: 0,
            head: Vec::new(),
            outbox: Vec::new(),
            flushed: 0,
            link: Link::Up,
        })
    }

    /// Returns the length of the first received frame if it is complete.
    fn frame_length(&self) -> io::Result<Option<usize>> {
        let received = &self.inbox[self.start..self.end];
        let Some((prefix, rest)) = received.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the frame length {length} is invalid"),
            ));
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// Reads until a frame is complete, and returns its length.
    fn read_frame(&mut self) -> io::Result<usize> {
        loop {
            if let Some(length) = self.frame_length()? {
                return Ok(length);
            }
            if self.start != 0 {
                self.inbox.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            match self.socket.read(&mut self.inbox[self.end..])? {
                0 => return Err(closed_error(self.end)),
                count => self.end += count,
            }
        }
    }

    /// Sends the bytes of `iovecs`, or a prefix of them. Returns their number.
    ///
    /// # Safety
    /// Each of `iovecs` must describe memory that is valid for reads during the call.
    unsafe fn write(&self, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
        let message = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: iovecs.as_mut_ptr(),
            msg_iovlen: iovecs.len(),
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `message` and `iovecs` outlive the call. The memory of the iovecs is valid by the contract of the caller, and the
        // kernel only reads it.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Updates the link from `result`.
    pub(super) fn update_link<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && self.link == Link::Up
            && !is_transient(error)
        {
            let lines = self.stderr.as_ref().and_then(StderrExcerpt::lines);
            let lines = lines.map_or_else(String::new, |lines| format!("; its standard error: {lines}"));
            warn!("net: link of {} is down: {error}{lines}", self.name);
            self.link = Link::Lost;
            self.outbox.clear();
            self.flushed = 0;
        }
        result
    }

    fn send_frame(&mut self, start: &[u8], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let length = packet.len().saturating_sub(HEADER as u64);
        let frame = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        // One buffer for both: the packet may have all iovecs but one.
        self.head.clear();
        self.head.extend_from_slice(&frame.to_be_bytes());
        self.head
            .extend_from_slice(start.get(HEADER..).unwrap_or_default());
        let mut iovecs = Vec::with_capacity(1 + packet.count());
        iovecs.push(iovec(&self.head));
        iovecs.extend(packet.iovec(start.len() as u64..packet.len()));
        // SAFETY: the iovecs describe `head` and the memory of `packet`, which are borrowed beyond the call.
        let sent = unsafe { self.write(&mut iovecs) }?;
        let total = PREFIX + usize::try_from(length).unwrap_or(usize::MAX);
        if sent == total {
            return Ok(Sent::Complete);
        }
        let rest_of_head = &self.head[sent.min(self.head.len())..];
        self.outbox.clear();
        self.outbox.extend_from_slice(rest_of_head);
        let copied = self.outbox.len();
        self.outbox.resize(total - sent, 0);
        let offset = start.len() + sent.saturating_sub(self.head.len());
        let rest = &mut self.outbox[copied..];
        packet.read_exact(offset as u64, rest).map_err(io::Error::other)?;
        Ok(Sent::Partial)
    }

    fn flush_outbox(&mut self) -> io::Result<()> {
        while self.flushed < self.outbox.len() {
            let mut iovecs = [iovec(&self.outbox[self.flushed..])];
            // SAFETY: the iovec describes a part of `outbox`, which is borrowed during the call.
            match unsafe { self.write(&mut iovecs) } {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => self.flushed += result?,
            }
        }
        self.outbox.clear();
        self.flushed = 0;
        Ok(())
    }
}

impl Backend for Stream {
    fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn offloads(&self) -> u64 {
        0
    }

    fn use_features(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    /// Ignores the header: without offloads it is empty.
    fn send(&mut self, start: &[u8], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        if self.link != Link::Up {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.flush()?;
        let sent = self.send_frame(start, packet);
        self.update_link(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.flush_outbox();
        self.update_link(flushed)
    }

    fn receive(
        &mut self,
        _start: &mut [u8],
        _buffers: &RxBuffers<'_>,
        spare: &mut [u8],
    ) -> io::Result<Received> {
        if self.link != Link::Up {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = self.read_frame();
        let length = self.update_link(read)?;
        let first = self.start + PREFIX;
        let frame = &self.inbox[first..first + length];
        let packet = spare
            .get_mut(..HEADER + length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        packet[..HEADER].fill(0);
        packet[HEADER..].copy_from_slice(frame);
        self.start = first + length;
        Ok(Received::Spare(HEADER + length))
    }

    fn link(&self) -> Link {
        self.link
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}

/// Connects to the unix stream socket at `path`, which may be that of any process.
///
/// `UnixStream::connect` blocks while the backlog of the listener is full: without end, if the listener accepts no connection.
/// [`CONNECT_TIMEOUT`] bounds this wait, and each later write that would block.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the backlog stays full, [`io::ErrorKind::InvalidInput`] if no socket can have this path, else the
/// error of the system call.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    connect_within(path, CONNECT_TIMEOUT)
}

/// Connects like [`connect`], with `timeout` as the limit.
pub(super) fn connect_within(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = socket_address(path)?;
    // SAFETY: the call takes no pointer.
    let descriptor = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created the descriptor, and no other object owns it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    // The send timeout bounds connect(2) too, see socket(7). A poll cannot replace it: a non-blocking connect(2) to a full backlog
    // fails with EAGAIN and leaves nothing to wait for.
    socket.set_write_timeout(Some(timeout))?;
    let size = libc::socklen_t::try_from(mem::size_of_val(&address)).unwrap_or(libc::socklen_t::MAX);
    let started_at = Instant::now();
    loop {
        // SAFETY: `address` is valid for reads of `size` bytes.
        let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) };
        if connected == 0 {
            return Ok(socket);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            // Each call waits anew: without this limit, repeated signals would prolong the wait without end.
            io::ErrorKind::Interrupted if started_at.elapsed() >= timeout => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// Returns the address of the socket at `path`, padded with null bytes.
fn socket_address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?,
        sun_path: [0; 108],
    };
    let bytes = path.as_os_str().as_bytes();
    // An empty path, or a null byte at its start, would be the address of another kind of socket, see unix(7).
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a socket has 1 to 107 bytes, none of them null",
        ));
    }
    for (target, byte) in address.sun_path.iter_mut().zip(bytes) {
        *target = libc::c_char::from_ne_bytes([*byte]);
    }
    Ok(address)
}

/// Returns the error for a connection that ends after `bytes` of an incomplete frame.
fn closed_error(bytes: usize) -> io::Error {
    let text = match bytes {
        0 => "the other end closed the connection".to_owned(),
        _ => format!("the other end closed the connection after {bytes} bytes of a frame"),
    };
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// Returns true if the connection survives `error`: the call would block, or the kernel is short of memory.
pub(super) fn is_transient(error: &io::Error) -> bool {
    let waits = matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    );
    waits || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// Maximum number of bytes kept of the start and of the end of the standard error.
const MAX_BYTES: usize = 4096;
/// Maximum number of characters of a returned line.
const MAX_LINE: usize = 200;
/// Lines that passt prints in any case.
const NOTICES: [&str; 2] = ["Don't run as root", "Failed to send"];

/// Receiving end of the standard error of a process. Clones share the content.
///
/// No read is necessary before the process exits. The process never blocks: a full socket rejects further bytes.
#[derive(Clone, Debug)]
pub(super) struct StderrExcerpt(Arc<Mutex<StderrBuffer>>);

#[derive(Debug)]
struct StderrBuffer {
    socket: UnixStream,
    start: Vec<u8>,
    /// The last bytes after those of `start`.
    end: Vec<u8>,
}

impl StderrExcerpt {
    /// Creates a socket pair; the second end is for the process. A socket, because the standard library cannot
    /// create non-blocking pipes.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let buffer = StderrBuffer {
            socket: ours,
            start: Vec::new(),
            end: Vec::new(),
        };
        Ok((Self(Arc::new(Mutex::new(buffer))), theirs.into()))
    }

    /// Returns the first and, if it differs, the last informative line printed so far. A process that rejects its arguments
    /// states the cause first, and one that fails later states it last.
    pub(super) fn lines(&self) -> Option<String> {
        let mut buffer = lock(&self.0);
        buffer.read();
        let first = informative_lines(&buffer.start).next()?;
        let last = informative_lines(if buffer.end.is_empty() {
            &buffer.start
        } else {
            &buffer.end
        })
        .last();
        Some(match last {
            Some(last) if last != first => format!("{first} ... {last}"),
            _ => first,
        })
    }
}

impl StderrBuffer {
    /// Reads all received bytes.
    fn read(&mut self) {
        let mut chunk = [0; MAX_BYTES];
        // Without more bytes, the process has closed the socket, or is silent so far.
        while let Ok(count @ 1..) = self.socket.read(&mut chunk) {
            let room = MAX_BYTES - self.start.len();
            let (start, end) = chunk[..count].split_at(room.min(count));
            self.start.extend(start);
            self.end.extend(end);
            self.end.drain(..self.end.len().saturating_sub(MAX_BYTES));
        }
    }
}

/// Returns the lines of `text` without control characters, such as those of colours, which must not enter the log.
fn informative_lines(text: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !NOTICES.iter().any(|notice| line.starts_with(notice)))
        .map(|line| {
            line.chars()
                .filter(|character| !character.is_control())
                .take(MAX_LINE)
                .collect()
        })
        .collect();
    lines.into_iter()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Write};

    use super::{MAX_LINE, StderrExcerpt};

    #[test]
    fn stderr_lines_are_shared() {
        let (excerpt, theirs) = StderrExcerpt::pair().unwrap();
        assert_eq!(excerpt.lines(), None);
        let mut theirs = File::from(theirs);
        let output = "Don't run as root. Changing to nobody...\n\n \x1b[31mno such option\n";
        theirs.write_all(output.as_bytes()).unwrap();
        assert_eq!(excerpt.lines().unwrap(), "[31mno such option");
        theirs.write_all(b"usage\nbye\n\n").unwrap();
        drop(theirs);
        let expected = Some("[31mno such option ... bye".to_owned());
        assert_eq!(excerpt.clone().lines(), expected);
        assert_eq!(excerpt.lines(), expected);
    }

    #[test]
    fn stderr_has_its_last_line_after_many() {
        let (excerpt, theirs) = StderrExcerpt::pair().unwrap();
        let mut theirs = File::from(theirs);
        let warnings: String = (0..1000).map(|number| format!("warning {number}\n")).collect();
        theirs.write_all(warnings.as_bytes()).unwrap();
        theirs.write_all(b"fatal\n").unwrap();
        assert_eq!(excerpt.lines().unwrap(), "warning 0 ... fatal");
    }

    #[test]
    fn stderr_overflow_is_dropped() {
        let (excerpt, theirs) = StderrExcerpt::pair().unwrap();
        let mut theirs = File::from(theirs);
        let full = loop {
            if let Err(error) = theirs.write(&[b'x'; 1000]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert_eq!(excerpt.lines().unwrap(), "x".repeat(MAX_LINE));
        // The process can print again after a read.
        theirs.write_all(b"\nlast\n").unwrap();
        assert_eq!(
            excerpt.lines().unwrap(),
            format!("{} ... last", "x".repeat(MAX_LINE))
        );
    }
}
