use std::sync::atomic::Ordering;

use snapshot::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::registers::set;
use crate::bus::BusDevice;
use crate::virtio::mmio::registers as r;

/// Descriptor flag: another descriptor follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the buffer is device-writable.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is an indirect table.
pub const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: u64 = 16;
/// Bytes of an entry of the available ring.
const AVAILABLE_ENTRY_SIZE: u64 = 2;
/// Bytes of an entry of the used ring.
const USED_ENTRY_SIZE: u64 = 8;
/// Offset of the index in both rings.
const INDEX_OFFSET: u64 = 2;
/// Offset of the entries in both rings.
const ENTRIES_OFFSET: u64 = 4;

/// A descriptor with any values, valid or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub length: u32,
    /// [`NEXT`], [`WRITE`] and [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// True if device-writable, false if device-readable.
    pub writable: bool,
}

impl Buffer {
    /// Returns a device-readable buffer.
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    /// Returns a device-writable buffer.
    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of the first descriptor of the chain.
    pub head: u32,
    /// Bytes that the device reports as written.
    pub length: u32,
}

/// The driver's side of one split virtqueue.
pub struct FakeQueue {
    memory: GuestMemory,
    size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    free: Vec<u16>,
    /// Descriptors of each chain, by its head.
    chains: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl FakeQueue {
    /// Creates an empty queue of `size` in `memory` from `base`, a multiple of 16.
    pub fn new(memory: GuestMemory, base: u64, size: u16) -> Self {
        let available = base + DESCRIPTOR_SIZE * u64::from(size);
        let used =
            (available + ENTRIES_OFFSET + AVAILABLE_ENTRY_SIZE * u64::from(size) + 2).next_multiple_of(4);
        let mut queue = Self {
            memory,
            size,
            descriptors: base,
            available,
            used,
            free: Vec::new(),
            chains: Vec::new(),
            next_available: 0,
            next_used: 0,
        };
        queue.clear();
        queue
    }

    /// Clears the queue and frees all chains, like a driver before it starts its device again.
    pub fn clear(&mut self) {
        let length = usize::try_from(self.end() - self.descriptors).unwrap();
        self.memory
            .write_slice(&vec![0; length], GuestAddress(self.descriptors))
            .unwrap();
        self.free = (0..self.size).rev().collect();
        self.chains = vec![Vec::new(); self.size.into()];
        self.next_available = 0;
        self.next_used = 0;
    }

    /// Returns the queue size.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Returns the number of free descriptors.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Returns the available index.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Returns the first address behind the queue.
    pub fn end(&self) -> u64 {
        self.used + ENTRIES_OFFSET + USED_ENTRY_SIZE * u64::from(self.size) + 2
    }

    /// Returns the device's side of the queue, ready.
    pub fn device_side(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.available))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Writes the registers of the selected queue of `transport` and makes it ready.
    pub fn register(&self, transport: &mut dyn BusDevice) {
        set(transport, r::QUEUE_NUM, self.size.into());
        for (low, high, address) in [
            (r::QUEUE_DESC_LOW, r::QUEUE_DESC_HIGH, self.descriptors),
            (r::QUEUE_DRIVER_LOW, r::QUEUE_DRIVER_HIGH, self.available),
            (r::QUEUE_DEVICE_LOW, r::QUEUE_DEVICE_HIGH, self.used),
        ] {
            set(transport, low, u32::try_from(address & 0xffff_ffff).unwrap());
            set(transport, high, u32::try_from(address >> 32).unwrap());
        }
        set(transport, r::QUEUE_READY, 1);
    }

    /// Makes a chain of `buffers` available. Returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices = self.take_free(buffers.len());
        for (descriptor, index) in link(buffers, &indices).iter().zip(&indices) {
            self.set_descriptor(*index, *descriptor);
        }
        self.make_chain_available(indices)
    }

    /// Adds a chain like [`add`](Self::add), with its descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = (0..u16::try_from(buffers.len()).unwrap()).collect();
        for (descriptor, index) in link(buffers, &indices).iter().zip(&indices) {
            self.write_descriptor(table + DESCRIPTOR_SIZE * u64::from(*index), *descriptor);
        }
        let descriptor = RawDescriptor {
            address: table,
            length: u32::from(u16::try_from(buffers.len()).unwrap()) * 16,
            flags: INDIRECT,
            next: 0,
        };
        let own = self.take_free(1);
        self.set_descriptor(own[0], descriptor);
        self.make_chain_available(own)
    }

    /// Writes descriptor `index` of the table, in use or not.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        self.write_descriptor(self.descriptors + DESCRIPTOR_SIZE * u64::from(index), descriptor);
    }

    /// Writes a descriptor at a guest-physical address.
    pub fn write_descriptor(&self, address: u64, descriptor: RawDescriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    /// Makes the chain at `head`, valid or not, available. Works for a used chain again.
    pub fn make_available(&mut self, head: u16) {
        let entry = self.available
            + ENTRIES_OFFSET
            + AVAILABLE_ENTRY_SIZE * u64::from(self.next_available % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(entry)).unwrap();
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    /// Sets the available index, to a valid value or not.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        let address = GuestAddress(self.available + INDEX_OFFSET);
        self.memory
            .store(index.to_le(), address, Ordering::Release)
            .unwrap();
    }

    /// Sets `used_event`. With EVENT_IDX, the device interrupts when its used index passes it.
    pub fn set_used_event(&self, index: u16) {
        let address = self.available + ENTRIES_OFFSET + AVAILABLE_ENTRY_SIZE * u64::from(self.size);
        self.memory
            .store(index.to_le(), GuestAddress(address), Ordering::SeqCst)
            .unwrap();
    }

    /// Returns `avail_event`. With EVENT_IDX, the device expects a notification when the available index passes it.
    pub fn available_event(&self) -> u16 {
        let address = self.used + ENTRIES_OFFSET + USED_ENTRY_SIZE * u64::from(self.size);
        u16::from_le(self.memory.load(GuestAddress(address), Ordering::SeqCst).unwrap())
    }

    /// Returns the flags of the used ring: 1 if the device disables available buffer notifications.
    pub fn used_flags(&self) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(self.used), Ordering::SeqCst)
                .unwrap(),
        )
    }

    /// Returns the used index.
    pub fn used_index(&self) -> u16 {
        let address = GuestAddress(self.used + INDEX_OFFSET);
        u16::from_le(self.memory.load(address, Ordering::Acquire).unwrap())
    }

    /// Pops the next entry of the used ring. Its descriptors stay allocated, for
    /// [`make_available`](Self::make_available).
    pub fn pop_used(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        let entry = self.used + ENTRIES_OFFSET + USED_ENTRY_SIZE * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let read_u32 = |address| u32::from_le(self.memory.read_obj(GuestAddress(address)).unwrap());
        Some(Used {
            head: read_u32(entry),
            length: read_u32(entry + 4),
        })
    }

    /// Pops all entries of the used ring and frees their descriptors.
    pub fn collect_used(&mut self) -> Vec<Used> {
        let mut all = Vec::new();
        while let Some(used) = self.pop_used() {
            let head = usize::try_from(used.head).unwrap();
            let descriptors = self.chains.get_mut(head).map(std::mem::take);
            self.free.extend(descriptors.unwrap_or_default());
            all.push(used);
        }
        all
    }

    fn take_free(&mut self, count: usize) -> Vec<u16> {
        assert!(
            (1..=self.free.len()).contains(&count),
            "cannot allocate {count} descriptors: {} are free",
            self.free.len()
        );
        let rest = self.free.len() - count;
        self.free.split_off(rest)
    }

    fn make_chain_available(&mut self, indices: Vec<u16>) -> u16 {
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.make_available(head);
        head
    }
}

/// Returns descriptors for `buffers`, linked by `indices`.
fn link(buffers: &[Buffer], indices: &[u16]) -> Vec<RawDescriptor> {
    let following = indices.iter().skip(1).map(Some).chain([None]);
    let descriptor = |(buffer, next): (&Buffer, Option<&u16>)| RawDescriptor {
        address: buffer.address,
        length: buffer.length,
        flags: if buffer.writable { WRITE } else { 0 } | next.map_or(0, |_| NEXT),
        next: next.copied().unwrap_or(0),
    };
    buffers.iter().zip(following).map(descriptor).collect()
}
