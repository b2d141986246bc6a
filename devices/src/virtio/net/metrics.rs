//! Metrics of a network device, as seen by the guest.

use serde::Serialize;

use super::activity::Activity;
use super::rewriter::DropReason;
use crate::counter::Counter;
use crate::latency::{Latency, LatencyRecorder};

/// Metrics of both directions. They count from the creation of the device and are not part of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetMetrics {
    /// Packets to the guest.
    pub receive: Counters,
    /// Packets from the guest.
    pub transmit: Counters,
    /// Events of a readable backend.
    pub backend_events: u64,
    /// Number of stops because of a fault of the driver.
    pub faults: u64,
    /// ARP messages by which another host claims the address that the network sees; 0 without a rewriter.
    pub address_conflicts: u64,
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
    /// Available buffer notifications.
    pub notifications: u64,
    /// Expirations of the timer of the rate limiter.
    pub limiter_events: u64,
    /// Batches that found no available buffer.
    pub empty_batches: u64,
    /// Available buffers that batches have left in the queue.
    pub left_buffers: u64,
    /// Duration of the backend's sends, a sample of one in 16.
    pub duration: Latency,
    /// Packets that the rewriter of addresses dropped; `drops` does not count them.
    pub address_drops: AddressDrops,
}

/// Packets that the rewriter of addresses dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AddressDrops {
    /// IPv6.
    pub ipv6: u64,
    /// With a VLAN tag.
    pub vlan: u64,
    /// Neither ARP, IPv4 nor IPv6.
    pub protocol: u64,
    /// From the guest: not from its address. To the guest: from its address.
    pub source: u64,
    /// For another host.
    pub destination: u64,
    /// With a header that is truncated or contradicts another one.
    pub malformed: u64,
}

/// Recorder of [`NetMetrics`]. The device writes it under its lock; any thread reads it without.
#[derive(Debug, Default)]
pub struct NetRecorder {
    pub(super) receive: Recorder,
    pub(super) transmit: Recorder,
    pub(super) backend_events: Counter,
    pub(super) faults: Counter,
}

impl NetRecorder {
    /// Starts or ends the count of the frames that keep the VM awake.
    pub fn count_activity(&self, enabled: bool) {
        self.receive.activity.enable(enabled);
        self.transmit.activity.enable(enabled);
    }

    /// Returns the number of frames in both directions that keep the VM awake, since [`count_activity`](Self::count_activity).
    pub fn active_frames(&self) -> u64 {
        self.receive
            .activity
            .frames()
            .wrapping_add(self.transmit.activity.frames())
    }

    /// Returns true once the guest has sent a frame.
    pub fn has_sent(&self) -> bool {
        self.transmit.packets.get() > 0
    }

    /// Returns the metrics. Those of a packet that is processed meanwhile may be counted in part.
    pub fn metrics(&self) -> NetMetrics {
        NetMetrics {
            receive: self.receive.counters(),
            transmit: self.transmit.counters(),
            backend_events: self.backend_events.get(),
            faults: self.faults.get(),
            address_conflicts: self.receive.address_conflicts.get(),
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
    pub(super) notifications: Counter,
    pub(super) limiter_events: Counter,
    pub(super) empty_batches: Counter,
    pub(super) left_buffers: Counter,
    pub(super) duration: LatencyRecorder,
    pub(super) address_conflicts: Counter,
    pub(super) address_drops: AddressDropRecorder,
    pub(super) activity: Activity,
}

/// Recorder of [`AddressDrops`].
#[derive(Debug, Default)]
pub(super) struct AddressDropRecorder {
    ipv6: Counter,
    vlan: Counter,
    protocol: Counter,
    source: Counter,
    destination: Counter,
    malformed: Counter,
}

impl AddressDropRecorder {
    /// Counts one packet.
    pub(super) fn add(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::Ipv6 => &self.ipv6,
            DropReason::Vlan => &self.vlan,
            DropReason::Protocol => &self.protocol,
            DropReason::Source => &self.source,
            DropReason::Destination => &self.destination,
            DropReason::Malformed => &self.malformed,
        };
        counter.add(1);
    }

    fn counts(&self) -> AddressDrops {
        AddressDrops {
            ipv6: self.ipv6.get(),
            vlan: self.vlan.get(),
            protocol: self.protocol.get(),
            source: self.source.get(),
            destination: self.destination.get(),
            malformed: self.malformed.get(),
        }
    }
}

impl Recorder {
    fn counters(&self) -> Counters {
        Counters {
            packets: self.packets.get(),
            bytes: self.bytes.get(),
            drops: self.drops.get(),
            errors: self.errors.get(),
            throttled: self.throttled.get(),
            notifications: self.notifications.get(),
            limiter_events: self.limiter_events.get(),
            empty_batches: self.empty_batches.get(),
            left_buffers: self.left_buffers.get(),
            duration: self.duration.latency(),
            address_drops: self.address_drops.counts(),
        }
    }
}
