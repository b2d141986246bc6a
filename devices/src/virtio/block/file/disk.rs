//! An open disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use libc::{c_int, iovec};

use super::call::{count_of, retried, signed};
use super::error::{Error, check_kind, opening};
use super::lock;

/// Bytes of a sector, the unit of everything on the disk.
pub const SECTOR: u64 = 512;

/// `BLKSSZGET` of linux/fs.h, `_IO(0x12, 104)`.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// On what terms a file becomes a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Whether a file of 0 bytes is a disk, of which every read and write fails.
    pub allow_empty: bool,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    pub(in super::super) file: File,
    /// Where it was opened.
    pub(in super::super) path: PathBuf,
    pub(in super::super) size: u64,
    pub(in super::super) terms: DiskOptions,
    pub(in super::super) block_device: bool,
    /// Bytes of the blocks that a block device discards; 1 for a file.
    pub(in super::super) block: u64,
    /// It has no medium other than memory.
    pub(in super::super) in_memory: bool,
}

impl Disk {
    /// Opens and locks the file at `path`.
    ///
    /// # Errors
    /// Any of this module.
    pub fn open(path: &Path, terms: DiskOptions) -> Result<Self, Error> {
        let DiskOptions { read_only, .. } = terms;
        // Looked at before it is opened, since opening a pipe would block.
        let metadata = path
            .metadata()
            .map_err(|source| opening(path, read_only, source))?;
        check_kind(path, &metadata)?;
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|source| opening(path, read_only, source))?;
        let metadata = file.metadata().map_err(|source| Error::System {
            operation: "inspect",
            path: path.to_owned(),
            source,
        })?;
        check_kind(path, &metadata)?;
        let size = size_of(path, &file, terms)?;
        lock::hold(path, &file, read_only)?;
        let block_device = metadata.file_type().is_block_device();
        Ok(Self {
            in_memory: is_in_memory(&file),
            block: if block_device { block_of(&file) } else { 1 },
            file,
            path: path.to_owned(),
            size,
            terms,
            block_device,
        })
    }

    /// Goes on with the file at `path`: when it is the same file, which keeps its lock, with its size as it is now, and
    /// otherwise with the other file on the same terms, which is locked before this one is let go.
    ///
    /// # Errors
    /// As [`Self::open`]. This disk is as it was then.
    pub(in super::super) fn replace_file(&mut self, path: &Path) -> Result<(), Error> {
        if !self.is_at(path) {
            *self = Self::open(path, self.terms)?;
            return Ok(());
        }
        self.measure()?;
        self.path = path.to_owned();
        Ok(())
    }

    /// Takes the size that the file has now.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Size`], [`Error::System`]. This disk is as it was then.
    pub(in super::super) fn measure(&mut self) -> Result<(), Error> {
        self.size = size_of(&self.path, &self.file, self.terms)?;
        Ok(())
    }

    fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), path.metadata()) {
            (Ok(one), Ok(other)) => one.dev() == other.dev() && one.ino() == other.ino(),
            _ => false,
        }
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the disk, a multiple of [`SECTOR`], as of its opening or the last look.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the disk takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.terms.read_only
    }

    /// Reads from `offset` into `pieces`. Returns the bytes read, which may be fewer than there is room for; zero at the
    /// end of the file. With `cached`, only what is there without waiting.
    ///
    /// # Safety
    /// `pieces` must name memory that stays mapped during the call and that anybody may write to, as a guest's.
    pub(in super::super) unsafe fn read(
        &self,
        pieces: &[iovec],
        offset: u64,
        cached: bool,
    ) -> io::Result<u64> {
        let (count, offset) = (count_of(pieces)?, signed(offset)?);
        let flags = if cached { libc::RWF_NOWAIT } else { 0 };
        let file = self.file.as_raw_fd();
        retried(|| match pieces {
            // The kernel is a tenth quicker with a cached page when there is no list to read.
            // SAFETY: the descriptor is open, and the caller vouches for what the piece names.
            [piece] if flags == 0 => unsafe { libc::pread(file, piece.iov_base, piece.iov_len, offset) },
            // SAFETY: as above, and `pieces` has `count` entries.
            _ => unsafe { libc::preadv2(file, pieces.as_ptr(), count, offset, flags) },
        })
    }

    /// Writes `pieces` at `offset`. Returns the bytes written, which may be fewer than there are. With `through` they
    /// are on the medium when it returns.
    ///
    /// # Safety
    /// `pieces` must name memory that stays mapped during the call.
    pub(in super::super) unsafe fn write(
        &self,
        pieces: &[iovec],
        offset: u64,
        through: bool,
    ) -> io::Result<u64> {
        let (count, offset) = (count_of(pieces)?, signed(offset)?);
        let flags = if through { libc::RWF_DSYNC } else { 0 };
        let file = self.file.as_raw_fd();
        retried(|| match pieces {
            // As for reading.
            // SAFETY: the descriptor is open, and the caller vouches for what the piece names.
            [piece] if flags == 0 => unsafe { libc::pwrite(file, piece.iov_base, piece.iov_len, offset) },
            // SAFETY: as above, and `pieces` has `count` entries.
            _ => unsafe { libc::pwritev2(file, pieces.as_ptr(), count, offset, flags) },
        })
    }

    /// Whether reading may wait for a medium.
    pub(in super::super) fn waits_to_read(&self) -> bool {
        !self.in_memory
    }

    /// Whether writing waits for a medium, and not only for room in the page cache.
    pub(in super::super) fn waits_to_write(&self, through: bool) -> bool {
        through || self.block_device
    }

    /// Brings everything written to the medium.
    pub(in super::super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Whether `file` is on a file system that is nothing but page cache.
fn is_in_memory(file: &File) -> bool {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and there is room for what the kernel says.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) };
    if result != 0 {
        return false;
    }
    // SAFETY: the kernel has filled it in.
    let about = unsafe { about.assume_init() };
    about.f_type == libc::TMPFS_MAGIC
}

/// Bytes of a block of the block device `file`.
fn block_of(file: &File) -> u64 {
    let mut block: c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one number to `block`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut block) };
    u64::try_from(block)
        .ok()
        .filter(|_| result == 0)
        .unwrap_or(SECTOR)
}

fn size_of(path: &Path, mut file: &File, terms: DiskOptions) -> Result<u64, Error> {
    // The end of a block device is where seeking ends too.
    let size = file.seek(SeekFrom::End(0)).map_err(|source| Error::System {
        operation: "find the size of",
        path: path.to_owned(),
        source,
    })?;
    match size {
        0 if !terms.allow_empty => Err(Error::Empty(path.to_owned())),
        size if size.is_multiple_of(SECTOR) => Ok(size),
        size => Err(Error::Size {
            path: path.to_owned(),
            size,
        }),
    }
}
