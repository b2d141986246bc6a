use std::fs::File;
use std::slice;
use std::time::Instant;

use snapshot::Writer;
use snapshot::file::{self, Architecture, Contents, Header, Host};
use vm_memory::{Bytes as _, GuestAddress};

use super::{Error, KEY, WorkingSet, joined};
use crate::GuestMemory;
use crate::boot::testing::Temporary;
use crate::memory::{Pagemap, map_snapshot, memfd, page_size};

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
        host: Host {
            architecture: Architecture::X86_64,
            page_size: u32::try_from(page_size()).unwrap(),
            cpu: String::new(),
        },
        memory: PAGES * page_size(),
        contents: Contents::Whole,
    }
}

/// A guest that has written three pages and read a fourth.
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
    WorkingSet::record(&memory, &Pagemap::open().unwrap()).unwrap()
}

#[test]
fn what_was_touched_is_recorded() {
    let set = recorded(&memory_file());
    assert_eq!(set.written, [5..6, 255..257, 263..264]);
    assert_eq!(set.written(), 4);
    assert!((5..=4 + 16).contains(&set.touched()), "{}", set.touched());
    assert!(set.touched.iter().any(|run| run.contains(&768)));
}

#[test]
fn a_set_survives_its_file() {
    let path = Temporary::missing();
    let set = recorded(&memory_file());
    set.write(path.path(), &header()).unwrap();
    assert_eq!(WorkingSet::read(path.path(), PAGES * page_size()).unwrap(), set);
}

#[test]
fn populated_pages_are_the_guests_and_hold_what_they_held() {
    let file = memory_file();
    let set = recorded(&file);
    let memory = memory(&file);
    assert!(set.read_ahead(&file) >= 1);
    assert_eq!(set.populate(&memory), 4);
    let again = WorkingSet::record(&memory, &Pagemap::open().unwrap()).unwrap();
    assert_eq!(again.written, set.written);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(HIGH)).unwrap(), 3);
    file.set_len(0).unwrap();
    let memory = self::memory(&memory_file());
    assert_eq!(set.populate(&memory), 4);
}

#[test]
fn memory_that_is_gone_is_not_populated() {
    let file = memory_file();
    let set = recorded(&file);
    let memory = memory(&file);
    file.set_len(100 * page_size()).unwrap();
    assert_eq!(set.populate(&memory), 1);
}

#[test]
fn a_set_that_cannot_be_is_refused() {
    let path = Temporary::missing();
    let size = PAGES * page_size();
    let wrong: [&[(u32, u32)]; 6] = [
        &[(3, 3)],
        &[(5, 3)],
        &[(8, 9), (7, 8)],
        &[(8, 10), (9, 11)],
        &[(1279, 1281)],
        &[(u32::MAX - 1, u32::MAX)],
    ];
    for runs in wrong {
        let runs: Vec<_> = runs.iter().map(|(start, end)| *start..*end).collect();
        for written in [true, false] {
            let mut set = WorkingSet::default();
            if written {
                set.written = runs.clone();
            } else {
                set.touched = runs.clone();
            }
            set.write(path.path(), &header()).unwrap();
            let error = WorkingSet::read(path.path(), size).unwrap_err();
            assert!(matches!(error, Error::Run(_)), "{runs:?}: {error}");
        }
    }
    recorded(&memory_file()).write(path.path(), &header()).unwrap();
    let error = WorkingSet::read(path.path(), size + page_size()).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }));
    file::write(path.path(), &header(), Writer::new()).unwrap();
    let error = WorkingSet::read(path.path(), size).unwrap_err();
    assert!(matches!(error, Error::Section(_)));
    let mut two = Writer::new();
    two.put(KEY, &WorkingSet::default()).unwrap();
    two.put("more", &WorkingSet::default()).unwrap();
    file::write(path.path(), &header(), two).unwrap();
    let error = WorkingSet::read(path.path(), size).unwrap_err();
    assert!(matches!(error, Error::Section(_)));
}

#[test]
fn near_runs_are_one_read() {
    assert_eq!(joined(&[1..2, 34..40, 73..75]), [1..40, 73..75]);
    assert_eq!(joined(slice::from_ref(&(7..8))), slice::from_ref(&(7..8)));
    assert!(joined(&[]).is_empty());
}

#[test]
#[ignore = "measures"]
fn speed_of_a_first_touch() {
    let file = memfd(c"memory", &vec![3; bytes(4096)]).unwrap();
    let fresh = || map_snapshot(&[(GuestAddress(0), bytes(4096))], &file).unwrap();
    let touch = |memory: &GuestMemory| {
        let start = Instant::now();
        for number in 0..1000 {
            memory
                .write_obj(1_u8, GuestAddress(number * 4 * page_size()))
                .unwrap();
        }
        start.elapsed()
    };
    let memory = fresh();
    let without = touch(&memory);
    let set = WorkingSet::record(&memory, &Pagemap::open().unwrap()).unwrap();
    let memory = fresh();
    let start = Instant::now();
    assert_eq!(set.populate(&memory), 1000);
    let populating = start.elapsed();
    let with = touch(&memory);
    println!(
        "1,000 scattered pages, written by this process: {without:?}; with the set {with:?} after {populating:?}"
    );
}
