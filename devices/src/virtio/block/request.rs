//! What a chain asks for, checked.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::disk::{Extent, SECTOR};
use crate::virtio::queue::chain::{self, Chain};

/// Descriptors of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The most segments of data in one request: what a queue has room for, with header and status around it.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most segments of one discard or write-zeroes request.
const SEGMENTS: u32 = 16;
/// The most sectors of one segment of a discard: 2 GiB, which takes a file system little time.
const DISCARD_SECTORS: u32 = 1 << 22;
/// The most sectors of one segment of write-zeroes: 4 MiB, as they are written where the file system cannot do better.
const ZERO_SECTORS: u32 = 1 << 13;
/// File systems free blocks of 4 KiB.
const DISCARD_ALIGNMENT: u32 = 8;

/// The feature bit that lets a driver flush.
pub(super) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER: u64 = 16;
/// Bytes of one segment of a discard or write-zeroes request: sector, number of sectors, flags.
const SEGMENT: u64 = 16;

/// What a discarded segment writes at most: a file system block of 4 KiB at each end.
const ENDS: u64 = 8192;
/// The bytes that are moved in the time in which a medium answers, about.
const WAIT: u64 = 1 << 20;

/// Why a chain is no request, so that not even a status can be given.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There are not the 16 bytes of a header.
    #[error("the request in chain {head} has no header")]
    Header {
        /// Index of its first descriptor.
        head: u16,
        /// What the chain says.
        #[source]
        source: chain::Error,
    },
    /// There is no byte for the status.
    #[error("the request in chain {head} has no room for its status")]
    Status {
        /// Index of its first descriptor.
        head: u16,
    },
}

/// How a request ended, as the driver is told it. Section 5.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    /// The byte behind the data.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// What is asked for. Extents are within the disk and data is there for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    Id,
    Discard(Vec<Extent>),
    Zero { extents: Vec<Extent>, unmap: bool },
    Refused(Status),
}

/// What is asked of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Bytes of the disk, a multiple of [`SECTOR`].
    pub(super) size: u64,
    /// Whether it takes no writes.
    pub(super) read_only: bool,
}

impl Request {
    /// Reads what `chain` asks for.
    ///
    /// # Errors
    /// When the chain is no request; a request that cannot be served is [`Request::Refused`].
    pub(super) fn parse(chain: &Chain<'_>, target: Target) -> Result<Self, Error> {
        let head = chain.head;
        let mut header = [0; 16];
        chain
            .readable
            .read_exact(0, &mut header)
            .map_err(|source| Error::Header { head, source })?;
        if chain.writable.is_empty() {
            return Err(Error::Status { head });
        }
        let kind = u32_at(&header, 0);
        let sector = u64_at(&header, 8);
        let request = match kind {
            VIRTIO_BLK_T_IN => target.extent(sector, chain.writable.len() - 1).map(Self::Read),
            VIRTIO_BLK_T_OUT => target
                .writable(Status::IoError)
                .and_then(|()| target.extent(sector, chain.readable.len() - HEADER))
                .map(Self::Write),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Id),
            VIRTIO_BLK_T_DISCARD => target.discard(chain),
            VIRTIO_BLK_T_WRITE_ZEROES => target.zero(chain),
            _ => Err(Status::Unsupported),
        };
        Ok(request.unwrap_or_else(Self::Refused))
    }

    /// Bytes for the bandwidth limiter: what the request moves between disk and guest; of write-zeroes what the zeros
    /// would be, since they may have to be written; of a discard, which moves nothing, the parts of file system blocks at
    /// both ends of each segment.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.length,
            Self::Zero { extents, .. } => extents.iter().map(|extent| extent.length).sum(),
            Self::Discard(extents) => extents.iter().map(|extent| extent.length.min(ENDS)).sum(),
            Self::Flush | Self::Id | Self::Refused(_) => 0,
        }
    }

    /// What the request is of the bytes that a turn may move, where each wait for the medium and each discarded segment
    /// counts as [`WAIT`]. With `through`, writes wait.
    pub(super) fn work(&self, through: bool) -> u64 {
        let waits = match self {
            Self::Flush => 1,
            Self::Write(_) | Self::Zero { .. } => u64::from(through),
            Self::Discard(extents) => extents.len() as u64,
            Self::Read(_) | Self::Id | Self::Refused(_) => 0,
        };
        self.bytes() + waits * WAIT
    }
}

impl Target {
    /// `length` bytes from `sector`.
    fn extent(self, sector: u64, length: u64) -> Result<Extent, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        match end <= self.size && length.is_multiple_of(SECTOR) {
            true => Ok(Extent { offset, length }),
            false => Err(Status::IoError),
        }
    }

    fn writable(self, otherwise: Status) -> Result<(), Status> {
        if self.read_only { Err(otherwise) } else { Ok(()) }
    }

    fn discard(self, chain: &Chain<'_>) -> Result<Request, Status> {
        self.writable(Status::Unsupported)?;
        // Section 5.2.6.2: a discard with the unmap flag, or any flag not known, is unsupported.
        let (extents, _) = self.segments(chain, DISCARD_SECTORS, 0)?;
        Ok(Request::Discard(extents))
    }

    fn zero(self, chain: &Chain<'_>) -> Result<Request, Status> {
        self.writable(Status::Unsupported)?;
        let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        let (extents, flags) = self.segments(chain, ZERO_SECTORS, known)?;
        // Unmapping is allowed, never demanded: when only some segments allow it, none is unmapped.
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Ok(Request::Zero { extents, unmap })
    }

    /// The segments, and the flags that all of them have.
    fn segments(self, chain: &Chain<'_>, most: u32, known: u32) -> Result<(Vec<Extent>, u32), Status> {
        let length = chain.readable.len() - HEADER;
        let count = length / SEGMENT;
        if count == 0 || count > u64::from(SEGMENTS) || !length.is_multiple_of(SEGMENT) {
            return Err(Status::IoError);
        }
        let mut common = u32::MAX;
        let mut extents = Vec::new();
        for index in 0..count {
            let mut segment = [0; 16];
            chain
                .readable
                .read_exact(HEADER + index * SEGMENT, &mut segment)
                .map_err(|_| Status::IoError)?;
            let sectors = u32_at(&segment, 8);
            let flags = u32_at(&segment, 12);
            if flags & !known != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > most {
                return Err(Status::IoError);
            }
            common &= flags;
            extents.push(self.extent(u64_at(&segment, 0), u64::from(sectors) * SECTOR)?);
        }
        Ok((extents, common))
    }
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// What is offered, VERSION_1 excluded.
pub(super) fn features(read_only: bool, flush: bool) -> u64 {
    let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX;
    features |= match read_only {
        true => 1 << VIRTIO_BLK_F_RO,
        false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    };
    if flush {
        features |= FLUSH;
    }
    features
}

/// Fills `data` from the configuration space of a disk of `size` bytes, zeros beyond its end.
pub(super) fn read_config(size: u64, read_only: bool, offset: u64, data: &mut [u8]) {
    let space = layout(size, read_only);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(space.len());
    let count = data.len().min(space.len() - start);
    data[..count].copy_from_slice(&space[start..start + count]);
    data[count..].fill(0);
}

/// `struct virtio_blk_config`, section 5.2.4. Fields whose feature is not offered are zero.
fn layout(size: u64, read_only: bool) -> [u8; 60] {
    let mut space = [0; 60];
    space[..8].copy_from_slice(&(size / SECTOR).to_le_bytes());
    let sector = 512_u32;
    let mut put = |offset: usize, value: u32| space[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    put(12, SEG_MAX);
    put(20, sector);
    if !read_only {
        put(36, DISCARD_SECTORS);
        put(40, SEGMENTS);
        put(44, DISCARD_ALIGNMENT);
        put(48, ZERO_SECTORS);
        put(52, SEGMENTS);
        // A segment of write-zeroes may unmap.
        put(56, 1);
    }
    space
}
