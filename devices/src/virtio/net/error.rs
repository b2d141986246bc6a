//! What of the driver's made the device stop.

use crate::virtio::queue::{self, chain};

/// What of the driver's made the device stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The queue itself.
    #[error("the queue cannot be followed")]
    Queue(#[source] queue::Error),
    /// A chain is malformed.
    #[error("the chain cannot be used")]
    Chain(#[source] chain::Error),
    /// A chain has parts of the wrong direction.
    #[error("chain {0} has parts of the wrong direction")]
    Direction(u16),
    /// A receive buffer has no room for the header of a packet. Section 5.1.6.3.1.
    #[error("the receive buffer of chain {head} has {length} bytes, less than a header")]
    Small {
        /// Index of its first descriptor.
        head: u16,
        /// Its length.
        length: u64,
    },
}
