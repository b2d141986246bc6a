//! A guest that writes its disk without end, with several requests at a time.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::super::served::ApiProcess;
use super::{PAUSED, Snapshot, run};
use crate::guest::LIMIT;

const SECTOR: usize = 512;
const SECTORS: usize = 8;
const BLOCKS: usize = 64;
/// Requests that the guest has under way at most.
const SLOTS: u64 = 5;

fn disk(snapshot: &Snapshot, name: &str) -> String {
    let path = snapshot.text(name);
    fs::write(&path, vec![0; BLOCKS * SECTORS * SECTOR]).unwrap();
    path
}

/// The numbers of the blocks on the disk at `path`, each of which must be whole.
fn numbers(path: &str) -> Vec<u64> {
    let content = fs::read(path).unwrap();
    let number = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().unwrap());
    let block = |index: usize| {
        let first = index * SECTORS * SECTOR;
        let block = number(first);
        for sector in 0..SECTORS {
            let at = first + sector * SECTOR;
            let sector = sector as u64;
            for at in [at, at + SECTOR - 16] {
                let here = (number(at), number(at + 8));
                assert_eq!(here, (block, sector), "block {index}");
            }
        }
        assert_eq!(block % BLOCKS as u64, index as u64);
        block
    };
    (0..BLOCKS).map(block).collect()
}

/// How many blocks were written, up to the last that was.
fn written(path: &str) -> u64 {
    let content = fs::read(path).unwrap();
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    let last = content.chunks(SECTORS * SECTOR).map(number).max();
    last.unwrap() + 1
}

/// Nothing that was written is missing or from another time: a frozen guest has no request under way.
fn is_whole(path: &str) {
    let numbers = numbers(path);
    let last = *numbers.iter().max().unwrap();
    let oldest = (last + 1).saturating_sub(BLOCKS as u64 + SLOTS);
    assert!(numbers.iter().all(|number| *number >= oldest), "{numbers:?}");
    let different: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(different.len(), BLOCKS);
}

/// The guest, which has written all of the disk at `path` by `engine`.
fn writing(path: &str, options: &str) -> ApiProcess {
    let mut served = run("blocks.elf", &format!("--disk {path},id=d{options}"), "");
    served.expect("round 1\n");
    served
}

/// Goes from process to process and from file to file.
fn goes_through(engine: &str) {
    let snapshot = Snapshot::new();
    let mut path = disk(&snapshot, "disk");
    let mut served = writing(&path, &format!(",engine={engine}"));
    for clone in 0..20 {
        served.expect_no_content("PATCH", "/vm", PAUSED);
        snapshot.create(&served, if clone % 3 == 0 { "Full" } else { "Diff" });
        is_whole(&path);
        served.kill();
        let before = fs::read(&path).unwrap();
        if clone % 2 == 0 {
            // It stays as it is, and the guest goes on elsewhere.
            let other = snapshot.text(&format!("clone{clone}"));
            fs::write(&other, &before).unwrap();
            let old = std::mem::replace(&mut path, other);
            let overridden = format!(
                r#","resume_vm":true,"drive_overrides":[{{"drive_id":"d","path_on_host":"{path}"}}]"#
            );
            served = snapshot.load(&overridden);
            served.expect("round ");
            served.expect("round ");
            assert!(fs::read(old).unwrap() == before);
        } else {
            served = snapshot.load(r#","resume_vm":true"#);
            served.expect("round ");
            served.expect("round ");
        }
    }
    served.expect_no_content("PATCH", "/vm", PAUSED);
    assert_eq!(served.kill().matches("FAIL").count(), 0);
}

#[test]
fn requests_under_way_come_along() {
    goes_through("sync");
}

#[test]
fn requests_under_way_come_along_with_io_uring() {
    goes_through("async");
}

/// Waits until `path` has had `count` blocks written to it.
fn await_blocks(path: &str, count: u64) {
    let begin = Instant::now();
    while written(path) < count {
        assert!(begin.elapsed() < LIMIT, "{} of {count} blocks", written(path));
        thread::sleep(Duration::from_millis(1));
    }
}

/// Over both its lives the guest writes no more than its bucket held and than came in while it ran.
fn stays_throttled(engine: &str) {
    /// Requests in the bucket, and in a second.
    const SIZE: u32 = 50;
    const RATE: f64 = 10.0;
    let snapshot = Snapshot::new();
    let path = disk(&snapshot, "disk");
    let options = format!("--disk {path},id=d,engine={engine},ops={SIZE}/5000");
    let begin = Instant::now();
    let served = run("blocks.elf", &options, "");
    await_blocks(&path, u64::from(SIZE) + 2);
    served.expect_no_content("PATCH", "/vm", PAUSED);
    snapshot.create(&served, "Full");
    served.kill();
    let ran = begin.elapsed();
    let before = written(&path);
    let begin = Instant::now();
    let served = snapshot.load(r#","resume_vm":true"#);
    await_blocks(&path, before + 5);
    let count = u32::try_from(written(&path)).unwrap();
    let came = RATE * (ran + begin.elapsed()).as_secs_f64();
    assert!(
        f64::from(count) <= f64::from(SIZE) + came + 1.0,
        "{count} requests were done, {before} before, and {came} came in"
    );
    served.kill();
}

#[test]
fn a_throttled_drive_stays_throttled() {
    stays_throttled("sync");
}

#[test]
fn a_throttled_drive_stays_throttled_with_io_uring() {
    stays_throttled("async");
}
