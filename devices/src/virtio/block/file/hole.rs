//! Discard and write-zeroes.
//!
//! A block device takes both in its own blocks, which may be larger than the sectors of the driver (4Kn: 4096 bytes), and
//! refuses the rest by EINVAL. A discard is advice, so that it is rounded inward to whole blocks; zeros are promised, so
//! that they are written where the kernel cannot do better.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, c_int};

use super::call::{retried, signed};
use super::disk::Disk;
use crate::virtio::block::request::Extent;

/// `BLKDISCARD` of linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// What zeros are written from where nothing better is there.
static ZEROS: [u8; 65536] = [0; 65536];

impl Disk {
    /// Gives the blocks that lie wholly in `extent` back to the host, if the host takes them.
    pub(in super::super) fn discard(&self, extent: Extent) -> io::Result<()> {
        let Extent { offset, length } = inward(extent, self.block);
        if length == 0 {
            return Ok(());
        }
        let result = match self.block_device {
            true => self.discard_blocks(offset, length),
            false => self.fallocate(FALLOC_FL_PUNCH_HOLE, extent),
        };
        // What a discard leaves behind is undefined, so that nothing is as good as anything.
        result.or_else(|error| if is_refused(&error) { Ok(()) } else { Err(error) })
    }

    /// Makes `extent` read as zeros, and gives its blocks back if `unmap`.
    pub(in super::super) fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        if extent.length == 0 {
            return Ok(());
        }
        let mode = if unmap {
            FALLOC_FL_PUNCH_HOLE
        } else {
            FALLOC_FL_ZERO_RANGE
        };
        match self.fallocate(mode, extent) {
            Err(error) if is_refused(&error) => self.write_zeros(extent),
            result => result,
        }
    }

    fn write_zeros(&self, extent: Extent) -> io::Result<()> {
        let mut done = 0;
        while done < extent.length {
            let part = usize::try_from(extent.length - done)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..part], extent.offset + done)?;
            done += part as u64;
        }
        Ok(())
    }

    fn fallocate(&self, mode: c_int, extent: Extent) -> io::Result<()> {
        let mode = mode | FALLOC_FL_KEEP_SIZE;
        let (offset, length) = (signed(extent.offset)?, signed(extent.length)?);
        retried(|| {
            // SAFETY: the descriptor is open; no memory is involved.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
            isize::try_from(result).unwrap_or(-1)
        })?;
        Ok(())
    }

    fn discard_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        retried(|| {
            // SAFETY: the descriptor is open, and the call reads two numbers of 64 bits from `range`.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
            isize::try_from(result).unwrap_or(-1)
        })?;
        Ok(())
    }
}

/// The blocks of `block` bytes that lie wholly in `extent`.
pub(in super::super) fn inward(extent: Extent, block: u64) -> Extent {
    let block = block.max(1);
    let end = (extent.offset + extent.length) / block * block;
    // Not beyond the end of the disk, so that nothing overflows.
    let offset = extent.offset.div_ceil(block) * block;
    Extent {
        offset,
        length: end.saturating_sub(offset),
    }
}

/// Whether the kernel does not do this at all, or not here: a device without the function, or parts of its blocks.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL)
    )
}
