use std::sync::Arc;

use snapshot::{GuestMemory, GuestRegion, HostWrites};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::queue::FakeQueue;
use super::registers::{get, set};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::virtio::device::Activation;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::mmio::registers as r;

/// Address of the first queue: not 0, which marks an unset ring.
const RINGS: u64 = 0x1000;
const PAGE: usize = 0x1000;

/// A driver with its memory and its queues.
pub struct FakeDriver {
    /// Guest memory, from address 0.
    pub memory: GuestMemory,
    /// Queues of the device.
    pub queues: Vec<FakeQueue>,
    /// First page behind the queues; memory from here on is free for buffers.
    pub buffers: u64,
}

impl FakeDriver {
    /// Creates a driver in `memory_size` bytes of guest memory, with one queue for each of `queue_sizes`.
    pub fn new(memory_size: usize, queue_sizes: &[u16]) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), memory_size)]).unwrap();
        Self::with_memory(memory, queue_sizes)
    }

    /// Creates a driver like [`new`](Self::new) in `memory`, which starts at address 0.
    pub fn with_memory(memory: GuestMemory, queue_sizes: &[u16]) -> Self {
        let mut buffers = RINGS;
        let mut queues = Vec::new();
        for size in queue_sizes {
            let queue = FakeQueue::new(memory.clone(), buffers, *size);
            buffers = queue.end().next_multiple_of(PAGE as u64);
            queues.push(queue);
        }
        Self {
            memory,
            queues,
            buffers,
        }
    }

    /// Creates a driver like [`new`](Self::new), with a log of the writes to its memory.
    pub fn logged(memory_size: usize, queue_sizes: &[u16]) -> Self {
        let log = HostWrites::logged(memory_size, PAGE);
        let mapping = MmapRegionBuilder::new_with_bitmap(memory_size, log)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
            .build();
        let region = GuestRegion::new(mapping.unwrap(), GuestAddress(0)).unwrap();
        Self::with_memory(GuestMemory::from_regions(vec![region]).unwrap(), queue_sizes)
    }

    /// Clears the log of writes. Returns the content of memory for [`expect_writes_logged`](Self::expect_writes_logged).
    pub fn clear_log(&self) -> Vec<u8> {
        let region = self.memory.iter().next().unwrap();
        region.bitmap().log().unwrap().clear();
        self.read(0, region.size())
    }

    /// Compares the log of writes with the changed pages since [`clear_log`](Self::clear_log).
    pub fn expect_writes_logged(&self, before: &[u8]) {
        let region = self.memory.iter().next().unwrap();
        let ranges = region.bitmap().log().unwrap().ranges();
        let logged: Vec<u64> = ranges.flat_map(|range| range.step_by(PAGE)).collect();
        let now = self.read(0, region.size());
        let pages = before.chunks(PAGE).zip(now.chunks(PAGE));
        let changed = (0..).step_by(PAGE).zip(pages);
        let changed: Vec<u64> = changed
            .filter(|(_, (before, now))| before != now)
            .map(|(page, _)| page)
            .collect();
        assert!(!changed.is_empty());
        assert_eq!(logged, changed);
    }

    /// Returns the activation for negotiated `features` and VERSION_1; interrupts go to `line`.
    pub fn activation(&self, features: u64, line: Arc<dyn Interrupt>) -> Activation {
        let device_side = |queue: &FakeQueue| {
            let mut queue = queue.device_side();
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            queue
        };
        Activation {
            features: features | 1 << VIRTIO_F_VERSION_1,
            queues: self.queues.iter().map(device_side).collect(),
            memory: self.memory.clone(),
            interrupt: Arc::new(VirtioInterrupt::new(line)),
        }
    }

    /// Starts a device through its transport, virtio 1.2 §3.1.1: accepts VERSION_1 and the offered bits of
    /// `features`, makes all queues ready and sets DRIVER_OK. Returns the Status register.
    pub fn start(&self, transport: &mut dyn BusDevice, features: u64) -> u32 {
        let accepted = features | 1 << VIRTIO_F_VERSION_1;
        set(transport, r::STATUS, r::ACKNOWLEDGE | r::DRIVER);
        for select in [0, 1] {
            set(transport, r::DEVICE_FEATURES_SEL, select);
            let offered = get(transport, r::DEVICE_FEATURES);
            let wanted = (accepted >> (32 * select)) & 0xffff_ffff;
            set(transport, r::DRIVER_FEATURES_SEL, select);
            set(
                transport,
                r::DRIVER_FEATURES,
                offered & u32::try_from(wanted).unwrap(),
            );
        }
        let status = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK;
        set(transport, r::STATUS, status);
        for (index, queue) in (0..).zip(&self.queues) {
            set(transport, r::QUEUE_SEL, index);
            queue.register(transport);
        }
        set(transport, r::STATUS, status | r::DRIVER_OK);
        get(transport, r::STATUS)
    }

    /// Sends an available buffer notification for `queue`.
    pub fn notify(&self, transport: &mut dyn BusDevice, queue: u32) {
        set(transport, r::QUEUE_NOTIFY, queue);
    }

    /// Resets the device and clears the queues.
    pub fn reset(&mut self, transport: &mut dyn BusDevice) {
        set(transport, r::STATUS, 0);
        for queue in &mut self.queues {
            queue.clear();
        }
    }

    /// Writes `data` into guest memory.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    /// Reads `length` bytes of guest memory.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}
