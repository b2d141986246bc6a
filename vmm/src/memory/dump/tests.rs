use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use scratch::Directory;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::diff::{Resident, write_different};
use super::writer::{PageWriter, RegionExtent, Zeros, next_data, next_hole};
use super::{
    DiffDump, DumpSource, DumpTarget, Error, PageOrigin, PendingDump, extents, merge_diff, write_served,
};
use crate::GuestMemory;
use crate::cancellation::Cancellation;
use crate::memory::dirty::{DirtyTracker, WriteProtect};
use crate::memory::{
    Pagemap, allocate, allocate_logged, map_file, map_snapshot, map_snapshot_logged, memfd, page_size,
};

/// State of an operation without a limit.
static UNLIMITED: LazyLock<Cancellation> = LazyLock::new(Cancellation::default);

/// Number of pages in both regions, and in the first.
const PAGES: u64 = 96;
const LOW: u64 = 64;
const HIGH: u64 = 1 << 32;

fn bytes(pages: u64) -> usize {
    usize::try_from(pages * page_size()).unwrap()
}

fn page() -> usize {
    bytes(1)
}

fn regions() -> [(GuestAddress, usize); 2] {
    [
        (GuestAddress(0), bytes(LOW)),
        (GuestAddress(HIGH), bytes(PAGES - LOW)),
    ]
}

/// Returns the guest-physical address of page `number` of the file.
fn address(number: u64) -> GuestAddress {
    GuestAddress(match number.checked_sub(LOW) {
        Some(high) => HIGH + high * page_size(),
        None => number * page_size(),
    })
}

fn fill(memory: &GuestMemory, number: u64, value: u8) {
    memory.write_slice(&vec![value; page()], address(number)).unwrap();
}

fn content(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; bytes(PAGES)];
    for (number, page) in (0..).zip(bytes.chunks_exact_mut(page())) {
        memory.read_slice(page, address(number)).unwrap();
    }
    bytes
}

fn fresh() -> GuestMemory {
    let memory = allocate(&regions()).unwrap();
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap();
        // SAFETY: the range is a live mapping; MADV_NOHUGEPAGE does not change its content.
        unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_NOHUGEPAGE) };
    }
    memory
}

fn source<'a>(memory: &'a GuestMemory, origin: PageOrigin<'a>, pagemap: &'a Pagemap) -> DumpSource<'a> {
    DumpSource {
        memory,
        origin,
        pagemap: Some(pagemap),
        cancellation: &UNLIMITED,
    }
}

/// Returns the numbers of the data pages in a file.
fn data(path: &Path) -> Vec<u64> {
    let file = File::open(path).unwrap();
    let (mut pages, mut at) = (Vec::new(), 0);
    while let Some(start) = next_data(&file, at).unwrap() {
        at = next_hole(&file, start).unwrap();
        pages.extend(start / page_size()..at / page_size());
    }
    pages
}

/// Creates a base. Each page holds its number; every fourth page is a hole.
fn base(directory: &Directory) -> (PathBuf, File) {
    let path = directory.path("base");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.set_len(PAGES * page_size()).unwrap();
    for number in (0..PAGES).filter(|number| !number.is_multiple_of(4)) {
        let value = u8::try_from(number).unwrap();
        file.write_all_at(&vec![value; page()], number * page_size())
            .unwrap();
    }
    (path, file)
}

fn diff(source: &DumpSource<'_>, path: &Path) -> Result<PendingDump, Error> {
    DiffDump::prepare(source, None, DumpTarget::base_or_new(source, path)?)?.write(source)
}

fn full(source: &DumpSource<'_>, path: &Path) -> Result<PendingDump, Error> {
    super::dump_full(source, DumpTarget::new(source, path)?)
}

fn commit(dump: Result<PendingDump, Error>) -> u64 {
    dump.unwrap().commit().unwrap().pages
}

#[test]
fn full_dump_holds_touched_nonzero_pages() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    for number in [0, 1, 40, LOW - 1, LOW, PAGES - 1] {
        fill(&memory, number, 5);
    }
    fill(&memory, 1, 0);
    // The search for zeros must include the last byte of a page.
    memory.write_obj(1_u8, GuestAddress(8 * page_size() - 1)).unwrap();
    let path = directory.path("memory");
    let written = full(&source(&memory, PageOrigin::Fresh, &pagemap), &path)
        .unwrap()
        .commit()
        .unwrap();
    assert_eq!(data(&path), [0, 7, 40, LOW - 1, LOW, PAGES - 1]);
    assert_eq!(written.pages, 6);
    assert_eq!(written.bytes, 6 * page_size());
    assert_eq!(written.size, PAGES * page_size());
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
    assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 7 * page_size());
    assert_eq!(directory.names().len(), 1);
}

#[test]
fn full_dump_holds_mapped_image_pages() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let image = memfd(c"image", &vec![9; 3 * page()]).unwrap();
    map_file(&memory, address(20), &image, 0, 3 * page()).unwrap();
    map_file(&memory, address(LOW), &image, 0, page()).unwrap();
    fill(&memory, 21, 0);
    let path = directory.path("memory");
    commit(full(&source(&memory, PageOrigin::Fresh, &pagemap), &path));
    assert_eq!(data(&path), [20, 21, 22, LOW]);
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
}

#[test]
fn full_dump_of_restored_memory_needs_no_base() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (base_path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    fill(&memory, 1, 0);
    fill(&memory, 4, 44);
    let before = fs::read(&base_path).unwrap();
    let path = directory.path("memory");
    commit(full(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path));
    let written = fs::read(&path).unwrap();
    assert_eq!(written, content(&memory));
    assert_eq!(written[page()], 0);
    assert_eq!(fs::read(&base_path).unwrap(), before);
    let holes = |number: &u64| !number.is_multiple_of(4) || *number == 4;
    assert_eq!(data(&path), (0..PAGES).filter(holes).collect::<Vec<_>>());
}

#[test]
fn full_dump_replaces_own_base() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    let clone = map_snapshot(&regions(), &file).unwrap();
    let before = content(&clone);
    fill(&memory, 5, 55);
    commit(full(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path));
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
    assert_eq!(content(&clone), before);
}

#[test]
fn diff_holds_written_pages_and_zeros() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (base_path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    let _ = content(&memory);
    for (number, value) in [(1, 0), (8, 0), (9, 3), (LOW, 7)] {
        fill(&memory, number, value);
    }
    let path = directory.path("diff");
    let pages = commit(diff(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path));
    assert_eq!(data(&path), [1, 8, 9, LOW]);
    assert_eq!(pages, 4);
    let written = merge_diff(&path, &base_path).unwrap();
    assert_eq!((written.pages, written.merged), (4, true));
    assert_eq!(fs::read(&base_path).unwrap(), content(&memory));
}

#[test]
fn diff_without_changes_is_hole() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (_, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    let path = directory.path("diff");
    assert_eq!(
        commit(diff(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path)),
        0
    );
    assert!(data(&path).is_empty());
    assert_eq!(fs::metadata(&path).unwrap().len(), PAGES * page_size());
}

#[test]
fn diff_merges_into_existing_base() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    fill(&memory, 9, 0);
    fill(&memory, 12, 12);
    let inode = fs::metadata(&path).unwrap().ino();
    let written = diff(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path)
        .unwrap()
        .commit()
        .unwrap();
    assert!(written.merged);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
    // A file of another length is not a base and is replaced.
    let path = directory.path("short");
    fs::write(&path, "short").unwrap();
    commit(diff(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &path));
    assert_eq!(data(&path), [9, 12]);
}

#[test]
fn base_is_complete_if_its_holes_are_zeros() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (path, file) = base(&directory);
    // A page of zeros that is data.
    file.write_all_at(&vec![0; page()], 4 * page_size()).unwrap();
    let memory = map_snapshot(&regions(), &file).unwrap();
    let source = source(&memory, PageOrigin::Mapped(&file), &pagemap);
    let has_all_pages = |path: &Path| {
        let target = DumpTarget::base_or_new(&source, path).unwrap();
        target.has_all_pages(&source).unwrap()
    };
    assert!(has_all_pages(&path));
    assert!(!has_all_pages(&directory.path("new")));
    let copy = directory.path("copy");
    let file = File::options().write(true).create_new(true).open(&copy).unwrap();
    file.set_len(PAGES * page_size()).unwrap();
    for (number, page) in (0..).zip(fs::read(&path).unwrap().chunks(page())) {
        if page.iter().any(|byte| *byte != 0) {
            assert!(!has_all_pages(&copy), "without page {number}");
            file.write_all_at(page, number * page_size()).unwrap();
        }
    }
    assert!(has_all_pages(&copy));
}

#[test]
fn base_of_served_memory_is_unknown() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let (path, _file) = base(&directory);
    let source = source(&memory, PageOrigin::Served, &pagemap);
    let target = DumpTarget::base_or_new(&source, &path).unwrap();
    let error = target.has_all_pages(&source).unwrap_err();
    assert!(matches!(error, Error::UnknownBase { .. }), "{error}");
}

#[test]
fn first_diff_of_fresh_memory_is_full() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let image = memfd(c"image", &vec![9; page()]).unwrap();
    map_file(&memory, address(20), &image, 0, page()).unwrap();
    fill(&memory, 3, 0);
    let path = directory.path("diff");
    commit(diff(&source(&memory, PageOrigin::Fresh, &pagemap), &path));
    assert_eq!(data(&path), [20], "zeros are holes without a base");
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
}

#[test]
fn full_dump_without_proc_is_identical() {
    let (directory, memory) = (Directory::new(), fresh());
    fill(&memory, 3, 1);
    fill(&memory, 5, 0);
    fill(&memory, PAGES - 1, 1);
    let source = DumpSource {
        memory: &memory,
        origin: PageOrigin::Fresh,
        pagemap: None,
        cancellation: &UNLIMITED,
    };
    let path = directory.path("memory");
    commit(full(&source, &path));
    assert_eq!(data(&path), [3, PAGES - 1]);
    let other = directory.path("diff");
    commit(diff(&source, &other));
    assert_eq!(fs::read(&other).unwrap(), fs::read(&path).unwrap());
}

/// Returns the pages that a comparison with `base` finds.
fn compare(memory: &GuestMemory, base: &File, resident: Resident, path: &Path) -> Vec<u64> {
    let file = File::create_new(path).unwrap();
    file.set_len(PAGES * page_size()).unwrap();
    let blind = DumpSource {
        memory,
        origin: PageOrigin::Mapped(base),
        pagemap: None,
        cancellation: &UNLIMITED,
    };
    let mut writer = PageWriter::new(&file, path, &UNLIMITED);
    for extent in extents(&blind) {
        write_different(memory, &extent.unwrap(), base, resident, &mut writer).unwrap();
    }
    data(path)
}

#[test]
fn diff_without_proc_compares_pages() {
    let directory = Directory::new();
    let (_, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    for (number, value) in [(1, 0), (4, 44), (9, 3), (LOW - 1, 1), (LOW, 7), (PAGES - 1, 1)] {
        fill(&memory, number, value);
    }
    // Written with the same content: not in the diff, although the kernel reports private copies.
    fill(&memory, 2, 2);
    fill(&memory, 8, 0);
    memory
        .write_obj(1_u8, GuestAddress(13 * page_size() - 1))
        .unwrap();
    let expected = [1, 4, 9, 12, LOW - 1, LOW, PAGES - 1];
    assert_eq!(
        compare(&memory, &file, Resident::Known, &directory.path("known")),
        expected
    );
    assert_eq!(
        compare(&memory, &file, Resident::Unknown, &directory.path("unknown")),
        expected
    );
}

#[test]
fn diff_without_proc_keeps_untouched_holes() {
    let file = memfd(c"base", b"").unwrap();
    file.set_len(PAGES * page_size()).unwrap();
    let memory = map_snapshot(&regions(), &file).unwrap();
    fill(&memory, 5, 1);
    let directory = Directory::new();
    let blocks = || file.metadata().unwrap().blocks();
    // A write fault first reads the page into the page cache.
    let before = blocks();
    let found = compare(&memory, &file, Resident::Known, &directory.path("known"));
    assert_eq!((found, blocks()), (vec![5], before));
}

#[test]
fn diff_of_served_memory_without_proc_needs_no_swap() {
    let (directory, memory) = (Directory::new(), fresh());
    fill(&memory, 3, 0);
    fill(&memory, PAGES - 1, 1);
    let path = directory.path("served");
    let file = File::create_new(&path).unwrap();
    file.set_len(PAGES * page_size()).unwrap();
    let blind = DumpSource {
        memory: &memory,
        origin: PageOrigin::Served,
        pagemap: None,
        cancellation: &UNLIMITED,
    };
    let mut writer = PageWriter::new(&file, &path, &UNLIMITED);
    for extent in extents(&blind) {
        let extent = extent.unwrap();
        write_served(&extent, Resident::Known, &mut writer).unwrap();
        let error = write_served(&extent, Resident::Unknown, &mut writer).unwrap_err();
        assert!(matches!(error, Error::Unknown), "{error}");
    }
    assert_eq!(data(&path), [3, PAGES - 1]);
}

#[test]
fn diff_of_fresh_memory_overwrites_file() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let image = memfd(c"image", &vec![9; page()]).unwrap();
    map_file(&memory, address(20), &image, 0, page()).unwrap();
    for number in [0, 3, 40, LOW] {
        fill(&memory, number, 5);
    }
    fill(&memory, 40, 0);
    let path = directory.path("memory");
    for pagemap in [Some(&pagemap), None] {
        // Content of another guest.
        fs::write(&path, vec![0xee; bytes(PAGES)]).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let source = DumpSource {
            memory: &memory,
            origin: PageOrigin::Fresh,
            pagemap,
            cancellation: &UNLIMITED,
        };
        let written = diff(&source, &path).unwrap().commit().unwrap();
        assert_eq!((written.pages, written.merged), (4, true));
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(fs::read(&path).unwrap(), content(&memory));
        assert_eq!(data(&path), [0, 3, 20, LOW]);
    }
}

#[test]
fn prepared_diff_keeps_base() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    fill(&memory, 4, 44);
    fill(&memory, 5, 55);
    let before = fs::read(&path).unwrap();
    let source = source(&memory, PageOrigin::Mapped(&file), &pagemap);
    let prepared =
        DiffDump::prepare(&source, None, DumpTarget::base_or_new(&source, &path).unwrap()).unwrap();
    assert!(prepared.is_merged());
    assert_eq!(fs::read(&path).unwrap(), before);
    commit(prepared.write(&source));
    assert_eq!(fs::read(&path).unwrap(), content(&memory));
}

#[test]
fn full_dump_of_truncated_image_fails_and_leaves_no_file() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let image = memfd(c"image", &vec![9; 4 * page()]).unwrap();
    map_file(&memory, address(20), &image, 0, 4 * page()).unwrap();
    image.set_len(2 * page_size()).unwrap();
    let error = full(
        &source(&memory, PageOrigin::Fresh, &pagemap),
        &directory.path("memory"),
    )
    .unwrap_err();
    assert!(
        matches!(error, Error::Gone { address: gone } if gone == address(22).0),
        "{error}"
    );
    assert_eq!(directory.names().len(), 0);
}

#[test]
fn full_dump_with_truncated_base_fails_and_leaves_no_file() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let (path, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    file.set_len(10 * page_size()).unwrap();
    let target = directory.path("memory");
    let error = full(&source(&memory, PageOrigin::Mapped(&file), &pagemap), &target).unwrap_err();
    assert!(
        matches!(error, Error::Copy { offset, .. } if offset == 10 * page_size()),
        "{error}"
    );
    assert_eq!(directory.names().len(), 1);
    let other = directory.path("other");
    fs::write(&other, "short").unwrap();
    assert!(matches!(merge_diff(&other, &path), Err(Error::Length { .. })));
    assert!(matches!(merge_diff(&target, &path), Err(Error::Open { .. })));
}

#[test]
fn uncommitted_dump_is_removed() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    let path = directory.path("memory");
    fs::write(&path, "old").unwrap();
    drop(full(&source(&memory, PageOrigin::Fresh, &pagemap), &path).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(directory.names().len(), 1);
}

#[test]
fn dump_within_budget_succeeds() {
    let (directory, pagemap, memory) = (Directory::new(), Pagemap::open().unwrap(), fresh());
    for number in [3, 4, 5] {
        fill(&memory, number, 1);
    }
    let path = directory.path("memory");
    for (pages, fits) in [(2, false), (3, true)] {
        let cancellation = Cancellation::with_budget(pages * page_size());
        let limited = DumpSource {
            cancellation: &cancellation,
            ..source(&memory, PageOrigin::Fresh, &pagemap)
        };
        match diff(&limited, &path) {
            Ok(written) => drop(written.commit().unwrap()),
            Err(error) => assert!(matches!(error, Error::Cancelled(_)), "{error}"),
        }
        assert_eq!(path.exists(), fits, "{pages}");
        assert_eq!(directory.names().len(), usize::from(fits));
    }
}

#[test]
fn large_dump_is_cancelled_between_pieces() {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let memory = allocate(&[(GuestAddress(0), 16 << 20)]).unwrap();
    memory.iter().for_each(|region| {
        let length = usize::try_from(region.len()).unwrap();
        memory.write_slice(&vec![1; length], region.start_addr()).unwrap();
    });
    let base = memfd(c"base", b"").unwrap();
    base.write_all_at(&vec![2; 16 << 20], 0).unwrap();
    let path = directory.path("memory");
    for origin in [PageOrigin::Fresh, PageOrigin::Mapped(&base), PageOrigin::Served] {
        // Three pieces of 4 MiB fit, the fourth does not.
        let cancellation = Cancellation::with_budget(15 << 20);
        let limited = DumpSource {
            cancellation: &cancellation,
            ..source(&memory, origin, &pagemap)
        };
        let error = full(&limited, &path).unwrap_err();
        assert!(matches!(error, Error::Cancelled(_)), "{error}");
        assert_eq!(directory.names(), [""; 0]);
        commit(full(&source(&memory, origin, &pagemap), &path));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn copy_data_between_file_systems() {
    let directory = Directory::new();
    let (path, file) = base(&directory);
    let copy = memfd(c"copy", b"").unwrap();
    copy.set_len(PAGES * page_size()).unwrap();
    let mut writer = PageWriter::new(&copy, Path::new("copy"), &UNLIMITED);
    writer.copy_data(&file, PAGES * page_size()).unwrap();
    assert_eq!(writer.stats(0, false).bytes, PAGES / 4 * 3 * page_size());
    let mut copied = vec![0; bytes(PAGES)];
    copy.read_exact_at(&mut copied, 0).unwrap();
    assert_eq!(copied, fs::read(&path).unwrap());
}

#[test]
fn check_holes_detects_missing_holes() {
    let memory = fresh();
    let extent = RegionExtent::new(memory.iter().next().unwrap(), 0).unwrap();
    let pages = |range: std::ops::Range<u64>| range.start * page_size()..range.end * page_size();
    // Existing data simulates a file system that fills holes.
    for (filled, good) in [
        (0..0, true),
        (2..5, true),
        (1..5, false),
        (2..6, false),
        (0..64, false),
    ] {
        let file = memfd(c"holes", b"").unwrap();
        file.set_len(LOW * page_size()).unwrap();
        let filling = vec![0; bytes(filled.end - filled.start)];
        file.write_all_at(&filling, filled.start * page_size()).unwrap();
        let mut writer = PageWriter::new(&file, Path::new("holes"), &UNLIMITED);
        writer.write_pages(&extent, pages(2..3), Zeros::Data).unwrap();
        writer.write_pages(&extent, pages(3..5), Zeros::Data).unwrap();
        writer.write_pages(&extent, pages(9..10), Zeros::Data).unwrap();
        let found = writer.check_holes(LOW * page_size());
        assert_eq!(found.is_ok(), good, "{filled:?}");
    }
}

#[test]
#[ignore = "run by dump_to_full_disk_keeps_old_file in its own process"]
fn write_beyond_limit() {
    scratch::ignore_file_size_signal();
    let (pagemap, memory) = (Pagemap::open().unwrap(), fresh());
    (0..PAGES).for_each(|number| fill(&memory, number, 1));
    let path = PathBuf::from(std::env::var_os("MEMORY").unwrap());
    let error = full(&source(&memory, PageOrigin::Fresh, &pagemap), &path).unwrap_err();
    assert!(
        matches!(error, Error::Write { .. } | Error::Extend { .. }),
        "{error}"
    );
}

#[test]
fn dump_to_full_disk_keeps_old_file() {
    let directory = Directory::new();
    let path = directory.path("memory");
    fs::write(&path, "old").unwrap();
    let limited = "ulimit -f 64; exec \"$0\" --exact memory::dump::tests::write_beyond_limit --ignored";
    let run = scratch::run(
        Command::new("sh")
            .args(["-c", limited])
            .arg(std::env::current_exe().unwrap())
            .env("MEMORY", &path),
    );
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(output.contains("1 passed"), "{output}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(directory.names().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn base_and_diff_reproduce_memory(
        writes in proptest::collection::vec((0..PAGES, any::<Option<u8>>()), 0..60)
    ) {
        let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
        let (base_path, file) = base(&directory);
        let memory = map_snapshot(&regions(), &file).unwrap();
        for (number, value) in &writes {
            fill(&memory, *number, value.unwrap_or(0));
        }
        let source = source(&memory, PageOrigin::Mapped(&file), &pagemap);
        let expected = content(&memory);
        let (full_path, diff_path) = (directory.path("full"), directory.path("diff"));
        commit(full(&source, &full_path));
        prop_assert_eq!(fs::read(&full_path).unwrap(), &expected[..]);
        commit(diff(&source, &diff_path));
        let mut changed: Vec<_> = writes.iter().map(|(number, _)| *number).collect();
        changed.sort_unstable();
        changed.dedup();
        prop_assert_eq!(data(&diff_path), changed);
        let (full_blind, diff_blind) = (directory.path("full-blind"), directory.path("diff-blind"));
        let blind = DumpSource { pagemap: None, ..source };
        commit(full(&blind, &full_blind));
        prop_assert_eq!(fs::read(&full_blind).unwrap(), &expected[..]);
        commit(diff(&blind, &diff_blind));
        let copy = directory.path("copy");
        fs::copy(&base_path, &copy).unwrap();
        merge_diff(&diff_blind, &copy).unwrap();
        prop_assert!(fs::read(&copy).unwrap() == expected);
        merge_diff(&diff_path, &base_path).unwrap();
        prop_assert!(fs::read(&base_path).unwrap() == expected);
    }
}

fn no_log(_: u32, size: usize) -> Result<Vec<u64>, crate::kvm::Error> {
    Ok(vec![0; size.div_ceil(64 * page())])
}

fn dirty_diff(source: &DumpSource<'_>, tracker: &DirtyTracker, path: &Path) -> u64 {
    tracker.collect(source.memory, &no_log).unwrap();
    let target = DumpTarget::base_or_new(source, path).unwrap();
    let diff = DiffDump::prepare(source, Some(tracker), target).unwrap();
    commit(diff.write(source))
}

/// Each diff holds the pages since the snapshot before, zeros included, and they merge into the first in order.
fn expect_diffs_since_snapshot(memory: &GuestMemory, origin: PageOrigin<'_>, tracker: &DirtyTracker) {
    let (directory, pagemap) = (Directory::new(), Pagemap::open().unwrap());
    let source = source(memory, origin, &pagemap);
    for (number, value) in [(0, 1), (3, 2), (40, 3), (LOW, 4)] {
        fill(memory, number, value);
    }
    let path = directory.path("full");
    commit(full(&source, &path));
    tracker.clear(memory, &no_log).unwrap();
    assert_eq!(dirty_diff(&source, tracker, &directory.path("empty")), 0);
    assert_eq!(data(&directory.path("empty")), Vec::<u64>::new());
    let mut contents = Vec::new();
    let rounds: [&[(u64, u8)]; 3] = [
        &[(3, 0), (41, 5), (LOW - 1, 6), (LOW, 7)],
        &[(3, 8)],
        &[(PAGES - 1, 9)],
    ];
    for (round, writes) in rounds.iter().enumerate() {
        for (number, value) in *writes {
            fill(memory, *number, *value);
        }
        let path = directory.path(&format!("diff-{round}"));
        // A diff that fails or is cancelled before its commit loses no page.
        let target = DumpTarget::base_or_new(&source, &path).unwrap();
        tracker.collect(memory, &no_log).unwrap();
        drop(
            DiffDump::prepare(&source, Some(tracker), target)
                .unwrap()
                .write(&source)
                .unwrap(),
        );
        assert_eq!(dirty_diff(&source, tracker, &path), writes.len() as u64);
        assert_eq!(
            data(&path),
            writes.iter().map(|(number, _)| *number).collect::<Vec<_>>()
        );
        tracker.clear(memory, &no_log).unwrap();
        contents.push(content(memory));
    }
    for (round, content) in contents.iter().enumerate() {
        merge_diff(&directory.path(&format!("diff-{round}")), &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), *content, "{round}");
    }
    // A diff in place.
    fill(memory, 0, 10);
    assert_eq!(dirty_diff(&source, tracker, &path), 1);
    assert_eq!(fs::read(&path).unwrap(), content(memory));
}

#[test]
fn diffs_of_write_protected_memory_hold_pages_since_snapshot() {
    let Ok(protect) = WriteProtect::open() else {
        scratch::skip("asynchronous write-protection", "use Linux 6.7 or later");
        return;
    };
    let tracker = DirtyTracker::WriteProtect(protect);
    expect_diffs_since_snapshot(&fresh(), PageOrigin::Fresh, &tracker);
    let directory = Directory::new();
    let (_, file) = base(&directory);
    let memory = map_snapshot(&regions(), &file).unwrap();
    expect_diffs_since_snapshot(&memory, PageOrigin::Mapped(&file), &tracker);
}

#[test]
fn diffs_of_logged_memory_hold_pages_since_snapshot() {
    let memory = allocate_logged(&regions()).unwrap();
    expect_diffs_since_snapshot(&memory, PageOrigin::Fresh, &DirtyTracker::Log);
    let directory = Directory::new();
    let (_, file) = base(&directory);
    let memory = map_snapshot_logged(&regions(), &file).unwrap();
    expect_diffs_since_snapshot(&memory, PageOrigin::Mapped(&file), &DirtyTracker::Log);
}
