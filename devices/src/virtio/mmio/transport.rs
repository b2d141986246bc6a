//! The register window and the life of the device behind it.
//!
//! What a driver does out of order has no effect: features are settled by FEATURES_OK, queues by QueueReady, and all of
//! it by DRIVER_OK, sections 3.1.1 and 4.2.3. Only a reset goes back. A driver that sets DRIVER_OK with a queue that is
//! not ready finds a device that needs a reset. Accesses of other widths than a register has read as zeros and write
//! nothing.

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

/// Bits of the Status register that a driver sets without any condition.
const UNCONDITIONAL: u32 = r::ACKNOWLEDGE | r::DRIVER | r::FAILED;

/// Feature bits of the transport and the rings as version 1.2 of the specification has them, section 6: 28 to 40.
const RING_FEATURES: u64 = 0x1fff << 28;

/// A virtio device on the memory bus: any, or one of a type that its owner goes on talking to.
pub struct Transport<D: VirtioDevice + ?Sized = dyn VirtioDevice> {
    pub(super) device: Box<D>,
    pub(super) memory: GuestMemory,
    pub(super) signal: Arc<VirtioInterrupt>,
    pub(super) registers: Registers,
    pub(super) rings: Vec<QueueRegisters>,
    pub(super) configuration: ConfigGeneration,
    /// Whether the device has its queues.
    pub(super) active: bool,
    complaints: Complaints,
}

/// Registers that are no queue's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    /// Without DEVICE_NEEDS_RESET.
    pub(super) status: u32,
}

/// As many bytes of the configuration space as are watched: more than any device has.
const WATCHED: usize = 256;

/// The generation of the configuration space, with what it is the generation of.
///
/// A driver that reads several fields compares the generation before and after, section 4.2.2.1. A device changes its
/// configuration whenever it likes; what counts is what the driver can see of it, so it is compared at each access.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConfigGeneration {
    generation: u32,
    /// Without the zeros at the end.
    seen: Vec<u8>,
}

impl ConfigGeneration {
    /// The generation of what `device` has there now.
    pub(super) fn generation(&mut self, device: &(impl VirtioDevice + ?Sized)) -> u32 {
        let mut bytes = [0; WATCHED];
        device.read_config(0, &mut bytes);
        let length = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let now = &bytes[..length];
        if self.seen != now {
            self.seen.clear();
            self.seen.extend_from_slice(now);
            self.generation = self.generation.wrapping_add(1);
        }
        self.generation
    }
}

/// What the log has been told already; once is enough, as the guest may do it again without end.
#[derive(Default)]
struct Complaints {
    features: bool,
    queues: bool,
}

impl<D: VirtioDevice + ?Sized> Transport<D> {
    /// `device`, not yet discovered by its driver. Its queues are in `memory`, and its interrupts go to `line`.
    pub fn new(device: Box<D>, memory: GuestMemory, line: Arc<dyn Interrupt>) -> Self {
        let rings = device
            .queue_sizes()
            .iter()
            .copied()
            .map(QueueRegisters::new)
            .collect();
        let mut configuration = ConfigGeneration::default();
        configuration.generation(device.as_ref());
        Self {
            device,
            memory,
            signal: Arc::new(VirtioInterrupt::new(line)),
            registers: Registers::default(),
            rings,
            configuration,
            active: false,
            complaints: Complaints::default(),
        }
    }

    /// The device, for what its owner wants to know.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for what its owner wants changed while it runs.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// What the event loop is to watch from the beginning to the end of the device.
    pub fn sources(&self) -> Vec<WatchedFd> {
        self.device.watched_fds()
    }

    /// The source of `token` is ready.
    pub fn ready(&mut self, token: u32) {
        self.device.process_event(token);
    }

    /// The driver has put something into `queue`: a write to QueueNotify, however it got here.
    pub fn notify(&mut self, queue: usize) {
        if self.is_running() && queue < self.rings.len() {
            self.device.notify(queue);
        }
    }

    /// Has everything looked at once, after a restore: there may be something for the device that nobody kicks it for, and the
    /// configuration may be another one.
    ///
    /// The driver hears of what is new only. An interrupt that it has not acknowledged is in the state of the interrupt
    /// controllers, or of its processor: nobody raises one while the state is saved. Raised again, it would come twice to a
    /// driver that was just about to acknowledge it, and some take an interrupt for nothing as a fault.
    pub fn notify_restored(&mut self) {
        if !self.is_running() {
            return;
        }
        let before = self.configuration.clone();
        self.configuration.generation(self.device.as_ref());
        if self.configuration != before {
            self.signal.notify_config();
        }
        self.notify_all();
    }

    /// Features that are offered.
    pub(super) fn offered(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    /// The queues for the device, if all are ready.
    pub(super) fn queues(&self) -> Option<Vec<Queue>> {
        let event_idx = self.registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.rings.iter().map(|ring| ring.queue(event_idx)).collect()
    }

    /// Hands `queues` to the device.
    pub(super) fn activate(&mut self, queues: Vec<Queue>) {
        self.active = true;
        self.device.activate(Activation {
            features: self.registers.driver_features,
            queues,
            memory: self.memory.clone(),
            signal: Arc::clone(&self.signal),
        });
    }

    /// As before the driver discovered the device. The generation goes on, so that no number means two things.
    pub(super) fn reset(&mut self) {
        // The device first: what it signals while it stops belongs to the life that ends.
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        self.signal.clear();
        self.registers = Registers::default();
        for ring in &mut self.rings {
            *ring = QueueRegisters::new(ring.max_size);
        }
    }

    fn is_running(&self) -> bool {
        self.active && !self.signal.is_reset_needed()
    }

    fn has(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            r::MAGIC_VALUE => r::MAGIC,
            r::VERSION => r::VERSION_2,
            r::DEVICE_ID => self.device.device_id(),
            r::VENDOR_ID => r::VENDOR,
            r::DEVICE_FEATURES => half(self.offered(), self.registers.device_features_sel),
            r::QUEUE_NUM_MAX => self.ring().map_or(0, |ring| ring.max_size.into()),
            r::QUEUE_READY => self.ring().is_some_and(|ring| ring.ready).into(),
            r::INTERRUPT_STATUS => self.signal.status(),
            r::STATUS if self.signal.is_reset_needed() => self.registers.status | r::DEVICE_NEEDS_RESET,
            r::STATUS => self.registers.status,
            r::SHM_LEN_LOW | r::SHM_LEN_HIGH | r::SHM_BASE_LOW | r::SHM_BASE_HIGH => u32::MAX,
            r::CONFIG_GENERATION => self.configuration.generation(self.device.as_ref()),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            r::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            r::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            r::DRIVER_FEATURES => self.accept_features(value),
            r::QUEUE_SEL => self.registers.queue_sel = value,
            r::QUEUE_NOTIFY => self.notify(usize::try_from(value).unwrap_or(usize::MAX)),
            r::INTERRUPT_ACK => self.signal.acknowledge(value),
            r::STATUS => self.write_status(value),
            r::QUEUE_READY => self.set_queue_ready(value != 0),
            r::QUEUE_NUM => self.configure(|ring| ring.size = value),
            r::QUEUE_DESC_LOW => self.set_address(Area::Descriptors, Half::Low, value),
            r::QUEUE_DESC_HIGH => self.set_address(Area::Descriptors, Half::High, value),
            r::QUEUE_DRIVER_LOW => self.set_address(Area::Available, Half::Low, value),
            r::QUEUE_DRIVER_HIGH => self.set_address(Area::Available, Half::High, value),
            r::QUEUE_DEVICE_LOW => self.set_address(Area::Used, Half::Low, value),
            r::QUEUE_DEVICE_HIGH => self.set_address(Area::Used, Half::High, value),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.has(r::FEATURES_OK) {
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
        if value == 0 {
            return self.reset();
        }
        // A driver never clears a bit, section 2.1.1, except all of them.
        let added = value & !self.registers.status;
        self.registers.status |= added & UNCONDITIONAL;
        if added & r::FEATURES_OK != 0 {
            self.settle_features();
        }
        if added & r::DRIVER_OK != 0 && self.has(r::FEATURES_OK) && !self.has(r::FAILED) {
            self.start();
        }
    }

    /// FEATURES_OK stays clear when the driver does not know VERSION_1, section 6.2, or accepts a feature that changes its
    /// rings and was not offered: it would not find its device where it looks. Other bits that were never offered are taken
    /// back without a word to the driver, since several set them out of carelessness.
    fn settle_features(&mut self) {
        let unknown = self.registers.driver_features & !self.offered();
        self.registers.driver_features &= !unknown;
        if unknown != 0 && !std::mem::replace(&mut self.complaints.features, true) {
            let id = self.device.device_id();
            log::warn!(
                "virtio device {id}: the driver accepts features {unknown:#x}, which it was not offered"
            );
        }
        let versioned = self.registers.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if versioned && unknown & RING_FEATURES == 0 {
            self.registers.status |= r::FEATURES_OK;
        }
    }

    fn start(&mut self) {
        self.registers.status |= r::DRIVER_OK;
        match self.queues() {
            Some(queues) => {
                self.activate(queues);
                // Some drivers fill their queues and kick before DRIVER_OK, and not again.
                self.notify_all();
            }
            None => self.signal.set_needs_reset(),
        }
    }

    fn notify_all(&mut self) {
        for queue in 0..self.rings.len() {
            self.notify(queue);
        }
    }

    fn ring(&self) -> Option<&QueueRegisters> {
        self.rings.get(usize::try_from(self.registers.queue_sel).ok()?)
    }

    /// The selected queue, as long as the driver may still say something of it.
    fn unsettled_ring(&mut self) -> Option<&mut QueueRegisters> {
        match self.has(r::DRIVER_OK) {
            true => None,
            false => self
                .rings
                .get_mut(usize::try_from(self.registers.queue_sel).ok()?),
        }
    }

    fn configure(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(ring) = self.unsettled_ring().filter(|ring| !ring.ready) {
            change(ring);
        }
    }

    fn set_address(&mut self, area: Area, half: Half, value: u32) {
        self.configure(|ring| ring.set_address(area, half, value));
    }

    /// A queue that no device could work with does not become ready.
    fn set_queue_ready(&mut self, ready: bool) {
        let usable = ready && self.ring().is_some_and(|ring| ring.is_usable(&self.memory));
        let Some(ring) = self.unsettled_ring() else {
            return;
        };
        ring.ready = usable;
        if ready && !usable {
            let refused = ring.clone();
            self.complain_of(&refused);
        }
    }

    fn complain_of(&mut self, refused: &QueueRegisters) {
        if !std::mem::replace(&mut self.complaints.queues, true) {
            let (id, queue) = (self.device.device_id(), self.registers.queue_sel);
            log::warn!("virtio device {id}: queue {queue} cannot be made ready: {refused:x?}");
        }
    }
}

/// The lower half of `features` for 0, the upper for 1, and nothing for other selections.
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
                self.configuration.generation(self.device.as_ref());
                self.device.read_config(offset - r::CONFIG, data);
            }
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No field of a configuration space takes writes.
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset < r::CONFIG => self.write_register(offset, u32::from_le_bytes(word)),
            _ => {}
        }
    }
}
