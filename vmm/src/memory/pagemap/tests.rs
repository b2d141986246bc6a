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

/// Maps one region; pages 8 to 15 are backed by a file.
fn memory() -> GuestMemory {
    let size = usize::try_from(PAGES).unwrap() * page();
    let memory = allocate(&[(GuestAddress(0), size)]).unwrap();
    let region = memory.iter().next().unwrap();
    // A huge page would make its neighbours resident.
    // SAFETY: the range is a live mapping; MADV_NOHUGEPAGE does not change its content.
    unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_NOHUGEPAGE) };
    let file = memfd(c"pagemap", &vec![7; 8 * page()]).unwrap();
    map_file(&memory, GuestAddress(8 * page_size()), &file, 0, 8 * page()).unwrap();
    memory
}

fn host(memory: &GuestMemory) -> Range<u64> {
    let start = memory.iter().next().unwrap().as_ptr() as u64;
    start..start + PAGES * page_size()
}

/// Returns the page ranges as page numbers, adjacent ranges joined; with or without the ioctl.
fn ranges(memory: &GuestMemory, filter: PageFilter, scan: bool) -> Vec<Range<u64>> {
    let pagemap = Pagemap::open().unwrap();
    let host = host(memory);
    let mut ranges = pagemap.ranges(host.clone(), filter);
    if !scan {
        ranges.scan = None;
    }
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let range = range.unwrap();
        let range = (range.start - host.start) / page_size()..(range.end - host.start) / page_size();
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
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
fn written_pages_are_private() {
    let memory = memory();
    write(&memory, [0, 3, 4, 9, PAGES - 1]);
    let expected = [0..1, 3..5, 9..10, PAGES - 1..PAGES];
    for scan in [true, false] {
        assert_eq!(ranges(&memory, PageFilter::Private, scan), expected, "{scan}");
    }
}

#[test]
fn read_pages_are_not_private() {
    let memory = memory();
    for number in [8, 9, 12] {
        let _: u8 = memory.read_obj(GuestAddress(number * page_size())).unwrap();
    }
    write(&memory, [9]);
    for scan in [true, false] {
        assert_eq!(
            ranges(&memory, PageFilter::Private, scan),
            slice::from_ref(&(9..10)),
            "{scan}"
        );
        // Fault-around may map neighbours of the page in the page cache.
        let touched = ranges(&memory, PageFilter::Touched, scan);
        for number in [8, 9, 12] {
            assert!(
                touched.iter().any(|range| range.contains(&number)),
                "{scan}: {number}"
            );
        }
    }
}

#[test]
fn ranges_beyond_one_call_are_complete() {
    let memory = memory();
    write(&memory, (0..PAGES).step_by(2));
    let expected: Vec<_> = (0..PAGES).step_by(2).map(|number| number..number + 1).collect();
    for scan in [true, false] {
        assert_eq!(ranges(&memory, PageFilter::Private, scan), expected, "{scan}");
    }
}

#[test]
fn scan_falls_back_without_ioctl() {
    let memory = memory();
    write(&memory, [1]);
    let pagemap = Pagemap::open().unwrap();
    let mut ranges = pagemap.ranges(host(&memory), PageFilter::Private);
    assert!(ranges.next().unwrap().is_ok());
    if ranges.scan.is_none() {
        scratch::skip("the ioctl PAGEMAP_SCAN", "use Linux 6.7 or later");
    }
}

#[test]
fn mapped_files_are_found() {
    let memory = memory();
    let (host, pagemap) = (host(&memory), Pagemap::open().unwrap());
    let at = |number: u64| host.start + number * page_size();
    let (all, some) = (at(8)..at(16), at(10)..at(12));
    assert_eq!(pagemap.mapped_files(&host).unwrap(), slice::from_ref(&all));
    assert_eq!(pagemap.mapped_files(&some).unwrap(), slice::from_ref(&some));
    assert!(pagemap.mapped_files(&(at(16)..at(40))).unwrap().is_empty());
}

#[test]
fn filter_matches_entry_flags() {
    for (entry, touched, private) in [
        (0, false, false),
        (FILE, false, false),
        (PRESENT, true, true),
        (SWAPPED | 1, true, true),
        (PRESENT | FILE, true, false),
    ] {
        assert_eq!(PageFilter::Touched.matches(entry), touched, "{entry:#x}");
        assert_eq!(PageFilter::Private.matches(entry), private, "{entry:#x}");
    }
}

#[test]
fn read_failure_is_reported_once() {
    let mut pagemap = Pagemap::open().unwrap();
    pagemap.pages = memfd(c"empty", b"").unwrap();
    let host = host(&memory());
    let mut ranges = pagemap.ranges(host.clone(), PageFilter::Touched);
    assert!(matches!(ranges.next(), Some(Err(Error::Pages { range, .. })) if range == host));
    assert!(ranges.next().is_none());
    pagemap.mappings = memfd(c"maps", b"nonsense\n").unwrap();
    assert!(matches!(pagemap.mapped_files(&host), Err(Error::Mappings(_))));
}
