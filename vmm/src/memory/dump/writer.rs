//! Runs of pages, written from where they are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice};

use super::error::Error;
use crate::memory::map::page_size;

/// Bytes that are looked at before they are written: about what the processor's cache keeps in between.
const CHUNK_SIZE: u64 = 256 << 10;

/// Runs that are remembered, so that they are looked for once: what that takes is not to grow with the guest.
const REMEMBERED: usize = 4096;

/// How much was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpStats {
    /// Pages that are in the file as data; a page that was written twice counts twice.
    pub pages: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// Length of the file in bytes: the size of guest memory.
    pub size: u64,
    /// Whether the pages went into a file that was there already.
    pub merged: bool,
}

/// What becomes of pages that hold nothing but zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// They are left out.
    Holes,
    /// They are written like others.
    Data,
}

/// A region of guest memory and its place in the file.
#[derive(Debug)]
pub(super) struct RegionExtent<'a> {
    guest: u64,
    slice: VolatileSlice<'a>,
    offset: u64,
}

impl<'a> RegionExtent<'a> {
    pub fn new(region: &'a GuestRegionMmap<()>, offset: u64) -> Result<Self, Error> {
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

    /// Offsets of all its bytes.
    pub fn range(&self) -> Range<u64> {
        0..self.slice.len() as u64
    }

    /// Guest-physical addresses.
    pub fn guest(&self) -> Range<u64> {
        self.guest..self.guest + self.range().end
    }

    /// Its place in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Addresses in this process.
    pub fn host(&self) -> Range<u64> {
        let start = self.slice.ptr_guard().as_ptr().addr() as u64;
        start..start + self.range().end
    }

    /// What is at these addresses of this process, as offsets.
    pub fn offsets(&self, host: &Range<u64>) -> Range<u64> {
        let start = self.host().start;
        host.start.saturating_sub(start)..host.end.saturating_sub(start)
    }

    pub fn slice(&self, range: &Range<u64>) -> Result<VolatileSlice<'a>, Error> {
        let outside = || Error::Outside(self.guest + range.start..self.guest + range.end);
        let start = usize::try_from(range.start).map_err(|_| outside())?;
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        self.slice.subslice(start, length).map_err(|_| outside())
    }
}

/// What is done with pages and with what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageAction {
    /// Pages are written, and the rest stays as it is.
    Write,
    /// Pages are written, and the rest becomes holes.
    WriteAndClear,
    /// Nothing changes, but there will be space on the disk for the pages.
    Reserve,
}

/// The file, and what has been written to it.
#[derive(Debug)]
pub(super) struct PageWriter<'a> {
    file: &'a File,
    path: &'a Path,
    deed: PageAction,
    bytes: u64,
    first: Option<Range<u64>>,
    end: u64,
    reserved: Vec<Range<u64>>,
}

impl<'a> PageWriter<'a> {
    pub fn new(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            deed: PageAction::Write,
            bytes: 0,
            first: None,
            end: 0,
            reserved: Vec::new(),
        }
    }

    /// One that makes holes of what it does not write. The pages must come in their order, and [`finish`](Self::finish) last.
    pub fn clearing(file: &'a File, path: &'a Path) -> Self {
        Self {
            deed: PageAction::WriteAndClear,
            ..Self::new(file, path)
        }
    }

    /// One that only finds out whether the disk has the space, and takes it.
    pub fn reserving(file: &'a File, path: &'a Path) -> Self {
        Self {
            deed: PageAction::Reserve,
            ..Self::new(file, path)
        }
    }

    /// What goes wrong with another file.
    pub fn not_copied(&self, offset: u64, source: io::Error) -> Error {
        let path = self.path.to_owned();
        Error::Copy { path, offset, source }
    }

    /// Counts what came from another file.
    pub fn copied(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub fn written(&self, size: u64, merged: bool) -> DumpStats {
        DumpStats {
            pages: self.bytes.div_ceil(page_size()),
            bytes: self.bytes,
            size,
            merged,
        }
    }

    /// Writes the pages at these offsets of `part`.
    pub fn put(&mut self, part: &RegionExtent<'_>, range: Range<u64>, zeros: Zeros) -> Result<(), Error> {
        let page = page_size();
        if zeros == Zeros::Data {
            return self.write(part, range);
        }
        let mut start = range.start;
        for at in range.clone().step_by(usize::try_from(page).unwrap_or(4096)) {
            let end = at + page;
            if is_zero(&part.slice(&(at..end))?) {
                self.write(part, start..at)?;
                start = end;
            } else if end - start >= CHUNK_SIZE {
                self.write(part, start..end)?;
                start = end;
            }
        }
        self.write(part, start..range.end)
    }

    /// Ends a file of `size` bytes.
    pub fn finish(&mut self, size: u64) -> Result<(), Error> {
        self.clear(size)
    }

    /// Makes a hole from the last page that was written to `until`, if that is to be done.
    fn clear(&mut self, until: u64) -> Result<(), Error> {
        if self.deed != PageAction::WriteAndClear || until <= self.end {
            return Ok(());
        }
        clear_range(self.file, self.end..until).map_err(|source| Error::Write {
            path: self.path.to_owned(),
            offset: self.end,
            length: until - self.end,
            source,
        })
    }

    /// What has been reserved, as offsets in the file, none across two parts; none when it is more than is remembered.
    pub fn into_reserved(self) -> Option<Vec<Range<u64>>> {
        (self.reserved.len() <= REMEMBERED).then_some(self.reserved)
    }

    fn reserve(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        if self.reserved.len() <= REMEMBERED {
            self.reserved.push(offset..offset + length);
        }
        reserve_range(self.file, offset..offset + length).map_err(|source| Error::Write {
            path: self.path.to_owned(),
            offset,
            length,
            source,
        })
    }

    fn write(&mut self, part: &RegionExtent<'_>, range: Range<u64>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        if self.deed == PageAction::Reserve {
            return self.reserve(part.offset + range.start, range.end - range.start);
        }
        self.clear(part.offset + range.start)?;
        let mut at = range.start;
        while at < range.end {
            let slice = part.slice(&(at..range.end))?;
            let offset = part.offset + at;
            match write_at(self.file, &slice, offset) {
                Ok(written) => at += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(Error::Gone {
                        address: part.guest + at,
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
        self.note(part.offset + range.start..part.offset + range.end);
        Ok(())
    }

    fn note(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        self.end = range.end;
        match &mut self.first {
            Some(first) if first.end == range.start => first.end = range.end,
            Some(_) => {}
            None => self.first = Some(range),
        }
    }

    /// Looks whether the file system has kept what is before and behind the first run as holes.
    pub fn check_holes(&self, size: u64) -> Result<(), Error> {
        let first = self.first.clone().unwrap_or(size..size);
        let failed = |source| self.not_copied(first.start, source);
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

fn write_at(file: &File, slice: &VolatileSlice<'_>, offset: u64) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let host = slice.ptr_guard();
    // SAFETY: `host` points to `slice.len()` bytes of guest memory, which stay mapped as long as `slice` lives.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), host.as_ptr().cast(), slice.len(), offset) };
    match u64::try_from(written) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => Ok(written),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Whether all bytes of a page are zero.
fn is_zero(slice: &VolatileSlice<'_>) -> bool {
    let host = slice.ptr_guard();
    let words = host.as_ptr().cast::<u64>();
    (0..slice.len() / 8).step_by(8).all(|group| {
        let word = |at| {
            let address = words.wrapping_add(group + at);
            // SAFETY: within the page, which is mapped and whose size is a multiple of eight words, and aligned as pages are.
            unsafe { address.read_volatile() }
        };
        (0..8).fold(0, |bits, at| bits | word(at)) == 0
    })
}

/// Bytes that are copied at a time where the kernel does not copy by itself.
const COPY_CHUNK_SIZE: usize = 64 << 10;

/// Where the next data begins, at `offset` or behind it; none when there is only a hole.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        found => found.map(Some),
    }
}

/// Where the data at `offset` ends.
pub(super) fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    match seek(file, offset, libc::SEEK_HOLE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(offset),
        found => found,
    }
}

/// Copies the data of the first `size` bytes of `from` to the same places of `into`, which is at `path`, and returns how many
/// bytes that were.
pub(super) fn copy_data(from: &File, into: &File, size: u64, path: &Path) -> Result<u64, Error> {
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
        let start = next_data(from, at).map_err(|source| refused(at, source))?;
        let Some(start) = start.filter(|start| *start < size) else {
            return Ok(copied);
        };
        let end = next_hole(from, start).map_err(|source| refused(start, source))?;
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
            let mut bytes = vec![0; most.min(COPY_CHUNK_SIZE)];
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
fn reserve_range(file: &File, range: Range<u64>) -> io::Result<()> {
    match fallocate(file, libc::FALLOC_FL_KEEP_SIZE, &range) {
        Err(error) if other_way(&error) => Ok(()),
        done => done,
    }
}

/// Makes zeros of `range`: a hole, where the file system makes holes.
fn clear_range(file: &File, range: Range<u64>) -> io::Result<()> {
    match fallocate(
        file,
        libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
        &range,
    ) {
        Err(error) if other_way(&error) => {}
        done => return done,
    }
    let zeros = vec![0; COPY_CHUNK_SIZE];
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
