//! Saved state of a transport.
//!
//! The device has a section of its own; its key is the key of the transport with the suffix `/device`.

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Component, Schema};
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
    pub(super) config_generation: ConfigGeneration,
    pub(super) active: bool,
    pub(super) queues: Vec<MmioQueueState>,
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
        // Last: the activation above sets state that the section of the device must overwrite.
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
            false => vec![QueueState::default(); self.queues.len()],
        };
        if progress.len() != self.queues.len() {
            let (states, queues) = (progress.len(), self.queues.len());
            return Err(invalid(format!(
                "the device returned {states} queue states for {queues} queues"
            )));
        }
        let queues = self.queues.iter().zip(progress);
        Ok(TransportState {
            device_id: self.device.device_id(),
            registers: self.registers.clone(),
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.is_reset_needed(),
            config_generation: self.config_generation.clone(),
            active: self.active,
            queues: queues
                .map(|(queue, progress)| MmioQueueState {
                    size: queue.size,
                    ready: queue.ready,
                    descriptors: queue.descriptors,
                    available: queue.available,
                    used: queue.used,
                    next_available: progress.next_avail,
                    next_used: progress.next_used,
                })
                .collect(),
        })
    }

    pub(super) fn restore(&mut self, state: TransportState) -> Result<(), Error> {
        self.check(&state)?;
        self.reset();
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            *queue = QueueRegisters {
                max_size: queue.max_size,
                size: saved.size,
                ready: saved.ready,
                descriptors: saved.descriptors,
                available: saved.available,
                used: saved.used,
            };
            if queue.ready && !queue.is_usable(&self.memory) {
                return Err(invalid(format!(
                    "a queue is ready, but its registers are invalid: {queue:x?}"
                )));
            }
        }
        self.registers = state.registers;
        self.config_generation = state.config_generation;
        self.interrupt.restore(state.interrupt_status, state.needs_reset);
        self.record_status();
        if state.active {
            let mut queues = self
                .build_queues()
                .ok_or_else(|| invalid("the device is active, but a queue is not ready".into()))?;
            for (queue, saved) in queues.iter_mut().zip(&state.queues) {
                queue.set_next_avail(saved.next_available);
                queue.set_next_used(saved.next_used);
            }
            self.activate(queues);
        }
        Ok(())
    }

    /// Checks everything except the queue registers.
    fn check(&self, state: &TransportState) -> Result<(), Error> {
        let registers = &state.registers;
        let status = registers.status;
        let defined = r::ACKNOWLEDGE | r::DRIVER | r::DRIVER_OK | r::FEATURES_OK | r::FAILED;
        let negotiated = status & r::FEATURES_OK != 0;
        let started = status & r::DRIVER_OK != 0;
        let unknown = registers.driver_features & !self.offered_features();
        let reason = if state.device_id != self.device.device_id() {
            let (saved, own) = (state.device_id, self.device.device_id());
            format!("device type is {saved}; this device has type {own}")
        } else if state.queues.len() != self.queues.len() {
            let (saved, own) = (state.queues.len(), self.queues.len());
            format!("queue count is {saved}; this device has {own}")
        } else if status & !defined != 0 || started && !negotiated || state.active && !started {
            format!("status {status:#x} contradicts itself or the activation")
        } else if negotiated && unknown != 0 {
            let features = registers.driver_features;
            format!("features {features:#x} have bits {unknown:#x}, which are not offered")
        } else if state.interrupt_status & !(USED_BUFFER | CONFIGURATION) != 0 {
            format!(
                "interrupt status {:#x} has undefined bits",
                state.interrupt_status
            )
        } else {
            return Ok(());
        };
        Err(invalid(reason))
    }
}
