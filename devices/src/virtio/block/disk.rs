//! The file or block device behind a drive.
//!
//! An open file description lock protects a disk in use: a writable disk against all other users, a read-only or shared disk
//! against writers that do not share it. A second drive or VM cannot lock a disk for writing, under any name of the file. The lock
//! belongs to the inode: two nodes of one block device have independent locks. The disk of a loaded snapshot stays unlocked until
//! the VM is resumed, so that it can be replaced before.
//!
//! A block device discards and zeroes only complete logical blocks, and rejects other ranges with EINVAL. A logical
//! block may be larger than a sector of the driver (4Kn: 4096 bytes). Discard is advisory, so its range shrinks to
//! complete blocks. Zeros are guaranteed, so they are written if the kernel cannot produce them otherwise.

use std::cell::Cell;
use std::fmt::Debug;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, c_int, iovec};
use snapshot::file::FileIdentity;

use super::extent::{Extent, Pieces, shrink_to_blocks};
use super::lock::{self, Holder, LockKind};
use crate::medium::Medium;

/// Bytes of a sector, the unit of all offsets and lengths of the driver.
pub const SECTOR: u64 = 512;

/// `BLKSSZGET` of linux/fs.h, `_IO(0x12, 104)`.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// `BLKDISCARD` of linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// cachestat(2) of Linux 6.5, with the same number on all architectures.
const SYS_CACHESTAT: libc::c_long = 451;

/// Bytes of a page of the page cache.
const PAGE: u64 = 4096;

/// Minimum duration of a slow write: two ticks of the kernel with a frequency of 100 Hz.
const SLOW_WRITE: Duration = Duration::from_millis(20);

/// Number of fast writes of the worker or io_uring after a slow write.
const FAST_WRITES: u32 = 64;

/// Maximum number of zero bytes in one write.
const ZEROS_LENGTH: usize = 64 << 10;

/// Failure to use a file as a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not exist.
    #[error("cannot open disk {0:?}: it does not exist; create it, for example with `truncate -s 1G`")]
    Missing(PathBuf),
    /// The user has no permission to read it.
    #[error("cannot open disk {0:?} for reading: permission denied; grant it to this user")]
    NotReadable(PathBuf),
    /// The user has no permission to read and write it.
    #[error(
        "cannot open disk {0:?} for reading and writing: permission denied; grant it to this user, or make the drive read-only"
    )]
    NotWritable(PathBuf),
    /// The file system or device is read-only.
    #[error(
        "cannot open disk {0:?} for writing: its file system or device is read-only; make the drive read-only"
    )]
    ReadOnly(PathBuf),
    /// The path is a directory.
    #[error("cannot use {0:?} as a disk: it is a directory; use a raw image file or a block device")]
    Directory(PathBuf),
    /// The path is a pipe, a socket or a character device.
    #[error(
        "cannot use {0:?} as a disk: it is neither a file nor a block device; use a raw image file or a block device"
    )]
    Kind(PathBuf),
    /// The file has no bytes.
    #[error("cannot use disk {0:?}: it is empty; set its size, for example with `truncate -s 1G`")]
    Empty(PathBuf),
    /// The file has less than a sector.
    #[error("cannot use disk {path:?}: its {size} bytes are less than a sector of 512; use a raw image")]
    Size {
        /// Path of the file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Another drive or VM holds a conflicting lock.
    #[error(
        "cannot lock disk {path:?}: {holder} uses it; name another file, or make all drives of it read-only or shared"
    )]
    InUse {
        /// Path of the file.
        path: PathBuf,
        /// Holder of the lock.
        holder: Holder,
    },
    /// The kernel does not complete requests in flight.
    #[error("cannot change the disk: requests in flight do not complete; retry later")]
    Busy,
    /// Another system call failed.
    #[error("cannot {operation} disk {path:?}")]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Options for opening a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Opens the disk for reading only.
    pub read_only: bool,
    /// Accepts an empty file. Every read and write of such a disk fails.
    pub allow_empty: bool,
    /// Permits other shared drives to write the disk.
    pub shared: bool,
    /// Opens the file a second time, for an io_uring. The kernel frees an io_uring some time after the end of its process, and its
    /// files with it: a lock of the same open file would last as long.
    pub for_uring: bool,
}

impl DiskOptions {
    fn lock_kind(self) -> LockKind {
        match self.read_only || self.shared {
            true => LockKind::Shared,
            false => LockKind::Exclusive,
        }
    }
}

/// Operations of a disk without guest memory that may take long. The worker calls them, each for a short extent.
pub(super) trait Storage: Debug + Send + Sync {
    /// Reads from `offset` into `data`. Returns the number of bytes, possibly fewer than requested, and zero at the end of the file.
    fn read(&self, data: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes `data` at `offset`. Returns the number of bytes, possibly fewer than requested.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<usize>;

    /// Discards the complete blocks in `extent`, if the host supports it.
    fn discard(&self, extent: Extent) -> io::Result<()>;

    /// Zeroes `extent`, and deallocates its blocks if `unmap` is set.
    fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()>;

    /// Writes dirty pages in `extent` to the medium, so that a later flush takes less time. An error is not reported
    /// again by the flush.
    fn write_back(&self, extent: Extent) -> io::Result<()>;

    /// Flushes all written data to the medium.
    fn flush(&self) -> io::Result<()>;

    /// Returns the pieces of a discard.
    fn discard_pieces(&self) -> Pieces {
        Pieces::CHUNKS
    }

    /// Returns true if `extent` has no dirty page for certain.
    fn is_clean(&self, _extent: Extent) -> bool {
        false
    }
}

/// An open file or block device.
#[derive(Debug)]
pub(super) struct DiskFile {
    pub(super) file: File,
    pub(super) is_block_device: bool,
    /// Bytes of a logical block, the unit of discards, of a block device; 1 for a file.
    pub(super) block_size: u64,
    pub(super) discard_pieces: Pieces,
    pub(super) medium: Medium,
    /// Attributes at the opening; a later call may wait for the file system. Only those that never change are used.
    pub(super) inode: Metadata,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    pub(super) file: Arc<DiskFile>,
    /// The same file, for the worker.
    pub(super) storage: Arc<dyn Storage>,
    /// Path at the last opening.
    pub(super) path: PathBuf,
    /// Bytes of complete sectors.
    pub(super) size: u64,
    /// The file has further bytes, fewer than a sector.
    pub(super) has_rest: bool,
    pub(super) options: DiskOptions,
    /// The disk may be accessed: it is locked, or its file system has no locks.
    pub(super) is_locked: bool,
    /// The second open file of an io_uring, until it has it.
    pub(super) uring_file: Option<File>,
    pub(super) pace: Pace,
}

/// Experience with the calls that must not wait.
#[derive(Debug)]
pub(super) struct Pace {
    /// Minimum duration of a slow write.
    pub(super) slow_write: Duration,
    /// The kernel does not support RWF_NOWAIT for reads of this file.
    pub(super) lacks_nowait_reads: Cell<bool>,
    /// The kernel does not support RWF_NOWAIT for writes of this file.
    pub(super) lacks_nowait_writes: Cell<bool>,
    /// Number of fast writes of the worker or io_uring until a write without RWF_NOWAIT is tried again.
    pub(super) fast_writes_left: Cell<u32>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            slow_write: SLOW_WRITE,
            lacks_nowait_reads: Cell::new(false),
            lacks_nowait_writes: Cell::new(false),
            fast_writes_left: Cell::new(0),
        }
    }
}

impl Disk {
    /// Opens and locks the file at `path`.
    ///
    /// # Errors
    /// Fails if the file is not a usable disk, or another user has locked it, with any variant except
    /// [`Error::Busy`].
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, Error> {
        let mut disk = Self::open_unlocked(path, options)?;
        disk.lock()?;
        Ok(disk)
    }

    /// Opens the file at `path`, to be [locked](Self::lock) before the first access.
    ///
    /// # Errors
    /// As of [`Self::open`], except [`Error::InUse`].
    pub fn open_unlocked(path: &Path, options: DiskOptions) -> Result<Self, Error> {
        Self::inspect(open_file(path, options.read_only)?, path, options)
    }

    /// Uses `file`, which another process may have opened at `path`, otherwise as [`Self::open_unlocked`].
    ///
    /// # Errors
    /// As of [`Self::open_unlocked`]. [`Error::NotWritable`] also if only the file is not open for writing.
    pub fn with_file(file: File, path: &Path, options: DiskOptions) -> Result<Self, Error> {
        if !options.read_only && !is_writable(&file) {
            return Err(Error::NotWritable(path.to_owned()));
        }
        Self::inspect(file, path, options)
    }

    fn inspect(file: File, path: &Path, options: DiskOptions) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(|source| Error::System {
            operation: "inspect",
            path: path.to_owned(),
            source,
        })?;
        check_kind(path, &metadata)?;
        let length = measure(path, &file, options)?;
        let is_block_device = metadata.file_type().is_block_device();
        let file = DiskFile {
            medium: if is_block_device {
                Medium::Local
            } else {
                Medium::of(&file)
            },
            block_size: if is_block_device {
                logical_block_size(&file)
            } else {
                1
            },
            discard_pieces: if is_block_device {
                Pieces::of_device(&sysfs_directory(metadata.rdev()))
            } else {
                Pieces::CHUNKS
            },
            file,
            is_block_device,
            inode: metadata,
        };
        Ok(Self::new(file, path.to_owned(), length, options))
    }

    /// Returns a disk in the complete sectors of `length` bytes.
    pub(super) fn new(file: DiskFile, path: PathBuf, length: u64, options: DiskOptions) -> Self {
        let file = Arc::new(file);
        let mut disk = Self {
            storage: file.clone(),
            file,
            path,
            size: 0,
            has_rest: false,
            options,
            is_locked: false,
            uring_file: None,
            pace: Pace::default(),
        };
        disk.set_length(length);
        disk
    }

    /// Sets the length of the file in bytes.
    pub(super) fn set_length(&mut self, length: u64) {
        (self.size, self.has_rest) = (complete_sectors(length), !length.is_multiple_of(SECTOR));
    }

    /// Treats the disk as that of a server.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn make_remote(&mut self) -> io::Result<()> {
        let file = DiskFile {
            file: self.file.file.try_clone()?,
            medium: Medium::Remote,
            inode: self.file.inode.clone(),
            ..*self.file
        };
        let is_locked = self.is_locked;
        *self = Self::new(file, self.path.clone(), self.size, self.options);
        self.is_locked = is_locked;
        Ok(())
    }

    /// Locks the disk. Has no effect on a locked disk.
    ///
    /// # Errors
    /// [`Error::InUse`] if another user has a conflicting lock.
    pub fn lock(&mut self) -> Result<(), Error> {
        if !self.is_locked {
            check_result(&self.path, self.options.lock_kind().lock(&self.file.file))?;
            self.is_locked = true;
        }
        Ok(())
    }

    /// Fails like [`lock`](Self::lock), and locks nothing.
    pub(super) fn check_lock(&self) -> Result<(), Error> {
        check_result(&self.path, self.options.lock_kind().check(&self.file.file))
    }

    /// Unlocks the disk, which must not be accessed then.
    pub fn unlock(&mut self) {
        if std::mem::take(&mut self.is_locked) {
            lock::unlock(&self.file.file);
        }
    }

    /// Returns the path at the last opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size in bytes, a multiple of [`SECTOR`], at the last opening or update.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the identity of the file, or `None` for a block device.
    pub fn identity(&self) -> Option<FileIdentity> {
        FileIdentity::of(&self.file.inode)
    }

    /// Returns true if the disk rejects writes.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Reads from `offset` into `iovecs`. Returns the number of bytes, possibly fewer than requested, and zero at the end of the file.
    /// With `RWF_NOWAIT` in `flags`, reads only bytes in the page cache, and does not wait.
    ///
    /// # Safety
    /// `iovecs` must refer to memory that stays mapped during the call, and that other threads may modify, like guest
    /// memory.
    unsafe fn read_with(&self, iovecs: &[iovec], offset: u64, flags: c_int) -> io::Result<u64> {
        let (count, offset) = (iovec_count(iovecs)?, signed(offset)?);
        let file = self.as_raw_fd();
        retry_interrupted(|| match iovecs {
            // A cached page takes a tenth less time without an iovec array.
            // SAFETY: the descriptor is open, and the caller guarantees the memory of the iovec.
            [iovec] if flags == 0 => unsafe { libc::pread(file, iovec.iov_base, iovec.iov_len, offset) },
            // SAFETY: as above, and `iovecs` has `count` entries.
            _ => unsafe { libc::preadv2(file, iovecs.as_ptr(), count, offset, flags) },
        })
    }

    /// Writes `iovecs` at `offset` with `flags`. Returns the number of bytes, possibly fewer than requested.
    ///
    /// # Safety
    /// `iovecs` must refer to memory that stays mapped during the call.
    unsafe fn write_with(&self, iovecs: &[iovec], offset: u64, flags: c_int) -> io::Result<u64> {
        let (count, offset) = (iovec_count(iovecs)?, signed(offset)?);
        let file = self.as_raw_fd();
        retry_interrupted(|| match iovecs {
            // Faster without an iovec array, like a read.
            // SAFETY: the descriptor is open, and the caller guarantees the memory of the iovec.
            [iovec] if flags == 0 => unsafe { libc::pwrite(file, iovec.iov_base, iovec.iov_len, offset) },
            // SAFETY: as above, and `iovecs` has `count` entries.
            _ => unsafe { libc::pwritev2(file, iovecs.as_ptr(), count, offset, flags) },
        })
    }

    /// Reads from `offset` into `iovecs` as far as this needs no wait for a medium. Returns the number of bytes.
    ///
    /// # Errors
    /// Fails if the read fails for another reason than a wait.
    ///
    /// # Safety
    /// As of [`Self::read_with`].
    pub(super) unsafe fn read_now(&self, iovecs: &[iovec], offset: u64) -> io::Result<u64> {
        if self.file.medium == Medium::Memory {
            // SAFETY: the caller guarantees the same.
            return unsafe { self.read_with(iovecs, offset, 0) };
        }
        let lacks_nowait = &self.pace.lacks_nowait_reads;
        if lacks_nowait.get() {
            return Ok(0);
        }
        // SAFETY: the caller guarantees the same.
        let result = unsafe { self.read_with(iovecs, offset, libc::RWF_NOWAIT) };
        without_wait(result, lacks_nowait)
    }

    /// Writes `iovecs` of `length` bytes at `offset` as far as this needs no wait for a medium. Returns the number of bytes.
    ///
    /// Some file systems do not support RWF_NOWAIT for writes. A plain write then fills the page cache of a [`Medium::Local`], unless
    /// one has recently been slow: the kernel delays a process that writes faster than the medium.
    ///
    /// # Errors
    /// Fails if the write fails for another reason than a wait.
    ///
    /// # Safety
    /// As of [`Self::write_with`].
    pub(super) unsafe fn write_now(&self, iovecs: &[iovec], offset: u64, length: u64) -> io::Result<u64> {
        if self.file.medium == Medium::Memory {
            // SAFETY: the caller guarantees the same.
            return unsafe { self.write_with(iovecs, offset, 0) };
        }
        let lacks_nowait = &self.pace.lacks_nowait_writes;
        if !lacks_nowait.get() {
            // SAFETY: the caller guarantees the same.
            let result = unsafe { self.write_with(iovecs, offset, libc::RWF_NOWAIT) };
            let count = without_wait(result, lacks_nowait)?;
            if !lacks_nowait.get() {
                return Ok(count);
            }
        }
        if self.file.medium != Medium::Local
            || self.pace.fast_writes_left.get() > 0
            || !self.needs_no_read(offset, length)
        {
            return Ok(0);
        }
        let begin = coarse_time();
        // SAFETY: the caller guarantees the same.
        let result = unsafe { self.write_with(iovecs, offset, 0) };
        if coarse_time().saturating_sub(begin) >= self.pace.slow_write {
            self.pace.fast_writes_left.set(FAST_WRITES);
        }
        result
    }

    /// Records the time of a write of the worker or io_uring, without a flush.
    pub(super) fn note_write(&self, elapsed: Duration) {
        let left = &self.pace.fast_writes_left;
        if elapsed >= self.pace.slow_write {
            left.set(FAST_WRITES);
        } else {
            left.set(left.get().saturating_sub(1));
        }
    }

    /// Returns true if a write of `length` bytes at `offset` reads no page from the medium: it covers complete pages, except for
    /// pages in the page cache.
    fn needs_no_read(&self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        (offset.is_multiple_of(PAGE) || self.is_cached(offset))
            && (end.is_multiple_of(PAGE) || end == self.size && !self.has_rest || self.is_cached(end - 1))
    }

    /// Returns true if the byte at `offset` is in the page cache.
    fn is_cached(&self, offset: u64) -> bool {
        let mut byte = 0_u8;
        let iovec = iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: the iovec refers to `byte`, which outlives the call.
        unsafe { self.read_now(&[iovec], offset) }.is_ok_and(|count| count == 1)
    }

    /// Returns true if no call waits for a medium.
    pub(super) fn is_in_memory(&self) -> bool {
        self.file.medium == Medium::Memory
    }

    /// Returns true if the disk belongs to a server.
    pub(super) fn is_remote(&self) -> bool {
        self.file.medium == Medium::Remote
    }

    /// Returns true if the disk is a block device.
    pub(super) fn is_block_device(&self) -> bool {
        self.file.is_block_device
    }
}

impl Storage for DiskFile {
    fn read(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(data, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(data, offset)
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        let Extent { offset, length } = shrink_to_blocks(extent, self.block_size);
        if length == 0 {
            return Ok(());
        }
        let result = match self.is_block_device {
            true => self.discard_blocks(offset, length),
            false => self.fallocate(FALLOC_FL_PUNCH_HOLE, extent),
        };
        // The contents after a discard are undefined, virtio 1.2 §5.2.6.2: an ignored discard is valid.
        result.or_else(|error| {
            if is_unsupported(&error) {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        if extent.length == 0 {
            return Ok(());
        }
        let mode = if unmap {
            FALLOC_FL_PUNCH_HOLE
        } else {
            FALLOC_FL_ZERO_RANGE
        };
        match self.fallocate(mode, extent) {
            Err(error) if is_unsupported(&error) => self.write_zeros(extent),
            result => result,
        }
    }

    fn write_back(&self, extent: Extent) -> io::Result<()> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let (offset, length) = (signed(extent.offset)?, signed(extent.length)?);
        let result = retry_interrupted(|| {
            // SAFETY: the descriptor is open; the call accesses no memory.
            let result = unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, length, flags) };
            isize::try_from(result).unwrap_or(-1)
        });
        match result {
            // A file without a page cache, or a file system without this call: the flush does all.
            Err(error) if is_unsupported(&error) || error.raw_os_error() == Some(libc::ESPIPE) => Ok(()),
            result => result.map(drop),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard_pieces(&self) -> Pieces {
        self.discard_pieces
    }

    fn is_clean(&self, extent: Extent) -> bool {
        // `struct cachestat_range` and `struct cachestat` of linux/mman.h.
        let range = [extent.offset, extent.length];
        let mut counts = [u64::MAX; 5];
        let file = self.file.as_raw_fd();
        // SAFETY: the kernel reads two 64-bit values from `range`, and writes five to `counts`.
        let result = unsafe { libc::syscall(SYS_CACHESTAT, file, range.as_ptr(), counts.as_mut_ptr(), 0) };
        let [_, dirty, in_writeback, ..] = counts;
        result == 0 && dirty == 0 && in_writeback == 0
    }
}

impl DiskFile {
    fn write_zeros(&self, extent: Extent) -> io::Result<()> {
        let at_most = |length: u64| usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS_LENGTH);
        // Not a constant: it would be a part of the program file.
        let zeros = vec![0; at_most(extent.length)];
        let mut done = 0;
        while done < extent.length {
            let length = at_most(extent.length - done);
            self.file.write_all_at(&zeros[..length], extent.offset + done)?;
            done += length as u64;
        }
        Ok(())
    }

    fn fallocate(&self, mode: c_int, extent: Extent) -> io::Result<()> {
        let mode = mode | FALLOC_FL_KEEP_SIZE;
        let (offset, length) = (signed(extent.offset)?, signed(extent.length)?);
        retry_interrupted(|| {
            // SAFETY: the descriptor is open; the call accesses no memory.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
            isize::try_from(result).unwrap_or(-1)
        })?;
        Ok(())
    }

    fn discard_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        retry_interrupted(|| {
            // SAFETY: the descriptor is open, and the call reads two 64-bit values from `range`.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
            isize::try_from(result).unwrap_or(-1)
        })?;
        Ok(())
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.file.as_raw_fd()
    }
}

/// Returns the bytes that a call with RWF_NOWAIT has transferred: zero if a call that waits must follow. `lacks_nowait` records that
/// the kernel does not support the flag.
pub(super) fn without_wait(result: io::Result<u64>, lacks_nowait: &Cell<bool>) -> io::Result<u64> {
    let error = match result {
        Err(error) => error,
        result => return result,
    };
    match error.raw_os_error() {
        // The guest memory is lost. The call that waits does not access it.
        Some(libc::EFAULT) => return Err(error),
        // EINVAL: the kernel supports the flag only without the page cache.
        Some(libc::EOPNOTSUPP | libc::EINVAL) => lacks_nowait.set(true),
        _ => {}
    }
    Ok(0)
}

/// Returns the time of the last tick of the kernel, at most 10 ms old. It costs a tenth of a precise time.
pub(super) fn coarse_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes one `timespec`. The call cannot fail: the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, time.as_mut_ptr()) };
    // SAFETY: the call has initialized it.
    let time = unsafe { time.assume_init() };
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// Returns the logical block size of the block device `file` in bytes.
fn logical_block_size(file: &File) -> u64 {
    let mut block: c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one `int` to `block`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut block) };
    u64::try_from(block)
        .ok()
        .filter(|_| result == 0)
        .unwrap_or(SECTOR)
}

/// Returns the sysfs directory of the block device with number `device`. It is missing in a root directory without sysfs.
fn sysfs_directory(device: libc::dev_t) -> PathBuf {
    format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)).into()
}

fn complete_sectors(length: u64) -> u64 {
    length / SECTOR * SECTOR
}

/// Returns the length of `file` in bytes, checked against `options`. Logs a warning if it ends within a sector.
pub(super) fn measure(path: &Path, mut file: &File, options: DiskOptions) -> Result<u64, Error> {
    // The metadata of a block device has no size.
    let size = file.seek(SeekFrom::End(0)).map_err(|source| Error::System {
        operation: "find the size of",
        path: path.to_owned(),
        source,
    })?;
    match size {
        0 if !options.allow_empty => Err(Error::Empty(path.to_owned())),
        1..SECTOR => Err(Error::Size {
            path: path.to_owned(),
            size,
        }),
        _ if size.is_multiple_of(SECTOR) => Ok(size),
        _ => {
            log::warn!(
                "disk {path:?} ends within a sector: the guest gets the first {} of its {size} bytes",
                complete_sectors(size)
            );
            Ok(size)
        }
    }
}

/// Returns true if the file does not support the operation, or not for this range.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL)
    )
}

/// Converts the result of an attempt to lock the file at `path`. A file system without locks is usable.
fn check_result(path: &Path, result: Result<(), lock::Error>) -> Result<(), Error> {
    match result {
        Ok(()) => Ok(()),
        Err(lock::Error::Held(holder)) => Err(Error::InUse {
            path: path.to_owned(),
            holder,
        }),
        Err(lock::Error::System(error)) => {
            log::warn!("cannot lock disk {path:?}: a second writer is not detected: {error}");
            Ok(())
        }
    }
}

/// Returns the error for a failed open of the disk at `path`.
pub(super) fn open_error(path: &Path, read_only: bool, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Error::Missing(path),
        Some(libc::EACCES | libc::EPERM) if read_only => Error::NotReadable(path),
        Some(libc::EACCES | libc::EPERM) => Error::NotWritable(path),
        Some(libc::EROFS) if !read_only => Error::ReadOnly(path),
        _ => Error::System {
            operation: "open",
            path,
            source,
        },
    }
}

/// Returns true if `file` is open for reading and writing.
fn is_writable(file: &File) -> bool {
    // SAFETY: the call takes no pointer and changes nothing.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Opens the file of a disk at `path`.
///
/// # Errors
/// Fails if it is no file or block device, or cannot be opened.
pub fn open_file(path: &Path, read_only: bool) -> Result<File, Error> {
    let failed = |source| open_error(path, read_only, source);
    // Checked before the open, which would block on a pipe.
    check_kind(path, &path.metadata().map_err(failed)?)?;
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    options.open(path).map_err(failed)
}

/// Fails if `metadata` is neither of a file nor of a block device.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_dir() => Err(Error::Directory(path.to_owned())),
        _ if kind.is_file() || kind.is_block_device() => Ok(()),
        _ => Err(Error::Kind(path.to_owned())),
    }
}

/// Repeats `call` while a signal interrupts it.
fn retry_interrupted(mut call: impl FnMut() -> isize) -> io::Result<u64> {
    loop {
        if let Ok(result) = u64::try_from(call()) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Returns the length of `iovecs` as a kernel argument.
fn iovec_count(iovecs: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(iovecs.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Returns an offset or length as a kernel argument.
fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
