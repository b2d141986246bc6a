use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

use scratch::Directory;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{DirtyTracker, WriteProtect};
use crate::GuestMemory;
use crate::kvm;
use crate::memory::{
    allocate, allocate_logged, map_file, map_snapshot, memfd, page_size, prefer_huge_pages, read_file_into,
};

/// Pages in both regions, and in the first.
const PAGES: u64 = 1500;
const LOW: u64 = 1100;
const HIGH: u64 = 1 << 32;

fn bytes(pages: u64) -> usize {
    usize::try_from(pages * page_size()).unwrap()
}

fn regions() -> [(GuestAddress, usize); 2] {
    [
        (GuestAddress(0), bytes(LOW)),
        (GuestAddress(HIGH), bytes(PAGES - LOW)),
    ]
}

/// Returns the guest-physical address of page `number`.
fn address(number: u64) -> GuestAddress {
    GuestAddress(match number.checked_sub(LOW) {
        Some(high) => HIGH + high * page_size(),
        None => number * page_size(),
    })
}

fn content(memory: &GuestMemory) -> Vec<Vec<u8>> {
    let read = |number| {
        let mut page = vec![0; bytes(1)];
        memory.read_slice(&mut page, address(number)).unwrap();
        page
    };
    (0..PAGES).map(read).collect()
}

fn no_log(_: u32, size: usize) -> Result<Vec<u64>, kvm::Error> {
    Ok(vec![0; size.div_ceil(64 * bytes(1))])
}

/// Returns the numbers of the dirty pages.
fn dirty(tracker: &DirtyTracker, memory: &GuestMemory) -> BTreeSet<u64> {
    tracker.collect(memory, &no_log).unwrap();
    let firsts = [0, LOW];
    let regions = memory.iter().zip(firsts);
    regions
        .flat_map(|(region, first)| {
            let ranges = tracker.ranges(region).map(Result::unwrap);
            ranges
                .flat_map(|range| range.step_by(bytes(1)))
                .map(move |offset| first + offset / page_size())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Deterministic random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Writes some pages: by this process, by read(2), and by readv(2) from a pipe. Each write changes the content.
fn write_somewhere(memory: &GuestMemory, random: &mut Random, round: u8) {
    let source = memfd(c"source", &vec![100 + round; bytes(1)]).unwrap();
    for _ in 0..40 {
        let at = address(random.below(PAGES));
        match random.below(3) {
            0 => memory
                .write_obj(
                    u64::from(round) << 32 | random.below(1 << 30),
                    GuestAddress(at.0 + 8 * random.below(bytes(1) as u64 / 8)),
                )
                .unwrap(),
            1 => read_file_into(memory, at, &source, 0, bytes(1)).unwrap(),
            _ => read_pipe(memory, at, [round; 64]),
        }
        // A read is no write.
        let _: u8 = memory.read_obj(address(random.below(PAGES))).unwrap();
    }
}

fn read_pipe(memory: &GuestMemory, at: GuestAddress, data: [u8; 64]) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the kernel has just created both descriptors.
    let [read, mut write] = ends.map(|end| unsafe { File::from_raw_fd(end) });
    write.write_all(&data).unwrap();
    let slice = memory.get_slice(at, data.len()).unwrap();
    let iovec = libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: the iovec describes guest memory, which lives during the call.
    let count = unsafe { libc::readv(read.as_raw_fd(), &raw const iovec, 1) };
    assert_eq!(usize::try_from(count).unwrap(), data.len());
    use vm_memory::bitmap::Bitmap;
    slice.bitmap().mark_dirty(0, data.len());
}

/// Compares the dirty pages with the changed pages in several rounds.
fn expect_exact(tracker: &DirtyTracker, memory: &GuestMemory) {
    let mut random = Random(7);
    for round in 1..8 {
        tracker.clear(memory, &no_log).unwrap();
        let before = content(memory);
        assert_eq!(dirty(tracker, memory), BTreeSet::new(), "{round}");
        write_somewhere(memory, &mut random, round);
        let found = dirty(tracker, memory);
        let changed: BTreeSet<u64> = (0..)
            .zip(before.iter().zip(content(memory)))
            .filter(|(_, (before, now))| *before != now)
            .map(|(number, _)| number)
            .collect();
        assert!(!changed.is_empty());
        assert_eq!(found, changed, "{round}");
        // Listed pages stay dirty until they are cleared.
        assert_eq!(dirty(tracker, memory), changed, "{round}");
    }
}

fn write_protect() -> Option<DirtyTracker> {
    match WriteProtect::open() {
        Ok(protect) => Some(DirtyTracker::WriteProtect(protect)),
        Err(error) => {
            scratch::skip("asynchronous write-protection", &error.to_string());
            None
        }
    }
}

#[test]
fn write_protection_of_fresh_memory_is_exact() {
    let Some(tracker) = write_protect() else { return };
    let memory = allocate(&regions()).unwrap();
    for region in memory.iter() {
        let size = usize::try_from(region.len()).unwrap();
        // SAFETY: the range is a live mapping; MADV_NOHUGEPAGE does not change its content.
        unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_NOHUGEPAGE) };
    }
    let image = memfd(c"image", &vec![9; bytes(90)]).unwrap();
    map_file(&memory, address(20), &image, 0, bytes(90)).unwrap();
    map_file(&memory, address(LOW), &image, 0, bytes(30)).unwrap();
    expect_exact(&tracker, &memory);
}

#[test]
fn write_protection_of_restored_memory_is_exact() {
    let Some(tracker) = write_protect() else { return };
    let directory = Directory::new();
    let path = directory.path("memory");
    let content: Vec<u8> = (0..PAGES)
        .flat_map(|number| vec![200 + (number % 50) as u8; bytes(1)])
        .collect();
    std::fs::write(&path, content).unwrap();
    let memory = map_snapshot(&regions(), &File::open(&path).unwrap()).unwrap();
    expect_exact(&tracker, &memory);
}

#[test]
fn write_protection_of_huge_pages_loses_no_page() {
    let Some(tracker) = write_protect() else { return };
    let memory = allocate(&[(GuestAddress(0), 16 << 20)]).unwrap();
    prefer_huge_pages(&memory);
    memory.write_slice(&vec![5; 16 << 20], GuestAddress(0)).unwrap();
    tracker.clear(&memory, &no_log).unwrap();
    let count = |tracker: &DirtyTracker| -> u64 {
        let region = memory.iter().next().unwrap();
        tracker
            .ranges(region)
            .map(|range| range.unwrap())
            .map(|range| range.end - range.start)
            .sum()
    };
    assert_eq!(count(&tracker), 0);
    memory.write_obj(6_u8, GuestAddress(5 << 20)).unwrap();
    let dirty = count(&tracker);
    assert!((page_size()..=2 << 20).contains(&dirty), "{dirty}");
}

#[test]
fn log_of_this_process_is_exact() {
    let memory = allocate_logged(&regions()).unwrap();
    expect_exact(&DirtyTracker::Log, &memory);
}

#[test]
fn log_of_kvm_is_merged_and_cleared() {
    let memory = allocate_logged(&regions()).unwrap();
    let tracker = DirtyTracker::Log;
    memory.write_obj(1_u8, address(3)).unwrap();
    let guest = |slot, size| {
        let mut log = no_log(slot, size)?;
        log[0] = 1 << 40;
        Ok(log)
    };
    tracker.collect(&memory, &guest).unwrap();
    let expected = BTreeSet::from([3, 40, LOW + 40]);
    assert_eq!(dirty(&tracker, &memory), expected);
    let fails = |_, _| {
        Err(kvm::Error::Call {
            call: "KVM_GET_DIRTY_LOG".into(),
            hint: "",
            source: std::io::ErrorKind::Other.into(),
        })
    };
    assert!(tracker.clear(&memory, &fails).is_err());
    assert_eq!(dirty(&tracker, &memory), expected);
    // Pages of the guest that were not collected belong to the snapshot too.
    tracker.clear(&memory, &guest).unwrap();
    assert_eq!(dirty(&tracker, &memory), BTreeSet::new());
}

#[test]
fn served_memory_is_logged() {
    assert!(DirtyTracker::select(true).needs_log());
}
