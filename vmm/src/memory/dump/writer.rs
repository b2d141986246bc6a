//! Writer of page ranges and data extents to a sparse file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use snapshot::{GuestRegion, GuestSlice};
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

use super::error::Error;
use crate::cancellation::Cancellation;
use crate::memory::map::page_size;

/// Maximum bytes between the search for zeros and the write: they stay in the CPU cache.
const CHUNK_SIZE: u64 = 256 << 10;

/// Maximum bytes between two checks for a cancellation: some 1 ms in the page cache, some 20 ms on a slow disk. Also the amount of
/// written data after which the kernel must begin to write it to the disk, so that the sync at the end is short.
const PIECE_SIZE: u64 = 4 << 20;

/// Maximum bytes of one reservation, between two checks for a cancellation: tmpfs allocates and clears each page of it.
const RESERVE_SIZE: u64 = 64 << 20;

/// Maximum number of reserved ranges that are kept: the dump's memory use must not grow with the guest.
const MAX_RESERVED: usize = 4096;

/// Bytes per copy through a buffer, if copy_file_range(2) does not support the files.
const COPY_CHUNK_SIZE: usize = 64 << 10;

/// Amount of data written by a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpStats {
    /// Number of data pages in the file; a page written twice counts twice.
    pub pages: u64,
    /// Bytes of these pages.
    pub bytes: u64,
    /// Length of the file in bytes: the size of guest memory.
    pub size: u64,
    /// True if the pages were merged into an existing file.
    pub merged: bool,
}

/// Treatment of pages that hold only zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// They are skipped.
    Holes,
    /// They are written.
    Data,
}

/// A region of guest memory and its offset in the file.
#[derive(Debug)]
pub(super) struct RegionExtent<'a> {
    guest: u64,
    slice: GuestSlice<'a>,
    offset: u64,
}

impl<'a> RegionExtent<'a> {
    pub fn new(region: &'a GuestRegion, offset: u64) -> Result<Self, Error> {
        let guest = region.start_addr().0;
        let outside = || Error::Outside(guest..guest.saturating_add(region.len()));
        let length = usize::try_from(region.len()).map_err(|_| outside())?;
        let slice = region.get_slice(MemoryRegionAddress(0), length);
        Ok(Self {
            guest,
            slice: slice.map_err(|_| outside())?,
            offset,
        })
    }

    /// Returns the offsets of all bytes in the region.
    pub fn range(&self) -> Range<u64> {
        0..self.slice.len() as u64
    }

    /// Returns the guest-physical addresses of the region.
    pub fn guest(&self) -> Range<u64> {
        self.guest..self.guest + self.range().end
    }

    /// Returns the offset of the region in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the host addresses of the region.
    pub fn host(&self) -> Range<u64> {
        let start = self.slice.ptr_guard().as_ptr().addr() as u64;
        start..start + self.range().end
    }

    /// Converts host addresses to offsets in the region.
    pub fn offsets(&self, host: &Range<u64>) -> Range<u64> {
        let start = self.host().start;
        host.start.saturating_sub(start)..host.end.saturating_sub(start)
    }

    pub fn slice(&self, range: &Range<u64>) -> Result<GuestSlice<'a>, Error> {
        let outside = || Error::Outside(self.guest + range.start..self.guest + range.end);
        let start = usize::try_from(range.start).map_err(|_| outside())?;
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        self.slice.subslice(start, length).map_err(|_| outside())
    }
}

/// Treatment of the pages and of the gaps between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageAction {
    /// Pages are written, gaps stay unchanged.
    Write,
    /// Pages are written, gaps become holes.
    WriteAndClear,
    /// The content stays unchanged, disk space is reserved for the pages.
    Reserve,
}

/// Writer of pages to one file, with a count of the data written.
#[derive(Debug)]
pub(super) struct PageWriter<'a> {
    file: &'a File,
    path: &'a Path,
    action: PageAction,
    bytes: u64,
    /// First range of adjacent pages in the file.
    first: Option<Range<u64>>,
    /// End of the last page in the file.
    end: u64,
    reserved: Vec<Range<u64>>,
    cancellation: &'a Cancellation,
    /// Data that the kernel writes to the disk.
    flushing: Range<u64>,
    /// Bytes that were written since, and the range around them.
    unflushed: (u64, Range<u64>),
}

impl<'a> PageWriter<'a> {
    pub fn new(file: &'a File, path: &'a Path, cancellation: &'a Cancellation) -> Self {
        Self {
            file,
            path,
            action: PageAction::Write,
            bytes: 0,
            first: None,
            end: 0,
            reserved: Vec::new(),
            cancellation,
            flushing: 0..0,
            unflushed: (0, 0..0),
        }
    }

    /// Creates a writer that turns gaps into holes. Pages must be sorted by offset, and [`finish`](Self::finish) must
    /// be the last call.
    pub fn clearing(file: &'a File, path: &'a Path, cancellation: &'a Cancellation) -> Self {
        Self {
            action: PageAction::WriteAndClear,
            ..Self::new(file, path, cancellation)
        }
    }

    /// Creates a writer that only reserves disk space.
    pub fn reserving(file: &'a File, path: &'a Path, cancellation: &'a Cancellation) -> Self {
        Self {
            action: PageAction::Reserve,
            ..Self::new(file, path, cancellation)
        }
    }

    /// Begins the comparison of guest memory with its base, which may take long: it does not fit into any budget.
    pub fn begin_comparison(&self) -> Result<(), Error> {
        Ok(self.cancellation.exclude_budget()?)
    }

    /// Checks for a cancellation before the comparison of a chunk.
    pub fn check_cancelled(&self) -> Result<(), Error> {
        Ok(self.cancellation.spend(0)?)
    }

    /// Returns the error of a read or copy at `offset` of another file.
    pub fn copy_error(&self, offset: u64, source: io::Error) -> Error {
        let path = self.path.to_owned();
        Error::Copy { path, offset, source }
    }

    /// Copies the data of the first `size` bytes of `from` to the same offsets of the file.
    pub fn copy_data(&mut self, from: &File, size: u64) -> Result<(), Error> {
        // SEEK_DATA reports the missing end of a truncated file like a hole.
        let found = from
            .metadata()
            .map_err(|source| self.copy_error(size, source))?
            .len();
        if found < size {
            return Err(self.copy_error(found, io::ErrorKind::UnexpectedEof.into()));
        }
        let mut at = 0;
        loop {
            let start = next_data(from, at).map_err(|source| self.copy_error(at, source))?;
            let Some(start) = start.filter(|start| *start < size) else {
                return Ok(());
            };
            let end = next_hole(from, start).map_err(|source| self.copy_error(start, source))?;
            at = start;
            while at < end.min(size) {
                let length = PIECE_SIZE.min(end.min(size) - at);
                self.cancellation.spend(length)?;
                let copied = copy_chunk(from, self.file, at, length);
                let count = copied.map_err(|source| self.copy_error(at, source))?;
                self.bytes += count;
                self.flush(at..at + count)?;
                at += count;
            }
        }
    }

    /// Adds the written `range` to the data for the disk. After each [`PIECE_SIZE`] the kernel begins to write it, and this thread
    /// waits for the piece before.
    fn flush(&mut self, range: Range<u64>) -> Result<(), Error> {
        let (bytes, data) = &mut self.unflushed;
        *bytes += range.end - range.start;
        *data = if data.is_empty() {
            range
        } else {
            data.start.min(range.start)..data.end.max(range.end)
        };
        if *bytes < PIECE_SIZE {
            return Ok(());
        }
        let (_, next) = std::mem::take(&mut self.unflushed);
        let current = std::mem::replace(&mut self.flushing, next.clone());
        let flushed = sync_range(self.file, &next, libc::SYNC_FILE_RANGE_WRITE);
        let waits = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let flushed = flushed.and_then(|()| sync_range(self.file, &current, waits));
        flushed.map_err(|source| Error::Sync {
            path: self.path.to_owned(),
            source,
        })
    }

    /// Returns the count for a file of `size` bytes.
    pub fn stats(&self, size: u64, merged: bool) -> DumpStats {
        DumpStats {
            pages: self.bytes.div_ceil(page_size()),
            bytes: self.bytes,
            size,
            merged,
        }
    }

    /// Writes the pages at `range` of `extent`.
    pub fn write_pages(
        &mut self,
        extent: &RegionExtent<'_>,
        range: Range<u64>,
        zeros: Zeros,
    ) -> Result<(), Error> {
        let size = match (self.action, zeros) {
            (PageAction::Reserve, Zeros::Data) => RESERVE_SIZE,
            _ => PIECE_SIZE,
        };
        let mut start = range.start;
        while start < range.end {
            let piece = start..range.end.min(start + size);
            self.cancellation.spend(piece.end - piece.start)?;
            start = piece.end;
            match zeros {
                Zeros::Data => self.write(extent, piece)?,
                Zeros::Holes => self.write_nonzero(extent, piece)?,
            }
        }
        Ok(())
    }

    /// Writes the pages at `range` that are not zero.
    fn write_nonzero(&mut self, extent: &RegionExtent<'_>, range: Range<u64>) -> Result<(), Error> {
        let page = page_size();
        let mut start = range.start;
        for at in range.clone().step_by(usize::try_from(page).unwrap_or(4096)) {
            let end = at + page;
            if is_zero(&extent.slice(&(at..end))?) {
                self.write(extent, start..at)?;
                start = end;
            } else if end - start >= CHUNK_SIZE {
                self.write(extent, start..end)?;
                start = end;
            }
        }
        self.write(extent, start..range.end)
    }

    /// Completes a file of `size` bytes.
    pub fn finish(&mut self, size: u64) -> Result<(), Error> {
        self.clear(size)
    }

    /// Turns the gap between the last page and `until` into a hole, for [`PageAction::WriteAndClear`] only.
    fn clear(&mut self, until: u64) -> Result<(), Error> {
        if self.action != PageAction::WriteAndClear || until <= self.end {
            return Ok(());
        }
        clear_range(self.file, self.end..until).map_err(|source| Error::Write {
            path: self.path.to_owned(),
            offset: self.end,
            length: until - self.end,
            source,
        })
    }

    /// Returns the reserved ranges of the file, none of them across two regions, or `None` if there are more than
    /// [`MAX_RESERVED`].
    pub fn into_reserved(self) -> Option<Vec<Range<u64>>> {
        (self.reserved.len() <= MAX_RESERVED).then_some(self.reserved)
    }

    fn reserve(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        if self.reserved.len() <= MAX_RESERVED {
            self.reserved.push(offset..offset + length);
        }
        reserve_range(self.file, offset..offset + length).map_err(|source| Error::Write {
            path: self.path.to_owned(),
            offset,
            length,
            source,
        })
    }

    fn write(&mut self, extent: &RegionExtent<'_>, range: Range<u64>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        if self.action == PageAction::Reserve {
            return self.reserve(extent.offset + range.start, range.end - range.start);
        }
        self.clear(extent.offset + range.start)?;
        let mut at = range.start;
        while at < range.end {
            let slice = extent.slice(&(at..range.end))?;
            let offset = extent.offset + at;
            match write_at(self.file, &slice, offset) {
                Ok(written) => at += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(Error::Gone {
                        address: extent.guest + at,
                    });
                }
                Err(source) => {
                    return Err(Error::Write {
                        path: self.path.to_owned(),
                        offset,
                        length: slice.len() as u64,
                        source,
                    });
                }
            }
        }
        let written = extent.offset + range.start..extent.offset + range.end;
        self.add_written(written.clone());
        self.flush(written)
    }

    fn add_written(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        self.end = range.end;
        match &mut self.first {
            Some(first) if first.end == range.start => first.end = range.end,
            Some(_) => {}
            None => self.first = Some(range),
        }
    }

    /// Checks that the file system kept the holes before and after the first range of pages.
    pub fn check_holes(&self, size: u64) -> Result<(), Error> {
        let first = self.first.clone().unwrap_or(size..size);
        let failed = |source| self.copy_error(first.start, source);
        let data = next_data(self.file, 0).map_err(failed)?;
        let hole = next_hole(self.file, first.start).map_err(failed)?;
        if data.unwrap_or(size) == first.start && (first.is_empty() || hole == first.end) {
            return Ok(());
        }
        Err(Error::Holes {
            path: self.path.to_owned(),
        })
    }
}

fn write_at(file: &File, slice: &GuestSlice<'_>, offset: u64) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let host = slice.ptr_guard();
    // SAFETY: `host` points to `slice.len()` bytes of guest memory, which stay mapped while `slice` lives.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), host.as_ptr().cast(), slice.len(), offset) };
    match u64::try_from(written) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => Ok(written),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Returns true if all bytes of a page are zero.
fn is_zero(slice: &GuestSlice<'_>) -> bool {
    let host = slice.ptr_guard();
    let words = host.as_ptr().cast::<u64>();
    (0..slice.len() / 8).step_by(8).all(|group| {
        let word = |at| {
            let address = words.wrapping_add(group + at);
            // SAFETY: the address is page-aligned plus a multiple of 8, and within the mapped page, whose size is a multiple
            // of eight words.
            unsafe { address.read_volatile() }
        };
        (0..8).fold(0, |bits, at| bits | word(at)) == 0
    })
}

/// Returns the start of the first data at or after `offset`, or `None` if only a hole follows.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        found => found.map(Some),
    }
}

/// Returns the end of the data at `offset`.
pub(super) fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    match seek(file, offset, libc::SEEK_HOLE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(offset),
        found => found,
    }
}

fn copy_chunk(from: &File, into: &File, offset: u64, length: u64) -> io::Result<u64> {
    let end_of_file = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let max_length = usize::try_from(length).unwrap_or(usize::MAX);
    match copy_file_range(from, into, offset, max_length) {
        Ok(0) => Err(end_of_file()),
        Ok(count) => Ok(count),
        Err(error) if needs_fallback(&error) => {
            let mut bytes = snapshot::zeroed(max_length.min(COPY_CHUNK_SIZE))?;
            let count = from.read_at(&mut bytes, offset)?;
            into.write_all_at(&bytes[..count], offset)?;
            if count == 0 {
                Err(end_of_file())
            } else {
                Ok(count as u64)
            }
        }
        Err(error) => Err(error),
    }
}

/// Returns true if only this system call failed: two file systems, no support in the file system or kernel, or a signal.
fn needs_fallback(error: &io::Error) -> bool {
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

fn copy_file_range(from: &File, into: &File, offset: u64, length: usize) -> io::Result<u64> {
    let mut read = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
    let mut written = read;
    // Not libc::copy_file_range: std refers to that symbol weakly. With LTO in a static binary only the weak reference remains,
    // the symbol is not linked, and the call goes to address 0.
    // SAFETY: both offsets are valid for reads and writes; the kernel writes no other memory of this process.
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

/// Reserves disk space for `range` without a change of its content. Has no effect if the file system does not support it.
fn reserve_range(file: &File, range: Range<u64>) -> io::Result<()> {
    match fallocate(file, libc::FALLOC_FL_KEEP_SIZE, &range) {
        Err(error) if needs_fallback(&error) => Ok(()),
        result => result,
    }
}

/// Turns `range` into a hole, or writes zeros if the file system does not support holes.
fn clear_range(file: &File, range: Range<u64>) -> io::Result<()> {
    match fallocate(
        file,
        libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
        &range,
    ) {
        Err(error) if needs_fallback(&error) => {}
        result => return result,
    }
    let zeros = snapshot::zeroed(COPY_CHUNK_SIZE)?;
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).map_or(COPY_CHUNK_SIZE, |left| left.min(COPY_CHUNK_SIZE));
        file.write_all_at(&zeros[..left], at)?;
        at += left as u64;
    }
    Ok(())
}

fn fallocate(file: &File, mode: libc::c_int, range: &Range<u64>) -> io::Result<()> {
    let start = libc::off_t::try_from(range.start).map_err(io::Error::other)?;
    let length = libc::off_t::try_from(range.end - range.start).map_err(io::Error::other)?;
    loop {
        // SAFETY: fallocate has no pointer arguments.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, start, length) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Calls sync_file_range(2). Has no effect if the file system does not support it.
fn sync_range(file: &File, range: &Range<u64>, flags: libc::c_uint) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let start = libc::off64_t::try_from(range.start).map_err(io::Error::other)?;
    let length = libc::off64_t::try_from(range.end - range.start).map_err(io::Error::other)?;
    // SAFETY: sync_file_range has no pointer arguments.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if needs_fallback(&error) => Ok(()),
        error => Err(error),
    }
}

/// Finds data or a hole. Moves the file position, which no other code uses: all reads and writes name their offset.
fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: lseek has no pointer arguments.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
