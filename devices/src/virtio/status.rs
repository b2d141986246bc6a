//! Device status and negotiated features by name, for users who search the fault of a driver.

use std::fmt;

use virtio_bindings::bindings::{virtio_net as net, virtio_ring as ring};
use virtio_bindings::virtio_blk as block;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};

use super::mmio::registers as r;

/// Bit of a device status, virtio 1.2 §2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusBit {
    /// ACKNOWLEDGE: the driver has found the device.
    Acknowledged,
    /// DRIVER: the driver supports the device.
    Driver,
    /// FEATURES_OK: features are negotiated.
    FeaturesAccepted,
    /// DRIVER_OK: the driver is ready.
    DriverOk,
    /// DEVICE_NEEDS_RESET: the device has stopped until its reset.
    NeedsReset,
    /// FAILED: the driver has given up.
    Failed,
}

/// All bits with their masks, in the order in which a driver sets them.
const STATUS_BITS: [(u32, StatusBit); 6] = [
    (r::ACKNOWLEDGE, StatusBit::Acknowledged),
    (r::DRIVER, StatusBit::Driver),
    (r::FEATURES_OK, StatusBit::FeaturesAccepted),
    (r::DRIVER_OK, StatusBit::DriverOk),
    (r::DEVICE_NEEDS_RESET, StatusBit::NeedsReset),
    (r::FAILED, StatusBit::Failed),
];

/// Features of virtqueues and transport, virtio 1.2 §6.
const COMMON_FEATURES: &[(u32, &str)] = &[
    (ring::VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC"),
    (ring::VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX"),
    (VIRTIO_F_VERSION_1, "VERSION_1"),
];

/// Features of block devices, virtio 1.2 §5.2.3.
const BLOCK_FEATURES: &[(u32, &str)] = &[
    (block::VIRTIO_BLK_F_SIZE_MAX, "SIZE_MAX"),
    (block::VIRTIO_BLK_F_SEG_MAX, "SEG_MAX"),
    (block::VIRTIO_BLK_F_RO, "RO"),
    (block::VIRTIO_BLK_F_BLK_SIZE, "BLK_SIZE"),
    (block::VIRTIO_BLK_F_FLUSH, "FLUSH"),
    (block::VIRTIO_BLK_F_TOPOLOGY, "TOPOLOGY"),
    (block::VIRTIO_BLK_F_DISCARD, "DISCARD"),
    (block::VIRTIO_BLK_F_WRITE_ZEROES, "WRITE_ZEROES"),
];

/// Features of network devices, virtio 1.2 §5.1.3; UDP segmentation since virtio 1.3.
const NET_FEATURES: &[(u32, &str)] = &[
    (net::VIRTIO_NET_F_CSUM, "CSUM"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"),
    (net::VIRTIO_NET_F_MTU, "MTU"),
    (net::VIRTIO_NET_F_MAC, "MAC"),
    (net::VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"),
    (net::VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"),
    (net::VIRTIO_NET_F_GUEST_UFO, "GUEST_UFO"),
    (net::VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
    (net::VIRTIO_NET_F_HOST_UFO, "HOST_UFO"),
    (net::VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"),
    (net::VIRTIO_NET_F_STATUS, "STATUS"),
    (net::VIRTIO_NET_F_GUEST_USO4, "GUEST_USO4"),
    (net::VIRTIO_NET_F_GUEST_USO6, "GUEST_USO6"),
    (net::VIRTIO_NET_F_HOST_USO, "HOST_USO"),
];

/// State of a device from the view of its driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DriverState {
    device_id: u32,
    status: u32,
    features: u64,
}

impl DriverState {
    /// Creates the state of a device with these registers. `status` lacks DEVICE_NEEDS_RESET.
    pub(super) fn new(device_id: u32, status: u64, needs_reset: bool, driver_features: u64) -> Self {
        let mut status = u32::try_from(status).unwrap_or(0);
        if needs_reset {
            status |= r::DEVICE_NEEDS_RESET;
        }
        Self {
            device_id,
            status,
            features: driver_features,
        }
    }

    /// Returns the bits of the status, none after a reset.
    pub fn status(self) -> impl Iterator<Item = StatusBit> {
        let set = STATUS_BITS.into_iter().filter(move |(mask, _)| self.has(*mask));
        set.map(|(_, bit)| bit)
    }

    /// Returns true if a driver operates the device.
    pub fn has_driver(self) -> bool {
        self.has(r::DRIVER_OK) && !self.has(r::DEVICE_NEEDS_RESET | r::FAILED)
    }

    /// Returns the names of the negotiated features, in the order of their bits; none before FEATURES_OK.
    pub fn features(self) -> Vec<String> {
        if !self.has(r::FEATURES_OK) {
            return Vec::new();
        }
        let bits = (0..u64::BITS).filter(|bit| self.features & 1 << bit != 0);
        bits.map(|bit| feature_name(self.device_id, bit)).collect()
    }

    fn has(self, mask: u32) -> bool {
        self.status & mask != 0
    }
}

impl fmt::Debug for DriverState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status: Vec<_> = self.status().collect();
        write!(formatter, "{status:?} {:?}", self.features())
    }
}

/// Returns the name of feature `bit` of a device of this type, without the prefix of the specification.
fn feature_name(device_id: u32, bit: u32) -> String {
    let own = match device_id {
        VIRTIO_ID_BLOCK => BLOCK_FEATURES,
        VIRTIO_ID_NET => NET_FEATURES,
        _ => &[],
    };
    let mut known = COMMON_FEATURES.iter().chain(own);
    known
        .find(|(known, _)| *known == bit)
        .map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_NET};

    use super::super::mmio::registers as r;
    use super::{DriverState, StatusBit};

    #[test]
    fn status_has_bits_in_order() {
        let of = |status: u32, needs_reset| {
            let state = DriverState::new(VIRTIO_ID_NET, status.into(), needs_reset, 0);
            (state.status().collect::<Vec<_>>(), state.has_driver())
        };
        use StatusBit::{Acknowledged, Driver, DriverOk, Failed, FeaturesAccepted, NeedsReset};
        assert_eq!(of(0, false), (vec![], false));
        assert_eq!(of(3, false), (vec![Acknowledged, Driver], false));
        let ready = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK | r::DRIVER_OK;
        let bits = vec![Acknowledged, Driver, FeaturesAccepted, DriverOk];
        assert_eq!(of(ready, false), (bits.clone(), true));
        assert_eq!(
            of(ready, true),
            ([bits.clone(), vec![NeedsReset]].concat(), false)
        );
        assert_eq!(
            of(ready | r::FAILED, false),
            ([bits, vec![Failed]].concat(), false)
        );
    }

    #[test]
    fn features_are_named_once_accepted() {
        let of =
            |id, status: u32| DriverState::new(id, status.into(), false, 1 << 32 | 1 << 5 | 1).features();
        assert_eq!(of(VIRTIO_ID_NET, r::DRIVER), Vec::<String>::new());
        assert_eq!(of(VIRTIO_ID_NET, r::FEATURES_OK), ["CSUM", "MAC", "VERSION_1"]);
        assert_eq!(of(VIRTIO_ID_BLOCK, r::FEATURES_OK), ["bit 0", "RO", "VERSION_1"]);
    }
}
