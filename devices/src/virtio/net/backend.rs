//! Where frames go to and come from.

use std::io;
use std::os::fd::RawFd;

use super::HEADER;
use super::buffers::RxBuffers;
use crate::virtio::queue::chain::IoVecBuffer;

/// Where a received packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes are in the buffers. What had no room there is in the spare room, at the offset that it has in the
    /// packet.
    Direct(usize),
    /// So many bytes are at the start of the spare room, and nothing is in the buffers.
    Spare(usize),
}

/// How much of a packet has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    Whole,
    /// It is taken, but its end waits in the back end for [`Backend::flush`].
    Partly,
}

/// Whether there is a network behind a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There is.
    Up,
    /// There is none for now. The descriptor becomes writable when there is one again, which [`Backend::flush`] notes.
    Down,
    /// There is none any more.
    Lost,
}

/// The host's side of a network device. No method blocks.
///
/// A packet is a `struct virtio_net_hdr_v1` and a frame, in both directions. What its header may ask for is what
/// [`Backend::use_features`] was told last.
pub trait Backend: Send {
    /// What becomes readable when packets are there, and writable when packets can be sent. It never changes.
    fn descriptor(&self) -> RawFd;

    /// Features that the device can offer thanks to this back end: checksums and segmentation.
    fn offloads(&self) -> u64;

    /// The driver has accepted `features`; 0 after a reset.
    ///
    /// # Errors
    /// The kernel's answer.
    fn use_features(&mut self, features: u64) -> io::Result<()>;

    /// Sends one packet, at most [`LONGEST_PACKET`](super::LONGEST_PACKET) bytes: `header`, and what of `packet` is behind
    /// its own, straight from guest memory. The driver may have changed its own header since it was checked.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing of it was taken and it can be sent later; with any other error it
    /// cannot.
    fn send(&mut self, header: &[u8; HEADER], packet: &IoVecBuffer<'_>) -> io::Result<Sent>;

    /// Sends what waits since [`Sent::Partly`], if anything, and looks whether a link that is down is up again.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when something waits until the descriptor is writable. With any other error nothing
    /// waits, or it goes out before the next packet.
    fn flush(&mut self) -> io::Result<()>;

    /// Receives one packet into `buffers`, and into `spare`, of [`LONGEST_PACKET`](super::LONGEST_PACKET) bytes, what has
    /// no room there. The field `num_buffers` of its header is left alone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none. After any other error there may be more of them.
    fn receive(&mut self, buffers: &RxBuffers<'_>, spare: &mut [u8]) -> io::Result<Received>;

    /// Whether there is a network behind it: the link status of the device.
    fn link(&self) -> Link;

    /// What it is, in a few words for a person, such as `tap tap0`.
    fn describe(&self) -> String;
}
