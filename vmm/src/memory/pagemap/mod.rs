//! What the kernel knows of this process's pages.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::map::page_size;

/// Entries of /proc/self/pagemap that one call reads.
const ENTRIES: usize = 8 << 10;

/// Flags of an entry, as Documentation/admin-guide/mm/pagemap.rst has them.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no /proc, or it is closed to this process.
    #[error("cannot open {path}; mount /proc")]
    Open {
        /// The file.
        path: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The mappings could not be listed.
    #[error("cannot read /proc/self/maps")]
    Mappings(#[source] io::Error),
    /// The pages could not be listed.
    #[error("cannot find out which pages of {:#x}..{:#x} there are", .range.start, .range.end)]
    Pages {
        /// Addresses in this process.
        range: Range<u64>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Which pages are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFilter {
    /// Those that are in memory or in swap.
    Touched,
    /// Those of them that are no longer, or never were, a file's: in a private mapping, those that were written.
    Private,
}

impl PageFilter {
    fn wants(self, entry: u64) -> bool {
        entry & (PRESENT | SWAPPED) != 0 && (self == Self::Touched || entry & FILE == 0)
    }
}

/// Knows which pages are there and whose they are. Belongs to the process that opened it: after a fork, the child's is another.
#[derive(Debug)]
pub struct Pagemap {
    pages: File,
    mappings: File,
}

impl Pagemap {
    /// Opens what is needed, so that /proc may be gone later.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let open = |path| File::open(path).map_err(|source| Error::Open { path, source });
        Ok(Self {
            pages: open("/proc/self/pagemap")?,
            mappings: open("/proc/self/maps")?,
        })
    }

    /// Runs of wanted pages in `range`, which is given and returned as addresses of this process, page-aligned, in order. Two
    /// runs may touch. What changes meanwhile is seen or not.
    pub fn runs(&self, range: Range<u64>, wanted: PageFilter) -> PageRanges<'_> {
        PageRanges {
            pages: &self.pages,
            rest: range,
            wanted,
            scan: Some(Scan::new(wanted)),
            found: VecDeque::new(),
        }
    }

    /// Parts of `range` that are mapped from files, whether their pages are there or not, in order.
    ///
    /// # Errors
    /// [`Error::Mappings`].
    pub fn mapped_files(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>, Error> {
        let mut mappings = &self.mappings;
        mappings.rewind().map_err(Error::Mappings)?;
        let mut found = Vec::new();
        for line in BufReader::new(mappings).split(b'\n') {
            let line = line.map_err(Error::Mappings)?;
            // The path at the end of a line may be anything.
            let line = String::from_utf8_lossy(&line);
            let Some((mapping, inode)) = fields(&line) else {
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

/// Address range and inode of a line such as `7f00-7f10 rw-p 00000000 fd:00 1234    /path`.
fn fields(line: &str) -> Option<(Range<u64>, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let inode = fields.nth(3)?.parse().ok()?;
    Some((number(start)?..number(end)?, inode))
}

/// Runs of pages, found piece by piece: what it takes does not grow with the range.
#[derive(Debug)]
pub struct PageRanges<'a> {
    pages: &'a File,
    rest: Range<u64>,
    wanted: PageFilter,
    scan: Option<Scan>,
    found: VecDeque<Range<u64>>,
}

impl PageRanges<'_> {
    /// Finds runs in the first part of the rest.
    fn advance(&mut self) -> io::Result<()> {
        if let Some(scan) = &mut self.scan {
            match scan.advance(self.pages, &mut self.rest, &mut self.found) {
                // PAGEMAP_SCAN came with Linux 6.7.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.scan = None,
                done => return done,
            }
        }
        self.read()
    }

    fn read(&mut self) -> io::Result<()> {
        let page = page_size();
        let pages = (self.rest.end - self.rest.start).div_ceil(page);
        let count = usize::try_from(pages).map_or(ENTRIES, |pages| pages.min(ENTRIES));
        let mut entries = vec![0; 8 * count];
        self.pages
            .read_exact_at(&mut entries, self.rest.start / page * 8)?;
        for (entry, address) in entries
            .chunks_exact(8)
            .zip((self.rest.start..).step_by(page_bytes()))
        {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(entry);
            if !self.wanted.wants(u64::from_ne_bytes(bytes)) {
                continue;
            }
            match self.found.back_mut() {
                Some(run) if run.end == address => run.end += page,
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

/// Runs that one call returns.
const RUNS: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

// Categories of pages, as linux/fs.h numbers them.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
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

/// Asks by the ioctl.
#[derive(Debug)]
struct Scan {
    wanted: PageFilter,
    regions: Vec<PageRegion>,
}

impl Scan {
    fn new(wanted: PageFilter) -> Self {
        Self {
            wanted,
            regions: vec![PageRegion::default(); RUNS],
        }
    }

    /// Finds runs in the first part of `rest` and leaves there what was not looked at.
    fn advance(
        &mut self,
        pages: &File,
        rest: &mut Range<u64>,
        found: &mut VecDeque<Range<u64>>,
    ) -> io::Result<()> {
        let not_file = match self.wanted {
            PageFilter::Touched => 0,
            PageFilter::Private => PAGE_IS_FILE,
        };
        let mut argument = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: rest.start,
            end: rest.end,
            vec: self.regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: self.regions.len() as u64,
            category_inverted: not_file,
            category_mask: not_file,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..PmScanArg::default()
        };
        // SAFETY: `argument` is as large as it says, and `vec` has room for `vec_len` regions; nothing else is written.
        let answer = unsafe { libc::ioctl(pages.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        let count = usize::try_from(answer).map_err(|_| io::Error::last_os_error())?;
        let runs = self.regions.iter().take(count);
        found.extend(runs.map(|region| region.start..region.end));
        // A kernel that does not get on would keep this process here for ever.
        if argument.walk_end <= rest.start {
            return Err(io::Error::other("PAGEMAP_SCAN looks at nothing"));
        }
        rest.start = argument.walk_end.min(rest.end);
        Ok(())
    }
}
