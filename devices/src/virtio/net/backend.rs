//! Host side of a network device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::buffers::RxBuffers;
use crate::virtio::queue::chain::IoVecBuffer;

/// Location of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Length in bytes of a packet in the buffers, except its start, which is in `start`. The bytes beyond both are in the spare
    /// buffer, at their offset in the packet.
    Direct(usize),
    /// Length in bytes of a packet at the start of the spare buffer. The receive buffers and `start` hold none of it.
    Spare(usize),
}

/// Extent of a sent packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The backend has sent the packet.
    Complete,
    /// The backend has accepted the packet; its end waits for [`Backend::flush`].
    Partial,
}

/// Link state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The network is reachable.
    Up,
    /// The network is unreachable for now. The descriptor becomes writable when it returns;
    /// [`Backend::flush`] detects that.
    Down,
    /// The network is gone for good.
    Lost,
}

/// Host side of a network device. No method blocks.
///
/// A packet is a `struct virtio_net_hdr_v1` and a frame, in both directions. The last call of
/// [`Backend::use_features`] limits the offloads in its header.
pub trait Backend: Send {
    /// Returns the descriptor that becomes readable when packets arrive, and writable when packets can be
    /// sent. It never changes.
    fn descriptor(&self) -> RawFd;

    /// Returns the feature bits for checksum and segmentation offloads that this backend supports.
    fn offloads(&self) -> u64;

    /// Applies the negotiated `features`; 0 after a reset.
    ///
    /// # Errors
    /// Fails if the kernel rejects the features.
    fn use_features(&mut self, features: u64) -> io::Result<()>;

    /// Sends one packet of at most [`MAX_PACKET`](super::features::MAX_PACKET) bytes: `start`, and the rest of `packet` without a
    /// copy. The start of `packet`, at least its header, is not used: the driver may change it after the check.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing was sent and a later call can succeed. Any other error is
    /// final for the packet.
    fn send(&mut self, start: &[u8], packet: &IoVecBuffer<'_>) -> io::Result<Sent>;

    /// Sends the data that waits since [`Sent::Partial`], and updates the state of a link that is down.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if data waits until the descriptor is writable. After any other error
    /// nothing waits, or the data precedes the next packet.
    fn flush(&mut self) -> io::Result<()>;

    /// Receives one packet into `buffers`, except its first bytes, which go to `start`. The bytes beyond both go to `spare`, which
    /// has [`MAX_PACKET`](super::features::MAX_PACKET) bytes. The field `num_buffers` of the header stays unset.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no packet. After any other error there may be more packets.
    fn receive(
        &mut self,
        start: &mut [u8],
        buffers: &RxBuffers<'_>,
        spare: &mut [u8],
    ) -> io::Result<Received>;

    /// Returns the link state of the backend.
    fn link(&self) -> Link;

    /// Returns a short description for log messages, such as `tap tap0`.
    fn describe(&self) -> String;
}

/// Epoll instance that becomes readable when the watched descriptor becomes writable, once for each
/// [`Writable::watch`].
///
/// The event loop watches descriptors for input only. An epoll instance is readable when a descriptor in it
/// is ready. This instance thus reports a writable backend as input, and only while the device waits for it.
pub(super) struct Writable {
    epoll: Epoll,
    registered: bool,
    watching: bool,
}

impl Writable {
    /// Creates an instance that watches no descriptor.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            registered: false,
            watching: false,
        })
    }

    /// Returns true if a wait is pending.
    pub(super) fn is_watching(&self) -> bool {
        self.watching
    }

    /// Starts a wait for `descriptor` to become writable or fail. All calls pass the same descriptor.
    pub(super) fn watch(&mut self, descriptor: RawFd) -> io::Result<()> {
        let operation = match self.registered {
            true => ControlOperation::Modify,
            false => ControlOperation::Add,
        };
        let event = EpollEvent::new(EventSet::OUT | EventSet::ONE_SHOT, 0);
        self.epoll.ctl(operation, descriptor, event)?;
        self.registered = true;
        self.watching = true;
        Ok(())
    }

    /// Consumes the event and ends the wait.
    pub(super) fn clear(&mut self) {
        self.watching = false;
        // A timeout of 0 fetches a pending event only; without one there is nothing to consume.
        let _ = self.epoll.wait(0, &mut [EpollEvent::default()]);
    }
}

impl AsRawFd for Writable {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
