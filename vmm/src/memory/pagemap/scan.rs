//! The PAGEMAP_SCAN ioctl, which skips what is not there without looking at each page.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::PageFilter;

/// Runs that one call returns.
const RUNS: usize = 512;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

// Categories of pages, as linux/fs.h numbers them.
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct Argument {
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
pub(super) struct Scan {
    wanted: PageFilter,
    regions: Vec<Region>,
}

impl Scan {
    pub fn new(wanted: PageFilter) -> Self {
        Self {
            wanted,
            regions: vec![Region::default(); RUNS],
        }
    }

    /// Finds runs in the first part of `rest` and leaves there what was not looked at.
    pub fn advance(
        &mut self,
        pages: &File,
        rest: &mut Range<u64>,
        found: &mut VecDeque<Range<u64>>,
    ) -> io::Result<()> {
        let not_file = match self.wanted {
            PageFilter::Touched => 0,
            PageFilter::Private => FILE,
        };
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            start: rest.start,
            end: rest.end,
            vec: self.regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: self.regions.len() as u64,
            category_inverted: not_file,
            category_mask: not_file,
            category_anyof_mask: PRESENT | SWAPPED,
            ..Argument::default()
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
