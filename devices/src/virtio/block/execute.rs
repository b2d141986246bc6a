//! Doing what a request asks for on the calling thread.

use std::io;

use libc::iovec;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::disk::{Disk, Extent};
use super::request::{HEADER, Request, Status};
use crate::virtio::queue::chain::Chain;

/// What GET_ID answers: text, padded with zeros.
pub(super) type Id = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    pub(super) status: Status,
    /// Bytes that the guest was given, from the beginning of what the device may write.
    pub(super) given: u64,
}

/// Does `request`, which was parsed from `chain`. With `through`, what it writes is on the medium afterwards.
pub(super) fn execute(
    request: &Request,
    chain: &Chain<'_>,
    disk: &Disk,
    id: &Id,
    through: bool,
) -> Completion {
    let mut given = 0;
    let result = match request {
        Request::Read(extent) => read(*extent, chain, disk, &mut given),
        Request::Write(extent) => write(*extent, chain, disk, through),
        Request::Flush => disk.flush(),
        Request::Id => {
            given = give_id(chain, id);
            Ok(())
        }
        Request::Discard(extents) => extents.iter().try_for_each(|extent| disk.discard(*extent)),
        Request::Zero { extents, unmap } => zero(extents, *unmap, disk, through),
        Request::Refused(status) => {
            return Completion {
                status: *status,
                given,
            };
        }
    };
    let status = result.map_or(Status::IoError, |()| Status::Ok);
    Completion { status, given }
}

/// Writes the status of `outcome` into `chain`. Returns the length for the used ring.
pub(super) fn finish(chain: &Chain<'_>, outcome: Completion) -> u32 {
    let place = chain.writable.len().saturating_sub(1);
    // The byte is there: without it, the chain would not have become a request.
    let _ = chain.writable.write_all(place, &[outcome.status.byte()]);
    used_length(place, outcome.given)
}

/// The length for the used ring: bytes written without a gap from the beginning, section 2.7.8.2. The status byte counts
/// when the `place` for data before it is full.
pub(super) fn used_length(place: u64, given: u64) -> u32 {
    let length = if given == place { given + 1 } else { given };
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Reads what of `extent` is in the page cache, up to the first byte that is not. Returns how many bytes.
pub(super) fn read_cached(extent: Extent, chain: &Chain<'_>, disk: &Disk) -> u64 {
    let result = listed(chain.writable.iovec(0..extent.length), |pieces| {
        // SAFETY: the pieces are guest memory, which `chain` borrows.
        unsafe { disk.read(pieces, extent.offset, true) }
    });
    // Also when the file system does not say what it has.
    result.unwrap_or(0)
}

/// Calls with the list of `pieces`, which is not allocated when it has only one, as most have.
fn listed<T>(mut pieces: impl Iterator<Item = iovec>, call: impl FnOnce(&[iovec]) -> T) -> T {
    let first = pieces.next();
    let Some(second) = pieces.next() else {
        return call(first.as_slice());
    };
    let all: Vec<iovec> = first.into_iter().chain([second]).chain(pieces).collect();
    call(&all)
}

fn read(extent: Extent, chain: &Chain<'_>, disk: &Disk, given: &mut u64) -> io::Result<()> {
    while *given < extent.length {
        let offset = extent.offset + *given;
        let count = listed(chain.writable.iovec(*given..extent.length), |pieces| {
            // SAFETY: the pieces are guest memory, which `chain` borrows.
            unsafe { disk.read(pieces, offset, false) }
        })?;
        if count == 0 {
            // The file has been truncated underneath.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *given += count;
    }
    Ok(())
}

fn write(extent: Extent, chain: &Chain<'_>, disk: &Disk, through: bool) -> io::Result<()> {
    let mut done = 0;
    while done < extent.length {
        let range = HEADER + done..HEADER + extent.length;
        let count = listed(chain.readable.iovec(range), |pieces| {
            // SAFETY: the pieces are guest memory, which `chain` borrows.
            unsafe { disk.write(pieces, extent.offset + done, through) }
        })?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += count;
    }
    Ok(())
}

fn zero(extents: &[Extent], unmap: bool, disk: &Disk, through: bool) -> io::Result<()> {
    for extent in extents {
        disk.zero(*extent, unmap)?;
    }
    if through { disk.flush() } else { Ok(()) }
}

fn give_id(chain: &Chain<'_>, id: &Id) -> u64 {
    let room = usize::try_from(chain.writable.len() - 1).unwrap_or(usize::MAX);
    let part = &id[..id.len().min(room)];
    // There is room for it.
    let _ = chain.writable.write_all(0, part);
    part.len() as u64
}
