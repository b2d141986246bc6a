//! Round trips of a guest that writes its disk continuously, with several requests in flight.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::super::served::{ApiProcess, PAUSED};
use super::{Snapshot, start};
use crate::guest::TIMEOUT;

const SECTOR: usize = 512;
const SECTORS: usize = 8;
const BLOCKS: usize = 64;
/// Maximum number of requests in flight.
const MAX_IN_FLIGHT: u64 = 5;

fn create_disk(snapshot: &Snapshot, name: &str) -> String {
    let path = snapshot.text(name);
    fs::write(&path, vec![0; BLOCKS * SECTORS * SECTOR]).unwrap();
    path
}

/// Returns the numbers of the blocks on the disk at `path`. All sectors of a block must match.
fn read_block_numbers(path: &str) -> Vec<u64> {
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

/// Returns the number of written blocks, by the highest block number.
fn count_written(path: &str) -> u64 {
    let content = fs::read(path).unwrap();
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    let last = content.chunks(SECTORS * SECTOR).map(number).max();
    last.unwrap() + 1
}

/// Checks that no written block is missing or outdated: a paused VM has no request in flight.
fn check_blocks(path: &str) {
    let numbers = read_block_numbers(path);
    let last = *numbers.iter().max().unwrap();
    let oldest = (last + 1).saturating_sub(BLOCKS as u64 + MAX_IN_FLIGHT);
    assert!(numbers.iter().all(|number| *number >= oldest), "{numbers:?}");
    let different: BTreeSet<u64> = numbers.iter().copied().collect();
    assert_eq!(different.len(), BLOCKS);
}

/// Starts the guest and waits until it has written the whole disk at `path`.
fn start_writer(path: &str, options: &str) -> ApiProcess {
    let mut process = start("blocks.elf", &format!("--disk {path},id=d{options}"), "");
    process.expect("round 1\n");
    process
}

/// Restores of one guest, fewer in the time of an emulated host.
const RESTORES: usize = if cfg!(target_arch = "x86_64") { 20 } else { 4 };

/// Moves the guest through several processes and disk files.
fn run_restores(engine: &str) {
    let snapshot = Snapshot::new();
    let mut path = create_disk(&snapshot, "disk");
    let mut process = start_writer(&path, &format!(",engine={engine}"));
    for clone in 0..RESTORES {
        process.expect_no_content("PATCH", "/vm", PAUSED);
        snapshot.create(&process, if clone % 3 == 0 { "Full" } else { "Diff" });
        check_blocks(&path);
        process.kill();
        let before = fs::read(&path).unwrap();
        if clone % 2 == 0 {
            // The guest continues on a copy, and the old file must not change.
            let other = snapshot.text(&format!("clone{clone}"));
            fs::write(&other, &before).unwrap();
            let old = std::mem::replace(&mut path, other);
            let fields = format!(
                r#","resume_vm":true,"drive_overrides":[{{"drive_id":"d","path_on_host":"{path}"}}]"#
            );
            process = snapshot.load(&fields);
            process.expect("round ");
            process.expect("round ");
            assert!(fs::read(old).unwrap() == before);
        } else {
            process = snapshot.load(r#","resume_vm":true"#);
            process.expect("round ");
            process.expect("round ");
        }
    }
    process.expect_no_content("PATCH", "/vm", PAUSED);
    assert_eq!(process.kill().matches("FAIL").count(), 0);
}

#[test]
fn requests_in_flight_survive_restores() {
    run_restores("sync");
}

#[test]
fn requests_in_flight_survive_restores_with_io_uring() {
    run_restores("async");
}

/// Waits until the guest has written `count` blocks to `path`.
fn await_blocks(path: &str, count: u64) {
    let begin = Instant::now();
    while count_written(path) < count {
        assert!(
            begin.elapsed() < TIMEOUT,
            "{} of {count} blocks",
            count_written(path)
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Checks that both processes together write no more than the bucket held and gained.
fn check_rate_limit(engine: &str) {
    /// Size of the bucket in requests, and its refill in requests a second.
    const SIZE: u32 = 50;
    const RATE: f64 = 10.0;
    let snapshot = Snapshot::new();
    let path = create_disk(&snapshot, "disk");
    let options = format!("--disk {path},id=d,engine={engine},ops={SIZE}/5000");
    let begin = Instant::now();
    let process = start("blocks.elf", &options, "");
    await_blocks(&path, u64::from(SIZE) + 2);
    process.expect_no_content("PATCH", "/vm", PAUSED);
    snapshot.create(&process, "Full");
    process.kill();
    let ran = begin.elapsed();
    let before = count_written(&path);
    let begin = Instant::now();
    let process = snapshot.load(r#","resume_vm":true"#);
    await_blocks(&path, before + 5);
    let count = u32::try_from(count_written(&path)).unwrap();
    let refilled = RATE * (ran + begin.elapsed()).as_secs_f64();
    assert!(
        f64::from(count) <= f64::from(SIZE) + refilled + 1.0,
        "{count} requests completed, {before} of them before the snapshot, with a refill of {refilled}"
    );
    process.kill();
}

#[test]
fn rate_limit_survives_restore() {
    check_rate_limit("sync");
}

#[test]
fn rate_limit_survives_restore_with_io_uring() {
    check_rate_limit("async");
}
