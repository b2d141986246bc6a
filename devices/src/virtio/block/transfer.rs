//! Requests in flight: between the pop of their chain and their entry in the used ring.
//!
//! Only the device accesses guest memory, under its lock. The data of a read or write that waits for the disk moves through a buffer
//! that belongs to the worker or to io_uring, at most [`PIECE_SIZE`] bytes at a time. So a request can be abandoned at any time: the
//! kernel may complete it after a reset or a snapshot, but changes no guest memory and reads none.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::extent::Extent;
use super::request::{HEADER, Request, RequestKind, Status};
use crate::virtio::queue::chain::Chain;

/// Maximum number of bytes of a buffer.
pub(super) const PIECE_SIZE: u64 = 1 << 20;
/// Number of buffered bytes from which a device accepts no further request.
pub(super) const MAX_BUFFERED: u64 = 4 << 20;

/// Adjacent bytes of guest memory.
type GuestRange = (GuestAddress, usize);

/// A request that was popped and begun, but is neither in flight nor completed. It continues after its completed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    /// Index of the first descriptor of its chain.
    pub(super) head: u16,
    /// Bytes of the read, write, discard or write zeroes that are complete.
    pub(super) done: u64,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct PendingRequest {
    head: u16,
    /// Address of the status byte.
    status: GuestAddress,
    /// Length of the device-writable buffers without the status byte.
    data_length: u64,
    pub(super) kind: RequestKind,
    /// Start time, if it is timed.
    pub(super) start: Option<Duration>,
    /// Bytes that are already transferred, discarded or zeroed.
    done: u64,
    /// Guest memory of the other bytes; empty if no data moves.
    ranges: Vec<GuestRange>,
    /// Part of a discard or write zeroes whose work has not begun.
    pub(super) rest: Option<Request>,
    /// A write is on the medium when it completes.
    pub(super) write_through: bool,
    /// Maximum bytes of host memory for a transfer and the ranges.
    pub(super) buffered: u64,
}

impl PendingRequest {
    /// Creates the rest of the request in `chain` after `done` transferred bytes. Returns `None` for a chain without a status byte,
    /// which is not parsed as a request.
    pub(super) fn new(
        (kind, done): (RequestKind, u64),
        start: Option<Duration>,
        write_through: bool,
        chain: &Chain<'_>,
        memory: &GuestMemory,
    ) -> Option<Self> {
        let ranges = match kind {
            RequestKind::Read(extent) => chain.writable.guest_ranges(done..extent.length, memory),
            RequestKind::Write(extent) => chain
                .readable
                .guest_ranges(HEADER + done..HEADER + extent.length, memory),
            _ => Vec::new(),
        };
        let mut request = Self {
            head: chain.head,
            status: chain.writable.last_address()?,
            data_length: chain.writable.len().checked_sub(1)?,
            kind,
            start,
            done,
            ranges,
            rest: None,
            write_through,
            buffered: 0,
        };
        let ranges = request.ranges.capacity() * size_of::<GuestRange>();
        request.buffered = request.next_piece().map_or(0, |piece| piece.length) + ranges as u64;
        Some(request)
    }

    /// Returns the request for a later start.
    pub(super) fn unfinished(&self) -> Unfinished {
        Unfinished {
            head: self.head,
            done: self.done,
        }
    }

    /// Records that `count` bytes of a discard or write zeroes are complete.
    pub(super) fn add_done(&mut self, count: u64) {
        self.done += count;
    }

    /// Returns the bytes of the next transfer, or `None` if all are transferred.
    pub(super) fn next_piece(&self) -> Option<Extent> {
        let (RequestKind::Read(extent) | RequestKind::Write(extent)) = self.kind else {
            return None;
        };
        let length = extent.length - self.done;
        (length > 0).then(|| Extent {
            offset: extent.offset + self.done,
            length: length.min(PIECE_SIZE),
        })
    }

    /// Returns true if more work follows the next one.
    pub(super) fn is_split(&self) -> bool {
        self.rest.is_some()
            || matches!(self.kind, RequestKind::Read(extent) | RequestKind::Write(extent)
            if extent.length - self.done > PIECE_SIZE)
    }

    /// Returns true if the request ends with a flush.
    pub(super) fn is_flush(&self) -> bool {
        match self.kind {
            RequestKind::Flush => true,
            RequestKind::Write(_) => self.write_through,
            _ => false,
        }
    }

    /// Returns a buffer for the transfer of `piece`: the data of a write, zeros for a read.
    pub(super) fn buffer(&self, piece: Extent, memory: &GuestMemory) -> Vec<u8> {
        // Lossless: at most the size of a piece.
        let mut data = vec![0; usize::try_from(piece.length).unwrap_or_default()];
        if matches!(self.kind, RequestKind::Write(_)) {
            let mut rest = &mut data[..];
            for (address, length) in &self.ranges {
                let (part, after) = rest.split_at_mut((*length).min(rest.len()));
                // Cannot fail: guest memory does not shrink.
                let _ = memory.read_slice(part, *address);
                rest = after;
            }
        }
        data
    }

    /// Records the transfer of the bytes in `data`, and writes those of a read to guest memory.
    pub(super) fn advance(&mut self, data: &[u8], memory: &GuestMemory) {
        self.done += data.len() as u64;
        let mut rest = data;
        let mut complete = 0;
        for (address, length) in &mut self.ranges {
            let count = (*length).min(rest.len());
            let (part, after) = rest.split_at(count);
            if matches!(self.kind, RequestKind::Read(_)) {
                // Cannot fail: guest memory does not shrink.
                let _ = memory.write_slice(part, *address);
            }
            rest = after;
            if count < *length {
                *length -= count;
                address.0 += count as u64;
                break;
            }
            complete += 1;
        }
        self.ranges.drain(..complete);
    }

    /// Writes `status` to guest memory. Returns head and length for the used ring.
    pub(super) fn complete(&self, status: Status, memory: &GuestMemory) -> (u16, u32) {
        // Cannot fail: guest memory does not shrink.
        let _ = memory.write_obj(status.byte(), self.status);
        let written = match self.kind {
            RequestKind::Read(_) => self.done,
            _ => 0,
        };
        (self.head, used_length(self.data_length, written))
    }
}

/// Returns the length for the used ring: bytes written without a gap from the start, virtio 1.2 §2.7.8.2. The status
/// byte counts only if the `data_length` bytes before it are all written.
pub(super) fn used_length(data_length: u64, written: u64) -> u32 {
    let length = if written == data_length {
        written + 1
    } else {
        written
    };
    u32::try_from(length).unwrap_or(u32::MAX)
}
