//! How long it takes, in /dev/shm: `cargo test --release -p vmm speed -- --ignored --nocapture --test-threads 1`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use super::{Difference, Origin, Source, full};
use crate::GuestMemory;
use crate::memory::{Pagemap, allocate, map_snapshot, page_size, pagemap};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 31;

fn median(mut one: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| one()).collect();
    times.sort();
    times[ROUNDS / 2]
}

fn memory(size: u64) -> Vec<(GuestAddress, usize)> {
    vec![(GuestAddress(0), usize::try_from(size).unwrap())]
}

/// Writes `pages` pages that are evenly spread over `size` bytes.
fn touch(memory: &GuestMemory, size: u64, pages: u64) {
    let step = size / pages / page_size() * page_size();
    for number in 0..pages {
        memory.write_obj(!number, GuestAddress(number * step)).unwrap();
    }
}

#[test]
#[ignore = "measures"]
fn speed_of_a_full_file() {
    let pagemap = Pagemap::open().unwrap();
    let memory = allocate(&memory(128 * MIB)).unwrap();
    for number in 0..512 {
        memory
            .write_obj(!number, GuestAddress(number * page_size()))
            .unwrap();
    }
    let source = Source {
        memory: &memory,
        origin: Origin::Fresh,
        pagemap: Some(&pagemap),
    };
    let path = Path::new("/dev/shm/mayfly-speed-full");
    let time = median(|| {
        let start = Instant::now();
        full(&source, path).unwrap().commit().unwrap();
        start.elapsed()
    });
    let blind = Source {
        pagemap: None,
        ..source
    };
    let disk = fs::metadata(path).unwrap().blocks() * 512;
    let without = median(|| {
        let start = Instant::now();
        full(&blind, path).unwrap().commit().unwrap();
        start.elapsed()
    });
    fs::remove_file(path).unwrap();
    println!("full, 128 MiB, 2 MiB touched: {time:?}, {disk} bytes on disk; without /proc {without:?}");
}

#[test]
#[ignore = "measures"]
fn speed_of_a_full_file_of_restored_memory() {
    let pagemap = Pagemap::open().unwrap();
    let (base, path) = (
        Path::new("/dev/shm/mayfly-speed-restored"),
        Path::new("/dev/shm/mayfly-speed-again"),
    );
    for size in [128 * MIB, 2048 * MIB] {
        let memory = allocate(&self::memory(size)).unwrap();
        touch(&memory, 2 * MIB, 512);
        let origin = Origin::Fresh;
        let fresh = Source {
            memory: &memory,
            origin,
            pagemap: Some(&pagemap),
        };
        full(&fresh, base).unwrap().commit().unwrap();
        let file = File::open(base).unwrap();
        let memory = map_snapshot(&self::memory(size), &file).unwrap();
        touch(&memory, size, 256);
        let source = Source {
            memory: &memory,
            origin: Origin::Mapped(&file),
            ..fresh
        };
        let time = median(|| {
            let start = Instant::now();
            full(&source, path).unwrap().commit().unwrap();
            start.elapsed()
        });
        let disk = fs::metadata(path).unwrap().blocks() * 512;
        println!(
            "full of restored {} MiB, 2 MiB in the base, 256 pages written: {time:?}, {disk} bytes on disk",
            size / MIB
        );
        fs::remove_file(base).unwrap();
        fs::remove_file(path).unwrap();
    }
}

#[test]
#[ignore = "measures"]
fn speed_of_a_difference() {
    let pagemap = Pagemap::open().unwrap();
    let (base, path) = (
        Path::new("/dev/shm/mayfly-speed-base"),
        Path::new("/dev/shm/mayfly-speed-diff"),
    );
    for size in [128 * MIB, 2048 * MIB] {
        File::create(base).unwrap().set_len(size).unwrap();
        let file = File::open(base).unwrap();
        let memory = map_snapshot(&memory(size), &file).unwrap();
        touch(&memory, size, 256);
        let source = Source {
            memory: &memory,
            origin: Origin::Mapped(&file),
            pagemap: Some(&pagemap),
        };
        let host = memory.iter().next().unwrap().as_ptr() as u64;
        let scan = median(|| {
            let start = Instant::now();
            let runs = pagemap.runs(host..host + size, pagemap::Wanted::Private);
            assert_eq!(runs.count(), 256);
            start.elapsed()
        });
        let time = median(|| {
            let start = Instant::now();
            let dump = Difference::prepare(&source, path)
                .unwrap()
                .write(&source)
                .unwrap();
            let elapsed = start.elapsed();
            dump.commit().unwrap();
            // The next one shall be no merge.
            fs::remove_file(path).unwrap();
            elapsed
        });
        let map = median(|| {
            let start = Instant::now();
            let mapped = map_snapshot(&self::memory(size), &file).unwrap();
            let elapsed = start.elapsed();
            drop(mapped);
            elapsed
        });
        println!(
            "{} MiB: scan {scan:?}, diff of 256 pages {time:?}, map {map:?}",
            size / MIB
        );
        fs::remove_file(base).unwrap();
    }
}
