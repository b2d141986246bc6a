//! Synchronous execution of a request, and its completion.

use std::io;

use libc::iovec;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::disk::{Disk, Extent};
use super::request::{HEADER, Request, Status};
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

/// Executes `request`, parsed from `chain`. With `write_through`, written data is on the medium afterwards.
pub(super) fn execute(
    request: &Request,
    chain: &Chain<'_>,
    disk: &Disk,
    id: &Id,
    write_through: bool,
) -> Completion {
    let mut written = 0;
    let result = match request {
        Request::Read(extent) => read(*extent, chain, disk, &mut written),
        Request::Write(extent) => write(*extent, chain, disk, write_through),
        Request::Flush => disk.storage.flush(),
        Request::Id => {
            written = write_id(chain, id);
            Ok(())
        }
        Request::Discard(extents) => extents
            .iter()
            .try_for_each(|extent| disk.storage.discard(*extent)),
        Request::Zero { extents, unmap } => zero(extents, *unmap, disk, write_through),
        Request::Rejected(status) => {
            return Completion {
                status: *status,
                written,
            };
        }
    };
    let status = result.map_or(Status::IoError, |()| Status::Ok);
    Completion { status, written }
}

/// Writes the status of `completion` into `chain`. Returns the length for the used ring.
pub(super) fn complete(chain: &Chain<'_>, completion: Completion) -> u32 {
    let data_length = chain.writable.len().saturating_sub(1);
    // Cannot fail: a chain without a status byte is not parsed as a request.
    let _ = chain.writable.write_all(data_length, &[completion.status.byte()]);
    used_length(data_length, completion.written)
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

/// Reads `extent` from the page cache, up to the first byte that is not cached. Returns the number of bytes.
pub(super) fn read_cached(extent: Extent, chain: &Chain<'_>, disk: &Disk) -> u64 {
    let result = with_iovecs(chain.writable.iovec(0..extent.length), |iovecs| {
        // SAFETY: the iovecs refer to guest memory, which `chain` borrows.
        unsafe { disk.read(iovecs, extent.offset, true) }
    });
    // A file system without RWF_NOWAIT fails: nothing counts as cached.
    result.unwrap_or(0)
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

fn read(extent: Extent, chain: &Chain<'_>, disk: &Disk, written: &mut u64) -> io::Result<()> {
    while *written < extent.length {
        let offset = extent.offset + *written;
        let count = with_iovecs(chain.writable.iovec(*written..extent.length), |iovecs| {
            // SAFETY: the iovecs refer to guest memory, which `chain` borrows.
            unsafe { disk.read(iovecs, offset, false) }
        })?;
        if count == 0 {
            // The file has been truncated since the last size update.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *written += count;
    }
    Ok(())
}

fn write(extent: Extent, chain: &Chain<'_>, disk: &Disk, write_through: bool) -> io::Result<()> {
    let mut done = 0;
    while done < extent.length {
        let range = HEADER + done..HEADER + extent.length;
        let count = with_iovecs(chain.readable.iovec(range), |iovecs| {
            // SAFETY: the iovecs refer to guest memory, which `chain` borrows.
            unsafe { disk.write(iovecs, extent.offset + done, write_through) }
        })?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += count;
    }
    Ok(())
}

fn zero(extents: &[Extent], unmap: bool, disk: &Disk, write_through: bool) -> io::Result<()> {
    for extent in extents {
        disk.storage.zero(*extent, unmap)?;
    }
    if write_through {
        disk.storage.flush()
    } else {
        Ok(())
    }
}

fn write_id(chain: &Chain<'_>, id: &Id) -> u64 {
    let space = usize::try_from(chain.writable.len() - 1).unwrap_or(usize::MAX);
    let id = &id[..id.len().min(space)];
    // Cannot fail: the length is limited above.
    let _ = chain.writable.write_all(0, id);
    id.len() as u64
}
