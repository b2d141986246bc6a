//! One queue of the device, with what `virtio_queue` leaves out.
//!
//! Buffers of one packet become visible to the driver all at once, as section 5.1.6.4.1 wants it of merged ones: a driver
//! that polls would otherwise see a part of them and drop the packet. And VIRTQ_AVAIL_F_NO_INTERRUPT is heeded.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use snapshot::GuestMemory;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::virtio::chain;

/// What of the driver's made the device stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The available ring has more entries than the queue, or has gone backwards.
    #[error("the available ring cannot be followed")]
    Available(#[source] virtio_queue::Error),
    /// The used ring cannot be written.
    #[error("the used ring cannot be written")]
    Used(#[source] virtio_queue::Error),
    /// A ring is not in guest memory.
    #[error("{length} bytes of a ring at {address:#x} are not memory")]
    Ring {
        /// Guest-physical address.
        address: u64,
        /// Bytes there.
        length: usize,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
    /// A chain is malformed.
    #[error("the chain cannot be used")]
    Chain(#[source] chain::Error),
    /// A chain has parts of the wrong direction.
    #[error("chain {0} has parts of the wrong direction")]
    Direction(u16),
    /// A receive buffer has no room for the header of a packet. Section 5.1.6.3.1.
    #[error("the receive buffer of chain {head} has {length} bytes, less than a header")]
    Small {
        /// Index of its first descriptor.
        head: u16,
        /// Its length.
        length: u64,
    },
}

/// Offset of the entries in both rings.
const ENTRIES: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY: u64 = 8;
/// Bytes of an entry of the available ring.
const AVAILABLE_ENTRY: u64 = 2;

/// A queue between activation and reset.
pub(super) struct Ring {
    queue: Queue,
    /// Index of the used ring up to which the driver has been told, or did not want to be.
    told: Wrapping<u16>,
}

impl Ring {
    pub(super) fn new(queue: Queue) -> Self {
        let told = Wrapping(queue.next_used());
        Self { queue, told }
    }

    /// Entries of the queue.
    pub(super) fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// The queue as it is.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next chain.
    pub(super) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemory,
    ) -> Result<Option<DescriptorChain<&'m GuestMemory>>, Error> {
        Ok(self.queue.iter(memory).map_err(Error::Available)?.next())
    }

    /// Puts the last `count` chains back that were taken and not used.
    pub(super) fn put_back(&mut self, count: u16) {
        let next = Wrapping(self.queue.next_avail()) - Wrapping(count);
        self.queue.set_next_avail(next.0);
    }

    /// Gives chains, each with the bytes written to it, back to the driver, which sees all of them or none.
    pub(super) fn publish(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), Error> {
        let Some(((last, length), others)) = chains.split_last() else {
            return Ok(());
        };
        for (head, length) in others {
            let next = self.queue.next_used();
            let slot = u64::from(next % self.queue.size());
            let address = self.queue.used_ring() + ENTRIES + slot * USED_ENTRY;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            entry[4..].copy_from_slice(&length.to_le_bytes());
            memory
                .write_slice(&entry, GuestAddress(address))
                .map_err(|source| Error::Ring {
                    address,
                    length: entry.len(),
                    source,
                })?;
            self.queue.set_next_used(next.wrapping_add(1));
        }
        // This one stores the index, of all of them, behind the entries.
        self.queue.add_used(memory, *last, *length).map_err(Error::Used)
    }

    /// Asks the driver not to tell of new chains.
    pub(super) fn mute(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        self.queue.disable_notification(memory).map_err(Error::Used)
    }

    /// Asks the driver to tell of new chains, and tells whether some came before it could know.
    pub(super) fn listen(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        self.queue.enable_notification(memory).map_err(Error::Used)
    }

    /// Whether chains were used since the last call of which the driver wants to be told. Section 2.7.7.2.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        let next = Wrapping(self.queue.next_used());
        let told = std::mem::replace(&mut self.told, next);
        if told == next {
            return Ok(false);
        }
        // What was used is visible before the driver's wish is read; the driver does it the other way round.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let end = ENTRIES + AVAILABLE_ENTRY * u64::from(self.queue.size());
            let event = Wrapping(self.load(memory, end)?);
            return Ok(next - event - Wrapping(1) < next - told);
        }
        let flags = self.load(memory, 0)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The 16 bits at `offset` of the available ring.
    fn load(&self, memory: &GuestMemory, offset: u64) -> Result<u16, Error> {
        let address = self.queue.avail_ring() + offset;
        memory
            .load(GuestAddress(address), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|source| Error::Ring {
                address,
                length: size_of::<u16>(),
                source,
            })
    }
}
