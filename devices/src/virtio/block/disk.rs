//! The file or block device behind a disk.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, c_int, iovec};

/// Bytes of a sector, the unit of everything on the disk.
pub const SECTOR: u64 = 512;

/// `BLKSSZGET` of linux/fs.h, `_IO(0x12, 104)`.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// `BLKDISCARD` of linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// What zeros are written from where nothing better is there.
static ZEROS: [u8; 65536] = [0; 65536];

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("there is no disk {0:?}: make it, for example with `truncate -s 1G`, or correct the path")]
    Missing(PathBuf),
    /// This user may not open it.
    #[error("the disk {0:?} may not be opened for reading: give this user the right")]
    NotReadable(PathBuf),
    /// This user may not open it for writing too.
    #[error(
        "the disk {0:?} may not be opened for reading and writing: give this user the right, or make the drive read-only"
    )]
    NotWritable(PathBuf),
    /// It can only be read.
    #[error("the disk {0:?} is on a read-only file system or device: make the drive read-only")]
    ReadOnly(PathBuf),
    /// It is a folder.
    #[error("{0:?} is a folder: a disk is a raw image file or a block device")]
    Folder(PathBuf),
    /// It is a pipe, a socket, a terminal or the like.
    #[error("{0:?} is neither a file nor a block device")]
    Kind(PathBuf),
    /// There is nothing in it.
    #[error("the disk {0:?} is empty: give it a size, for example with `truncate -s 1G`")]
    Empty(PathBuf),
    /// Its end is within a sector.
    #[error("the disk {path:?} has {size} bytes, which is no multiple of 512: is it a raw image?")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Somebody else has it open.
    #[error(
        "the disk {0:?} is in use by another drive or virtual machine: only read-only drives can share one"
    )]
    InUse(PathBuf),
    /// Requests are with the kernel that it does not finish.
    #[error(
        "the drive has requests in flight that do not end, so that it stays with its disk: try again later"
    )]
    Busy,
    /// Anything else.
    #[error("cannot {operation} the disk {path:?}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// On what terms a file becomes a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Whether a file of 0 bytes is a disk, of which every read and write fails.
    pub allow_empty: bool,
}

/// Bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) offset: u64,
    /// Bytes; the end is within the disk.
    pub(super) length: u64,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    pub(super) file: File,
    /// Where it was opened.
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) terms: DiskOptions,
    pub(super) block_device: bool,
    /// Bytes of the blocks that a block device discards; 1 for a file.
    pub(super) block: u64,
    /// It has no medium other than memory.
    pub(super) in_memory: bool,
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
        hold(path, &file, read_only)?;
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
    pub(super) fn replace_file(&mut self, path: &Path) -> Result<(), Error> {
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
    pub(super) fn measure(&mut self) -> Result<(), Error> {
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
    pub(super) unsafe fn read(&self, pieces: &[iovec], offset: u64, cached: bool) -> io::Result<u64> {
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
    pub(super) unsafe fn write(&self, pieces: &[iovec], offset: u64, through: bool) -> io::Result<u64> {
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
    pub(super) fn waits_to_read(&self) -> bool {
        !self.in_memory
    }

    /// Whether writing waits for a medium, and not only for room in the page cache.
    pub(super) fn waits_to_write(&self, through: bool) -> bool {
        through || self.block_device
    }

    /// Brings everything written to the medium.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Disk {
    /// Gives the blocks that lie wholly in `extent` back to the host, if the host takes them.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
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
    pub(super) fn zero(&self, extent: Extent, unmap: bool) -> io::Result<()> {
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

/// The blocks of `block` bytes that lie wholly in `extent`.
pub(super) fn inward(extent: Extent, block: u64) -> Extent {
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

/// Locks `file`, which was opened at `path`, until it is closed.
///
/// # Errors
/// [`Error::InUse`]
fn hold(path: &Path, file: &File, read_only: bool) -> Result<(), Error> {
    match lock(file, read_only) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(Error::InUse(path.to_owned()))
        }
        // Some network file systems have no locks at all; their disks are still of use.
        Err(error) => {
            log::warn!("the disk {path:?} cannot be locked, so that nobody notices a second writer: {error}");
            Ok(())
        }
    }
}

fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `whole` is the structure that the command reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What is wrong when opening the disk at `path` has failed with `source`.
pub(super) fn opening(path: &Path, read_only: bool, source: io::Error) -> Error {
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

/// Whether something with `metadata` can be a disk.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let kind = metadata.file_type();
    match kind {
        _ if kind.is_dir() => Err(Error::Folder(path.to_owned())),
        _ if kind.is_file() || kind.is_block_device() => Ok(()),
        _ => Err(Error::Kind(path.to_owned())),
    }
}

/// Calls until no signal interrupts.
fn retried(mut call: impl FnMut() -> isize) -> io::Result<u64> {
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

/// The number of `pieces` as the kernel takes it.
fn count_of(pieces: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(pieces.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A place or a length as the kernel takes it.
fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
