//! One split queue at work, section 2.7 of the specification: what `virtio_queue` leaves out, and what it is slow at.
//!
//! Chains that belong together become visible to the driver all at once, as section 5.1.6.4.1 wants it of merged receive
//! buffers: a driver that polls would otherwise see a part of them and drop the packet. And VIRTQ_AVAIL_F_NO_INTERRUPT is heeded.
//!
//! Each access finds the place in guest memory with one lookup. By the crate's own way through `Bytes`, which allows for areas
//! that continue in the next region, an access costs some 30 ns, and there are a dozen of them for each request: as much as
//! a third of a cached read of 4 KiB.

pub mod chain;
#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use snapshot::GuestMemory;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileMemory, VolatileSlice};

/// What of the driver's made the device stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The available ring has more entries than the queue, or has gone backwards.
    #[error("the available index {index} is not within {size} entries of {next}")]
    Available {
        /// What the driver has written.
        index: u16,
        /// The entry that the device takes next.
        next: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A part of the queue is not in guest memory, or lies across two regions of it.
    #[error("{length} bytes of a queue at {address:#x} are not memory")]
    Place {
        /// Guest-physical address.
        address: u64,
        /// Bytes there.
        length: usize,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
}

/// Offset of the index in both rings.
const INDEX: u64 = 2;
/// Offset of the entries in both rings.
const ENTRIES: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY: u64 = 8;
/// Bytes of an entry of the available ring.
const AVAILABLE_ENTRY: u64 = 2;
/// VIRTQ_USED_F_NO_NOTIFY
const NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = size_of::<Descriptor>();

/// A queue between activation and reset.
pub struct Virtqueue {
    queue: Queue,
    /// Index of the used ring up to which the driver has been told, or did not want to be.
    signalled_used: Wrapping<u16>,
}

impl Virtqueue {
    /// `queue` as it was activated.
    pub fn new(queue: Queue) -> Self {
        let told = Wrapping(queue.next_used());
        Self {
            queue,
            signalled_used: told,
        }
    }

    /// Entries of the queue.
    pub fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// The queue as it is.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next chain.
    ///
    /// # Errors
    /// [`Error::Available`], [`Error::Place`]
    pub fn pop_chain<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<DescriptorIter<'m>>, Error> {
        let next = self.queue.next_avail();
        let size = self.queue.size();
        let index = load(memory, self.queue.avail_ring() + INDEX, Ordering::Acquire)?;
        if index == next {
            return Ok(None);
        }
        if index.wrapping_sub(next) > size {
            return Err(Error::Available { index, next, size });
        }
        let entry = self.queue.avail_ring() + ENTRIES + AVAILABLE_ENTRY * u64::from(next % size);
        let head = load(memory, entry, Ordering::Relaxed)?;
        let table = place(memory, self.queue.desc_table(), usize::from(size) * DESCRIPTOR)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(DescriptorIter {
            memory,
            table,
            head,
            next: head,
            left: size,
            bytes: 0,
            indirect: false,
        }))
    }

    /// Puts the last `count` chains back that were taken and not used.
    pub fn undo_pop(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// Gives chains, each with the bytes written to it, back to the driver, which sees all of them or none.
    ///
    /// # Errors
    /// [`Error::Place`]
    pub fn add_used(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), Error> {
        for (head, length) in chains {
            let next = self.queue.next_used();
            let slot = u64::from(next % self.queue.size());
            let address = self.queue.used_ring() + ENTRIES + slot * USED_ENTRY;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            entry[4..].copy_from_slice(&length.to_le_bytes());
            place(memory, address, entry.len())?.copy_from(&entry);
            self.queue.set_next_used(next.wrapping_add(1));
        }
        // The entries are there before the index says so.
        let index = self.queue.used_ring() + INDEX;
        store(memory, index, self.queue.next_used(), Ordering::Release)
    }

    /// Asks the driver not to tell of new chains.
    ///
    /// # Errors
    /// [`Error::Place`]
    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        // With EVENT_IDX, the event that the index has passed stays where it is, and does.
        if self.queue.event_idx_enabled() {
            return Ok(());
        }
        store(memory, self.queue.used_ring(), NO_NOTIFY, Ordering::Relaxed)
    }

    /// Asks the driver to tell of new chains, and tells whether some came before it could know.
    ///
    /// # Errors
    /// [`Error::Place`]
    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let next = self.queue.next_avail();
        let used = self.queue.used_ring();
        if self.queue.event_idx_enabled() {
            let end = ENTRIES + USED_ENTRY * u64::from(self.queue.size());
            store(memory, used + end, next, Ordering::Relaxed)?;
        } else {
            store(memory, used, 0, Ordering::Relaxed)?;
        }
        // The wish is visible before the index is read; the driver does it the other way round.
        fence(Ordering::SeqCst);
        let index = load(memory, self.queue.avail_ring() + INDEX, Ordering::Acquire)?;
        Ok(index != next)
    }

    /// Whether chains were used since the last call of which the driver wants to be told. Section 2.7.7.2.
    ///
    /// # Errors
    /// [`Error::Place`]
    pub fn needs_notification(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let next = Wrapping(self.queue.next_used());
        let told = std::mem::replace(&mut self.signalled_used, next);
        if told == next {
            return Ok(false);
        }
        // What was used is visible before the driver's wish is read; the driver does it the other way round.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        if self.queue.event_idx_enabled() {
            let end = ENTRIES + AVAILABLE_ENTRY * u64::from(self.queue.size());
            let event = Wrapping(load(memory, available + end, Ordering::Relaxed)?);
            return Ok(next - event - Wrapping(1) < next - told);
        }
        let flags = load(memory, available, Ordering::Relaxed)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// The descriptors of one chain, in its order. Ends at one that cannot be followed as if the chain were complete.
#[derive(Clone)]
pub struct DescriptorIter<'m> {
    memory: &'m GuestMemory,
    table: VolatileSlice<'m>,
    head: u16,
    next: u16,
    /// Descriptors that may still come: no more than there are in the table.
    left: u16,
    bytes: u32,
    indirect: bool,
}

impl DescriptorIter<'_> {
    /// Index of the first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Goes on in the table that `descriptor` names. Section 2.7.5.3: there is none inside another.
    fn enter(&mut self, descriptor: Descriptor) -> Option<()> {
        let length = usize::try_from(descriptor.len()).ok()?;
        if self.indirect || !length.is_multiple_of(DESCRIPTOR) {
            return None;
        }
        self.left = u16::try_from(length / DESCRIPTOR).ok()?;
        self.table = self.memory.get_slice(descriptor.addr(), length).ok()?;
        self.next = 0;
        self.indirect = true;
        Some(())
    }

    fn read(&self) -> Option<Descriptor> {
        let offset = usize::from(self.next) * DESCRIPTOR;
        self.table.get_ref(offset).ok().map(|place| place.load())
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
            self.enter(descriptor)?;
            descriptor = (self.left > 0).then(|| self.read()).flatten()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        // Section 2.7.5.2: no more than 2^32 bytes.
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left = match descriptor.has_next() {
            true => self.left - 1,
            false => 0,
        };
        self.next = descriptor.next();
        Some(descriptor)
    }
}

/// `length` bytes of a queue at `address`.
fn place(memory: &GuestMemory, address: u64, length: usize) -> Result<VolatileSlice<'_>, Error> {
    memory
        .get_slice(GuestAddress(address), length)
        .map_err(|source| Error::Place {
            address,
            length,
            source,
        })
}

/// The 16 bits at `address`.
fn load(memory: &GuestMemory, address: u64, order: Ordering) -> Result<u16, Error> {
    let place = place(memory, address, size_of::<u16>())?;
    let value = place
        .get_atomic_ref::<AtomicU16>(0)
        .map_err(|source| misplaced(address, source.into()))?;
    Ok(u16::from_le(value.load(order)))
}

/// Stores 16 bits at `address`.
fn store(memory: &GuestMemory, address: u64, value: u16, order: Ordering) -> Result<(), Error> {
    let place = place(memory, address, size_of::<u16>())?;
    place
        .get_atomic_ref::<AtomicU16>(0)
        .map_err(|source| misplaced(address, source.into()))?
        .store(value.to_le(), order);
    Ok(())
}

fn misplaced(address: u64, source: GuestMemoryError) -> Error {
    Error::Place {
        address,
        length: size_of::<u16>(),
        source,
    }
}
