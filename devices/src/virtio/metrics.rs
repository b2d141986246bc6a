//! Metrics of a transport, common to all kinds of devices.

use std::sync::Arc;

use serde::Serialize;

use super::interrupt::VirtioInterrupt;
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

/// Recorder of [`TransportMetrics`]. The transport writes it under the lock of the device; any thread reads it without.
pub struct TransportRecorder {
    pub(super) activation_failures: Counter,
    pub(super) config_failures: Counter,
    pub(super) events: Counter,
    interrupt: Arc<VirtioInterrupt>,
}

impl TransportRecorder {
    pub(super) fn new(interrupt: Arc<VirtioInterrupt>) -> Self {
        Self {
            activation_failures: Counter::default(),
            config_failures: Counter::default(),
            events: Counter::default(),
            interrupt,
        }
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
