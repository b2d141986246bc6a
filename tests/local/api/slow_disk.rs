//! Answers to clients and signals while the host works long for one request of the guest. On a host with a fast disk,
//! the work may end before the answers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use super::served::{ApiProcess, Directory, PAUSED, RESUMED};
use crate::guest::TIMEOUT;

/// Limit of a snapshot, which waits for the disk of its files too.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);
/// Limit of each answer: 100 ms and one call of the worker, with a margin for a busy host.
const LIMIT: Duration = Duration::from_millis(500);
const BLOCK: u64 = 4096;
/// Number of allocated blocks of a fragmented disk: a discard takes a second or more on ext4.
const BLOCKS: u64 = 16 << 10;
/// Dirty bytes of the page cache before a flush.
const DIRTY: u64 = 768 << 20;

/// Creates a disk with every other block allocated.
fn create_fragmented(path: &str) {
    let file = File::create(path).unwrap();
    file.set_len(BLOCKS * 2 * BLOCK).unwrap();
    let block_data = [1; 4096];
    for block in 0..BLOCKS {
        file.write_all_at(&block_data, block * 2 * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
}

/// Creates a disk whose blocks are only in the page cache.
fn create_dirty(path: &str) {
    let file = File::create(path).unwrap();
    let chunk = vec![1; 1 << 20];
    for offset in (0..DIRTY).step_by(chunk.len()) {
        file.write_all_at(&chunk, offset).unwrap();
    }
}

/// Starts the slow guest on a disk that `create` writes into `directory`. Returns it with the path. The removal of a
/// fragmented disk takes long too, so its directory must outlive the process.
fn start(directory: &Directory, engine: &str, arguments: &str, create: fn(&str)) -> (ApiProcess, String) {
    let process = ApiProcess::start_with(Directory::new(), &[]);
    let path = directory.text("disk");
    create(&path);
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{path}","cache_type":"Writeback","io_engine":"{engine}"}}"#
    );
    process.expect_no_content("PUT", "/drives/d", &drive);
    let kernel = crate::guests::file("slow.elf");
    let boot = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"{arguments}"}}"#);
    process.expect_no_content("PUT", "/boot-source", &boot);
    (process, path)
}

fn timed(what: &str, limit: Duration, action: impl FnOnce()) {
    let begin = Instant::now();
    action();
    let elapsed = begin.elapsed();
    assert!(elapsed < limit, "{what} took {elapsed:?}");
}

/// Checks answers and SIGTERM during the request of the guest.
fn check_answers(process: ApiProcess) {
    let metrics = || assert!(process.request("GET", "/metrics", "").text.contains("200"));
    let pause = || process.expect_no_content("PATCH", "/vm", PAUSED);
    let resume = || process.expect_no_content("PATCH", "/vm", RESUMED);
    timed("GET /metrics", LIMIT, metrics);
    timed("pause", LIMIT, pause);
    timed("resume", LIMIT, resume);
    pause();
    timed("snapshot", SNAPSHOT_LIMIT, || {
        let (state, memory) = (process.directory.text("state"), process.directory.text("memory"));
        let body = format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        process.expect_no_content("PUT", "/snapshot/create", &body);
    });
    timed("resume", LIMIT, resume);
    timed("GET /metrics", LIMIT, metrics);
    timed("SIGTERM", LIMIT, || process.terminate());
}

/// Waits until the host has freed a block of the disk at `path`, which has `blocks`.
fn await_discard(path: &str, blocks: u64) {
    let begin = Instant::now();
    while fs::metadata(path).unwrap().blocks() >= blocks {
        assert!(begin.elapsed() < TIMEOUT, "the disk is not discarded");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn discard_of_fragmented_disk_delays_no_answer() {
    for engine in ["Sync", "Async"] {
        let directory = Directory::new();
        let (mut process, path) = start(&directory, engine, "stay=1", create_fragmented);
        let blocks = fs::metadata(&path).unwrap().blocks();
        process.run_action("InstanceStart");
        process.expect("begin\n");
        await_discard(&path, blocks);
        check_answers(process);
    }
}

#[test]
fn flush_of_dirty_page_cache_delays_no_answer() {
    for engine in ["Sync", "Async"] {
        let directory = Directory::new();
        let (mut process, _) = start(&directory, engine, "flush=1 stay=1", create_dirty);
        process.run_action("InstanceStart");
        process.expect("begin\n");
        check_answers(process);
    }
}

#[test]
fn slow_requests_complete() {
    for engine in ["Sync", "Async"] {
        for arguments in ["", "flush=1"] {
            let directory = Directory::new();
            let (mut process, _) = start(&directory, engine, arguments, |path| {
                let file = File::create(path).unwrap();
                file.write_all_at(&[1; 1 << 20], 0).unwrap();
            });
            process.run_action("InstanceStart");
            process.expect("begin\nend 0\n");
            process.expect_exit(0);
        }
    }
}
