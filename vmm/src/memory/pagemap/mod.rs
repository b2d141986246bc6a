//! Page state of this process, from /proc/self/pagemap and /proc/self/maps.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::map::page_size;

/// Entries of /proc/self/pagemap per read.
const ENTRIES: usize = 8 << 10;

// Flags of an entry: Linux Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const WRITE_PROTECTED: u64 = 1 << 57;

/// Page ranges per call of PAGEMAP_SCAN.
const SCAN_RANGES: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)` of linux/fs.h.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

// Page categories of linux/fs.h.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

// Flags of a scan in linux/fs.h: pages that match are write-protected, and others are an error.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// Error of a page state request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /proc is not mounted, or access to it is denied.
    #[error("cannot open {path}; mount /proc")]
    Open {
        /// Path of the file.
        path: &'static str,
        /// Error of `open`.
        #[source]
        source: io::Error,
    },
    /// The mappings could not be read.
    #[error("cannot read /proc/self/maps")]
    Mappings(#[source] io::Error),
    /// The pages could not be read.
    #[error("cannot read the state of the pages {:#x}..{:#x}", .range.start, .range.end)]
    Pages {
        /// Host addresses.
        range: Range<u64>,
        /// Error of the ioctl or the read.
        #[source]
        source: io::Error,
    },
    /// The pages could not be write-protected.
    #[error("cannot write-protect the pages {:#x}..{:#x}", .range.start, .range.end)]
    Protect {
        /// Host addresses.
        range: Range<u64>,
        /// Error of the ioctl.
        #[source]
        source: io::Error,
    },
}

/// Selection of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFilter {
    /// Pages that are in memory or in swap.
    Touched,
    /// Pages that are in memory or in swap and not backed by a file: in a private file mapping, the written pages.
    Private,
    /// Private pages that were written since they were [write-protected](Pagemap::protect); before, all private pages. A page of
    /// zeros that was only read is not written.
    Written,
}

impl PageFilter {
    fn matches(self, entry: u64) -> bool {
        entry & (PRESENT | SWAPPED) != 0
            && match self {
                Self::Touched => true,
                Self::Private => entry & FILE == 0,
                Self::Written => entry & (FILE | WRITE_PROTECTED) == 0,
            }
    }

    /// Returns the categories that a page must have, and those that it must not have.
    fn categories(self) -> (u64, u64) {
        match self {
            Self::Touched => (0, 0),
            Self::Private => (0, PAGE_IS_FILE),
            Self::Written => (PAGE_IS_WRITTEN, PAGE_IS_FILE | PAGE_IS_PFNZERO),
        }
    }
}

/// State of the pages of this process.
const PAGEMAP: &str = "/proc/self/pagemap";

/// File of [`Pagemap::keep_open`].
static KEPT: OnceLock<File> = OnceLock::new();

/// Reader of the page state. Belongs to the process that opened it: a forked child must open its own.
#[derive(Debug)]
pub struct Pagemap {
    pages: File,
    mappings: File,
}

impl Pagemap {
    /// Opens the files of /proc, which may be unmounted later.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let open = |path| File::open(path).map_err(|source| Error::Open { path, source });
        let pages = match KEPT.get() {
            Some(file) => file.try_clone().map_err(|source| Error::Open {
                path: PAGEMAP,
                source,
            })?,
            None => open(PAGEMAP)?,
        };
        Ok(Self {
            pages,
            mappings: open("/proc/self/maps")?,
        })
    }

    /// Opens the page state of this process for all later calls of [`open`](Self::open): the file belongs to root once other processes
    /// must not access this one. Has no effect without /proc.
    pub fn keep_open() {
        if let Ok(file) = File::open(PAGEMAP) {
            let _ = KEPT.set(file);
        }
    }

    /// Returns the page ranges of `range` that match `filter`, as sorted, page-aligned host addresses. Two ranges may be
    /// adjacent. A page that changes during the iteration may or may not be included.
    pub fn ranges(&self, range: Range<u64>, filter: PageFilter) -> PageRanges<'_> {
        PageRanges {
            pages: &self.pages,
            rest: range,
            filter,
            scan: Some(Scan::new(filter)),
            found: VecDeque::new(),
        }
    }

    /// Write-protects the [written](PageFilter::Written) pages of `range`, which must be registered with a userfaultfd for
    /// asynchronous write-protection. The kernel removes the protection of a page at its next write.
    ///
    /// # Errors
    /// [`Error::Protect`]; some pages may be protected then.
    pub fn protect(&self, range: Range<u64>) -> Result<(), Error> {
        let mut rest = range;
        while !rest.is_empty() {
            let mut argument = PmScanArg {
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                ..PmScanArg::new(&rest, PageFilter::Written)
            };
            let scanned = scan(&self.pages, &mut argument);
            scanned.map_err(|source| Error::Protect {
                range: rest.clone(),
                source,
            })?;
            rest.start = argument.walk_end.min(rest.end);
        }
        Ok(())
    }

    /// Returns the sorted parts of `range` that are mapped from files, resident or not.
    ///
    /// # Errors
    /// [`Error::Mappings`].
    pub fn mapped_files(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>, Error> {
        let mut mappings = &self.mappings;
        mappings.rewind().map_err(Error::Mappings)?;
        let mut found = Vec::new();
        for line in BufReader::new(mappings).split(b'\n') {
            let line = line.map_err(Error::Mappings)?;
            // The path at the end of a line may hold any bytes.
            let line = String::from_utf8_lossy(&line);
            let Some((mapping, inode)) = parse_mapping(&line) else {
                return Err(Error::Mappings(io::Error::other(line.into_owned())));
            };
            let part = mapping.start.max(range.start)..mapping.end.min(range.end);
            if inode != 0 && !part.is_empty() {
                found.push(part);
            }
        }
        Ok(found)
    }
}

/// Parses address range and inode of a line such as `7f00-7f10 rw-p 00000000 fd:00 1234    /path`.
fn parse_mapping(line: &str) -> Option<(Range<u64>, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let inode = fields.nth(3)?.parse().ok()?;
    Some((number(start)?..number(end)?, inode))
}

/// Iterator over page ranges. Requests them in chunks, so that its memory use does not grow with the range.
#[derive(Debug)]
pub struct PageRanges<'a> {
    pages: &'a File,
    rest: Range<u64>,
    filter: PageFilter,
    scan: Option<Scan>,
    found: VecDeque<Range<u64>>,
}

impl PageRanges<'_> {
    /// Adds the ranges of the next chunk to `found`.
    fn advance(&mut self) -> io::Result<()> {
        if let Some(scan) = &mut self.scan {
            match scan.advance(self.pages, &mut self.rest, &mut self.found) {
                // Linux before 6.7 has no PAGEMAP_SCAN.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.scan = None,
                result => return result,
            }
        }
        self.read_entries()
    }

    fn read_entries(&mut self) -> io::Result<()> {
        let page = page_size();
        let pages = (self.rest.end - self.rest.start).div_ceil(page);
        let count = usize::try_from(pages).map_or(ENTRIES, |pages| pages.min(ENTRIES));
        let mut entries = snapshot::zeroed(8 * count)?;
        self.pages
            .read_exact_at(&mut entries, self.rest.start / page * 8)?;
        for (entry, address) in entries
            .chunks_exact(8)
            .zip((self.rest.start..).step_by(page_bytes()))
        {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(entry);
            if !self.filter.matches(u64::from_ne_bytes(bytes)) {
                continue;
            }
            match self.found.back_mut() {
                Some(range) if range.end == address => range.end += page,
                _ => self.found.push_back(address..address + page),
            }
        }
        self.rest.start = self
            .rest
            .end
            .min(self.rest.start.saturating_add(count as u64 * page));
        Ok(())
    }
}

impl Iterator for PageRanges<'_> {
    type Item = Result<Range<u64>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.found.is_empty() && !self.rest.is_empty() {
            if let Err(source) = self.advance() {
                let range = self.rest.clone();
                self.rest.start = self.rest.end;
                return Some(Err(Error::Pages { range, source }));
            }
        }
        self.found.pop_front().map(Ok)
    }
}

fn page_bytes() -> usize {
    usize::try_from(page_size()).unwrap_or(4096)
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

impl PmScanArg {
    fn new(range: &Range<u64>, filter: PageFilter) -> Self {
        let (present, absent) = filter.categories();
        Self {
            size: size_of::<Self>() as u64,
            start: range.start,
            end: range.end,
            category_inverted: absent,
            category_mask: present | absent,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..Self::default()
        }
    }
}

/// Calls PAGEMAP_SCAN. Returns the number of regions.
fn scan(pages: &File, argument: &mut PmScanArg) -> io::Result<usize> {
    // SAFETY: `argument.size` is the size of `argument`, and `vec` has room for `vec_len` regions; the kernel writes no other memory
    // of this process.
    let count = unsafe { libc::ioctl(pages.as_raw_fd(), PAGEMAP_SCAN, &raw mut *argument) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // A scan without progress would loop forever.
    if argument.walk_end <= argument.start {
        return Err(io::Error::other("PAGEMAP_SCAN makes no progress"));
    }
    Ok(count)
}

/// Buffer for the PAGEMAP_SCAN ioctl, which skips absent page tables instead of reporting an entry for each page.
#[derive(Debug)]
struct Scan {
    filter: PageFilter,
    regions: Vec<PageRegion>,
}

impl Scan {
    fn new(filter: PageFilter) -> Self {
        Self {
            filter,
            regions: Vec::new(),
        }
    }

    /// Adds the ranges of the next chunk to `found` and removes the chunk from `rest`.
    fn advance(
        &mut self,
        pages: &File,
        rest: &mut Range<u64>,
        found: &mut VecDeque<Range<u64>>,
    ) -> io::Result<()> {
        if self.regions.is_empty() {
            self.regions.try_reserve_exact(SCAN_RANGES)?;
            self.regions.resize(SCAN_RANGES, PageRegion::default());
        }
        let mut argument = PmScanArg {
            vec: self.regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: self.regions.len() as u64,
            ..PmScanArg::new(rest, self.filter)
        };
        let count = scan(pages, &mut argument)?;
        let regions = self.regions.iter().take(count);
        found.extend(regions.map(|region| region.start..region.end));
        rest.start = argument.walk_end.min(rest.end);
        Ok(())
    }
}
