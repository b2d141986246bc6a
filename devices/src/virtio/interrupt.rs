//! How a device tells its driver that something has happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::interrupt::Interrupt;

/// InterruptStatus bit 0: the device has used a buffer. Section 4.2.2 of the specification.
pub const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: the configuration has changed.
pub const CONFIGURATION: u32 = 2;

/// The interrupt of one device with the registers that say what it is for.
pub struct VirtioInterrupt {
    status: AtomicU32,
    broken: AtomicBool,
    line: Arc<dyn Interrupt>,
}

impl VirtioInterrupt {
    /// Nothing has happened yet. The interrupt goes to `line`.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            status: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            line,
        }
    }

    /// The device has used buffers, and the driver wants to know.
    pub fn notify_used(&self) {
        self.raise(USED_BUFFER);
    }

    /// The configuration has changed.
    pub fn notify_config(&self) {
        self.raise(CONFIGURATION);
    }

    /// The device cannot go on before it is reset: status bit DEVICE_NEEDS_RESET, section 2.1.2, and a configuration
    /// interrupt.
    pub fn set_needs_reset(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.raise(CONFIGURATION);
    }

    /// Whether the device needs a reset.
    pub fn is_reset_needed(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has written `bits` to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// As after the reset of the device.
    pub fn clear(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Replaces the registers by those of a snapshot. No interrupt is raised: one that was under way is part of the
    /// interrupt controller's state.
    pub(super) fn restore(&self, status: u32, broken: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        // The reason is in the register before the interrupt that makes the driver read it.
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.trigger();
    }
}
