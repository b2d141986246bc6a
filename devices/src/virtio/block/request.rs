//! Requests parsed and validated from chains, features and configuration space.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::disk::SECTOR;
use super::extent::{Extent, Pieces};
use crate::virtio::queue::chain::{self, Chain};

/// Size of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Maximum number of data buffers of one request: the queue size without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Maximum number of segments of one discard or write zeroes request.
const MAX_SEGMENTS: u32 = 16;
/// Maximum number of sectors of one discard segment: 2 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Maximum number of sectors of one write zeroes segment: 4 MiB, since some file systems need writes.
const MAX_ZERO_SECTORS: u32 = 1 << 13;
/// Sectors of the usual file system block, 4 KiB.
const DISCARD_ALIGNMENT: u32 = 8;

/// Feature bit VIRTIO_BLK_F_FLUSH.
pub(super) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// Bytes of a request header: type, reserved, sector. virtio 1.2 §5.2.6.
pub(super) const HEADER: u64 = 16;
/// Bytes of one segment of a discard or write zeroes request: sector, number of sectors, flags. virtio 1.2 §5.2.6.
const SEGMENT_SIZE: u64 = 16;

/// Maximum number of bytes that discarding a piece writes: a file system block of 4 KiB at each end.
const DISCARD_WRITE_BYTES: u64 = 8192;

/// Chain that is not a request: the device cannot complete it with a status.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The chain has less than 16 device-readable bytes.
    #[error("cannot parse the request in chain {head}: it has no header")]
    Header {
        /// Index of its first descriptor.
        head: u16,
        /// Error of the chain.
        #[source]
        source: chain::Error,
    },
    /// The chain has no device-writable byte.
    #[error("cannot parse the request in chain {head}: it has no status byte")]
    Status {
        /// Index of its first descriptor.
        head: u16,
    },
}

/// Status of a request, virtio 1.2 §5.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    /// Returns the status byte.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A valid request. Its extents are within the disk, and its chain has a buffer for all data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    Id,
    Discard(Vec<Extent>),
    Zero {
        extents: Vec<Extent>,
        unmap: bool,
    },
    /// Completes with this status and is not executed.
    Rejected(Status),
}

/// Kind of a request, for its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Read(Extent),
    Write(Extent),
    Flush,
    /// Discard or write zeroes.
    Discard,
    /// Only failures count.
    Other,
}

/// Properties of the disk that limit requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Bytes of the disk, a multiple of [`SECTOR`].
    pub(super) size: u64,
    /// Writes, discards and write zeroes are rejected.
    pub(super) read_only: bool,
}

impl Request {
    /// Parses the request in `chain`. An invalid request becomes [`Request::Rejected`].
    ///
    /// # Errors
    /// Fails if the chain has no header or no status byte.
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
                .check_writable(Status::IoError)
                .and_then(|()| target.extent(sector, chain.readable.len() - HEADER))
                .map(Self::Write),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Id),
            VIRTIO_BLK_T_DISCARD => target.discard(chain),
            VIRTIO_BLK_T_WRITE_ZEROES => target.zero(chain),
            _ => Err(Status::Unsupported),
        };
        Ok(request.unwrap_or_else(Self::Rejected))
    }

    /// Returns the bytes for the bandwidth bucket of the rate limiter: the data between disk and guest. A discard or write zeroes
    /// counts its [first piece](Self::split): all zeros, since they may be written; or partial file system blocks at both ends. `discard`
    /// are the pieces of a discard.
    pub(super) fn bytes(&self, discard: Pieces) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.length,
            Self::Zero { extents, .. } => {
                first_piece(extents, Pieces::CHUNKS).map_or(0, |piece| piece.length)
            }
            Self::Discard(extents) => {
                first_piece(extents, discard).map_or(0, |piece| piece.length.min(DISCARD_WRITE_BYTES))
            }
            Self::Flush | Self::Id | Self::Rejected(_) => 0,
        }
    }

    /// Splits a discard, at its `discard` pieces, or a write zeroes into its first piece and the rest.
    pub(super) fn split(mut self, discard: Pieces) -> (Self, Option<Self>) {
        let pieces = match &self {
            Self::Discard(_) => discard,
            _ => Pieces::CHUNKS,
        };
        let (Self::Discard(extents) | Self::Zero { extents, .. }) = &mut self else {
            return (self, None);
        };
        let Some(piece) = first_piece(extents, pieces) else {
            return (self, None);
        };
        extents.retain(|extent| extent.length > 0);
        extents[0].offset += piece.length;
        extents[0].length -= piece.length;
        let is_last = extents.iter().all(|extent| extent.length == 0);
        let first = match &self {
            Self::Zero { unmap, .. } => Self::Zero {
                extents: vec![piece],
                unmap: *unmap,
            },
            _ => Self::Discard(vec![piece]),
        };
        (first, (!is_last).then_some(self))
    }

    /// Removes the first `done` bytes of a discard or write zeroes. Returns the number of bytes that the request has completed: at most
    /// `done`, and zero if it has no parts.
    pub(super) fn skip(&mut self, done: u64) -> u64 {
        let mut left = done;
        match self {
            Self::Read(extent) | Self::Write(extent) => left -= extent.length.min(done),
            Self::Discard(extents) | Self::Zero { extents, .. } => {
                for extent in extents.iter_mut() {
                    let skipped = extent.length.min(left);
                    extent.offset += skipped;
                    extent.length -= skipped;
                    left -= skipped;
                }
                extents.retain(|extent| extent.length > 0);
            }
            Self::Flush | Self::Id | Self::Rejected(_) => left = done,
        }
        done - left
    }

    /// Returns the cost of the request for a batch, in bytes: the data that the thread of the device copies.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.length,
            Self::Flush | Self::Id | Self::Discard(_) | Self::Zero { .. } | Self::Rejected(_) => 0,
        }
    }

    /// Returns true if the request changes the disk.
    pub(super) fn is_change(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Discard(_) | Self::Zero { .. })
    }

    /// Returns true if the worker can execute the request.
    pub(super) fn is_work(&self) -> bool {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.length > 0,
            Self::Flush | Self::Discard(_) | Self::Zero { .. } => true,
            Self::Id | Self::Rejected(_) => false,
        }
    }

    /// Returns the kind, for the metrics.
    pub(super) fn kind(&self) -> RequestKind {
        match self {
            Self::Read(extent) => RequestKind::Read(*extent),
            Self::Write(extent) => RequestKind::Write(*extent),
            Self::Flush => RequestKind::Flush,
            Self::Discard(_) | Self::Zero { .. } => RequestKind::Discard,
            Self::Id | Self::Rejected(_) => RequestKind::Other,
        }
    }
}

/// Returns the first piece of `extents` that is not empty.
fn first_piece(extents: &[Extent], pieces: Pieces) -> Option<Extent> {
    extents.iter().find_map(|extent| extent.pieces(pieces).next())
}

impl Target {
    /// Returns the extent of `length` bytes from `sector`. Fails if it is not complete sectors within the disk.
    fn extent(self, sector: u64, length: u64) -> Result<Extent, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        match end <= self.size && length.is_multiple_of(SECTOR) {
            true => Ok(Extent { offset, length }),
            false => Err(Status::IoError),
        }
    }

    /// Fails with `status` if the disk is read-only.
    fn check_writable(self, status: Status) -> Result<(), Status> {
        if self.read_only { Err(status) } else { Ok(()) }
    }

    fn discard(self, chain: &Chain<'_>) -> Result<Request, Status> {
        self.check_writable(Status::Unsupported)?;
        // A discard with the unmap flag, or any reserved flag, is unsupported, virtio 1.2 §5.2.6.2.
        let (extents, _) = self.segments(chain, MAX_DISCARD_SECTORS, 0)?;
        Ok(Request::Discard(extents))
    }

    fn zero(self, chain: &Chain<'_>) -> Result<Request, Status> {
        self.check_writable(Status::Unsupported)?;
        let valid_flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        let (extents, flags) = self.segments(chain, MAX_ZERO_SECTORS, valid_flags)?;
        // The unmap flag permits deallocation but does not require it, so one mode serves all segments: deallocation
        // only if all of them permit it.
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Ok(Request::Zero { extents, unmap })
    }

    /// Returns the segments and the flags that all of them have.
    fn segments(
        self,
        chain: &Chain<'_>,
        max_sectors: u32,
        valid_flags: u32,
    ) -> Result<(Vec<Extent>, u32), Status> {
        let length = chain.readable.len() - HEADER;
        let count = length / SEGMENT_SIZE;
        if count == 0 || count > u64::from(MAX_SEGMENTS) || !length.is_multiple_of(SEGMENT_SIZE) {
            return Err(Status::IoError);
        }
        let mut common = u32::MAX;
        let mut extents = Vec::new();
        for index in 0..count {
            let mut segment = [0; 16];
            chain
                .readable
                .read_exact(HEADER + index * SEGMENT_SIZE, &mut segment)
                .map_err(|_| Status::IoError)?;
            let sectors = u32_at(&segment, 8);
            let flags = u32_at(&segment, 12);
            if flags & !valid_flags != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > max_sectors {
                return Err(Status::IoError);
            }
            common &= flags;
            extents.push(self.extent(u64_at(&segment, 0), u64::from(sectors) * SECTOR)?);
        }
        Ok((extents, common))
    }
}

fn u32_at(bytes: &[u8; 16], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8; 16], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(value)
}

/// Returns the offered features without VERSION_1.
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
    let space = config_space(size, read_only);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(space.len());
    let count = data.len().min(space.len() - start);
    data[..count].copy_from_slice(&space[start..start + count]);
    data[count..].fill(0);
}

/// Returns `struct virtio_blk_config`, virtio 1.2 §5.2.4. Fields of features that are not offered are zero.
fn config_space(size: u64, read_only: bool) -> [u8; 60] {
    let mut space = [0; 60];
    space[..8].copy_from_slice(&(size / SECTOR).to_le_bytes());
    let sector = 512_u32;
    let mut set = |offset: usize, value: u32| space[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    set(12, SEG_MAX);
    set(20, sector);
    if !read_only {
        set(36, MAX_DISCARD_SECTORS);
        set(40, MAX_SEGMENTS);
        set(44, DISCARD_ALIGNMENT);
        set(48, MAX_ZERO_SECTORS);
        set(52, MAX_SEGMENTS);
        // write_zeroes_may_unmap
        set(56, 1);
    }
    space
}
