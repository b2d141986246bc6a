//! Register accesses and the lifecycle of the device.
//!
//! Operations out of order have no effect, virtio 1.2 §3.1.1 and §4.2.3: FEATURES_OK fixes the features, QueueReady
//! the registers of a queue, DRIVER_OK everything. Only a reset undoes that. If a queue is not ready at DRIVER_OK,
//! the device needs a reset. Register accesses that are not 32 bits wide read as zeros and write nothing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::GuestMemory;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;

use super::queue::{Area, Half, QueueRegisters};
use super::registers as r;
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::virtio::device::{Activation, VirtioDevice, WatchedFd};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::metrics::TransportRecorder;

/// Status bits that a driver may set at any time.
const UNCONDITIONAL: u32 = r::ACKNOWLEDGE | r::DRIVER | r::FAILED;

/// Feature bits 28 to 40, of virtqueues and transport, virtio 1.2 §6.
const RING_FEATURES: u64 = 0x1fff << 28;

/// A virtio device on the MMIO bus. `D` may be a concrete type, which gives the owner access to its methods.
pub struct Transport<D: VirtioDevice + ?Sized = dyn VirtioDevice> {
    pub(super) device: Box<D>,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<VirtioInterrupt>,
    pub(super) registers: Registers,
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) config_generation: ConfigGeneration,
    /// True from activation to reset of the device.
    pub(super) active: bool,
    recorder: Arc<TransportRecorder>,
    logged: Logged,
}

/// Registers that belong to no queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    /// Without DEVICE_NEEDS_RESET, which [`VirtioInterrupt`] holds.
    pub(super) status: u32,
}

/// Compared bytes of the configuration space, more than any device has.
const COMPARED_BYTES: usize = 256;

/// Generation of the configuration space, with the contents that it belongs to.
///
/// A driver that reads several fields compares the generation before and after, virtio 1.2 §4.2.2.1. A device may
/// change its configuration at any time. Only changes that the driver can see count, so each access compares the
/// contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConfigGeneration {
    generation: u32,
    /// Contents without trailing zeros.
    contents: Vec<u8>,
}

impl ConfigGeneration {
    /// Compares the configuration space of `device` and returns its current generation.
    pub(super) fn update(&mut self, device: &(impl VirtioDevice + ?Sized)) -> u32 {
        let mut bytes = [0; COMPARED_BYTES];
        device.read_config(0, &mut bytes);
        let length = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let current = &bytes[..length];
        if self.contents != current {
            self.contents.clear();
            self.contents.extend_from_slice(current);
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }
}

/// Warnings that were logged. Each is logged once: the guest could otherwise flood the log.
#[derive(Default)]
struct Logged {
    features: bool,
    version: bool,
    queues: bool,
    /// Number of logged changes of the status.
    statuses: u8,
}

/// Maximum number of logged changes of the status.
const MAX_LOGGED_STATUSES: u8 = 64;

impl<D: VirtioDevice + ?Sized> Transport<D> {
    /// Wraps a `device` in its reset state. Its queues are in `memory`; its interrupts go to `line`.
    pub fn new(device: Box<D>, memory: GuestMemory, line: Arc<dyn Interrupt>) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .copied()
            .map(QueueRegisters::new)
            .collect();
        let mut config_generation = ConfigGeneration::default();
        config_generation.update(device.as_ref());
        let interrupt = Arc::new(VirtioInterrupt::new(line));
        let recorder = TransportRecorder::new(device.device_id(), interrupt.clone());
        Self {
            device,
            memory,
            recorder: Arc::new(recorder),
            interrupt,
            registers: Registers::default(),
            queues,
            config_generation,
            active: false,
            logged: Logged::default(),
        }
    }

    /// Returns the device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Returns the device for changes at run time.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Returns the recorder of the metrics, for threads that read them without the lock of the device.
    pub fn recorder(&self) -> Arc<TransportRecorder> {
        Arc::clone(&self.recorder)
    }

    /// Returns the descriptors that the event loop watches during the life of the device.
    pub fn watched_fds(&self) -> Vec<WatchedFd> {
        self.device.watched_fds()
    }

    /// Handles readiness of the descriptor with `token`.
    pub fn process_event(&mut self, token: u32) {
        self.recorder.events.add(1);
        self.device.process_event(token);
    }

    /// Handles an available buffer notification for `queue`, like a write to QueueNotify.
    pub fn notify(&mut self, queue: usize) {
        if self.is_running() && queue < self.queues.len() {
            self.device.notify(queue);
        }
    }

    /// Processes all queues once after a restore, and sends a configuration change notification if the configuration
    /// space differs from the saved one. The driver sends no notification for chains from before the snapshot.
    ///
    /// Interrupts that the driver has not acknowledged are not raised again: they are state of the interrupt
    /// controller or the vCPU. A second one could arrive after the driver has acknowledged the first. Some drivers
    /// treat such an interrupt without a cause as a fault.
    pub fn notify_restored(&mut self) {
        if !self.is_running() {
            return;
        }
        let before = self.config_generation.clone();
        self.config_generation.update(self.device.as_ref());
        if self.config_generation != before {
            self.interrupt.notify_config();
        }
        self.notify_all();
    }

    /// Returns the offered features.
    pub(super) fn offered_features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    /// Returns the queues for an activation, or `None` if one is not ready.
    pub(super) fn build_queues(&self) -> Option<Vec<Queue>> {
        let event_idx = self.registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.queues.iter().map(|queue| queue.build(event_idx)).collect()
    }

    /// Activates the device with `queues`.
    pub(super) fn activate(&mut self, queues: Vec<Queue>) {
        self.active = true;
        self.device.activate(Activation {
            features: self.registers.driver_features,
            queues,
            memory: self.memory.clone(),
            interrupt: Arc::clone(&self.interrupt),
        });
    }

    /// Resets device and registers. The configuration generation is kept, so that no value has two meanings.
    pub(super) fn reset(&mut self) {
        // The device first: an interrupt that it raises while it stops is cleared with the registers below.
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        self.interrupt.clear();
        self.registers = Registers::default();
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    fn is_running(&self) -> bool {
        self.active && !self.interrupt.is_reset_needed()
    }

    fn has_status(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            r::MAGIC_VALUE => r::MAGIC,
            r::VERSION => r::VERSION_2,
            r::DEVICE_ID => self.device.device_id(),
            r::VENDOR_ID => r::VENDOR,
            r::DEVICE_FEATURES => half(self.offered_features(), self.registers.device_features_sel),
            r::QUEUE_NUM_MAX => self.selected_queue().map_or(0, |queue| queue.max_size.into()),
            r::QUEUE_READY => self.selected_queue().is_some_and(|queue| queue.ready).into(),
            r::INTERRUPT_STATUS => self.interrupt.status(),
            r::STATUS if self.interrupt.is_reset_needed() => self.registers.status | r::DEVICE_NEEDS_RESET,
            r::STATUS => self.registers.status,
            r::SHM_LEN_LOW | r::SHM_LEN_HIGH | r::SHM_BASE_LOW | r::SHM_BASE_HIGH => u32::MAX,
            r::CONFIG_GENERATION => self.config_generation.update(self.device.as_ref()),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            r::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            r::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            r::DRIVER_FEATURES => self.set_driver_features(value),
            r::QUEUE_SEL => self.registers.queue_sel = value,
            r::QUEUE_NOTIFY => self.notify(usize::try_from(value).unwrap_or(usize::MAX)),
            r::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            r::STATUS => {
                self.write_status(value);
                self.record_status();
            }
            r::QUEUE_READY => self.set_queue_ready(value != 0),
            r::QUEUE_NUM => self.configure_queue(|queue| queue.size = value),
            r::QUEUE_DESC_LOW => self.set_address(Area::Descriptors, Half::Low, value),
            r::QUEUE_DESC_HIGH => self.set_address(Area::Descriptors, Half::High, value),
            r::QUEUE_DRIVER_LOW => self.set_address(Area::Available, Half::Low, value),
            r::QUEUE_DRIVER_HIGH => self.set_address(Area::Available, Half::High, value),
            r::QUEUE_DEVICE_LOW => self.set_address(Area::Used, Half::Low, value),
            r::QUEUE_DEVICE_HIGH => self.set_address(Area::Used, Half::High, value),
            _ => {}
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.has_status(r::FEATURES_OK) {
            return;
        }
        let accepted = &mut self.registers.driver_features;
        match self.registers.driver_features_sel {
            0 => *accepted = *accepted & !0xffff_ffff | u64::from(value),
            1 => *accepted = *accepted & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        self.log_status(value);
        if value == 0 {
            return self.reset();
        }
        // Clear bits are ignored: a driver must not clear single bits, virtio 1.2 §2.1.1.
        let added = value & !self.registers.status;
        self.registers.status |= added & UNCONDITIONAL;
        if added & r::FEATURES_OK != 0 {
            self.negotiate_features();
        }
        if added & r::DRIVER_OK != 0 && self.has_status(r::FEATURES_OK) && !self.has_status(r::FAILED) {
            self.start();
        }
    }

    /// Sets FEATURES_OK unless the driver accepts a virtqueue or transport feature that was not offered. With such a feature,
    /// driver and device would disagree on the layout of the queues. Other bits that were not offered are cleared with one
    /// warning, since several drivers set them by mistake.
    ///
    /// Without VERSION_1 a device may refuse the driver, virtio 1.2 §6.2. OSv never accepts it, but uses the registers and
    /// packet headers of virtio 1 and asserts that FEATURES_OK stays set. Nothing in the device depends on the bit.
    fn negotiate_features(&mut self) {
        let unknown = self.registers.driver_features & !self.offered_features();
        self.registers.driver_features &= !unknown;
        let id = self.device.device_id();
        if unknown != 0 && !std::mem::replace(&mut self.logged.features, true) {
            log::warn!("virtio device {id}: driver accepts features {unknown:#x} that were not offered");
        }
        if unknown & RING_FEATURES != 0 {
            return;
        }
        self.registers.status |= r::FEATURES_OK;
        let is_versioned = self.registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if !is_versioned && !std::mem::replace(&mut self.logged.version, true) {
            log::warn!(
                "virtio device {id}: driver does not accept VERSION_1; the device uses the layout of virtio 1"
            );
        }
    }

    /// Logs the status that the driver writes, and its features when it has chosen them.
    fn log_status(&mut self, value: u32) {
        if !log::log_enabled!(log::Level::Debug) || self.logged.statuses == MAX_LOGGED_STATUSES {
            return;
        }
        self.logged.statuses += 1;
        let id = self.device.device_id();
        let (old, names) = (self.registers.status, status_names(value));
        log::debug!("virtio device {id}: driver sets status {value:#x} ({names}), was {old:#x}");
        if value & !old & r::FEATURES_OK != 0 {
            let (offered, accepted) = (self.offered_features(), self.registers.driver_features);
            log::debug!("virtio device {id}: features {offered:#x} are offered, {accepted:#x} accepted");
        }
    }

    fn start(&mut self) {
        self.registers.status |= r::DRIVER_OK;
        match self.build_queues() {
            Some(queues) => {
                self.activate(queues);
                // The device may reject its activation.
                self.count_activation();
                // Some drivers fill their queues and notify before DRIVER_OK, but not after it.
                self.notify_all();
            }
            None => {
                self.interrupt.set_needs_reset();
                self.count_activation();
            }
        }
    }

    /// Records status and features for threads without the lock of the device.
    pub(super) fn record_status(&self) {
        self.recorder.status.set(self.registers.status.into());
        self.recorder.driver_features.set(self.registers.driver_features);
    }

    fn count_activation(&self) {
        let failed = self.interrupt.is_reset_needed();
        self.recorder.activation_failures.add(u64::from(failed));
    }

    fn notify_all(&mut self) {
        for queue in 0..self.queues.len() {
            self.notify(queue);
        }
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.registers.queue_sel).ok()?)
    }

    /// Returns the selected queue, or `None` after DRIVER_OK.
    fn selected_queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        match self.has_status(r::DRIVER_OK) {
            true => None,
            false => self
                .queues
                .get_mut(usize::try_from(self.registers.queue_sel).ok()?),
        }
    }

    /// Changes the selected queue unless it is ready.
    fn configure_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.selected_queue_mut().filter(|queue| !queue.ready) {
            change(queue);
        }
    }

    fn set_address(&mut self, area: Area, half: Half, value: u32) {
        self.configure_queue(|queue| queue.set_address(area, half, value));
    }

    /// Sets QueueReady, or keeps it clear if the registers of the queue are invalid.
    fn set_queue_ready(&mut self, ready: bool) {
        let usable = ready
            && self
                .selected_queue()
                .is_some_and(|queue| queue.is_usable(&self.memory));
        let Some(queue) = self.selected_queue_mut() else {
            return;
        };
        queue.ready = usable;
        if ready && !usable {
            let rejected = queue.clone();
            self.log_invalid_queue(&rejected);
        }
    }

    fn log_invalid_queue(&mut self, rejected: &QueueRegisters) {
        if !std::mem::replace(&mut self.logged.queues, true) {
            let (id, queue) = (self.device.device_id(), self.registers.queue_sel);
            log::warn!(
                "virtio device {id}: cannot make queue {queue} ready: invalid registers {rejected:x?}"
            );
        }
    }
}

/// Returns the names of the bits of a device status, virtio 1.2 §2.1.
fn status_names(status: u32) -> String {
    let names = [
        (r::ACKNOWLEDGE, "ACKNOWLEDGE"),
        (r::DRIVER, "DRIVER"),
        (r::FEATURES_OK, "FEATURES_OK"),
        (r::DRIVER_OK, "DRIVER_OK"),
        (r::FAILED, "FAILED"),
    ];
    let set = names.into_iter().filter(|(bit, _)| status & bit != 0);
    let set: Vec<_> = set.map(|(_, name)| name).collect();
    match set.is_empty() {
        true => "reset".to_owned(),
        false => set.join(" "),
    }
}

/// Returns the lower half of `features` for 0, the upper half for 1, and 0 for any other selection.
fn half(features: u64, select: u32) -> u32 {
    let bytes = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

impl<D: VirtioDevice + ?Sized> BusDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match <&mut [u8; 4]>::try_from(&mut *data) {
            _ if offset >= r::CONFIG => {
                self.config_generation.update(self.device.as_ref());
                self.device.read_config(offset - r::CONFIG, data);
            }
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device has a writable configuration field.
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset < r::CONFIG => self.write_register(offset, u32::from_le_bytes(word)),
            _ => self.recorder.config_failures.add(u64::from(offset >= r::CONFIG)),
        }
    }
}
