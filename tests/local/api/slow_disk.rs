//! Answers to clients and signals while the host works long for one request of the guest. On a host with a fast disk,
//! the work may end before the answers.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use scratch::{Requirement, require};

use super::fuse::SlowDisk;
use super::http::{Client, NO_CONTENT, go_request};
use super::served::{ApiProcess, Directory, PAUSED, RESUMED, create_snapshot};
use crate::guest::TIMEOUT;

/// Limit of a snapshot, which waits for the disk of its files too.
const SNAPSHOT_LIMIT: Duration = TIMEOUT;
/// Limit of each answer on this host, which may be busy, and to whose disk other tests may write. `make attack` checks the goal of
/// 100 ms, and the tests with a stuck disk show that no answer waits for the disk.
const LIMIT: Duration = Duration::from_secs(10);
const BLOCK: u64 = 4096;
/// Number of allocated blocks of a fragmented disk: a discard takes some seconds on ext4.
const BLOCKS: u64 = 32 << 10;

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

/// Starts the slow guest on a disk that `create` writes into `directory`. Returns it with the path. The removal of a
/// fragmented disk takes long too, so its directory must outlive the process.
fn start(directory: &Directory, engine: &str, arguments: &str, create: fn(&str)) -> (ApiProcess, String) {
    let path = directory.text("disk");
    create(&path);
    (start_on(&path, engine, arguments), path)
}

/// Starts the slow guest on the disk at `path`.
fn start_on(path: &str, engine: &str, arguments: &str) -> ApiProcess {
    start_on_kernel(path, engine, "slow.elf", arguments)
}

/// Starts the guest `kernel` on the disk at `path`.
fn start_on_kernel(path: &str, engine: &str, kernel: &str, arguments: &str) -> ApiProcess {
    let process = ApiProcess::start();
    boot_on(&process, path, engine, kernel, arguments);
    process
}

/// Boots the guest `kernel` on the disk at `path`.
fn boot_on(process: &ApiProcess, path: &str, engine: &str, kernel: &str, arguments: &str) {
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{path}","cache_type":"Writeback","io_engine":"{engine}"}}"#
    );
    process.expect_no_content("PUT", "/drives/d", &drive);
    let kernel = crate::guests::file(kernel);
    let boot = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"{arguments}"}}"#);
    process.expect_no_content("PUT", "/boot-source", &boot);
    process.run_action("InstanceStart");
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

/// Waits until the host has freed a block of the fragmented disk at `path`.
fn await_discard(path: &str) {
    let begin = Instant::now();
    while fs::metadata(path).unwrap().blocks() >= BLOCKS * BLOCK / 512 {
        assert!(begin.elapsed() < TIMEOUT, "the disk is not discarded");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn discard_of_fragmented_disk_delays_no_answer() {
    for engine in ["Sync", "Async"] {
        let directory = Directory::new();
        let (mut process, path) = start(&directory, engine, "stay=1", create_fragmented);
        process.expect("begin\n");
        await_discard(&path);
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
            process.expect("begin\nend 0\n");
            process.expect_exit(0);
        }
    }
}

/// Limit of each answer while the disk answers nothing, with a margin for a busy host: without the limit, it would never come.
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// Arguments for each request of the slow guest; the first is a discard.
const REQUESTS: [&str; 4] = ["", "read=1", "write=1", "flush=1"];

/// Checks answers, a guest reset and SIGTERM while `disk` answers no request.
fn check_answers_on_stuck_disk(engine: &str, arguments: &str, disk: &SlowDisk) {
    let (mut process, mut input) = ApiProcess::start_with_input();
    let arguments = format!("{arguments} reset=1");
    boot_on(&process, &disk.path(), engine, "slow.elf", &arguments);
    process.expect("begin\n");
    disk.expect_held();
    let drive = format!(r#"{{"drive_id":"d","path_on_host":"{}"}}"#, disk.path());
    let pause = || process.expect_no_content("PATCH", "/vm", PAUSED);
    let resume = || process.expect_no_content("PATCH", "/vm", RESUMED);
    timed("GET /", STUCK_LIMIT, || assert_eq!(process.state(), "Running"));
    timed("GET /metrics", STUCK_LIMIT, || {
        assert!(process.request("GET", "/metrics", "").text.contains("200"));
    });
    timed("GET /vm/status", STUCK_LIMIT, || {
        let status = process.request("GET", "/vm/status", "").json();
        assert_eq!(status["devices"][0]["has_driver"], true, "{status}");
    });
    timed("PATCH /drives", STUCK_LIMIT, || {
        let response = process.request("PATCH", "/drives/d", &drive).text;
        assert!(
            response.contains("requests in flight do not complete"),
            "{response}"
        );
    });
    timed("pause", STUCK_LIMIT, pause);
    timed("snapshot", SNAPSHOT_LIMIT, || {
        let response = create_snapshot(&process, &process.directory, "Full", "state", "memory");
        assert_eq!(response.text, NO_CONTENT);
    });
    timed("resume", STUCK_LIMIT, resume);
    timed("reset", STUCK_LIMIT, || {
        input.write_all(b"\n").unwrap();
        process.expect("reset\n");
    });
    timed("GET /", STUCK_LIMIT, || assert_eq!(process.state(), "Running"));
    timed("SIGTERM", STUCK_LIMIT, || process.terminate());
}

/// Returns the engines that the host can test on a FUSE file system.
fn engines_with_fuse() -> &'static [&'static str] {
    match (require(Requirement::Fuse), require(Requirement::IoUring)) {
        (false, _) => &[],
        (true, false) => &["Sync"],
        (true, true) => &["Sync", "Async"],
    }
}

#[test]
fn stuck_disk_delays_no_answer() {
    for engine in engines_with_fuse() {
        for arguments in REQUESTS {
            check_answers_on_stuck_disk(engine, arguments, &SlowDisk::mount());
        }
    }
}

#[test]
fn requests_of_released_disk_complete() {
    for engine in engines_with_fuse() {
        for arguments in REQUESTS {
            let disk = SlowDisk::mount();
            let mut process = start_on(&disk.path(), engine, arguments);
            process.expect("begin\n");
            disk.expect_held();
            disk.release();
            process.expect("end 0\n");
            process.expect_exit(0);
        }
    }
}

/// Starts `kernel` with its serial output in the file of `disk`.
fn start_with_output_on(disk: &SlowDisk, kernel: &str) -> ApiProcess {
    let process = ApiProcess::start();
    let body = format!(r#"{{"serial_out_path":"{}"}}"#, disk.path());
    process.expect_no_content("PUT", "/serial", &body);
    process.set_kernel(kernel);
    process.run_action("InstanceStart");
    process
}

#[test]
fn stuck_disk_of_serial_output_delays_no_answer() {
    if !require(Requirement::Fuse) {
        return;
    }
    let disk = SlowDisk::mount();
    let process = start_with_output_on(&disk, "ticker.elf");
    disk.expect_held();
    timed("GET /", STUCK_LIMIT, || assert_eq!(process.state(), "Running"));
    timed("pause", STUCK_LIMIT, || {
        process.expect_no_content("PATCH", "/vm", PAUSED)
    });
    for kind in ["Full", "Diff"] {
        timed("snapshot", SNAPSHOT_LIMIT, || {
            let response = create_snapshot(&process, &process.directory, kind, "state", "memory").text;
            assert!(response.contains(NO_CONTENT), "{response}");
        });
    }
    timed("resume", STUCK_LIMIT, || {
        process.expect_no_content("PATCH", "/vm", RESUMED)
    });
    timed("SIGTERM", STUCK_LIMIT, || process.terminate());
}

#[test]
fn guest_with_serial_output_on_stuck_disk_ends() {
    if !require(Requirement::Fuse) {
        return;
    }
    let disk = SlowDisk::mount();
    let process = start_with_output_on(&disk, "hello.elf");
    disk.expect_held();
    timed("exit", STUCK_LIMIT, || drop(process.expect_exit(0)));

    // Nothing is lost on a disk that answers in time.
    let disk = SlowDisk::mount();
    let process = start_with_output_on(&disk, "hello.elf");
    disk.expect_held();
    disk.release();
    let (_, errors) = process.expect_exit(0);
    assert!(!errors.contains("dropped"), "{errors}");
}

/// Sends a request without waiting for its response, which must wait for a request to `disk`.
fn begin(process: &ApiProcess, disk: &SlowDisk, method: &str, path: &str, body: &str) -> Client {
    let mut client = process.connect();
    client.send(go_request(method, path, body));
    disk.expect_held();
    client
}

#[test]
fn stuck_open_of_drive_delays_only_its_request() {
    if !require(Requirement::Fuse) {
        return;
    }
    let disk = SlowDisk::mount();
    disk.hold_names();
    let directory = Directory::new();
    let path = directory.text("disk");
    File::create(&path).unwrap().set_len(64 << 10).unwrap();
    let process = ApiProcess::start();
    let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{path}"}}"#);
    process.expect_no_content("PUT", "/drives/d", &drive);
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    let update = |path: &str| format!(r#"{{"drive_id":"d","path_on_host":"{path}"}}"#);
    let mut client = begin(&process, &disk, "PATCH", "/drives/d", &update(&disk.path()));
    timed("GET /", STUCK_LIMIT, || assert_eq!(process.state(), "Running"));
    let message = client.receive().fault_message();
    assert!(
        message.contains("cannot open disk") && message.contains("does not answer"),
        "{message}"
    );
    let config = process.request("GET", "/vm/config", "").text;
    assert!(
        config.contains(&path) && !config.contains(&disk.path()),
        "{config}"
    );
    // The drive is unchanged, and later updates succeed.
    let other = directory.text("other");
    fs::copy(&path, &other).unwrap();
    process.expect_no_content("PATCH", "/drives/d", &update(&other));
    timed("pause", STUCK_LIMIT, || {
        process.expect_no_content("PATCH", "/vm", PAUSED)
    });
    timed("SIGTERM", STUCK_LIMIT, || process.terminate());
}

#[test]
fn diff_in_stuck_directory_delays_only_its_request() {
    if !require(Requirement::Fuse) {
        return;
    }
    let disk = SlowDisk::mount();
    disk.hold_names();
    let process = ApiProcess::start();
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    process.expect_no_content("PATCH", "/vm", PAUSED);
    let directory = disk.directory();
    let (state, memory) = (directory.text("state"), directory.text("memory"));
    let body = format!(r#"{{"snapshot_type":"Diff","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
    let _client = begin(&process, &disk, "PUT", "/snapshot/create", &body);
    timed("GET /", STUCK_LIMIT, || assert_eq!(process.state(), "Paused"));
    timed("SIGTERM", STUCK_LIMIT, || process.terminate());
}
