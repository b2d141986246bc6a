//! Further address ranges of one device.

use crate::bus::{BusDevice, SharedDevice};
use crate::sync::lock;

/// Part of a device that starts at one of its later registers.
///
/// A bus counts offsets from the start of each claimed range. A device whose registers are not all neighbours claims
/// its first range by itself and every further one by a window.
pub struct OffsetDevice {
    device: SharedDevice,
    start: u64,
}

impl OffsetDevice {
    /// The registers of `device` from offset `start`.
    pub fn new(device: SharedDevice, start: u64) -> Self {
        Self { device, start }
    }
}

impl BusDevice for OffsetDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.device).read(self.start + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.device).write(self.start + offset, data);
    }
}
