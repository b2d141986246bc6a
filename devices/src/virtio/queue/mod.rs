//! A split virtqueue of an active device, virtio 1.2 §2.7.
//!
//! In contrast to `virtio_queue`, several chains become used at once, as virtio 1.2 §5.1.6.4.1 requires of mergeable
//! receive buffers. A polling driver that sees only some of them would drop the packet. VIRTQ_AVAIL_F_NO_INTERRUPT is
//! also supported.
//!
//! Each access needs one lookup in guest memory. `virtio_queue` uses `Bytes`, which supports an access across two
//! regions and costs about 30 ns. A request needs a dozen accesses; they would take up to a third of a cached read of
//! 4 KiB.

pub mod chain;
mod ordering;
#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, Ordering};

use snapshot::{GuestMemory, GuestSlice};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileMemory};

use ordering::{SharedWords, Word};

/// Malformed virtqueue. The device stops until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The available index is more than the queue size ahead of the device, or moved backwards.
    #[error("cannot pop a chain: available index {index} is more than {size} entries ahead of {next}")]
    AvailableIndex {
        /// Available index of the driver.
        index: u16,
        /// Next available index of the device.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// A part of the virtqueue is outside guest memory or crosses two regions.
    #[error("cannot access {length} bytes of a virtqueue at {address:#x}")]
    Access {
        /// Guest-physical address.
        address: u64,
        /// Number of bytes.
        length: usize,
        /// Error of the guest memory.
        #[source]
        source: GuestMemoryError,
    },
}

/// Offset of `idx` in both rings, virtio 1.2 §2.7.6 and §2.7.8.
const INDEX_OFFSET: u64 = 2;
/// Offset of the entries in both rings, virtio 1.2 §2.7.6 and §2.7.8.
const ENTRIES_OFFSET: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY_SIZE: u64 = 8;
/// Bytes of an entry of the available ring.
const AVAILABLE_ENTRY_SIZE: u64 = 2;
/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

/// A virtqueue from activation to reset.
pub struct Virtqueue {
    queue: Queue,
    /// Used index at the last call of [`needs_notification`](Self::needs_notification).
    signalled_used: Wrapping<u16>,
}

impl Virtqueue {
    /// Wraps an activated `queue`.
    pub fn new(queue: Queue) -> Self {
        let signalled_used = Wrapping(queue.next_used());
        Self {
            queue,
            signalled_used,
        }
    }

    /// Returns the queue size.
    pub fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// Returns the current state, for a snapshot.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Pops the next available chain, or returns `None` if the available ring is empty.
    ///
    /// # Errors
    /// Fails if the driver made the virtqueue malformed, with any variant of [`Error`].
    pub fn pop_chain<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<DescriptorIter<'m>>, Error> {
        let next = self.queue.next_avail();
        let size = self.queue.size();
        let words = self.words(memory);
        let index = ordering::available_index(&words)?;
        if index == next {
            return Ok(None);
        }
        if index.wrapping_sub(next) > size {
            return Err(Error::AvailableIndex { index, next, size });
        }
        let head = ordering::available_entry(&words, next % size)?;
        let chain = self.chain(memory, head)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Returns the chain that begins with descriptor `head`.
    ///
    /// # Errors
    /// Fails with [`Error::Access`] if the table is not in one region of guest memory.
    pub fn chain<'m>(&self, memory: &'m GuestMemory, head: u16) -> Result<DescriptorIter<'m>, Error> {
        let size = self.queue.size();
        let table = slice_at(
            memory,
            self.queue.desc_table(),
            usize::from(size) * DESCRIPTOR_SIZE,
        )?;
        Ok(DescriptorIter {
            memory,
            table,
            head,
            next: head,
            left: size,
            indirect: false,
        })
    }

    /// Undoes the pop of the last `count` chains. None of them may be used yet.
    pub fn undo_pop(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// Adds `chains`, pairs of head and written length, to the used ring. The driver sees all of them or none.
    ///
    /// # Errors
    /// Fails with [`Error::Access`] if a ring is not in one region of guest memory.
    pub fn add_used(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), Error> {
        for (head, length) in chains {
            let next = self.queue.next_used();
            let slot = u64::from(next % self.queue.size());
            let address = self.queue.used_ring() + ENTRIES_OFFSET + slot * USED_ENTRY_SIZE;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            entry[4..].copy_from_slice(&length.to_le_bytes());
            slice_at(memory, address, entry.len())?.copy_from(&entry);
            self.queue.set_next_used(next.wrapping_add(1));
        }
        ordering::publish_used(&self.words(memory), self.queue.next_used())
    }

    /// Returns the number of available chains that are not popped, for metrics: at most the queue size, 0 for a malformed queue.
    pub fn available(&self, memory: &GuestMemory) -> u16 {
        let index = self.words(memory).load(Word::AvailableIndex, Ordering::Relaxed);
        let index = index.unwrap_or(self.queue.next_avail());
        index.wrapping_sub(self.queue.next_avail()).min(self.queue.size())
    }

    /// Disables available buffer notifications, as far as the driver supports it.
    ///
    /// # Errors
    /// Fails with [`Error::Access`] if a ring is not in one region of guest memory.
    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        // With EVENT_IDX, an `avail_event` that the available index has passed suppresses notifications already.
        if self.queue.event_idx_enabled() {
            return Ok(());
        }
        ordering::disable_notification(&self.words(memory))
    }

    /// Enables available buffer notifications. Returns true if chains became available before that: the driver may
    /// send no notification for them.
    ///
    /// # Errors
    /// Fails with [`Error::Access`] if a ring is not in one region of guest memory.
    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let event_idx = self.queue.event_idx_enabled();
        ordering::enable_notification(&self.words(memory), event_idx, self.queue.next_avail())
    }

    /// Returns true if the driver expects a used buffer notification for the chains added since the last call, virtio
    /// 1.2 §2.7.7.2.
    ///
    /// # Errors
    /// Fails with [`Error::Access`] if a ring is not in one region of guest memory.
    pub fn needs_notification(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let next = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.signalled_used, next);
        if old == next {
            return Ok(false);
        }
        let event_idx = self.queue.event_idx_enabled();
        ordering::needs_notification(&self.words(memory), event_idx, old.0, next.0)
    }

    fn words<'a>(&'a self, memory: &'a GuestMemory) -> RingWords<'a> {
        RingWords {
            queue: &self.queue,
            memory,
        }
    }
}

/// The words of the rings in guest memory.
struct RingWords<'a> {
    queue: &'a Queue,
    memory: &'a GuestMemory,
}

impl RingWords<'_> {
    #[inline]
    fn address(&self, word: Word) -> u64 {
        let size = u64::from(self.queue.size());
        let (available, used) = (self.queue.avail_ring(), self.queue.used_ring());
        match word {
            Word::AvailableFlags => available,
            Word::AvailableIndex => available + INDEX_OFFSET,
            Word::AvailableEntry(slot) => available + ENTRIES_OFFSET + AVAILABLE_ENTRY_SIZE * u64::from(slot),
            Word::UsedEvent => available + ENTRIES_OFFSET + AVAILABLE_ENTRY_SIZE * size,
            Word::UsedFlags => used,
            Word::UsedIndex => used + INDEX_OFFSET,
            Word::AvailableEvent => used + ENTRIES_OFFSET + USED_ENTRY_SIZE * size,
        }
    }
}

impl SharedWords for RingWords<'_> {
    type Error = Error;

    #[inline]
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Error> {
        load(self.memory, self.address(word), order)
    }

    #[inline]
    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Error> {
        store(self.memory, self.address(word), value, order)
    }
}

/// Iterator over the descriptors of one chain. It ends at a descriptor that cannot be followed; the consumer detects
/// that by the NEXT flag of the last descriptor.
#[derive(Clone)]
pub struct DescriptorIter<'m> {
    memory: &'m GuestMemory,
    table: GuestSlice<'m>,
    head: u16,
    next: u16,
    /// Descriptors that may follow, at most the size of the table: bounds a loop.
    left: u16,
    indirect: bool,
}

impl DescriptorIter<'_> {
    /// Returns the index of the first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Continues in the indirect table of `descriptor`. Indirect tables do not nest, virtio 1.2 §2.7.5.3.1.
    fn enter_indirect(&mut self, descriptor: Descriptor) -> Option<()> {
        let length = usize::try_from(descriptor.len()).ok()?;
        if self.indirect || !length.is_multiple_of(DESCRIPTOR_SIZE) {
            return None;
        }
        self.left = u16::try_from(length / DESCRIPTOR_SIZE).ok()?;
        self.table = self.memory.get_slice(descriptor.addr(), length).ok()?;
        self.next = 0;
        self.indirect = true;
        Some(())
    }

    fn read(&self) -> Option<Descriptor> {
        let offset = usize::from(self.next) * DESCRIPTOR_SIZE;
        self.table.get_ref(offset).ok().map(|slot| slot.load())
    }
}

impl Iterator for DescriptorIter<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        if self.left == 0 {
            return None;
        }
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter_indirect(descriptor)?;
            descriptor = (self.left > 0).then(|| self.read()).flatten()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.left = match descriptor.has_next() {
            true => self.left - 1,
            false => 0,
        };
        self.next = descriptor.next();
        Some(descriptor)
    }
}

/// Returns `length` bytes of a virtqueue at `address`.
fn slice_at(memory: &GuestMemory, address: u64, length: usize) -> Result<GuestSlice<'_>, Error> {
    memory
        .get_slice(GuestAddress(address), length)
        .map_err(|source| Error::Access {
            address,
            length,
            source,
        })
}

/// Loads the 16-bit value at `address`.
fn load(memory: &GuestMemory, address: u64, order: Ordering) -> Result<u16, Error> {
    let slice = slice_at(memory, address, size_of::<u16>())?;
    let value = slice
        .get_atomic_ref::<AtomicU16>(0)
        .map_err(|source| access_error(address, source.into()))?;
    Ok(u16::from_le(value.load(order)))
}

/// Stores a 16-bit `value` at `address`.
fn store(memory: &GuestMemory, address: u64, value: u16, order: Ordering) -> Result<(), Error> {
    let slice = slice_at(memory, address, size_of::<u16>())?;
    slice
        .get_atomic_ref::<AtomicU16>(0)
        .map_err(|source| access_error(address, source.into()))?
        .store(value.to_le(), order);
    slice.bitmap().mark_dirty(0, size_of::<u16>());
    Ok(())
}

fn access_error(address: u64, source: GuestMemoryError) -> Error {
    Error::Access {
        address,
        length: size_of::<u16>(),
        source,
    }
}
