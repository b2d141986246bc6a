//! Metrics of a transport, common to all kinds of devices, and its device status.

use std::sync::Arc;

use serde::Serialize;

use super::interrupt::VirtioInterrupt;
use super::status::DriverState;
use crate::counter::Counter;

/// Counters since the creation of the transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransportMetrics {
    /// Number of times that DRIVER_OK did not activate the device: a queue was not ready, or the device needs a reset.
    pub activation_failures: u64,
    /// Writes to the configuration space, which has no writable field.
    pub config_failures: u64,
    /// Events of the watched descriptors.
    pub events: u64,
    /// Interrupts of the device.
    pub interrupts: u64,
}

/// Recorder of [`TransportMetrics`] and [`DriverState`]. The transport writes it under the lock of the device; any thread reads it
/// without.
pub struct TransportRecorder {
    device_id: u32,
    /// Status register without DEVICE_NEEDS_RESET, which the interrupt holds.
    pub(super) status: Counter,
    /// Features that the driver accepts.
    pub(super) driver_features: Counter,
    pub(super) activation_failures: Counter,
    pub(super) config_failures: Counter,
    pub(super) events: Counter,
    interrupt: Arc<VirtioInterrupt>,
}

impl TransportRecorder {
    pub(super) fn new(device_id: u32, interrupt: Arc<VirtioInterrupt>) -> Self {
        Self {
            device_id,
            status: Counter::default(),
            driver_features: Counter::default(),
            activation_failures: Counter::default(),
            config_failures: Counter::default(),
            events: Counter::default(),
            interrupt,
        }
    }

    /// Returns the state of the device from the view of its driver. Both registers are read one by one: a driver that changes them
    /// meanwhile may be seen in between.
    pub fn driver_state(&self) -> DriverState {
        DriverState::new(
            self.device_id,
            self.status.get(),
            self.interrupt.is_reset_needed(),
            self.driver_features.get(),
        )
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> TransportMetrics {
        TransportMetrics {
            activation_failures: self.activation_failures.get(),
            config_failures: self.config_failures.get(),
            events: self.events.get(),
            interrupts: self.interrupt.count(),
        }
    }
}
