use std::ops::Range;
use std::slice;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use super::{Error, FILE, PRESENT, PageFilter, Pagemap, SWAPPED};
use crate::GuestMemory;
use crate::memory::{allocate, map_file, memfd, page_size};

const PAGES: u64 = 4096;

fn page() -> usize {
    usize::try_from(page_size()).unwrap()
}

/// One region, of which pages 8 to 16 are those of a file.
fn memory() -> GuestMemory {
    let size = usize::try_from(PAGES).unwrap() * page();
    let memory = allocate(&[(GuestAddress(0), size)]).unwrap();
    let region = memory.iter().next().unwrap();
    // Huge pages would be there as a whole.
    // SAFETY: the range is a live mapping; the advice changes no byte of it.
    unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_NOHUGEPAGE) };
    let file = memfd(c"pagemap", &vec![7; 8 * page()]).unwrap();
    map_file(&memory, GuestAddress(8 * page_size()), &file, 0, 8 * page()).unwrap();
    memory
}

fn host(memory: &GuestMemory) -> Range<u64> {
    let start = memory.iter().next().unwrap().as_ptr() as u64;
    start..start + PAGES * page_size()
}

/// Runs in pages, joined where they touch; by the ioctl or without it.
fn runs(memory: &GuestMemory, wanted: PageFilter, scan: bool) -> Vec<Range<u64>> {
    let pagemap = Pagemap::open().unwrap();
    let host = host(memory);
    let mut runs = pagemap.runs(host.clone(), wanted);
    if !scan {
        runs.scan = None;
    }
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        let run = run.unwrap();
        let run = (run.start - host.start) / page_size()..(run.end - host.start) / page_size();
        match joined.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}

fn write(memory: &GuestMemory, pages: impl IntoIterator<Item = u64>) {
    for number in pages {
        memory
            .write_obj(!0_u8, GuestAddress(number * page_size() + 9))
            .unwrap();
    }
}

#[test]
fn what_was_written_is_found_by_either_way() {
    let memory = memory();
    write(&memory, [0, 3, 4, 9, PAGES - 1]);
    let expected = [0..1, 3..5, 9..10, PAGES - 1..PAGES];
    for scan in [true, false] {
        assert_eq!(runs(&memory, PageFilter::Private, scan), expected, "{scan}");
    }
}

#[test]
fn pages_that_were_only_read_stay_the_files() {
    let memory = memory();
    for number in [8, 9, 12] {
        let _: u8 = memory.read_obj(GuestAddress(number * page_size())).unwrap();
    }
    write(&memory, [9]);
    for scan in [true, false] {
        assert_eq!(
            runs(&memory, PageFilter::Private, scan),
            slice::from_ref(&(9..10)),
            "{scan}"
        );
        // Its neighbours in the page cache may come with the page that was read.
        let touched = runs(&memory, PageFilter::Touched, scan);
        for number in [8, 9, 12] {
            assert!(
                touched.iter().any(|run| run.contains(&number)),
                "{scan}: {number}"
            );
        }
    }
}

#[test]
fn more_runs_are_found_than_one_call_returns() {
    let memory = memory();
    write(&memory, (0..PAGES).step_by(2));
    let expected: Vec<_> = (0..PAGES).step_by(2).map(|number| number..number + 1).collect();
    for scan in [true, false] {
        assert_eq!(runs(&memory, PageFilter::Private, scan), expected, "{scan}");
    }
}

#[test]
fn this_kernel_has_the_ioctl_or_says_so() {
    let memory = memory();
    write(&memory, [1]);
    let pagemap = Pagemap::open().unwrap();
    let mut runs = pagemap.runs(host(&memory), PageFilter::Private);
    assert!(runs.next().unwrap().is_ok());
    if runs.scan.is_none() {
        eprintln!("this kernel has no PAGEMAP_SCAN: only the other way was tested");
    }
}

#[test]
fn files_are_found_by_their_mappings() {
    let memory = memory();
    let (host, pagemap) = (host(&memory), Pagemap::open().unwrap());
    let at = |number: u64| host.start + number * page_size();
    let (all, some) = (at(8)..at(16), at(10)..at(12));
    assert_eq!(pagemap.mapped_files(&host).unwrap(), slice::from_ref(&all));
    assert_eq!(pagemap.mapped_files(&some).unwrap(), slice::from_ref(&some));
    assert!(pagemap.mapped_files(&(at(16)..at(40))).unwrap().is_empty());
}

#[test]
fn entries_mean_what_the_kernel_says() {
    for (entry, touched, private) in [
        (0, false, false),
        (FILE, false, false),
        (PRESENT, true, true),
        (SWAPPED | 1, true, true),
        (PRESENT | FILE, true, false),
    ] {
        assert_eq!(PageFilter::Touched.wants(entry), touched, "{entry:#x}");
        assert_eq!(PageFilter::Private.wants(entry), private, "{entry:#x}");
    }
}

#[test]
fn what_cannot_be_asked_is_an_error_once() {
    let mut pagemap = Pagemap::open().unwrap();
    pagemap.pages = memfd(c"empty", b"").unwrap();
    let host = host(&memory());
    let mut runs = pagemap.runs(host.clone(), PageFilter::Touched);
    assert!(matches!(runs.next(), Some(Err(Error::Pages { range, .. })) if range == host));
    assert!(runs.next().is_none());
    pagemap.mappings = memfd(c"maps", b"nonsense\n").unwrap();
    assert!(matches!(pagemap.mapped_files(&host), Err(Error::Mappings(_))));
}
