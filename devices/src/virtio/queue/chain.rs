//! A descriptor chain as the pieces of guest memory that it names, checked.
//!
//! `virtio_queue` ends a malformed chain where it breaks, as if it were complete; here it is an error, and a device that
//! sees one stops its queue. What is refused: a chain that loops or is longer than the queue, one with an index beyond
//! its table, indirect tables inside indirect tables, tables and pieces outside guest memory, more than 2^32 bytes, and
//! device-readable pieces after device-writable ones.
//!
//! Descriptors of length zero name nothing, so there is no piece for them; they count as descriptors. A piece may be
//! part of a ring: the driver harms nobody but itself.

use std::ops::Range;

use smallvec::SmallVec;
use snapshot::GuestMemory;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use super::DescriptorIter;

/// The most pieces that one `readv` or `writev` takes, `UIO_MAXIOV`.
pub const MAX_IOVECS: usize = 1024;

/// Why a chain, or a part of one, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It loops, leaves its table, nests indirect tables, has a table outside guest memory, or is longer than 2^32 bytes.
    #[error("chain {head} breaks off after {descriptors} descriptors")]
    Broken {
        /// Index of its first descriptor.
        head: u16,
        /// Descriptors that were there.
        descriptors: usize,
    },
    /// It has more descriptors than the device takes.
    #[error("chain {head} has more than {limit} pieces")]
    TooManyPieces {
        /// Index of its first descriptor.
        head: u16,
        /// The most that the device takes.
        limit: usize,
    },
    /// It is longer than the device takes.
    #[error("chain {head} has more than {limit} bytes")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
        /// The most that the device takes.
        limit: u64,
    },
    /// A device-readable piece follows a device-writable one. Section 2.7.4.2.
    #[error("chain {head} has a readable piece after a writable one")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A piece is not wholly in guest memory.
    #[error("chain {head} names {length:#x} bytes at {address:#x}, which are not all memory")]
    Outside {
        /// Index of its first descriptor.
        head: u16,
        /// Guest-physical address of the piece.
        address: u64,
        /// Bytes of the piece.
        length: u32,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
    /// Fewer bytes are there than are to be read or written.
    #[error("bytes {start} to {end} are wanted of a chain with {length}")]
    Short {
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
        /// Bytes that are there.
        length: u64,
    },
}

/// What a device takes. A chain beyond that is malformed in its eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainLimits {
    /// The most descriptors, and the most pieces, of both directions together; at most [`MAX_IOVECS`] are believed.
    pub pieces: usize,
    /// The most bytes, of both directions together.
    pub bytes: u64,
}

impl ChainLimits {
    /// As much as the specification and the kernel allow.
    pub const WIDEST: Self = Self {
        pieces: MAX_IOVECS,
        bytes: 1 << 32,
    };
}

/// A descriptor chain, checked.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// Index of its first descriptor, by which it is returned to the driver.
    pub head: u16,
    /// What the device may read.
    pub readable: IoVecBuffer<'m>,
    /// What the device may write; behind the readable part in the chain.
    pub writable: IoVecBuffer<'m>,
}

impl<'m> Chain<'m> {
    /// Walks `descriptors`, which lie in `memory`.
    ///
    /// # Errors
    /// All but [`Error::Short`].
    pub fn collect(
        descriptors: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        limits: ChainLimits,
    ) -> Result<Self, Error> {
        let mut chain = Self::default();
        chain.replace(descriptors, memory, limits)?;
        Ok(chain)
    }

    /// As [`collect`](Self::collect), in the place of a chain that is done with, so that nothing is allocated.
    ///
    /// # Errors
    /// As [`collect`](Self::collect). What is in this chain after an error is of no use.
    pub fn replace(
        &mut self,
        descriptors: DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
        limits: ChainLimits,
    ) -> Result<(), Error> {
        let head = descriptors.head_index();
        self.fill(head, descriptors, memory, limits)
    }

    /// As [`replace`](Self::replace), with what a [`Virtqueue`](super::Virtqueue) gives.
    ///
    /// # Errors
    /// As [`collect`](Self::collect). What is in this chain after an error is of no use.
    pub fn refill(
        &mut self,
        descriptors: DescriptorIter<'m>,
        memory: &'m GuestMemory,
        limits: ChainLimits,
    ) -> Result<(), Error> {
        let head = descriptors.head();
        self.fill(head, descriptors, memory, limits)
    }

    fn fill(
        &mut self,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        memory: &'m GuestMemory,
        limits: ChainLimits,
    ) -> Result<(), Error> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let limit = limits.pieces.min(MAX_IOVECS);
        let mut count = 0;
        let mut last: Option<Descriptor> = None;
        for descriptor in descriptors {
            count += 1;
            if !descriptor.is_write_only() && last.is_some_and(|last| last.is_write_only()) {
                return Err(Error::Order { head });
            }
            self.push(&descriptor, memory)?;
            if count > limit || self.readable.count() + self.writable.count() > limit {
                return Err(Error::TooManyPieces { head, limit });
            }
            if self.readable.len() + self.writable.len() > limits.bytes {
                let limit = limits.bytes;
                return Err(Error::TooLong { head, limit });
            }
            last = Some(descriptor);
        }
        // The iterator ends at what it cannot follow; a chain that is complete ends at a descriptor without a next.
        match last.is_some_and(|descriptor| !descriptor.has_next()) {
            true => Ok(()),
            false => Err(Error::Broken {
                head,
                descriptors: count,
            }),
        }
    }

    fn push(&mut self, descriptor: &Descriptor, memory: &'m GuestMemory) -> Result<(), Error> {
        let head = self.head;
        let pieces = match descriptor.is_write_only() {
            true => &mut self.writable,
            false => &mut self.readable,
        };
        pieces.push(descriptor, memory).map_err(|source| Error::Outside {
            head,
            address: descriptor.addr().0,
            length: descriptor.len(),
            source,
        })
    }
}

/// Pieces that take no allocation.
const IN_PLACE: usize = 4;

/// Pieces of guest memory, in the order of the chain, each in one mapping of the host.
///
/// Offsets count from the start of the first piece as if all pieces were one.
#[derive(Debug, Default)]
pub struct IoVecBuffer<'m> {
    /// In place as long as there are few, as there mostly are: a list for each request would cost a twentieth of a cached read.
    slices: SmallVec<[VolatileSlice<'m>; IN_PLACE]>,
    length: u64,
}

impl<'m> IoVecBuffer<'m> {
    /// Bytes of all pieces.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.slices.len()
    }

    /// The pieces that make up the bytes in `range`, as `readv` and `writev` take them. What is beyond the end is left
    /// out.
    ///
    /// The pointers are valid as long as the memory, which is `'m`, and the guest may change what they point at at any time.
    pub fn iovec(&self, range: Range<u64>) -> impl Iterator<Item = libc::iovec> {
        self.slices(range).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
    }

    /// Fills `data` with the bytes from `offset`.
    ///
    /// # Errors
    /// [`Error::Short`], and then nothing was read.
    pub fn read_exact(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let mut rest = data;
        for slice in self.slices(self.range(offset, rest.len())?) {
            let (part, after) = rest.split_at_mut(slice.len());
            slice.copy_to(part);
            rest = after;
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`. Only for pieces that the device may write.
    ///
    /// # Errors
    /// [`Error::Short`], and then nothing was written.
    pub fn write_all(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        for slice in self.slices(self.range(offset, rest.len())?) {
            let (part, after) = rest.split_at(slice.len());
            slice.copy_from(part);
            rest = after;
        }
        Ok(())
    }

    /// The offsets of `length` bytes from `start`, all of which are there.
    fn range(&self, start: u64, length: usize) -> Result<Range<u64>, Error> {
        let end = start.saturating_add(length as u64);
        match end <= self.length {
            true => Ok(start..end),
            false => Err(Error::Short {
                start,
                end,
                length: self.length,
            }),
        }
    }

    fn slices(&self, range: Range<u64>) -> impl Iterator<Item = VolatileSlice<'m>> {
        let mut at = 0;
        self.slices.iter().filter_map(move |slice| {
            let piece = at..at + slice.len() as u64;
            at = piece.end;
            let start = range.start.max(piece.start) - piece.start;
            let end = range.end.clamp(piece.start, piece.end) - piece.start;
            let length = end.checked_sub(start).filter(|length| *length > 0)?;
            let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
            slice.subslice(start, length).ok()
        })
    }

    fn push(&mut self, descriptor: &Descriptor, memory: &'m GuestMemory) -> Result<(), GuestMemoryError> {
        // No more than 32 bits, which a 64-bit host's usize holds; a host with less refuses at the memory's border.
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(());
        }
        // All of it is in one region, but for rare exceptions.
        if let Ok(slice) = memory.get_slice(descriptor.addr(), length) {
            self.length += slice.len() as u64;
            self.slices.push(slice);
            return Ok(());
        }
        for slice in memory.get_slices(descriptor.addr(), length) {
            let slice = slice?;
            self.length += slice.len() as u64;
            self.slices.push(slice);
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.slices.clear();
        self.length = 0;
    }
}
