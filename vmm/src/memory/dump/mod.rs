//! Guest memory into a file: raw, page-aligned, sparse.
//!
//! The regions follow each other in the file by address. Two kinds of file are written:
//!
//! - [`dump_full`]: all of the memory. Pages that were never touched and pages of zeros are holes.
//! - [`DiffDump`]: the pages that differ from a base, and nothing else. They are data even when they are zeros, so that a
//!   hole always means a page of the base; a file system that keeps no holes of single pages is refused. Where a file of the
//!   memory's size is there already, it is taken for the base and the pages are written into it. Memory that was not
//!   restored has no base: the file then holds all of it, like that of [`dump_full`].
//!
//! Guest memory is written from where it is, in runs of pages; what that takes does not grow with the guest. The vCPUs are
//! parked and the devices quiet from before the first call until it returns. Where KVM may have written to memory meanwhile, the
//! file is given up and made anew. After that the guest may run, while [`PendingDump::commit`] brings the file to the disk.

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

use super::pagemap::{PageFilter, Pagemap};
use diff::{Resident, write_different};
pub use error::Error;
pub use writer::DumpStats;
use writer::{PageWriter, RegionExtent, Zeros, copy_data};

/// Where the pages come from that nobody in this process has written.
#[derive(Clone, Copy, Debug)]
pub enum PageOrigin<'a> {
    /// Zeros, and parts of image files that are mapped over them.
    Fresh,
    /// This memory file, as [`map_snapshot`](super::map_snapshot) mapped it.
    Mapped(&'a File),
    /// A page fault handler in another process.
    Served,
}

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct DumpSource<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// Where it came from.
    pub origin: PageOrigin<'a>,
    /// How to ask for its pages; none where there is no /proc.
    ///
    /// Without it, fresh memory is looked at page by page, and a page of an image file that was cut short raises SIGBUS. What a
    /// memory file was mapped as is compared with that file, but for the pages that mincore(2) says are not there. It does
    /// not say so where there is swap, nor to who could not write the file: each page is then looked at, which takes page
    /// cache for the holes of the file, and on tmpfs fills them.
    pub pagemap: Option<&'a Pagemap>,
}

/// The file that memory goes to, before anything is written to it.
#[derive(Debug)]
pub enum DumpTarget {
    /// A new one, as long as the memory and one hole. It will replace what is there.
    New(AtomicFile),
    /// The base, which is there already and is as long as the memory.
    Base(File, PathBuf),
}

impl DumpTarget {
    /// A new file that will replace what is at `path`.
    ///
    /// # Errors
    /// [`Error::Replace`] and [`Error::Extend`]; nothing is left behind then.
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

    /// The file at `path` if it is as long as the memory, else a new one.
    ///
    /// # Errors
    /// [`Error::Open`], and as [`new`](Self::new).
    pub fn base_or_new(source: &DumpSource<'_>, path: &Path) -> Result<Self, Error> {
        let size = size(source);
        let fits = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
        if !fits {
            return Self::new(source, path);
        }
        let opened = File::options().read(true).write(true).open(path);
        let file = opened.map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::Base(file, path.to_owned()))
    }

    /// Whether it is a file that was there before.
    fn is_base(&self) -> bool {
        matches!(self, Self::Base(..))
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

/// A memory file that holds all it should and does not have its name yet. Dropped, it is gone; but what was written into a
/// base stays.
#[derive(Debug)]
#[must_use = "the file gets its name by commit()"]
pub struct PendingDump {
    target: DumpTarget,
    written: DumpStats,
}

impl PendingDump {
    /// How much was written.
    pub fn written(&self) -> DumpStats {
        self.written
    }

    /// Brings the file to the disk.
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

    /// Brings the file to the disk and gives it its name.
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

/// Writes all of the memory to `target`, which is a new file: what a base has where the memory has zeros would stay. Takes space
/// for the pages that are not zeros.
///
/// # Errors
/// Any [`Error`] but [`Error::Unknown`] and [`Error::Holes`]; nothing is left behind then.
pub fn dump_full(source: &DumpSource<'_>, target: DumpTarget) -> Result<PendingDump, Error> {
    let (file, path) = (target.file(), target.path());
    let mut output = PageWriter::new(file, path);
    match source.origin {
        PageOrigin::Mapped(base) => {
            // What the file has is copied by the kernel, which does not bring its holes into memory as a look at them would.
            output.copied(copy_data(base, file, size(source), path)?);
            write_changed(source, &mut output)?;
        }
        PageOrigin::Fresh => write_changed(source, &mut output)?,
        PageOrigin::Served => {
            for part in parts(source) {
                let part = part?;
                output.put(&part, part.range(), Zeros::Holes)?;
            }
        }
    }
    let written = output.written(size(source), false);
    Ok(PendingDump { target, written })
}

/// The pages that changed, into a base or a new file.
///
/// To write into a base changes the memory of every VM that maps it, except where that VM has written itself; and a base
/// that was written in part is neither what it was nor what it should be. So its state file is removed before.
#[derive(Debug)]
#[must_use = "the pages are written by write()"]
pub struct DiffDump {
    target: DumpTarget,
    /// Where in the file the pages go, if that is known already.
    runs: Option<Vec<Range<u64>>>,
}

impl DiffDump {
    /// Sees to it that a base has the space on the disk. Its content stays what it is.
    ///
    /// # Errors
    /// Any [`Error`]; nothing of a new file is left behind then. [`Error::Unknown`] when it cannot be found out what changed.
    pub fn prepare(source: &DumpSource<'_>, target: DumpTarget) -> Result<Self, Error> {
        let runs = if let DumpTarget::Base(file, path) = &target {
            let mut reserve = PageWriter::reserving(file, path);
            write_changed(source, &mut reserve)?;
            reserve.into_reserved()
        } else {
            None
        };
        Ok(Self { target, runs })
    }

    /// Whether the pages go into a file that is there already.
    pub fn is_merged(&self) -> bool {
        self.target.is_base()
    }

    /// Writes the pages that were written since the memory was mapped; of fresh memory, all that were touched. Neither has
    /// changed since [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn write(self, source: &DumpSource<'_>) -> Result<PendingDump, Error> {
        let Self { target, runs } = self;
        let size = size(source);
        let (file, path, merged) = (target.file(), target.path(), target.is_base());
        let fresh = matches!(source.origin, PageOrigin::Fresh);
        // Where fresh memory was not touched there are zeros, whatever the file had there.
        let mut output = if fresh && merged {
            PageWriter::clearing(file, path)
        } else {
            PageWriter::new(file, path)
        };
        match runs {
            Some(runs) => write_reserved(source, runs, &mut output)?,
            None => write_changed(source, &mut output)?,
        }
        output.finish(size)?;
        if !fresh && !merged {
            output.check_holes(size)?;
        }
        let written = output.written(size, merged);
        Ok(PendingDump { target, written })
    }
}

/// Writes the pages of the difference at `diff` into the file at `base`, and syncs it.
///
/// # Errors
/// [`Error::Open`], [`Error::Length`] when the two are not equally long, and as for writing. The base is then neither what
/// it was nor what it should be; to merge once more completes it.
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
    let mut output = PageWriter::new(&into, base);
    output.copied(copy_data(&from, &into, size, base)?);
    let written = output.written(size, true);
    into.sync_all().map_err(|source| Error::Sync {
        path: base.to_owned(),
        source,
    })?;
    Ok(written)
}

fn size(source: &DumpSource<'_>) -> u64 {
    source.memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The regions, each with its place in the file.
fn parts<'a>(source: &DumpSource<'a>) -> impl Iterator<Item = Result<RegionExtent<'a>, Error>> {
    source.memory.iter().scan(0, |offset, region| {
        let part = RegionExtent::new(region, *offset);
        *offset += region.len();
        Some(part)
    })
}

/// What was touched of fresh memory, and what differs of memory that was restored.
fn write_changed(source: &DumpSource<'_>, output: &mut PageWriter<'_>) -> Result<(), Error> {
    for part in parts(source) {
        let part = part?;
        match (source.origin, source.pagemap) {
            (PageOrigin::Fresh, Some(pagemap)) => write_fresh(&part, pagemap, output)?,
            (PageOrigin::Fresh, None) => output.put(&part, part.range(), Zeros::Holes)?,
            // What a handler has not served yet is not there, and is the base's.
            (PageOrigin::Mapped(_) | PageOrigin::Served, Some(pagemap)) => {
                write_private(&part, pagemap, output)?
            }
            (PageOrigin::Mapped(base), None) => {
                write_different(source.memory, &part, base, Resident::here(), output)?
            }
            (PageOrigin::Served, None) => write_served(&part, Resident::here(), output)?,
        }
    }
    Ok(())
}

/// What [`write_changed`] has found before.
fn write_reserved(
    source: &DumpSource<'_>,
    runs: Vec<Range<u64>>,
    output: &mut PageWriter<'_>,
) -> Result<(), Error> {
    let mut runs = runs.into_iter().peekable();
    for part in parts(source) {
        let part = part?;
        let (start, end) = (part.offset(), part.offset() + part.range().end);
        while let Some(run) = runs.next_if(|run| run.start < end) {
            output.put(&part, run.start - start..run.end - start, Zeros::Data)?;
        }
    }
    Ok(())
}

/// What was touched of memory that began as zeros, and what is mapped over it from files, touched or not.
fn write_fresh(part: &RegionExtent<'_>, pagemap: &Pagemap, output: &mut PageWriter<'_>) -> Result<(), Error> {
    let host = part.host();
    let mut at = host.start;
    for file in pagemap.mapped_files(&host).map_err(Error::Pages)? {
        touched(part, pagemap, at..file.start, output)?;
        at = file.end;
        // Not looked at before it is written: if the file was cut short, the kernel says so where we would get SIGBUS.
        output.put(part, part.offsets(&file), Zeros::Data)?;
    }
    touched(part, pagemap, at..host.end, output)
}

fn touched(
    part: &RegionExtent<'_>,
    pagemap: &Pagemap,
    host: Range<u64>,
    output: &mut PageWriter<'_>,
) -> Result<(), Error> {
    for run in pagemap.runs(host, PageFilter::Touched) {
        let run = run.map_err(Error::Pages)?;
        output.put(part, part.offsets(&run), Zeros::Holes)?;
    }
    Ok(())
}

/// What is no longer the file's.
fn write_private(
    part: &RegionExtent<'_>,
    pagemap: &Pagemap,
    output: &mut PageWriter<'_>,
) -> Result<(), Error> {
    for run in pagemap.runs(part.host(), PageFilter::Private) {
        let run = run.map_err(Error::Pages)?;
        output.put(part, part.offsets(&run), Zeros::Data)?;
    }
    Ok(())
}

/// What was served or written, as far as the kernel tells without /proc.
fn write_served(
    part: &RegionExtent<'_>,
    resident: Resident,
    output: &mut PageWriter<'_>,
) -> Result<(), Error> {
    // To look at a page that is not there would be to have it served.
    if resident == Resident::Unknown {
        return Err(Error::Unknown);
    }
    for run in resident.runs(part) {
        output.put(part, run, Zeros::Data)?;
    }
    Ok(())
}
