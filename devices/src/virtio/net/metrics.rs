//! What has passed and what was dropped. Counted since the device was made; not part of a snapshot.

use serde::Serialize;

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets that went all the way.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets dropped for what they are: too long, too short, more than the driver's buffers hold, longer than the MTU
    /// that was negotiated, or with a header that asks for what was not.
    pub drops: u64,
    /// Packets that the back end failed to send or to receive.
    pub errors: u64,
    /// Times that the rate limiter stopped the queue.
    pub throttled: u64,
}

/// Both directions, as the guest sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetMetrics {
    /// Towards the guest.
    pub receive: Counters,
    /// From the guest.
    pub transmit: Counters,
}
