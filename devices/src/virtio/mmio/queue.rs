//! What a driver says of one queue before the device has it.

use snapshot::GuestMemory;
use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The largest size of a queue. Section 2.7 of the specification.
const LARGEST: u32 = 32_768;

/// An address that is written in two halves.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Low,
    High,
}

/// The part of a queue that an address is of.
#[derive(Clone, Copy)]
pub(super) enum Area {
    Descriptors,
    Available,
    Used,
}

/// The registers of one queue. Nothing in them is checked before the queue is to be ready.
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
    /// As after a reset.
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

    /// Whether a device can work with it. `virtio_queue` has the same check, but with an error in the log for each time
    /// that a guest likes to have one.
    pub(super) fn is_usable(&self, memory: &GuestMemory) -> bool {
        let size = u64::from(self.size);
        let within = |address: u64, align: u64, length: u64| {
            address.is_multiple_of(align)
                && usize::try_from(length)
                    .is_ok_and(|length| memory.check_range(GuestAddress(address), length))
        };
        self.size <= self.max_size.into()
            && self.size <= LARGEST
            && self.size.is_power_of_two()
            // Alignments and sizes are those of section 2.7, the event fields included.
            && within(self.descriptors, 16, 16 * size)
            // `virtio_queue` takes an available ring at 0 for one that was never set.
            && self.available != 0
            && within(self.available, 2, 6 + 2 * size)
            && within(self.used, 4, 6 + 8 * size)
    }

    /// The queue for the device, from the beginning; `None` if it is not ready.
    pub(super) fn queue(&self, event_idx: bool) -> Option<Queue> {
        let state = QueueState {
            event_idx_enabled: event_idx,
            ..self.state()?
        };
        Queue::try_from(state).ok().filter(|_| self.ready)
    }

    /// The registers as `virtio_queue` has them; `None` if the size is larger than it knows.
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
