//! Interrupt of a virtio device and its cause.

use std::sync::Arc;

use crate::counter::Counter;
use crate::interrupt::Interrupt;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// InterruptStatus bit 0: used buffer notification, virtio 1.2 §4.2.2.
pub const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: configuration change notification, virtio 1.2 §4.2.2.
pub const CONFIGURATION: u32 = 2;

/// Interrupt line of one device with its InterruptStatus register and DEVICE_NEEDS_RESET bit.
pub struct VirtioInterrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: Arc<dyn Interrupt>,
    /// Written under the lock of the device.
    count: Counter,
}

impl VirtioInterrupt {
    /// Creates an interrupt without a pending cause, connected to `line`.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line,
            count: Counter::default(),
        }
    }

    /// Sends a used buffer notification.
    pub fn notify_used(&self) {
        self.raise(USED_BUFFER);
    }

    /// Sends a configuration change notification.
    pub fn notify_config(&self) {
        self.raise(CONFIGURATION);
    }

    /// Sets DEVICE_NEEDS_RESET and sends a configuration change notification, virtio 1.2 §2.1.2.
    pub fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIGURATION);
    }

    /// Returns true from [`set_needs_reset`](Self::set_needs_reset) to the reset of the device.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Returns the number of interrupts since the creation.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// Returns the InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Clears `bits` of InterruptStatus: a write to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        // Acquire: a driver that acknowledges a cause sees what preceded it, although the cause was new after the read of the register.
        self.status.fetch_and(!bits, Ordering::Acquire);
    }

    /// Clears both registers: a reset of the device.
    pub fn clear(&self) {
        self.status.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Relaxed);
    }

    /// Restores both registers from a snapshot. Raises no interrupt: a pending one is state of the interrupt
    /// controller.
    pub(super) fn restore(&self, status: u32, needs_reset: bool) {
        self.status.store(status, Ordering::Relaxed);
        self.needs_reset.store(needs_reset, Ordering::Relaxed);
    }

    fn raise(&self, bit: u32) {
        // The interrupt handler of the driver reads InterruptStatus: the bit must be set first.
        // Release: the driver sees the used ring, or the changed configuration, once it sees the bit.
        self.status.fetch_or(bit, Ordering::Release);
        self.count.add(1);
        self.line.trigger();
    }
}
