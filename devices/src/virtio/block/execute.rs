//! Execution of requests that need no wait for the disk, and their completion.

use std::io;

use libc::iovec;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::disk::Disk;
use super::extent::Extent;
use super::request::{HEADER, Status};
use super::transfer::{PIECE_SIZE, used_length};
use crate::virtio::queue::chain::Chain;

/// Response to GET_ID: text, padded with zeros.
pub(super) type Id = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) status: Status,
    /// Bytes of data written, from the start of the device-writable buffers.
    pub(super) written: u64,
}

/// Progress of a request without a wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Completed(Completion),
    /// The rest after this number of bytes waits for the disk.
    Waits(u64),
}

impl Progress {
    /// Returns the completion of a request with `result`, which has written `written` bytes.
    pub(super) fn completed(result: io::Result<()>, written: u64) -> Self {
        let status = result.map_or(Status::IoError, |()| Status::Ok);
        Self::Completed(Completion { status, written })
    }
}

/// Reads `extent` from the page cache, up to the first byte that needs a wait.
pub(super) fn read_now(extent: Extent, chain: &Chain<'_>, disk: &Disk) -> Progress {
    let result = with_iovecs(chain.writable.iovec(0..extent.length), |iovecs| {
        // SAFETY: the iovecs refer to guest memory, which `chain` borrows.
        unsafe { disk.read_now(iovecs, extent.offset) }
    });
    // A failed read may have written any part.
    chain
        .writable
        .log_write(0..*result.as_ref().unwrap_or(&extent.length));
    match result {
        Ok(done) if done < extent.length => Progress::Waits(done),
        Ok(done) => Progress::completed(Ok(()), done),
        Err(error) => Progress::completed(Err(error), 0),
    }
}

/// Writes `extent` to the page cache, up to the first byte that needs a wait.
pub(super) fn write_now(extent: Extent, chain: &Chain<'_>, disk: &Disk) -> Progress {
    let mut done = 0;
    while done < extent.length {
        let length = (extent.length - done).min(PIECE_SIZE);
        let range = HEADER + done..HEADER + done + length;
        let result = with_iovecs(chain.readable.iovec(range), |iovecs| {
            // SAFETY: the iovecs refer to guest memory, which `chain` borrows.
            unsafe { disk.write_now(iovecs, extent.offset + done, length) }
        });
        match result {
            Ok(0) => return Progress::Waits(done),
            Ok(count) => done += count,
            Err(error) => return Progress::completed(Err(error), 0),
        }
    }
    Progress::completed(Ok(()), 0)
}

/// Writes the status of `completion` into `chain`. Returns the length for the used ring.
pub(super) fn complete(chain: &Chain<'_>, completion: Completion) -> u32 {
    let data_length = chain.writable.len().saturating_sub(1);
    // Cannot fail: a chain without a status byte is not parsed as a request.
    let _ = chain.writable.write_all(data_length, &[completion.status.byte()]);
    used_length(data_length, completion.written)
}

/// Calls `call` with `iovecs` as a slice, without an allocation for a single iovec, the usual case.
fn with_iovecs<T>(mut iovecs: impl Iterator<Item = iovec>, call: impl FnOnce(&[iovec]) -> T) -> T {
    let first = iovecs.next();
    let Some(second) = iovecs.next() else {
        return call(first.as_slice());
    };
    let all: Vec<iovec> = first.into_iter().chain([second]).chain(iovecs).collect();
    call(&all)
}

/// Writes the response to GET_ID into `chain`. Returns its length.
pub(super) fn write_id(chain: &Chain<'_>, id: &Id) -> u64 {
    let space = usize::try_from(chain.writable.len() - 1).unwrap_or(usize::MAX);
    let id = &id[..id.len().min(space)];
    // Cannot fail: the length is limited above.
    let _ = chain.writable.write_all(0, id);
    id.len() as u64
}
