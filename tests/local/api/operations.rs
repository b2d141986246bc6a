//! Answers to clients and signals while an operation of the VM waits for a fault handler or a disk.

use std::fs::{self, File};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::http::{Client, NO_CONTENT, go_request};
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, count_ticks, expect_progress, load_body, load_snapshot,
    pause_and_create,
};
use super::uffd::{
    THROTTLED, await_fault, await_stuck_io, create_drive_snapshot, create_ticker_snapshot, expect_wait,
    listen, load_with_handler, serve_pages, start_with_drive, trickle,
};

/// Limit of each answer and of SIGTERM: 100 ms, with a margin for a busy host. An operation without a page lasts 2 s.
const LIMIT: Duration = Duration::from_millis(1800);
/// Limit while a snapshot is written, which lasts longer or is unanswered: the end of the process waits for two pieces of 4 MiB, on a
/// disk that may be busy.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Size of the large guest, whose snapshot takes several seconds on a disk.
const LARGE: u64 = 1 << 30;

/// Sends a request without waiting for its response.
fn begin(process: &ApiProcess, method: &str, path: &str, body: &str) -> Client {
    let mut client = process.connect();
    client.send(go_request(method, path, body));
    client
}

/// Begins a Full snapshot in the files `state-2` and `memory-2` of `directory`.
fn begin_snapshot(process: &ApiProcess, directory: &Directory) -> Client {
    let (state, memory) = (directory.text("state-2"), directory.text("memory-2"));
    let body = format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
    begin(process, "PUT", "/snapshot/create", &body)
}

/// Expects answers within `limit` to requests that only read, and the instance state `state`.
fn expect_answers(process: &ApiProcess, state: &str, limit: Duration) {
    for path in [
        "/",
        "/vm/config",
        "/vm/status",
        "/vm/registers",
        "/metrics",
        "/version",
    ] {
        let start = Instant::now();
        let response = process.request("GET", path, "");
        let elapsed = start.elapsed();
        assert_eq!(response.status(), 200, "{path}: {}", response.text);
        assert!(elapsed < limit, "GET {path} took {elapsed:?}");
    }
    assert_eq!(process.state(), state);
}

/// Sends SIGTERM, which must end the process within `limit`.
fn expect_end(process: ApiProcess, limit: Duration) {
    let start = Instant::now();
    process.terminate();
    let elapsed = start.elapsed();
    assert!(elapsed < limit, "SIGTERM took {elapsed:?}");
}

/// Expects no file of a new snapshot in `directory`, complete or temporary.
fn expect_no_snapshot(directory: &Directory) {
    let names = directory.names();
    let new = |name: &&String| name.contains("-2");
    assert_eq!(names.iter().find(new), None, "{names:?}");
}

/// Waits until the temporary memory file of a snapshot in `directory` exists.
fn await_memory_file(directory: &Directory) {
    let file = directory.path(".memory-2.part0");
    scratch::wait_until("a memory file", || file.exists());
}

#[test]
fn stuck_handler_delays_only_requests_for_its_vm() {
    let directory = create_drive_snapshot("blocks.elf", "Sync", "round 1\n");
    let listener = listen(&directory);
    let process = load_with_handler(&directory, "state", r#","resume_vm":true"#);
    let _unresolved = await_fault(&listener);
    await_stuck_io(&process);
    let limiter = format!(r#"{{"drive_id":"d","rate_limiter":{THROTTLED}}}"#);
    for (path, body) in [("/vm", PAUSED), ("/drives/d", &limiter)] {
        let mut first = begin(&process, "PATCH", path, body);
        expect_answers(&process, "Running", LIMIT);
        let mut second = begin(&process, "PATCH", "/vm", RESUMED);
        expect_answers(&process, "Running", LIMIT);
        expect_wait(&first.receive(), "mayfly_io");
        assert_eq!(second.receive().text, NO_CONTENT);
    }
    expect_end(process, LIMIT);
}

#[test]
fn stuck_handler_does_not_delay_end() {
    let directory = create_drive_snapshot("blocks.elf", "Async", "round 1\n");
    let limiter = format!(r#"{{"drive_id":"d","rate_limiter":{THROTTLED}}}"#);
    for (path, body) in [("/vm", PAUSED), ("/drives/d", &limiter)] {
        let listener = listen(&directory);
        let process = load_with_handler(&directory, "state", r#","resume_vm":true"#);
        let _unresolved = await_fault(&listener);
        await_stuck_io(&process);
        let _client = begin(&process, "PATCH", path, body);
        expect_answers(&process, "Running", LIMIT);
        expect_end(process, LIMIT);
    }
    let listener = listen(&directory);
    let process = load_with_handler(&directory, "state", "");
    let _client = begin_snapshot(&process, &directory);
    expect_answers(&process, "Paused", LIMIT);
    let _unresolved = await_fault(&listener);
    expect_end(process, LIMIT);
    expect_no_snapshot(&directory);
}

/// kvmclock is of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn stuck_handler_does_not_delay_answers_during_load() {
    // KVM may access the pages of the clock when the vCPU is restored.
    let directory = create_drive_snapshot("kvmclock.elf", "Sync", "ready\n");
    let _listener = listen(&directory);
    let process = ApiProcess::start();
    let body = super::uffd::uffd_body(&directory, "state", super::uffd::SOCKET, "");
    let _client = begin(&process, "PUT", "/snapshot/load", &body);
    let start = Instant::now();
    let state = process.state();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    assert!(["Not started", "Paused"].contains(&state.as_str()), "{state}");
    expect_end(process, LIMIT);
}

#[test]
fn trickling_handler_delays_only_its_snapshot() {
    let (directory, printed) = create_ticker_snapshot();
    let listener = listen(&directory);
    let mut process = load_with_handler(&directory, "state", "");
    let handler = trickle(listener, &directory, "memory", Duration::from_millis(500));
    let first = begin_snapshot(&process, &directory);
    await_memory_file(&directory);
    expect_answers(&process, "Paused", WRITE_LIMIT);
    let mut second = begin(&process, "PATCH", "/vm", RESUMED);
    expect_answers(&process, "Paused", WRITE_LIMIT);
    // A client that no longer waits cancels its snapshot, and thereby continues the guest.
    drop(first);
    assert_eq!(second.receive().text, NO_CONTENT);
    expect_no_snapshot(&directory);
    handler.hurry();
    process.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    expect_end(process, WRITE_LIMIT);
}

#[test]
fn trickling_handler_does_not_delay_end() {
    let (directory, _) = create_ticker_snapshot();
    let listener = listen(&directory);
    let process = load_with_handler(&directory, "state", "");
    let _handler = trickle(listener, &directory, "memory", Duration::from_millis(500));
    let _client = begin_snapshot(&process, &directory);
    await_memory_file(&directory);
    expect_end(process, WRITE_LIMIT);
    expect_no_snapshot(&directory);
}

/// Loads a paused guest whose memory file has a gibibyte of data, almost all of which it does not use.
fn load_large(directory: &Directory) -> (ApiProcess, String) {
    let process = ApiProcess::start();
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{}}}"#, LARGE >> 20);
    process.expect_no_content("PUT", "/machine-config", &machine);
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    let mut process = process;
    process.expect("tick 3\n");
    pause_and_create(&process, directory, "Full", "state", "memory");
    let printed = process.kill();
    let file = File::options()
        .write(true)
        .open(directory.path("memory"))
        .unwrap();
    let chunk = vec![1; 1 << 20];
    for offset in (LARGE / 8..LARGE).step_by(chunk.len()) {
        file.write_all_at(&chunk, offset).unwrap();
    }
    (load_snapshot(directory, "state", "memory", ""), printed)
}

#[test]
fn large_snapshot_delays_no_answer() {
    let directory = Directory::new();
    let (process, printed) = load_large(&directory);
    let mut first = begin_snapshot(&process, &directory);
    await_memory_file(&directory);
    expect_answers(&process, "Paused", WRITE_LIMIT);
    let mut second = begin(&process, "PATCH", "/vm", RESUMED);
    expect_answers(&process, "Paused", WRITE_LIMIT);
    // A client that sends no more requests still waits.
    first.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(first.receive().text, NO_CONTENT);
    assert_eq!(second.receive().text, NO_CONTENT);
    expect_progress(process, printed);
    let body = load_body(&directory, "state-2", "memory-2", r#","resume_vm":true"#);
    let mut again = ApiProcess::start();
    again.expect_no_content("PUT", "/snapshot/load", &body);
    again.expect("tick ");
    again.terminate();
}

#[test]
fn large_snapshot_does_not_delay_end() {
    let directory = Directory::new();
    let (process, _) = load_large(&directory);
    fs::write(directory.path("state-2"), "old").unwrap();
    let _client = begin_snapshot(&process, &directory);
    await_memory_file(&directory);
    expect_end(process, WRITE_LIMIT);
    assert_eq!(fs::read(directory.path("state-2")).unwrap(), b"old");
    fs::remove_file(directory.path("state-2")).unwrap();
    expect_no_snapshot(&directory);
}

/// Restores the guest of `directory`, whose drive has waiting writes, with a handler that provides `pages` pages. Ends mayfly while
/// a thread waits for the next page. Returns false if no thread does.
fn end_at_page(directory: &Directory, pages: u64) -> bool {
    let listener = listen(directory);
    let process = load_with_handler(directory, "state", r#","resume_vm":true"#);
    let handler = serve_pages(listener, directory, "memory", pages);
    let waits = handler.await_last_page();
    expect_end(process, LIMIT);
    waits
}

/// Creates a snapshot of a guest whose drive has waiting writes, in the files `state` and `memory`.
fn create_waiting_writes(engine: &str) -> Directory {
    let directory = Directory::new();
    let process = start_with_drive(&directory, "blocks.elf", engine, "round 2\n");
    let disk = directory.path("disk");
    let limit = |limiter: &str| {
        let update = format!(r#"{{"drive_id":"d","rate_limiter":{limiter}}}"#);
        process.expect_no_content("PATCH", "/drives/d", &update);
    };
    limit(r#"{"ops":{"size":1,"refill_time":10}}"#);
    let old = fs::read(&disk).unwrap();
    scratch::wait_until("a write", || fs::read(&disk).unwrap() != old);
    limit(THROTTLED);
    process.expect_no_content("PATCH", "/vm", PAUSED);
    limit(r#"{"ops":{"size":1000000,"refill_time":1}}"#);
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();
    directory
}

#[test]
fn end_writes_no_absent_page_to_disk() {
    for engine in ["Sync", "Async"] {
        // The sectors of a block start with its number, which is 0 in the first block only.
        let directory = create_waiting_writes(engine);
        let saved = fs::read(directory.path("disk")).unwrap();
        let mut pages = 0;
        while pages < 48 && end_at_page(&directory, pages) {
            let disk = fs::read(directory.path("disk")).unwrap();
            let zeroed = disk.chunks(512).position(|sector| sector[..8] == [0; 8]);
            assert_eq!(zeroed, None, "{engine}: a sector was zeroed after {pages} pages");
            fs::write(directory.path("disk"), &saved).unwrap();
            pages += 1;
        }
        assert!(pages > 4, "{engine}: the guest needs {pages} pages");
    }
}
