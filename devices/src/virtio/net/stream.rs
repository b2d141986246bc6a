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
    stderr: Option<StderrTail>,
    /// Received bytes are at `start..end`.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
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
        stderr: Option<StderrTail>,
    ) -> Result<Self, Error> {
        socket.set_nonblocking(true).map_err(Error::Nonblocking)?;
        Ok(Self {
            socket,
            name,
            stderr,
            inbox: vec![0; INBOX_SIZE],
            start: 0,
            end: 0,
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
            let line = self.stderr.as_ref().and_then(StderrTail::first_line);
            let line = line.map_or_else(String::new, |line| format!("; its standard error: {line}"));
            warn!("net: link of {} is down: {error}{line}", self.name);
            self.link = Link::Lost;
            self.outbox.clear();
            self.flushed = 0;
        }
        result
    }

    fn send_frame(&mut self, packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        let length = packet.len().saturating_sub(HEADER as u64);
        let frame = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let prefix = frame.to_be_bytes();
        let mut iovecs = Vec::with_capacity(1 + packet.count());
        iovecs.push(iovec(&prefix));
        iovecs.extend(packet.iovec(HEADER as u64..packet.len()));
        // SAFETY: the iovecs describe `prefix` and the memory of `packet`, which are borrowed beyond the call.
        let sent = unsafe { self.write(&mut iovecs) }?;
        let total = PREFIX + usize::try_from(length).unwrap_or(usize::MAX);
        if sent == total {
            return Ok(Sent::Complete);
        }
        self.outbox.resize(total - sent, 0);
        let (rest_of_prefix, rest) = self.outbox.split_at_mut(PREFIX.saturating_sub(sent));
        rest_of_prefix.copy_from_slice(&prefix[PREFIX - rest_of_prefix.len()..]);
        let offset = HEADER + sent.saturating_sub(PREFIX);
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
    fn send(&mut self, _header: &[u8; HEADER], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        if self.link != Link::Up {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.flush()?;
        let sent = self.send_frame(packet);
        self.update_link(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.flush_outbox();
        self.update_link(flushed)
    }

    fn receive(&mut self, _buffers: &RxBuffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
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

/// Maximum number of bytes kept of the standard error.
const MAX_BYTES: usize = 4096;
/// Maximum number of characters of the returned line.
const MAX_LINE: usize = 200;
/// Lines that passt prints in any case.
const NOTICES: [&str; 2] = ["Don't run as root", "Failed to send"];

/// Receiving end of the standard error of a process. Clones share the content.
///
/// No read is necessary before the process exits. The process never blocks: a full socket rejects further
/// bytes, and then already holds the first line.
#[derive(Clone, Debug)]
pub(super) struct StderrTail(Arc<Mutex<StderrBuffer>>);

#[derive(Debug)]
struct StderrBuffer {
    socket: UnixStream,
    text: Vec<u8>,
}

impl StderrTail {
    /// Creates a socket pair; the second end is for the process. A socket, because the standard library cannot
    /// create non-blocking pipes.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let buffer = StderrBuffer {
            socket: ours,
            text: Vec::new(),
        };
        Ok((Self(Arc::new(Mutex::new(buffer))), theirs.into()))
    }

    /// Returns the first informative line printed so far.
    pub(super) fn first_line(&self) -> Option<String> {
        let mut buffer = lock(&self.0);
        let StderrBuffer { socket, text } = &mut *buffer;
        let mut chunk = [0; MAX_BYTES];
        while text.len() < MAX_BYTES {
            match socket.read(&mut chunk[text.len()..]) {
                Ok(count) if count > 0 => {
                    let start = text.len();
                    text.extend(&chunk[start..start + count]);
                }
                // The process has closed the socket, or is silent so far.
                _ => break,
            }
        }
        first_line(&String::from_utf8_lossy(text))
    }
}

fn first_line(text: &str) -> Option<String> {
    let is_informative =
        |line: &&str| !line.is_empty() && !NOTICES.iter().any(|notice| line.starts_with(notice));
    let line = text.lines().map(str::trim).find(is_informative)?;
    // Control characters, as of colours, must not enter the log.
    let visible = line.chars().filter(|character| !character.is_control());
    Some(visible.take(MAX_LINE).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Write};

    use super::{MAX_LINE, StderrTail};

    #[test]
    fn stderr_first_line_is_shared() {
        let (tail, theirs) = StderrTail::pair().unwrap();
        assert_eq!(tail.first_line(), None);
        let mut theirs = File::from(theirs);
        let output = "Don't run as root. Changing to nobody...\n\n \x1b[31mno such option\nusage\n";
        theirs.write_all(output.as_bytes()).unwrap();
        drop(theirs);
        let expected = Some("[31mno such option".to_owned());
        assert_eq!(tail.clone().first_line(), expected);
        assert_eq!(tail.first_line(), expected);
    }

    #[test]
    fn stderr_overflow_is_dropped() {
        let (tail, theirs) = StderrTail::pair().unwrap();
        let mut theirs = File::from(theirs);
        let full = loop {
            if let Err(error) = theirs.write(&[b'x'; 1000]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert_eq!(tail.first_line().unwrap(), "x".repeat(MAX_LINE));
    }
}
