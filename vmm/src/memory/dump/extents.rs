//! The data between a sparse file's holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Error;

/// Bytes that are copied at a time where the kernel does not copy by itself.
const CHUNK_SIZE: usize = 64 << 10;

/// Where the next data begins, at `offset` or behind it; none when there is only a hole.
pub(super) fn data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        found => found.map(Some),
    }
}

/// Where the data at `offset` ends.
pub(super) fn hole(file: &File, offset: u64) -> io::Result<u64> {
    match seek(file, offset, libc::SEEK_HOLE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(offset),
        found => found,
    }
}

/// Copies the data of the first `size` bytes of `from` to the same places of `into`, which is at `path`, and returns how many
/// bytes that were.
pub(super) fn copy(from: &File, into: &File, size: u64, path: &Path) -> Result<u64, Error> {
    let refused = |offset, source| Error::Copy {
        path: path.to_owned(),
        offset,
        source,
    };
    // Where the file ends would look like a hole.
    let found = from.metadata().map_err(|source| refused(0, source))?.len();
    if found < size {
        return Err(refused(found, io::ErrorKind::UnexpectedEof.into()));
    }
    let (mut at, mut copied) = (0, 0);
    loop {
        let start = data(from, at).map_err(|source| refused(at, source))?;
        let Some(start) = start.filter(|start| *start < size) else {
            return Ok(copied);
        };
        let end = hole(from, start).map_err(|source| refused(start, source))?;
        let end = end.min(size);
        at = start;
        while at < end {
            let count = copy_some(from, into, at, end - at).map_err(|source| refused(at, source))?;
            at += count;
            copied += count;
        }
    }
}

fn copy_some(from: &File, into: &File, offset: u64, length: u64) -> io::Result<u64> {
    let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let most = usize::try_from(length).unwrap_or(usize::MAX);
    match copy_within_kernel(from, into, offset, most) {
        Ok(0) => Err(ended()),
        Ok(count) => Ok(count),
        Err(error) if other_way(&error) => {
            let mut bytes = vec![0; most.min(CHUNK_SIZE)];
            let count = from.read_at(&mut bytes, offset)?;
            into.write_all_at(&bytes[..count], offset)?;
            if count == 0 {
                Err(ended())
            } else {
                Ok(count as u64)
            }
        }
        Err(error) => Err(error),
    }
}

/// Whether it is this call that does not work: between two file systems, on one that cannot, or because of a signal.
fn other_way(error: &io::Error) -> bool {
    let known = [
        libc::EXDEV,
        libc::EINVAL,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::EPERM,
        libc::EINTR,
    ];
    error.raw_os_error().is_some_and(|number| known.contains(&number))
}

fn copy_within_kernel(from: &File, into: &File, offset: u64, length: usize) -> io::Result<u64> {
    let mut read = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    let mut written = read;
    // Not by the C library's function: the standard library refers to it weakly, and linked with LTO into a static binary
    // such a reference is all that stays of ours, so that the function is not there and the call goes to address 0.
    // SAFETY: both offsets are valid for reads and writes; the kernel touches no other memory of ours.
    let count = unsafe {
        libc::syscall(
            libc::SYS_copy_file_range,
            from.as_raw_fd(),
            &raw mut read,
            into.as_raw_fd(),
            &raw mut written,
            length,
            0_u32,
        )
    };
    u64::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Has the file system keep space for `range`, whose content stays what it is. One that cannot does nothing.
pub(super) fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    match allocate(file, libc::FALLOC_FL_KEEP_SIZE, &range) {
        Err(error) if other_way(&error) => Ok(()),
        done => done,
    }
}

/// Makes zeros of `range`: a hole, where the file system makes holes.
pub(super) fn clear(file: &File, range: Range<u64>) -> io::Result<()> {
    match allocate(
        file,
        libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
        &range,
    ) {
        Err(error) if other_way(&error) => {}
        done => return done,
    }
    let zeros = vec![0; CHUNK_SIZE];
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).map_or(CHUNK_SIZE, |left| left.min(CHUNK_SIZE));
        file.write_all_at(&zeros[..left], at)?;
        at += left as u64;
    }
    Ok(())
}

fn allocate(file: &File, mode: libc::c_int, range: &Range<u64>) -> io::Result<()> {
    let start = libc::off_t::try_from(range.start).map_err(io::Error::other)?;
    let length = libc::off_t::try_from(range.end - range.start).map_err(io::Error::other)?;
    loop {
        // SAFETY: fallocate touches no memory of ours.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, start, length) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Moves the file's position, which nobody uses: all reads and writes say where.
fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: lseek touches no memory of ours.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
