//! What a chain asks for, checked.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::file::SECTOR;
use super::space;
use crate::virtio::queue::chain::{self, Chain};

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

/// Bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) offset: u64,
    /// Bytes; the end is within the disk.
    pub(super) length: u64,
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
        let (extents, _) = self.segments(chain, space::DISCARD_SECTORS, 0)?;
        Ok(Request::Discard(extents))
    }

    fn zero(self, chain: &Chain<'_>) -> Result<Request, Status> {
        self.writable(Status::Unsupported)?;
        let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        let (extents, flags) = self.segments(chain, space::ZERO_SECTORS, known)?;
        // Unmapping is allowed, never demanded: when only some segments allow it, none is unmapped.
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Ok(Request::Zero { extents, unmap })
    }

    /// The segments, and the flags that all of them have.
    fn segments(self, chain: &Chain<'_>, most: u32, known: u32) -> Result<(Vec<Extent>, u32), Status> {
        let length = chain.readable.len() - HEADER;
        let count = length / SEGMENT;
        if count == 0 || count > u64::from(space::SEGMENTS) || !length.is_multiple_of(SEGMENT) {
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
