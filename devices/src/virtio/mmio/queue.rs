//! Registers of one queue.

use snapshot::GuestMemory;
use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Maximum size of a split virtqueue, virtio 1.2 §2.7.
const MAX_SIZE: u32 = 32_768;

/// Half of a 64-bit address register.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Low,
    High,
}

/// Part of a virtqueue.
#[derive(Clone, Copy)]
pub(super) enum Area {
    Descriptors,
    Available,
    Used,
}

/// Registers of one queue. Their values are unchecked until the driver sets QueueReady.
#[derive(Clone, Debug)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueRegisters {
    /// Returns the registers after a reset.
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size.into(),
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Writes one half of an address.
    pub(super) fn set_address(&mut self, area: Area, half: Half, value: u32) {
        let address = match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Available => &mut self.available,
            Area::Used => &mut self.used,
        };
        let (keep, shift) = match half {
            Half::Low => (0xffff_ffff_0000_0000, 0),
            Half::High => (0x0000_0000_ffff_ffff, 32),
        };
        *address = *address & keep | u64::from(value) << shift;
    }

    /// Returns true if size, alignment and addresses are valid. `Queue::is_valid` of `virtio_queue` checks the same,
    /// but a guest could use it to flood the log.
    pub(super) fn is_usable(&self, memory: &GuestMemory) -> bool {
        let size = u64::from(self.size);
        let within = |address: u64, align: u64, length: u64| {
            address.is_multiple_of(align)
                && usize::try_from(length)
                    .is_ok_and(|length| memory.check_range(GuestAddress(address), length))
        };
        self.size <= self.max_size.into()
            && self.size <= MAX_SIZE
            && self.size.is_power_of_two()
            // Alignments and sizes of virtio 1.2 §2.7, with the event fields.
            && within(self.descriptors, 16, 16 * size)
            // `virtio_queue` treats address 0 as an unset available ring.
            && self.available != 0
            && within(self.available, 2, 6 + 2 * size)
            && within(self.used, 4, 6 + 8 * size)
    }

    /// Returns the queue with both indices at 0, or `None` if it is not ready.
    pub(super) fn build(&self, event_idx: bool) -> Option<Queue> {
        let state = QueueState {
            event_idx_enabled: event_idx,
            ..self.state()?
        };
        Queue::try_from(state).ok().filter(|_| self.ready)
    }

    /// Returns the registers for `virtio_queue`, or `None` if the size exceeds 16 bits.
    fn state(&self) -> Option<QueueState> {
        Some(QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size: u16::try_from(self.size).ok()?,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
    }
}
