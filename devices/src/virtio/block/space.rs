//! Features and configuration space.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::file::SECTOR;

/// Descriptors of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The most segments of data in one request: what a queue has room for, with header and status around it.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most segments of one discard or write-zeroes request.
pub(super) const SEGMENTS: u32 = 16;
/// The most sectors of one segment of a discard: 2 GiB, which takes a file system little time.
pub(super) const DISCARD_SECTORS: u32 = 1 << 22;
/// The most sectors of one segment of write-zeroes: 4 MiB, as they are written where the file system cannot do better.
pub(super) const ZERO_SECTORS: u32 = 1 << 13;
/// File systems free blocks of 4 KiB.
const DISCARD_ALIGNMENT: u32 = 8;

/// The feature bit that lets a driver flush.
pub(super) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

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
pub(super) fn read(size: u64, read_only: bool, offset: u64, data: &mut [u8]) {
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
