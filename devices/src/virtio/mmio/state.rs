//! What is kept of a transport in a snapshot.
//!
//! The state of the device behind it is a section of its own, with `/device` behind the key of the transport's.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Component, Schema};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{QueueState, QueueT};

use super::queue::QueueRegisters;
use super::registers as r;
use super::transport::{ConfigGeneration, Registers, Transport};
use crate::virtio::device::VirtioDevice;
use crate::virtio::interrupt::{CONFIGURATION, USED_BUFFER};

/// State of one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MmioQueueState {
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) next_available: u16,
    pub(super) next_used: u16,
}

/// State of a [`Transport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(super) device_id: u32,
    pub(super) registers: Registers,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    pub(super) configuration: ConfigGeneration,
    pub(super) active: bool,
    pub(super) rings: Vec<MmioQueueState>,
}

impl Schema for TransportState {
    const NAME: &'static str = "virtio-mmio";
    const VERSION: u32 = 1;
}

impl<D: VirtioDevice + ?Sized> Component for Transport<D> {
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), Error> {
        archive
            .write(key, &self.state()?)
            .map_err(|source| Error::Section {
                key: key.to_owned(),
                source,
            })?;
        self.device.save_section(&device_key(key), archive)
    }

    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), Error> {
        let state = archive.read(key).map_err(|source| Error::Section {
            key: key.to_owned(),
            source,
        })?;
        self.restore(state)?;
        // Last, since what it keeps of its driver goes over what its activation sets.
        self.device.restore_section(&device_key(key), archive)
    }
}

fn device_key(key: &str) -> String {
    format!("{key}/device")
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: TransportState::NAME,
        reason,
    }
}

impl<D: VirtioDevice + ?Sized> Transport<D> {
    pub(super) fn state(&self) -> Result<TransportState, Error> {
        let progress = match self.active {
            true => self.device.queue_states(),
            false => vec![QueueState::default(); self.rings.len()],
        };
        if progress.len() != self.rings.len() {
            let (given, there) = (progress.len(), self.rings.len());
            return Err(invalid(format!(
                "the device says where {given} of its {there} queues are"
            )));
        }
        let rings = self.rings.iter().zip(progress);
        Ok(TransportState {
            device_id: self.device.device_id(),
            registers: self.registers.clone(),
            interrupt_status: self.signal.status(),
            needs_reset: self.signal.is_reset_needed(),
            configuration: self.configuration.clone(),
            active: self.active,
            rings: rings
                .map(|(ring, progress)| MmioQueueState {
                    size: ring.size,
                    ready: ring.ready,
                    descriptors: ring.descriptors,
                    available: ring.available,
                    used: ring.used,
                    next_available: progress.next_avail,
                    next_used: progress.next_used,
                })
                .collect(),
        })
    }

    pub(super) fn restore(&mut self, state: TransportState) -> Result<(), Error> {
        self.check(&state)?;
        self.reset();
        for (ring, saved) in self.rings.iter_mut().zip(&state.rings) {
            *ring = QueueRegisters {
                max_size: ring.max_size,
                size: saved.size,
                ready: saved.ready,
                descriptors: saved.descriptors,
                available: saved.available,
                used: saved.used,
            };
            if ring.ready && !ring.is_usable(&self.memory) {
                return Err(invalid(format!(
                    "a queue is ready that cannot be used: {ring:x?}"
                )));
            }
        }
        self.registers = state.registers;
        self.configuration = state.configuration;
        self.signal.restore(state.interrupt_status, state.needs_reset);
        if state.active {
            let mut queues = self
                .queues()
                .ok_or_else(|| invalid("the device is active, but not all of its queues are ready".into()))?;
            for (queue, saved) in queues.iter_mut().zip(&state.rings) {
                queue.set_next_avail(saved.next_available);
                queue.set_next_used(saved.next_used);
            }
            self.activate(queues);
        }
        Ok(())
    }

    /// Checks all that does not need the queues.
    fn check(&self, state: &TransportState) -> Result<(), Error> {
        let registers = &state.registers;
        let status = registers.status;
        let known = r::ACKNOWLEDGE | r::DRIVER | r::DRIVER_OK | r::FEATURES_OK | r::FAILED;
        let settled = status & r::FEATURES_OK != 0;
        let started = status & r::DRIVER_OK != 0;
        let unknown = registers.driver_features & !self.offered();
        let versioned = registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        let reason = if state.device_id != self.device.device_id() {
            let (saved, own) = (state.device_id, self.device.device_id());
            format!("it is of device type {saved}, and this device is of type {own}")
        } else if state.rings.len() != self.rings.len() {
            let (saved, own) = (state.rings.len(), self.rings.len());
            format!("it has {saved} queues, and this device has {own}")
        } else if status & !known != 0 || started && !settled || state.active && !started {
            format!("status {status:#x} cannot be, active or not")
        } else if settled && (unknown != 0 || !versioned) {
            let features = registers.driver_features;
            format!(
                "the driver uses features {features:#x}, of which this device does not offer {unknown:#x}"
            )
        } else if state.interrupt_status & !(USED_BUFFER | CONFIGURATION) != 0 {
            format!("interrupt status {:#x}", state.interrupt_status)
        } else {
            return Ok(());
        };
        Err(invalid(reason))
    }
}
