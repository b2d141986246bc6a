use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::slice;
use std::time::Instant;

use scratch::Directory;
use snapshot::ArchiveWriter;
use snapshot::file::{self, Architecture, Contents, Header, HostIdentity, Links, PendingStateFile};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Error, KEY, MAX_PAGES, MAX_RANGES, Prefetch, WorkingSet, join_ranges};
use crate::GuestMemory;
use crate::boot::testing::Temporary;
use crate::memory::{Pagemap, ResidencyCounter, map_snapshot, memfd, page_size};

const LOW: u64 = 256;
const PAGES: u64 = 1280;
const HIGH: u64 = 1 << 32;

fn bytes(pages: u64) -> usize {
    usize::try_from(pages * page_size()).unwrap()
}

fn memory_file() -> File {
    memfd(c"memory", &vec![3; bytes(PAGES)]).unwrap()
}

fn memory(file: &File) -> GuestMemory {
    let regions = [
        (GuestAddress(0), bytes(LOW)),
        (GuestAddress(HIGH), bytes(PAGES - LOW)),
    ];
    map_snapshot(&regions, file).unwrap()
}

fn header() -> Header {
    Header {
        host: HostIdentity {
            architecture: Architecture::X86_64,
            page_size: u32::try_from(page_size()).unwrap(),
            cpu: String::new(),
        },
        memory: PAGES * page_size(),
        contents: Contents::Full,
    }
}

/// Checksum of the snapshot's state file.
const SNAPSHOT: u64 = 77;

fn write(set: &WorkingSet, path: &Path) {
    set.write(PendingStateFile::create(path).unwrap(), &header())
        .unwrap();
}

fn read(path: &Path) -> Result<WorkingSet, Error> {
    WorkingSet::read(path, PAGES * page_size(), SNAPSHOT, Links::Follow)
}

/// Populates all of `set`. Returns the number of populated pages.
fn prefetch(set: &WorkingSet, file: &File, memory: &GuestMemory) -> u32 {
    let mut prefetch = Prefetch::new(set.clone(), file);
    while prefetch.populate_chunk(memory) {}
    prefetch.populated()
}

/// Records a guest that has written four pages and read a fifth.
fn recorded(file: &File) -> WorkingSet {
    let memory = memory(file);
    for address in [
        5 * page_size(),
        (LOW - 1) * page_size(),
        HIGH,
        HIGH + 7 * page_size(),
    ] {
        memory.write_obj(9_u8, GuestAddress(address)).unwrap();
    }
    let _: u8 = memory.read_obj(GuestAddress(HIGH + 512 * page_size())).unwrap();
    WorkingSet::record(&memory, &Pagemap::open().unwrap(), SNAPSHOT).unwrap()
}

#[test]
fn record_holds_touched_pages() {
    let set = recorded(&memory_file());
    assert_eq!(set.written, [5..6, 255..257, 263..264]);
    assert_eq!(set.written(), 4);
    assert!((5..=4 + 16).contains(&set.touched()), "{}", set.touched());
    assert!(set.touched.iter().any(|range| range.contains(&768)));
}

#[test]
fn write_read_round_trip() {
    let path = Temporary::missing();
    let set = recorded(&memory_file());
    write(&set, path.path());
    assert_eq!(read(path.path()).unwrap(), set);
    let (header, described) = WorkingSet::describe(path.path()).unwrap();
    assert_eq!((header, described), (self::header(), set));
}

#[test]
fn populated_pages_are_private_and_unchanged() {
    let file = memory_file();
    let set = recorded(&file);
    let memory = memory(&file);
    assert_eq!(prefetch(&set, &file, &memory), 4);
    let again = WorkingSet::record(&memory, &Pagemap::open().unwrap(), SNAPSHOT).unwrap();
    assert_eq!(again.written, set.written);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(HIGH)).unwrap(), 3);
}

#[test]
fn single_pages_are_last_or_dropped() {
    let file = memory_file();
    let set = recorded(&file);
    let memory = memory(&file);
    let mut prefetch = Prefetch::new(set.clone(), &file);
    prefetch.drop_single();
    assert!(prefetch.has_ranges() && !prefetch.populate_chunk(&memory));
    assert_eq!(prefetch.populated(), 2);
    let ready = WorkingSet::record(&memory, &Pagemap::open().unwrap(), SNAPSHOT).unwrap();
    assert_eq!(ready.written, slice::from_ref(&(255..257)));
    let mut prefetch = Prefetch::new(set, &file);
    while prefetch.has_ranges() {
        prefetch.populate_chunk(&memory);
    }
    assert!(prefetch.populated() >= 2);
}

#[test]
fn truncated_file_is_not_populated() {
    let file = memory_file();
    let set = recorded(&file);
    let memory = memory(&file);
    file.set_len(100 * page_size()).unwrap();
    // The range of two pages comes first and is beyond the end.
    assert_eq!(prefetch(&set, &file, &memory), 0);
    let memory = map_snapshot(&[(GuestAddress(0), bytes(100))], &file).unwrap();
    assert_eq!(prefetch(&set, &file, &memory), 0);
}

#[test]
fn populate_is_chunked_and_bounded() {
    let pages = u64::from(MAX_PAGES) + 1000;
    let file = memfd(c"memory", &[]).unwrap();
    file.set_len(pages * page_size()).unwrap();
    let regions = [
        (GuestAddress(0), bytes(100)),
        (GuestAddress(HIGH), bytes(pages - 100)),
    ];
    let memory = map_snapshot(&regions, &file).unwrap();
    let all = 0..u32::try_from(pages).unwrap();
    let set = WorkingSet {
        written: vec![all],
        ..WorkingSet::default()
    };
    let mut prefetch = Prefetch::new(set, &file);
    let mut before = 0;
    while prefetch.populate_chunk(&memory) {
        let chunk = prefetch.populated() - before;
        assert!((1..=64).contains(&chunk), "{chunk}");
        before = prefetch.populated();
    }
    assert_eq!(prefetch.populated(), MAX_PAGES);
    let set = WorkingSet::record(&memory, &Pagemap::open().unwrap(), SNAPSHOT).unwrap();
    assert_eq!(set.written, slice::from_ref(&(0..MAX_PAGES)));
}

#[test]
fn read_invalid_ranges_fails() {
    let path = Temporary::missing();
    let wrong: [&[(u32, u32)]; 6] = [
        &[(3, 3)],
        &[(5, 3)],
        &[(8, 9), (7, 8)],
        &[(8, 10), (9, 11)],
        &[(1279, 1281)],
        &[(u32::MAX - 1, u32::MAX)],
    ];
    for ranges in wrong {
        let ranges: Vec<_> = ranges.iter().map(|(start, end)| *start..*end).collect();
        for written in [true, false] {
            let mut set = WorkingSet::default();
            if written {
                set.written = ranges.clone();
            } else {
                set.touched = ranges.clone();
            }
            write(&set, path.path());
            let error = read(path.path()).unwrap_err();
            assert!(matches!(error, Error::Range(_)), "{ranges:?}: {error}");
        }
    }
}

#[test]
fn read_other_content_fails() {
    let path = Temporary::missing();
    let size = PAGES * page_size();
    write(&recorded(&memory_file()), path.path());
    let error = WorkingSet::read(path.path(), size + page_size(), SNAPSHOT, Links::Follow).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
    let error = WorkingSet::read(path.path(), size, SNAPSHOT + 1, Links::Follow).unwrap_err();
    assert!(matches!(error, Error::Snapshot), "{error}");
    file::write(path.path(), &header(), ArchiveWriter::new()).unwrap();
    let error = read(path.path()).unwrap_err();
    assert!(matches!(error, Error::Section(_)), "{error}");
    let mut two = ArchiveWriter::new();
    two.write(KEY, &WorkingSet::default()).unwrap();
    two.write("more", &WorkingSet::default()).unwrap();
    file::write(path.path(), &header(), two).unwrap();
    let error = read(path.path()).unwrap_err();
    assert!(matches!(error, Error::Section(_)), "{error}");
}

#[test]
fn longest_recording_is_readable() {
    let path = Temporary::missing();
    // Numbers with the longest encoding: as many ranges as a recording holds, then more than the limit.
    let ranges = |count: usize| {
        (0..u32::try_from(count).unwrap()).map(|range| u32::MAX - 2 * range - 1..u32::MAX - 2 * range)
    };
    let mut set = WorkingSet {
        snapshot: u64::MAX,
        written: ranges(MAX_RANGES).rev().collect(),
        touched: ranges(MAX_RANGES).rev().collect(),
    };
    let mut header = header();
    header.memory = u64::from(u32::MAX) * page_size();
    set.write(PendingStateFile::create(path.path()).unwrap(), &header)
        .unwrap();
    assert_eq!(WorkingSet::describe(path.path()).unwrap().1, set);
    set.touched = ranges(MAX_RANGES + 10).rev().collect();
    set.write(PendingStateFile::create(path.path()).unwrap(), &header)
        .unwrap();
    let error = WorkingSet::describe(path.path()).unwrap_err();
    assert!(matches!(error, Error::Long(_)), "{error}");
}

/// Creates a file of which no page is in memory, in the temporary directory or beside the program.
fn cold_file() -> Option<File> {
    let program = std::env::current_exe().unwrap();
    [std::env::temp_dir().as_path(), program.parent().unwrap()]
        .into_iter()
        .find_map(|parent| {
            // The file stays open after the removal of its directory.
            let directory = Directory::new_in(parent);
            let path = directory.write("cold", vec![3; bytes(PAGES)]);
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            // SAFETY: the call has no pointer arguments.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            (ResidencyCounter::default().of(&memory(&file)) == 0).then_some(file)
        })
}

#[test]
fn cold_file_is_read_ahead_only() {
    let Some(file) = cold_file() else {
        return scratch::skip(
            "a file system on a disk: files here are always in memory",
            "set TMPDIR or CARGO_TARGET_DIR to a directory on a disk",
        );
    };
    let memory = memory(&file);
    let set = WorkingSet {
        written: slice::from_ref(&(0..4)).to_vec(),
        touched: slice::from_ref(&(0..1000)).to_vec(),
        ..WorkingSet::default()
    };
    let mut prefetch = Prefetch::new(set.clone(), &file);
    assert!(!prefetch.has_ranges() && !prefetch.populate_chunk(&memory));
    let start = Instant::now();
    while ResidencyCounter::default().of(&memory) < 1000 * page_size() {
        assert!(start.elapsed().as_secs() < 60, "no read-ahead within a minute");
    }
    // A file that is not cold any longer is populated.
    assert!(Prefetch::new(set, &file).has_ranges());
}

#[test]
fn near_ranges_are_joined() {
    assert_eq!(join_ranges(&[1..2, 34..40, 73..75]), [1..40, 73..75]);
    assert_eq!(join_ranges(slice::from_ref(&(7..8))), slice::from_ref(&(7..8)));
    assert!(join_ranges(&[]).is_empty());
}
