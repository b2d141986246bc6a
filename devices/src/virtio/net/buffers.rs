//! Receive buffers of the guest, and errors in the driver's buffers.

use std::collections::VecDeque;

use snapshot::GuestMemory;

use super::features::HEADER;
use crate::virtio::queue::chain::{self, Chain, ChainLimits, MAX_IOVECS};
use crate::virtio::queue::{self, Virtqueue};

/// Violation of the specification by the driver. The device stops until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The rings of a virtqueue are invalid.
    #[error("cannot process the virtqueue")]
    Queue(#[source] queue::Error),
    /// A descriptor chain is malformed.
    #[error("cannot use a descriptor chain")]
    Chain(#[source] chain::Error),
    /// A chain has a device-writable buffer in the transmit queue, or a device-readable one in the receive
    /// queue.
    #[error("cannot use chain {0}: it has a buffer of the wrong direction")]
    Direction(u16),
    /// A receive buffer is shorter than a packet header. Virtio 1.2 §5.1.6.3.1 requires the full header in
    /// it.
    #[error("cannot use chain {head}: its receive buffer of {length} bytes is shorter than a packet header")]
    Small {
        /// Index of the first descriptor of the chain.
        head: u16,
        /// Length of the buffer in bytes.
        length: u64,
    },
}

/// `readv` takes at most [`MAX_IOVECS`] entries; two are reserved for the start of a packet, and for the spare
/// buffer, which takes the rest.
const LIMITS: ChainLimits = ChainLimits {
    iovecs: MAX_IOVECS - 2,
    ..ChainLimits::WIDEST
};

/// Offset of the field `flags` in the header.
const FLAGS: u64 = 0;
/// Offset of the field `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// Receive buffers that are popped from their queue and not used yet.
#[derive(Default)]
pub struct RxBuffers<'m> {
    // Boxed: a chain has several hundred bytes, and each packet moves one to and fro.
    chains: VecDeque<Box<Chain<'m>>>,
    /// Used chains, kept to reuse their allocations.
    #[allow(clippy::vec_box, reason = "the boxes move between the two lists")]
    spent: Vec<Box<Chain<'m>>>,
    length: u64,
    iovecs: usize,
    /// The next chain has more iovecs than remain below the limit.
    full: bool,
    /// Heads and lengths of the buffers of one packet.
    used: Vec<(u16, u32)>,
}

impl<'m> RxBuffers<'m> {
    /// Returns the total length in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns true if there are no buffers.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Returns the buffers behind their first `start` bytes as iovecs, at most [`MAX_IOVECS`] - 2. The pointers
    /// are valid for `'m`.
    pub fn iovec(&self, start: usize) -> impl Iterator<Item = libc::iovec> {
        let mut skipped = start as u64;
        self.chains.iter().flat_map(move |chain| {
            let length = chain.writable.len();
            let first = skipped.min(length);
            skipped -= first;
            chain.writable.iovec(first..length)
        })
    }

    /// Records that the first `length` bytes were written by [`iovec`](Self::iovec).
    pub(super) fn log_write(&self, length: u64) {
        let mut rest = length;
        for chain in &self.chains {
            if rest == 0 {
                break;
            }
            chain.writable.log_write(0..rest);
            rest = rest.saturating_sub(chain.writable.len());
        }
    }

    /// Returns the number of buffers, at most the queue size.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Returns true if `queue` cannot provide more buffers for one packet.
    pub(super) fn is_exhausted(&self, queue: &Virtqueue) -> bool {
        self.full || self.chains.len() >= queue.size()
    }

    /// Pops buffers from `queue` until they have `wanted` bytes or the queue has no more.
    // Inlined for both address policies: a call and the check of its result cost a fiftieth of the work for a packet.
    #[inline(always)]
    pub(super) fn top_up(
        &mut self,
        queue: &mut Virtqueue,
        memory: &'m GuestMemory,
        wanted: u64,
    ) -> Result<(), Error> {
        while self.length < wanted && !self.is_exhausted(queue) {
            let Some(descriptors) = queue.pop_chain(memory).map_err(Error::Queue)? else {
                break;
            };
            let mut chain = self.spent.pop().unwrap_or_default();
            chain.refill(descriptors, memory, LIMITS).map_err(Error::Chain)?;
            let (head, length) = (chain.head, chain.writable.len());
            if !chain.readable.is_empty() {
                return Err(Error::Direction(head));
            }
            if length < HEADER as u64 {
                return Err(Error::Small { head, length });
            }
            if self.iovecs + chain.writable.count() > LIMITS.iovecs {
                queue.undo_pop(1);
                self.spent.push(chain);
                self.full = true;
                break;
            }
            self.length += length;
            self.iovecs += chain.writable.count();
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// Copies the start of the packet from the buffers into `packet`.
    pub(super) fn copy_to(&self, packet: &mut [u8]) -> Result<(), Error> {
        let mut rest = packet;
        for chain in &self.chains {
            let length = rest.len().min(to_host_length(chain.writable.len()));
            let (chunk, after) = rest.split_at_mut(length);
            chain.writable.read_exact(0, chunk).map_err(Error::Chain)?;
            rest = after;
        }
        Ok(())
    }

    /// Copies `packet`, or the part that fits, into the buffers.
    pub(super) fn copy_from(&self, packet: &[u8]) -> Result<(), Error> {
        let mut rest = packet;
        for chain in &self.chains {
            if rest.is_empty() {
                break;
            }
            let length = rest.len().min(to_host_length(chain.writable.len()));
            let (chunk, after) = rest.split_at(length);
            chain.writable.write_all(0, chunk).map_err(Error::Chain)?;
            rest = after;
        }
        Ok(())
    }

    /// Reads the fields `flags` and `gso_type` of the packet in the buffers. The driver can change them at
    /// any time; a false value misleads only the guest itself.
    pub(super) fn flags_and_type(&self) -> Result<[u8; 2], Error> {
        let mut fields = [0; 2];
        if let Some(first) = self.chains.front() {
            first
                .writable
                .read_exact(FLAGS, &mut fields)
                .map_err(Error::Chain)?;
        }
        Ok(fields)
    }

    /// Sets the field `flags` of the packet in the buffers.
    pub(super) fn set_flags(&self, flags: u8) -> Result<(), Error> {
        let first = self.chains.front();
        first.map_or(Ok(()), |first| {
            first.writable.write_all(FLAGS, &[flags]).map_err(Error::Chain)
        })
    }

    /// Adds the buffers that hold the packet of `length` bytes to the used ring, sets `num_buffers` in its header, and copies `start`
    /// into them: the header and more bytes, or nothing if the buffers hold the complete packet.
    pub(super) fn add_used(
        &mut self,
        queue: &mut Virtqueue,
        memory: &'m GuestMemory,
        start: &mut [u8],
        length: usize,
    ) -> Result<(), Error> {
        let mut rest = length as u64;
        self.used.clear();
        for chain in &self.chains {
            let chunk = rest.min(chain.writable.len());
            // Never saturates: a packet has fewer than 2^32 bytes.
            self.used
                .push((chain.head, u32::try_from(chunk).unwrap_or(u32::MAX)));
            rest -= chunk;
            if rest == 0 {
                break;
            }
        }
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX).to_le_bytes();
        if let Some(field) = start.get_mut(NUM_BUFFERS..).and_then(<[u8]>::first_chunk_mut) {
            *field = count;
            self.copy_from(start)?;
        } else if let Some(first) = self.chains.front() {
            let write = first.writable.write_all(NUM_BUFFERS as u64, &count);
            write.map_err(Error::Chain)?;
        }
        queue.add_used(memory, &self.used).map_err(Error::Queue)?;
        for chain in self.chains.drain(..self.used.len()) {
            self.length -= chain.writable.len();
            self.iovecs -= chain.writable.count();
            self.spent.push(chain);
        }
        self.full = false;
        Ok(())
    }
}

/// Converts a length in guest memory to a host length.
fn to_host_length(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
