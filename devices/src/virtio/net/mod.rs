//! The network device: section 5.1 of the specification, one pair of queues, no control queue.
//!
//! | module | holds |
//! |---|---|
//! | [`backend`] | [`Backend`]: where frames go to and come from; [`Received`], [`Sent`], [`Link`] |
//! | [`device`] | [`Net`]: the device; [`NetSetup`], what it is made from |
//! | [`features`] | what is offered, and what a packet's header may ask for |
//! | [`metrics`] | [`NetMetrics`]: what has passed and what was dropped |
//! | [`passt`] | [`Passt`]: a network for a user without privileges |
//! | [`state`] | [`NetState`]: what is kept of it in a snapshot |
//! | [`stream`] | [`Stream`]: frames with their lengths on a unix socket, as passt and QEMU speak |
//! | [`tap`] | [`Tap`]: a tap interface of the host |
//!
//! Packets go between the tap and the guest's buffers without a copy. A packet is copied only when it cannot be in the
//! guest's buffers yet: there are fewer than it takes, or the rate limiter holds it back. There is one such packet at
//! most; all others wait in the back end, whose own queue drops what is too much.
//!
//! A call from the transport or the event loop serves a bounded number of packets and leaves the rest to the next turn of
//! the event loop, so that neither a flood of packets nor a driver on another vCPU that never stops keeps it.
//!
//! A tap that takes no more, which only one with a small `TUNSETSNDBUF` does, and a socket that is full stop the transmit
//! queue until they are writable: the packets stay in the guest, whose own queues know what to do about that.

pub mod backend;
mod buffers;
pub mod device;
mod error;
pub mod features;
pub mod metrics;
pub mod passt;
mod rx;
pub mod state;
pub mod stream;
pub mod tap;
#[cfg(test)]
mod tests;
mod turn;
mod tx;
mod words;
mod writable;

pub use backend::{Backend, Link, Received, Sent};
pub use buffers::RxBuffers;
pub use device::{Net, NetSetup};
pub use metrics::{Counters, NetMetrics};
pub use passt::Passt;
pub use state::NetState;
pub use stream::Stream;
pub use tap::Tap;

/// Bytes of `struct virtio_net_hdr_v1`, which is before every packet of a driver that has accepted VERSION_1.
pub const HEADER: usize = 12;
/// Bytes of a frame that are no part of the MTU: an Ethernet header and one VLAN tag.
const ETHERNET: usize = 14 + 4;
/// The longest frame in bytes: 64 KiB, an Ethernet header and one VLAN tag.
pub const MAX_FRAME: usize = 65_536 + ETHERNET;
/// The longest packet in bytes: a frame with its header.
pub const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// The shortest frame in bytes: an Ethernet header.
const MIN_FRAME: usize = 14;
