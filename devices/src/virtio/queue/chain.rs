//! A validated descriptor chain as iovecs of guest memory.
//!
//! [`DescriptorIter`] silently ends a malformed chain at its first invalid descriptor. This module returns an error, and
//! the device stops its queue. These chains are malformed:
//!
//! - a loop, or more descriptors than the queue or table has
//! - a descriptor index beyond the table
//! - nested indirect tables
//! - a table or buffer outside guest memory
//! - more than 2^32 bytes in total
//! - a device-readable buffer after a device-writable one
//!
//! A descriptor of length zero counts as a descriptor but yields no iovec. A buffer may overlap a ring: the driver
//! damages only its own device.

use std::ops::Range;

use smallvec::SmallVec;
use snapshot::{GuestMemory, GuestSlice};
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::DescriptorIter;

/// Maximum number of iovecs of one `readv` or `writev`, `UIO_MAXIOV` of Linux.
pub const MAX_IOVECS: usize = 1024;

/// Malformed chain, or access beyond its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chain loops, leaves its table, nests indirect tables, or has a table outside guest memory.
    #[error("cannot parse chain {head}: no valid descriptor follows the first {descriptors}")]
    Malformed {
        /// Index of its first descriptor.
        head: u16,
        /// Number of descriptors before the fault.
        descriptors: usize,
    },
    /// The chain has more descriptors or iovecs than the device supports.
    #[error("cannot parse chain {head}: it has more than {limit} buffers")]
    TooManyBuffers {
        /// Index of its first descriptor.
        head: u16,
        /// Maximum of the device.
        limit: usize,
    },
    /// The chain has more bytes than the device supports.
    #[error("cannot parse chain {head}: it has more than {limit} bytes")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
        /// Maximum of the device.
        limit: u64,
    },
    /// A device-readable buffer follows a device-writable one, against virtio 1.2 §2.7.4.2.
    #[error("cannot parse chain {head}: a device-readable buffer follows a device-writable one")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer is not completely in guest memory.
    #[error("cannot map {length:#x} bytes at {address:#x} of chain {head}")]
    Outside {
        /// Index of its first descriptor.
        head: u16,
        /// Guest-physical address of the buffer.
        address: u64,
        /// Bytes of the buffer.
        length: u32,
        /// Error of the guest memory.
        #[source]
        source: GuestMemoryError,
    },
    /// An access reaches beyond the end of the buffers.
    #[error("cannot access bytes {start} to {end} of a chain: it has {length} bytes")]
    Short {
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
        /// Bytes of the buffers.
        length: u64,
    },
}

/// Limits of a device. A longer chain is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainLimits {
    /// Maximum number of descriptors, and of iovecs, of both directions together; at most [`MAX_IOVECS`].
    pub iovecs: usize,
    /// Maximum number of bytes of both directions together.
    pub bytes: u64,
}

impl ChainLimits {
    /// Limits of virtio 1.2 (2^32 bytes, §2.7.5.2) and of the kernel ([`MAX_IOVECS`]).
    pub const WIDEST: Self = Self {
        iovecs: MAX_IOVECS,
        bytes: 1 << 32,
    };
}

/// A validated descriptor chain.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// Index of its first descriptor, which identifies the chain in the used ring.
    pub head: u16,
    /// Device-readable buffers.
    pub readable: IoVecBuffer<'m>,
    /// Device-writable buffers.
    pub writable: IoVecBuffer<'m>,
}

impl<'m> Chain<'m> {
    /// Replaces the contents by a chain of a [`Virtqueue`](super::Virtqueue) in `memory`. Keeps the allocation.
    ///
    /// # Errors
    /// Fails if the chain is malformed, with any variant except [`Error::Short`]. The contents are then unspecified.
    pub fn refill(
        &mut self,
        descriptors: DescriptorIter<'m>,
        memory: &'m GuestMemory,
        limits: ChainLimits,
    ) -> Result<(), Error> {
        let head = descriptors.head();
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let limit = limits.iovecs.min(MAX_IOVECS);
        let mut count = 0;
        let mut last: Option<Descriptor> = None;
        for descriptor in descriptors {
            count += 1;
            if !descriptor.is_write_only() && last.is_some_and(|last| last.is_write_only()) {
                return Err(Error::Order { head });
            }
            self.push(&descriptor, memory)?;
            if count > limit || self.readable.count() + self.writable.count() > limit {
                return Err(Error::TooManyBuffers { head, limit });
            }
            if self.readable.len() + self.writable.len() > limits.bytes {
                let limit = limits.bytes;
                return Err(Error::TooLong { head, limit });
            }
            last = Some(descriptor);
        }
        // The iterator also ends at an invalid descriptor. Only a complete chain ends without the NEXT flag.
        match last.is_some_and(|descriptor| !descriptor.has_next()) {
            true => Ok(()),
            false => Err(Error::Malformed {
                head,
                descriptors: count,
            }),
        }
    }

    fn push(&mut self, descriptor: &Descriptor, memory: &'m GuestMemory) -> Result<(), Error> {
        let head = self.head;
        let buffer = match descriptor.is_write_only() {
            true => &mut self.writable,
            false => &mut self.readable,
        };
        buffer.push(descriptor, memory).map_err(|source| Error::Outside {
            head,
            address: descriptor.addr().0,
            length: descriptor.len(),
            source,
        })
    }
}

/// Number of slices without an allocation.
const INLINE_SLICES: usize = 4;

/// Buffers of one direction in the order of the chain. Each slice is in one host mapping.
///
/// Offsets count from the start of the first buffer, as if the buffers were contiguous.
#[derive(Debug, Default)]
pub struct IoVecBuffer<'m> {
    // Inline for the usual few slices: a `Vec` for each request would cost a twentieth of a cached read.
    slices: SmallVec<[GuestSlice<'m>; INLINE_SLICES]>,
    length: u64,
    /// Guest-physical address behind the last byte.
    end: u64,
}

impl<'m> IoVecBuffer<'m> {
    /// Returns the total number of bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns true if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the guest-physical address of the last byte, or `None` if there are no bytes.
    pub fn last_address(&self) -> Option<GuestAddress> {
        (!self.is_empty()).then(|| GuestAddress(self.end - 1))
    }

    /// Returns the number of slices.
    pub fn count(&self) -> usize {
        self.slices.len()
    }

    /// Returns iovecs for the bytes in `range`, cut at the end of the buffers.
    ///
    /// The pointers are valid as long as the memory, `'m`. The guest may change the bytes behind them at any time. A write by them must
    /// be [logged](Self::log_write).
    pub fn iovec(&self, range: Range<u64>) -> impl Iterator<Item = libc::iovec> {
        self.slices(range).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
    }

    /// Records that the bytes in `range` were written by an [`iovec`](Self::iovec).
    pub fn log_write(&self, range: Range<u64>) {
        // All regions have a log, or none has.
        if self
            .slices
            .first()
            .is_none_or(|slice| slice.bitmap().log().is_none())
        {
            return;
        }
        for slice in self.slices(range) {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }

    /// Returns guest-physical address and length of the adjacent bytes in `range`, cut at the end of the buffers. The buffers must be
    /// in `memory`.
    pub fn guest_ranges(&self, range: Range<u64>, memory: &GuestMemory) -> Vec<(GuestAddress, usize)> {
        let slices = self.slices(range);
        let found = slices.filter_map(|slice| {
            let host = slice.ptr_guard().as_ptr().addr();
            memory.iter().find_map(|region| {
                let offset = host.checked_sub(region.as_ptr().addr())?;
                let address = region.start_addr().0 + offset as u64;
                (offset < region.size()).then_some((GuestAddress(address), slice.len()))
            })
        });
        found.collect()
    }

    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    /// Fails with [`Error::Short`] if the buffers are too short, and then reads nothing.
    pub fn read_exact(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let mut rest = data;
        for slice in self.slices(self.range(offset, rest.len())?) {
            let (chunk, after) = rest.split_at_mut(slice.len());
            slice.copy_to(chunk);
            rest = after;
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`. The buffers must be device-writable.
    ///
    /// # Errors
    /// Fails with [`Error::Short`] if the buffers are too short, and then writes nothing.
    pub fn write_all(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut rest = data;
        for slice in self.slices(self.range(offset, rest.len())?) {
            let (chunk, after) = rest.split_at(slice.len());
            slice.copy_from(chunk);
            rest = after;
        }
        Ok(())
    }

    /// Returns the range of `length` bytes at `start`, or fails if it reaches beyond the end.
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

    fn slices(&self, range: Range<u64>) -> impl Iterator<Item = GuestSlice<'m>> {
        let mut at = 0;
        self.slices.iter().filter_map(move |slice| {
            let covered = at..at + slice.len() as u64;
            at = covered.end;
            let start = range.start.max(covered.start) - covered.start;
            let end = range.end.clamp(covered.start, covered.end) - covered.start;
            let length = end.checked_sub(start).filter(|length| *length > 0)?;
            let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
            slice.subslice(start, length).ok()
        })
    }

    fn push(&mut self, descriptor: &Descriptor, memory: &'m GuestMemory) -> Result<(), GuestMemoryError> {
        // Lossless on a 64-bit host. A smaller host fails in the lookup below.
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(());
        }
        // Wraps only for a buffer outside guest memory, which fails below.
        self.end = descriptor.addr().0.wrapping_add(u64::from(descriptor.len()));
        // Fast path: a buffer rarely crosses two regions.
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
