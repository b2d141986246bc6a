//! Counters of the virtio devices, read without the locks of the devices.

use devices::virtio::block::{BlockMetrics, BlockRecorder};
use devices::virtio::net::{NetMetrics, NetRecorder};
use serde::Serialize;

/// Counters of an attached device.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum DeviceCounters {
    /// Counters of a drive.
    Drive(Box<BlockMetrics>),
    /// Counters of a network interface.
    Interface(Box<NetMetrics>),
}

/// Transfers of a device that keep the VM awake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Counted frames in both directions.
    pub frames: u64,
    /// Ended drive requests.
    pub requests: u64,
    /// The guest has sent a frame.
    pub has_sent: bool,
}

/// Recorder of the counters of a device, read without the lock of the device.
pub(super) trait Recorder: Send + Sync {
    fn counters(&self) -> DeviceCounters;

    /// Returns the transfers that keep the VM awake.
    fn transfers(&self) -> Transfers;

    /// Starts or ends the count of frames.
    fn count_frames(&self, _enabled: bool) {}
}

impl Recorder for BlockRecorder {
    fn counters(&self) -> DeviceCounters {
        DeviceCounters::Drive(Box::new(self.metrics()))
    }

    fn transfers(&self) -> Transfers {
        Transfers {
            requests: self.requests(),
            ..Transfers::default()
        }
    }
}

impl Recorder for NetRecorder {
    fn counters(&self) -> DeviceCounters {
        DeviceCounters::Interface(Box::new(self.metrics()))
    }

    fn transfers(&self) -> Transfers {
        Transfers {
            frames: self.active_frames(),
            requests: 0,
            has_sent: self.has_sent(),
        }
    }

    fn count_frames(&self, enabled: bool) {
        self.count_activity(enabled);
    }
}
