//! Metrics of a network device, as seen by the guest.

use serde::Serialize;

use crate::counter::Counter;

/// Metrics of both directions. They count from the creation of the device and are not part of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetMetrics {
    /// Packets to the guest.
    pub receive: Counters,
    /// Packets from the guest.
    pub transmit: Counters,
}

/// Counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Transferred packets.
    pub packets: u64,
    /// Bytes of the frames of the transferred packets.
    pub bytes: u64,
    /// Dropped packets: too long, too short, longer than the driver's buffers or the negotiated MTU, or with
    /// an offload in the header that was not negotiated.
    pub drops: u64,
    /// Failures of the backend to send or receive a packet.
    pub errors: u64,
    /// Number of times that the rate limiter throttled the queue.
    pub throttled: u64,
}

/// Recorder of [`NetMetrics`]. The device writes it under its lock; any thread reads it without.
#[derive(Debug, Default)]
pub struct NetRecorder {
    pub(super) receive: Recorder,
    pub(super) transmit: Recorder,
}

impl NetRecorder {
    /// Returns the metrics. Those of a packet that is processed meanwhile may be counted in part.
    pub fn metrics(&self) -> NetMetrics {
        NetMetrics {
            receive: self.receive.counters(),
            transmit: self.transmit.counters(),
        }
    }
}

/// Recorder of one direction.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) packets: Counter,
    pub(super) bytes: Counter,
    pub(super) drops: Counter,
    pub(super) errors: Counter,
    pub(super) throttled: Counter,
}

impl Recorder {
    fn counters(&self) -> Counters {
        Counters {
            packets: self.packets.get(),
            bytes: self.bytes.get(),
            drops: self.drops.get(),
            errors: self.errors.get(),
            throttled: self.throttled.get(),
        }
    }
}
