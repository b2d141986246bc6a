//! Dump of guest memory to a raw, page-aligned, sparse file.
//!
//! The file holds the regions one after another, sorted by address. There are two kinds of dump:
//!
//! - Full ([`dump_full`]): all of guest memory. Absent pages and pages of zeros are holes.
//! - Diff ([`DiffDump`]): the pages that differ from a base. Pages of zeros are data, so that a hole always means a
//!   page of the base; a file system that keeps no holes of single pages is rejected. If a file of the size of guest
//!   memory exists at the path, it is the base, and the pages are merged into it. With a [`DirtyTracker`], the base is the snapshot
//!   before. Without one, it is the loaded snapshot; memory that was not restored has no base then: its diff holds all pages, like
//!   a full dump.
//!
//! Pages are written in ranges directly from guest memory; the dump's own memory use does not grow with the guest. The
//! vCPUs must be paused and the devices drained from the first call to the last. If KVM may have written to memory
//! meanwhile, the caller discards the file and repeats the dump. The guest may run again during
//! [`PendingDump::commit`].

mod diff;
mod error;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use snapshot::{AtomicFile, GuestMemory};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::dirty::DirtyTracker;
use super::pagemap::{PageFilter, Pagemap};
use crate::cancellation::Cancellation;
use diff::{Resident, has_data_of, write_different};
pub use error::Error;
pub use writer::DumpStats;
use writer::{PageWriter, RegionExtent, Zeros};

/// Backing of the pages that this process has not written.
#[derive(Clone, Copy, Debug)]
pub enum PageOrigin<'a> {
    /// Zeros, and mapped parts of image files.
    Fresh,
    /// The memory file that [`map_snapshot`](super::map_snapshot) mapped.
    Mapped(&'a File),
    /// A fault handler in another process.
    Served,
}

/// Guest memory to dump.
#[derive(Clone, Copy, Debug)]
pub struct DumpSource<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// Backing of its untouched pages.
    pub origin: PageOrigin<'a>,
    /// Page table reader; `None` if /proc is not mounted.
    ///
    /// Without it, the dump reads every page of fresh memory, and a page of a truncated image file raises SIGBUS. A
    /// mapped memory file is compared with guest memory, except for pages that mincore(2) reports absent. mincore(2)
    /// reports none if the host has swap or the process may not write the file: the comparison then reads every page,
    /// which allocates page cache for holes of the file, and on tmpfs fills the holes.
    pub pagemap: Option<&'a Pagemap>,
    /// Checked between two pieces of at most 4 MiB.
    pub cancellation: &'a Cancellation,
}

/// Destination of a dump before the first write.
#[derive(Debug)]
pub enum DumpTarget {
    /// A new file of the size of guest memory, all of it a hole. It replaces the file at its path.
    New(AtomicFile),
    /// The existing base of the size of guest memory, and its path.
    Base(File, PathBuf),
}

impl DumpTarget {
    /// Creates a file that replaces the one at `path` on commit.
    ///
    /// # Errors
    /// [`Error::Replace`] or [`Error::Extend`]; no file remains then.
    pub fn new(source: &DumpSource<'_>, path: &Path) -> Result<Self, Error> {
        let replacement = AtomicFile::create(path).map_err(Error::Replace)?;
        let size = size(source);
        replacement.file().set_len(size).map_err(|source| Error::Extend {
            path: path.to_owned(),
            size,
            source,
        })?;
        Ok(Self::New(replacement))
    }

    /// Opens the file at `path` as base if it has the size of guest memory, otherwise creates a file.
    ///
    /// # Errors
    /// [`Error::Open`], and the errors of [`new`](Self::new).
    pub fn base_or_new(source: &DumpSource<'_>, path: &Path) -> Result<Self, Error> {
        let size = size(source);
        let is_base =
            std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
        if !is_base {
            return Self::new(source, path);
        }
        let opened = File::options().read(true).write(true).open(path);
        let file = opened.map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::Base(file, path.to_owned()))
    }

    /// Returns true for an existing base.
    pub fn is_base(&self) -> bool {
        matches!(self, Self::Base(..))
    }

    /// Returns true if the target has all pages of the loaded memory file. A new file, and a diff, also a partial one, have not.
    ///
    /// # Errors
    /// [`Error::UnknownBase`] for a base if guest memory does not come from a memory file, [`Error::Copy`] if a file cannot be read,
    /// [`Error::Cancelled`].
    pub fn has_all_pages(&self, source: &DumpSource<'_>) -> Result<bool, Error> {
        let Self::Base(file, path) = self else {
            return Ok(false);
        };
        let PageOrigin::Mapped(loaded) = source.origin else {
            return Err(Error::UnknownBase { path: path.clone() });
        };
        source.cancellation.exclude_budget()?;
        has_data_of(loaded, file, path, size(source), source.cancellation)
    }

    fn file(&self) -> &File {
        match self {
            Self::New(replacement) => replacement.file(),
            Self::Base(file, _) => file,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::New(replacement) => replacement.path(),
            Self::Base(_, path) => path,
        }
    }
}

/// Complete memory file under a temporary name.
///
/// Dropping it removes the file. Pages that were merged into a base stay there.
#[derive(Debug)]
#[must_use = "commit() renames the file"]
pub struct PendingDump {
    target: DumpTarget,
    written: DumpStats,
}

impl PendingDump {
    /// Returns the amount of data written.
    pub fn written(&self) -> DumpStats {
        self.written
    }

    /// Syncs the file to disk.
    ///
    /// # Errors
    /// [`Error::Replace`], or [`Error::Sync`] for a base.
    pub fn sync(&mut self) -> Result<(), Error> {
        match &mut self.target {
            DumpTarget::New(replacement) => replacement.sync().map_err(Error::Replace),
            DumpTarget::Base(file, path) => file.sync_all().map_err(|source| Error::Sync {
                path: path.clone(),
                source,
            }),
        }
    }

    /// Syncs the file to disk and renames it to its final path.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn commit(mut self) -> Result<DumpStats, Error> {
        match self.target {
            DumpTarget::New(replacement) => replacement.commit().map_err(Error::Replace)?,
            DumpTarget::Base(..) => self.sync()?,
        }
        Ok(self.written)
    }
}

/// Writes all of guest memory to `target`, which must be a new file: pages of zeros are skipped and would keep the data
/// of a base. The file occupies disk space for the other pages only.
///
/// # Errors
/// Any [`Error`] except [`Error::Unknown`] and [`Error::Holes`]; no file remains then.
pub fn dump_full(source: &DumpSource<'_>, target: DumpTarget) -> Result<PendingDump, Error> {
    let (file, path) = (target.file(), target.path());
    let mut writer = PageWriter::new(file, path, source.cancellation);
    match source.origin {
        PageOrigin::Mapped(base) => {
            // A copy in the kernel skips holes of the base; reads of guest memory would allocate page cache for them.
            writer.copy_data(base, size(source))?;
            write_changed(source, &mut writer)?;
        }
        PageOrigin::Fresh => write_changed(source, &mut writer)?,
        PageOrigin::Served => {
            for extent in extents(source) {
                let extent = extent?;
                writer.write_pages(&extent, extent.range(), Zeros::Holes)?;
            }
        }
    }
    let written = writer.stats(size(source), false);
    Ok(PendingDump { target, written })
}

/// Dump of the changed pages into a base or a new file.
///
/// A merge into a base changes the memory of every VM that maps it, except for pages that the VM has written. A partial
/// merge leaves a base that matches no snapshot. The caller therefore removes the state file of the base first.
#[derive(Debug)]
#[must_use = "write() writes the pages"]
pub struct DiffDump<'a> {
    target: DumpTarget,
    /// Source of the pages to write. `None`: all pages that differ from the backing.
    dirty: Option<&'a DirtyTracker>,
    /// Reserved ranges of the file; `None` if the pages must be listed again.
    ranges: Option<Vec<Range<u64>>>,
}

impl<'a> DiffDump<'a> {
    /// Reserves disk space in a base for the changed pages. The content of the base does not change. The pages of `dirty` were
    /// [collected](DirtyTracker::collect); a base must then be the snapshot before.
    ///
    /// # Errors
    /// Any [`Error`]; no new file remains then. [`Error::Unknown`] if the changed pages cannot be determined.
    pub fn prepare(
        source: &DumpSource<'_>,
        dirty: Option<&'a DirtyTracker>,
        target: DumpTarget,
    ) -> Result<Self, Error> {
        let ranges = if let DumpTarget::Base(file, path) = &target {
            let mut writer = PageWriter::reserving(file, path, source.cancellation);
            write_diff(source, dirty, &mut writer)?;
            writer.into_reserved()
        } else {
            None
        };
        Ok(Self {
            target,
            dirty,
            ranges,
        })
    }

    /// Returns true if the pages are merged into an existing base.
    pub fn is_merged(&self) -> bool {
        self.target.is_base()
    }

    /// Writes the dirty pages, or those that changed since memory was mapped; of fresh memory, all touched pages. Memory must not
    /// change between [`prepare`](Self::prepare) and this call.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn write(self, source: &DumpSource<'_>) -> Result<PendingDump, Error> {
        let Self {
            target,
            dirty,
            ranges,
        } = self;
        let size = size(source);
        let (file, path, merged) = (target.file(), target.path(), target.is_base());
        let is_complete = dirty.is_none() && matches!(source.origin, PageOrigin::Fresh);
        // Absent pages of fresh memory are zeros; the file may hold other data there.
        let mut writer = if is_complete && merged {
            PageWriter::clearing(file, path, source.cancellation)
        } else {
            PageWriter::new(file, path, source.cancellation)
        };
        match ranges {
            Some(ranges) => write_reserved(source, ranges, &mut writer)?,
            None => write_diff(source, dirty, &mut writer)?,
        }
        writer.finish(size)?;
        if !is_complete && !merged {
            writer.check_holes(size)?;
        }
        let written = writer.stats(size, merged);
        Ok(PendingDump { target, written })
    }
}

/// Merges the diff file at `diff` into the memory file at `base` and syncs it.
///
/// # Errors
/// [`Error::Open`], [`Error::Length`] if the files differ in length, and the errors of a write. After a failed write the base
/// matches no snapshot; a repeated merge completes it.
pub fn merge_diff(diff: &Path, base: &Path) -> Result<DumpStats, Error> {
    let open = |path: &Path, writable| {
        let opened = File::options().read(true).write(writable).open(path);
        let checked = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        checked.map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
    };
    let (size, from) = open(diff, false)?;
    let (found, into) = open(base, true)?;
    if found != size {
        return Err(Error::Length {
            path: base.to_owned(),
            found,
            needed: size,
        });
    }
    let cancellation = Cancellation::default();
    let mut writer = PageWriter::new(&into, base, &cancellation);
    writer.copy_data(&from, size)?;
    let written = writer.stats(size, true);
    into.sync_all().map_err(|source| Error::Sync {
        path: base.to_owned(),
        source,
    })?;
    Ok(written)
}

fn size(source: &DumpSource<'_>) -> u64 {
    source.memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Returns the regions with their offsets in the file.
fn extents<'a>(source: &DumpSource<'a>) -> impl Iterator<Item = Result<RegionExtent<'a>, Error>> {
    source.memory.iter().scan(0, |offset, region| {
        let extent = RegionExtent::new(region, *offset);
        *offset += region.len();
        Some(extent)
    })
}

/// Writes the `dirty` pages, or without them all [changed pages](write_changed).
fn write_diff(
    source: &DumpSource<'_>,
    dirty: Option<&DirtyTracker>,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    let Some(dirty) = dirty else {
        return write_changed(source, writer);
    };
    for (extent, region) in extents(source).zip(source.memory.iter()) {
        let extent = extent?;
        for range in dirty.ranges(region) {
            writer.write_pages(&extent, range.map_err(Error::Pages)?, Zeros::Data)?;
        }
    }
    Ok(())
}

/// Writes the touched pages of fresh memory, or the changed pages of restored memory.
fn write_changed(source: &DumpSource<'_>, writer: &mut PageWriter<'_>) -> Result<(), Error> {
    for extent in extents(source) {
        let extent = extent?;
        match (source.origin, source.pagemap) {
            (PageOrigin::Fresh, Some(pagemap)) => write_fresh(&extent, pagemap, writer)?,
            (PageOrigin::Fresh, None) => writer.write_pages(&extent, extent.range(), Zeros::Holes)?,
            // A page that the fault handler has not served is absent and equals the base.
            (PageOrigin::Mapped(_) | PageOrigin::Served, Some(pagemap)) => {
                write_private(&extent, pagemap, writer)?
            }
            (PageOrigin::Mapped(base), None) => {
                write_different(source.memory, &extent, base, Resident::of_host(), writer)?
            }
            (PageOrigin::Served, None) => write_served(&extent, Resident::of_host(), writer)?,
        }
    }
    Ok(())
}

/// Writes the `ranges` of the file that [`DiffDump::prepare`] reserved.
fn write_reserved(
    source: &DumpSource<'_>,
    ranges: Vec<Range<u64>>,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    let mut ranges = ranges.into_iter().peekable();
    for extent in extents(source) {
        let extent = extent?;
        let (start, end) = (extent.offset(), extent.offset() + extent.range().end);
        while let Some(range) = ranges.next_if(|range| range.start < end) {
            writer.write_pages(&extent, range.start - start..range.end - start, Zeros::Data)?;
        }
    }
    Ok(())
}

/// Writes the touched pages of memory that started as zeros, and all pages of files mapped over it.
fn write_fresh(
    extent: &RegionExtent<'_>,
    pagemap: &Pagemap,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    let host = extent.host();
    let mut at = host.start;
    for file in pagemap.mapped_files(&host).map_err(Error::Pages)? {
        write_touched(extent, pagemap, at..file.start, writer)?;
        at = file.end;
        // Without a search for zeros: in a truncated file it raises SIGBUS, whereas pwrite(2) fails with EFAULT.
        writer.write_pages(extent, extent.offsets(&file), Zeros::Data)?;
    }
    write_touched(extent, pagemap, at..host.end, writer)
}

fn write_touched(
    extent: &RegionExtent<'_>,
    pagemap: &Pagemap,
    host: Range<u64>,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    for range in pagemap.ranges(host, PageFilter::Touched) {
        let range = range.map_err(Error::Pages)?;
        writer.write_pages(extent, extent.offsets(&range), Zeros::Holes)?;
    }
    Ok(())
}

/// Writes the private copies of pages.
fn write_private(
    extent: &RegionExtent<'_>,
    pagemap: &Pagemap,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    for range in pagemap.ranges(extent.host(), PageFilter::Private) {
        let range = range.map_err(Error::Pages)?;
        writer.write_pages(extent, extent.offsets(&range), Zeros::Data)?;
    }
    Ok(())
}

/// Writes the resident pages of memory from a fault handler, for hosts without /proc.
fn write_served(
    extent: &RegionExtent<'_>,
    resident: Resident,
    writer: &mut PageWriter<'_>,
) -> Result<(), Error> {
    // Reading an absent page would trigger the fault handler.
    if resident == Resident::Unknown {
        return Err(Error::Unknown);
    }
    for range in resident.page_ranges(extent) {
        writer.write_pages(extent, range, Zeros::Data)?;
    }
    Ok(())
}
