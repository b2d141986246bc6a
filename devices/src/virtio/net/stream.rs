//! Frames on a unix stream socket, each after its length in 32 bits, big-endian: what passt and QEMU's `-netdev stream`
//! speak. There is no header, so that nothing is offloaded.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;

use log::warn;

use super::backend::{Backend, Link, Received, Sent};
use super::buffers::RxBuffers;
use super::words::StderrTail;
use super::{HEADER, MAX_FRAME};
use crate::virtio::queue::chain::IoVecBuffer;

/// Bytes of the length before a frame.
const PREFIX: usize = 4;
/// Room for received bytes: the longest frame, whatever of it has come.
const ROOM: usize = PREFIX + MAX_FRAME;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the path.
    #[error(
        "cannot connect to {path:?}; start what serves the network first, for example passt --socket {path:?}"
    )]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made non-blocking.
    #[error("cannot make the network's socket non-blocking")]
    Nonblocking(#[source] io::Error),
}

/// The connection to the process that is the network.
///
/// The link is up until the other end closes it, or sends what is no frame: a length of 0 or of more than
/// [`MAX_FRAME`]. Then it is down for good, and the part of a frame that came last is dropped. A kernel that is short of
/// memory costs packets, and not the connection.
pub struct Stream {
    socket: UnixStream,
    /// What it is, for a person.
    name: String,
    /// What the other end says of its own accord, first of all why it ends.
    last_words: Option<StderrTail>,
    /// Received bytes are at `start..end`.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// The end of a frame that the socket has not taken yet: at most one frame.
    outbox: Vec<u8>,
    /// How much of `outbox` the socket has taken.
    flushed: usize,
    link: Link,
}

impl Stream {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// All variants.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let socket = UnixStream::connect(path).map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        let name = format!("stream {}", path.display());
        Self::named(socket, name, None)
    }

    /// Takes a connected socket.
    ///
    /// # Errors
    /// [`Error::Nonblocking`].
    pub fn new(socket: UnixStream) -> Result<Self, Error> {
        Self::named(socket, "stream".to_owned(), None)
    }

    /// As [`new`](Self::new), by the name of `name`, and with what the other end says besides.
    pub(super) fn named(
        socket: UnixStream,
        name: String,
        last_words: Option<StderrTail>,
    ) -> Result<Self, Error> {
        socket.set_nonblocking(true).map_err(Error::Nonblocking)?;
        Ok(Self {
            socket,
            name,
            last_words,
            inbox: vec![0; ROOM],
            start: 0,
            end: 0,
            outbox: Vec::new(),
            flushed: 0,
            link: Link::Up,
        })
    }

    /// The length of the frame at the start of what was received, if all of it is there.
    fn frame(&self) -> io::Result<Option<usize>> {
        let received = &self.inbox[self.start..self.end];
        let Some((prefix, rest)) = received.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the other end announces a frame of {length} bytes"),
            ));
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// Reads until a frame is there, and returns its length.
    fn read_frame(&mut self) -> io::Result<usize> {
        loop {
            if let Some(length) = self.frame()? {
                return Ok(length);
            }
            if self.start != 0 {
                self.inbox.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            match self.socket.read(&mut self.inbox[self.end..])? {
                0 => return Err(ended(self.end)),
                count => self.end += count,
            }
        }
    }

    /// Sends what `parts` describe, or the start of it.
    fn write(&self, parts: &mut [libc::iovec]) -> io::Result<usize> {
        let message = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: parts.as_mut_ptr(),
            msg_iovlen: parts.len(),
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `parts` describe memory that outlives the call, as both callers see to, and the kernel only reads it.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Notes what `result` says about the connection.
    pub(super) fn checked<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && self.link == Link::Up
            && !is_transient(error)
        {
            let words = self.last_words.as_ref().and_then(StderrTail::first_line);
            let words = words.map_or_else(String::new, |words| format!("; it says: {words}"));
            warn!("net: the link of {} is down: {error}{words}", self.name);
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
        let mut parts = Vec::with_capacity(1 + packet.count());
        parts.push(part(&prefix));
        parts.extend(packet.iovec(HEADER as u64..packet.len()));
        let sent = self.write(&mut parts)?;
        let whole = PREFIX + usize::try_from(length).unwrap_or(usize::MAX);
        if sent == whole {
            return Ok(Sent::Whole);
        }
        self.outbox.resize(whole - sent, 0);
        let (rest_of_prefix, rest) = self.outbox.split_at_mut(PREFIX.saturating_sub(sent));
        rest_of_prefix.copy_from_slice(&prefix[PREFIX - rest_of_prefix.len()..]);
        let offset = HEADER + sent.saturating_sub(PREFIX);
        packet.read_exact(offset as u64, rest).map_err(io::Error::other)?;
        Ok(Sent::Partly)
    }

    fn flush_outbox(&mut self) -> io::Result<()> {
        while self.flushed < self.outbox.len() {
            let mut parts = [part(&self.outbox[self.flushed..])];
            match self.write(&mut parts) {
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

    /// There are no offloads, so that there is nothing in the header.
    fn send(&mut self, _header: &[u8; HEADER], packet: &IoVecBuffer<'_>) -> io::Result<Sent> {
        if self.link != Link::Up {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.flush()?;
        let sent = self.send_frame(packet);
        self.checked(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.flush_outbox();
        self.checked(flushed)
    }

    fn receive(&mut self, _buffers: &RxBuffers<'_>, spare: &mut [u8]) -> io::Result<Received> {
        if self.link != Link::Up {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = self.read_frame();
        let length = self.checked(read)?;
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

/// The other end has closed the connection, after so many bytes of a frame that is not complete.
fn ended(bytes: usize) -> io::Error {
    let text = match bytes {
        0 => "the other end has closed the connection".to_owned(),
        _ => format!("the other end has closed the connection after {bytes} bytes of a frame"),
    };
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// Whether the connection is still there after `error`: it is not the moment, or the kernel is short of memory.
pub(super) fn is_transient(error: &io::Error) -> bool {
    let waits = matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    );
    waits || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}
