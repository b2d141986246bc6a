//! The guest's receive buffers that the next packet goes into.

use std::collections::VecDeque;

use snapshot::GuestMemory;

use super::HEADER;
use super::error::Error;
use crate::virtio::queue::Virtqueue;
use crate::virtio::queue::chain::{Chain, ChainLimits, MAX_IOVECS};

/// One entry of what `readv` takes is left for what has no room in the buffers.
const LIMITS: ChainLimits = ChainLimits {
    pieces: MAX_IOVECS - 1,
    ..ChainLimits::WIDEST
};

/// Offset of the field `flags` in the header.
const FLAGS: u64 = 0;
/// Offset of the field `num_buffers` in the header.
const NUM_BUFFERS: u64 = 10;

/// Receive buffers that were taken from their queue and are not used yet.
#[derive(Default)]
pub struct RxBuffers<'m> {
    chains: VecDeque<Chain<'m>>,
    /// Used up; their allocations serve again.
    spent: Vec<Chain<'m>>,
    length: u64,
    pieces: usize,
    /// The next chain has more pieces than are left for it.
    full: bool,
    /// Heads and lengths of the buffers of one packet.
    used: Vec<(u16, u32)>,
}

impl<'m> RxBuffers<'m> {
    /// Bytes of all of them.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// The buffers as `readv` takes them, fewer than [`MAX_IOVECS`]. The pointers are valid as long as `'m`.
    pub fn iovec(&self) -> impl Iterator<Item = libc::iovec> {
        self.chains
            .iter()
            .flat_map(|chain| chain.writable.iovec(0..chain.writable.len()))
    }

    /// Number of buffers, at most the size of the queue.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Whether no packet can ever get more buffers than these from `ring`.
    pub(super) fn are_all(&self, ring: &Virtqueue) -> bool {
        self.full || self.chains.len() >= ring.size()
    }

    /// Takes buffers until there are `wanted` bytes, or no more.
    pub(super) fn top_up(
        &mut self,
        ring: &mut Virtqueue,
        memory: &'m GuestMemory,
        wanted: u64,
    ) -> Result<(), Error> {
        while self.length < wanted && !self.are_all(ring) {
            let Some(descriptors) = ring.pop_chain(memory).map_err(Error::Queue)? else {
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
            if self.pieces + chain.writable.count() > LIMITS.pieces {
                ring.undo_pop(1);
                self.spent.push(chain);
                self.full = true;
                break;
            }
            self.length += length;
            self.pieces += chain.writable.count();
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// Copies what of `packet` is in the buffers to its start.
    pub(super) fn copy_to(&self, packet: &mut [u8]) -> Result<(), Error> {
        let mut rest = packet;
        for chain in &self.chains {
            let length = rest.len().min(in_memory(chain.writable.len()));
            let (part, after) = rest.split_at_mut(length);
            chain.writable.read_exact(0, part).map_err(Error::Chain)?;
            rest = after;
        }
        Ok(())
    }

    /// Copies `packet` into the buffers.
    pub(super) fn copy_from(&self, packet: &[u8]) -> Result<(), Error> {
        let mut rest = packet;
        for chain in &self.chains {
            let length = rest.len().min(in_memory(chain.writable.len()));
            let (part, after) = rest.split_at(length);
            chain.writable.write_all(0, part).map_err(Error::Chain)?;
            rest = after;
        }
        Ok(())
    }

    /// The fields `flags` and `gso_type` of the packet that is in the buffers. The driver can change them at any time, and
    /// only itself is fooled by that.
    pub(super) fn start(&self) -> Result<[u8; 2], Error> {
        let mut start = [0; 2];
        if let Some(first) = self.chains.front() {
            first
                .writable
                .read_exact(FLAGS, &mut start)
                .map_err(Error::Chain)?;
        }
        Ok(start)
    }

    /// Sets the field `flags` of the packet that is in the buffers.
    pub(super) fn set_flags(&self, flags: u8) -> Result<(), Error> {
        let first = self.chains.front();
        first.map_or(Ok(()), |first| {
            first.writable.write_all(FLAGS, &[flags]).map_err(Error::Chain)
        })
    }

    /// Gives the buffers with the packet of `length` bytes that is in them to the driver.
    pub(super) fn add_used(
        &mut self,
        ring: &mut Virtqueue,
        memory: &'m GuestMemory,
        length: usize,
    ) -> Result<(), Error> {
        let mut rest = length as u64;
        self.used.clear();
        for chain in &self.chains {
            let part = rest.min(chain.writable.len());
            // A packet has fewer than 2^32 bytes.
            self.used
                .push((chain.head, u32::try_from(part).unwrap_or(u32::MAX)));
            rest -= part;
            if rest == 0 {
                break;
            }
        }
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        if let Some(first) = self.chains.front() {
            first
                .writable
                .write_all(NUM_BUFFERS, &count.to_le_bytes())
                .map_err(Error::Chain)?;
        }
        ring.add_used(memory, &self.used).map_err(Error::Queue)?;
        for chain in self.chains.drain(..self.used.len()) {
            self.length -= chain.writable.len();
            self.pieces -= chain.writable.count();
            self.spent.push(chain);
        }
        self.full = false;
        Ok(())
    }
}

/// A length of guest memory as one of the host's.
fn in_memory(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
