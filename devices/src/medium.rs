//! Storage behind the page cache.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;

/// Storage behind the page cache. It decides which writes may bypass a worker if the kernel does not support RWF_NOWAIT for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// None: no call waits for a medium.
    Memory,
    /// A block device, directly or below a file system. A write of complete pages usually ends in the page cache.
    Local,
    /// A server: it may delay each call without a bound.
    Remote,
}

impl Medium {
    /// Returns the storage behind a regular file.
    pub fn of(file: &File) -> Self {
        let mut statfs = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the descriptor is open, and the kernel writes one `statfs`.
        let result = unsafe { libc::fstatfs(file.as_raw_fd(), statfs.as_mut_ptr()) };
        if result != 0 {
            return Self::Remote;
        }
        // SAFETY: the successful call has initialized it.
        let statfs = unsafe { statfs.assume_init() };
        match statfs.f_type {
            libc::TMPFS_MAGIC | RAMFS_MAGIC => Self::Memory,
            libc::EXT4_SUPER_MAGIC
            | libc::XFS_SUPER_MAGIC
            | libc::BTRFS_SUPER_MAGIC
            | libc::F2FS_SUPER_MAGIC
            | libc::OVERLAYFS_SUPER_MAGIC => Self::Local,
            _ => Self::Remote,
        }
    }
}
