//! Guests with memory from a fault handler: the example of resources/uffd-handler, on a thread.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::http::{NO_CONTENT, Response};
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, count_ticks, create_snapshot, create_stale_socket,
    expect_progress, load_snapshot, pause_and_create, start_ticker,
};
use crate::guest::TIMEOUT;
use crate::network::{create_host_tap, in_own_network, run_command};

#[path = "../../../resources/uffd-handler/handler.rs"]
mod handler;

const PAGE: u64 = 4096;
/// Pages of a guest with the default memory size.
const ALL_PAGES: u64 = (128 << 20) / PAGE;
/// Name of the handler's socket, in the directory of the snapshot.
pub const SOCKET: &str = "uffd.sock";
/// Limit for a response while the handler sends no page. mayfly waits 2 s for a page, a loaded host somewhat longer.
const RESPONSE_LIMIT: Duration = Duration::from_secs(20);
/// Rate limiter that stops a drive after its first request.
pub const THROTTLED: &str = r#"{"ops":{"size":1,"refill_time":3600000}}"#;
const RESUME_FIELD: &str = r#","resume_vm":true"#;

/// The example handler, for one guest.
pub struct FaultHandler {
    thread: JoinHandle<io::Result<u64>>,
    /// Receives the connection of the guest.
    guest: Receiver<UnixStream>,
}

impl FaultHandler {
    /// Listens in `directory` and provides the pages of its file `memory`.
    pub fn start(directory: &Directory, memory: &str) -> Self {
        Self::serve(listen(directory), open_memory(directory, memory))
    }

    /// Provides the pages of `memory` to a guest that may have connected already.
    pub fn serve(listener: UnixListener, memory: File) -> Self {
        let (sender, guest) = mpsc::channel();
        let thread = thread::spawn(move || {
            let stream = scratch::accept(&listener);
            sender.send(stream.try_clone()?).unwrap();
            let result = handler::serve(&stream, &memory);
            if let Err(error) = &result {
                // The guest blocks from here on. The test joins only after output of the guest: print the error now.
                eprintln!("the fault handler failed: {error}");
            }
            result
        });
        Self { thread, guest }
    }

    /// Waits for the end of the guest. Returns the number of provided pages.
    pub fn join(self) -> u64 {
        scratch::join(self.thread).unwrap()
    }

    /// Ends the handler and closes its descriptors while the guest runs.
    fn stop(self) -> u64 {
        let guest = self.guest.recv_timeout(TIMEOUT).unwrap();
        guest.shutdown(Shutdown::Both).unwrap();
        drop(guest);
        self.join()
    }
}

fn open_memory(directory: &Directory, name: &str) -> File {
    File::open(directory.path(name)).unwrap()
}

/// Listens in `directory` and replaces an old socket.
pub fn listen(directory: &Directory) -> UnixListener {
    let _ = fs::remove_file(directory.path(SOCKET));
    UnixListener::bind(directory.path(SOCKET)).unwrap()
}

/// Returns the body that loads a snapshot with the handler at `socket`.
pub fn uffd_body(directory: &Directory, state: &str, socket: &str, fields: &str) -> String {
    let (state, socket) = (directory.text(state), directory.text(socket));
    let backend = format!(r#"{{"backend_type":"Uffd","backend_path":"{socket}"}}"#);
    format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#)
}

/// Starts mayfly and loads the state file `state` with the handler.
pub fn load_with_handler(directory: &Directory, state: &str, fields: &str) -> ApiProcess {
    let process = ApiProcess::start();
    process.expect_no_content(
        "PUT",
        "/snapshot/load",
        &uffd_body(directory, state, SOCKET, fields),
    );
    process
}

/// Creates a snapshot of the ticker in the files `state` and `memory`. Returns the directory and the guest's output.
pub fn create_ticker_snapshot() -> (Directory, String) {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    (directory, process.kill())
}

/// Waits until the guest prints `lines` lines more than `printed` has.
fn expect_lines(process: &mut ApiProcess, printed: &str, lines: usize) {
    process.expect(&format!("tick {}\n", count_ticks(printed) + lines));
}

#[test]
fn guest_continues_with_fault_handler() {
    let (directory, printed) = create_ticker_snapshot();
    let handler = FaultHandler::start(&directory, "memory");
    let restored = load_with_handler(&directory, "state", RESUME_FIELD);
    assert_eq!(restored.state(), "Running");
    expect_progress(restored, printed);
    let pages = handler.join();
    assert!(
        (1..ALL_PAGES / 100).contains(&pages),
        "{pages} pages of {ALL_PAGES}"
    );
}

#[test]
fn paused_guest_touches_few_pages() {
    let (directory, printed) = create_ticker_snapshot();
    let handler = FaultHandler::start(&directory, "memory");
    let waiting = load_with_handler(&directory, "state", r#","resume_vm":false"#);
    assert_eq!(waiting.state(), "Paused");
    assert_eq!(waiting.kill(), "", "a paused guest printed");
    let untouched = handler.join();

    let handler = FaultHandler::start(&directory, "memory");
    let restored = load_with_handler(&directory, "state", "");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    expect_progress(restored, printed);
    let touched = handler.join();
    assert!(untouched < touched, "{untouched} {touched}");
}

#[test]
fn snapshot_with_fault_handler_loads_without_it() {
    for (kind, state, memory) in [
        ("Full", "state-2", "memory-2"),
        ("Full", "state", "memory"),
        ("Diff", "state", "memory"),
    ] {
        let (directory, printed) = create_ticker_snapshot();
        let handler = FaultHandler::start(&directory, "memory");
        let mut restored = load_with_handler(&directory, "state", RESUME_FIELD);
        expect_lines(&mut restored, &printed, 3);
        pause_and_create(&restored, &directory, kind, state, memory);
        // The file of the handler may have been replaced; absent pages are the same in both.
        restored.expect_no_content("PATCH", "/vm", RESUMED);
        expect_lines(&mut restored, &printed, 20);
        let all = printed.clone() + &restored.kill();
        let pages = handler.join();
        if kind == "Full" {
            assert_eq!(pages, ALL_PAGES);
        } else {
            assert!(pages < ALL_PAGES / 100, "{pages}");
        }
        let mut again = load_snapshot(&directory, state, memory, RESUME_FIELD);
        expect_lines(&mut again, &all, 3);
        let more = again.kill();
        // The clone starts with the rest of the line that the snapshot interrupted.
        let last = format!("tick {}\n", count_ticks(&all));
        let until = |text: &str| text.find(&last).unwrap();
        assert!(all[..until(&all)].ends_with(&more[..until(&more)]), "{more}");
    }
}

/// mayfly has no base to compare with: the file may be the rest of an interrupted diff.
#[test]
fn diff_with_fault_handler_rejects_file_without_state() {
    let (directory, printed) = create_ticker_snapshot();
    let _handler = FaultHandler::start(&directory, "memory");
    let mut restored = load_with_handler(&directory, "state", RESUME_FIELD);
    expect_lines(&mut restored, &printed, 3);
    restored.expect_no_content("PATCH", "/vm", PAUSED);
    let before = directory.names();
    let response = create_snapshot(&restored, &directory, "Diff", "new-state", "memory");
    let message = response.fault_message();
    assert!(message.contains("without a state file"), "{message}");
    assert_eq!(directory.names(), before);
    let response = create_snapshot(&restored, &directory, "Diff", "state", "memory");
    assert_eq!(response.text, NO_CONTENT);
    restored.kill();
}

#[test]
fn diff_holds_provided_pages() {
    let (directory, printed) = create_ticker_snapshot();
    let handler = FaultHandler::start(&directory, "memory");
    let mut restored = load_with_handler(&directory, "state", RESUME_FIELD);
    expect_lines(&mut restored, &printed, 3);
    pause_and_create(&restored, &directory, "Diff", "diff-state", "pages");
    restored.kill();
    let pages = handler.join();
    let metadata = directory.path("pages").metadata().unwrap();
    assert_eq!(metadata.len(), ALL_PAGES * PAGE);
    let stored = metadata.blocks() * 512 / PAGE;
    // The count includes blocks of file system metadata.
    assert!((1..=2 * pages).contains(&stored), "{stored} of {pages} pages");
}

#[test]
fn unreachable_handler_ends_mayfly() {
    let (directory, _) = create_ticker_snapshot();
    create_stale_socket(&directory.path(SOCKET));
    directory.write("file", "");
    fs::create_dir(directory.path("directory")).unwrap();
    let long = "x".repeat(120);
    for socket in [SOCKET, "none", "file", "directory", "memory", &long] {
        let process = ApiProcess::start();
        let message = process
            .request(
                "PUT",
                "/snapshot/load",
                &uffd_body(&directory, "state", socket, RESUME_FIELD),
            )
            .fault_message();
        assert!(
            message.starts_with("Load snapshot error: ") && message.contains(&directory.text(socket)),
            "{socket}: {message}"
        );
        process.expect_exit(1);
    }
}

#[test]
fn missing_state_file_does_not_connect_to_handler() {
    let (directory, _) = create_ticker_snapshot();
    let listener = listen(&directory);
    listener.set_nonblocking(true).unwrap();
    let process = ApiProcess::start();
    let message = process
        .request(
            "PUT",
            "/snapshot/load",
            &uffd_body(&directory, "none", SOCKET, ""),
        )
        .fault_message();
    assert!(message.contains(&directory.text("none")), "{message}");
    process.expect_exit(1);
    let error = listener.incoming().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

/// Receives the message of a guest and waits for its first fault, which it does not resolve.
pub fn await_fault(listener: &UnixListener) -> (UnixStream, File) {
    let stream = scratch::accept(listener);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut message = [0; 1024];
    let (_, faults) = stream.recv_with_fd(&mut message).unwrap();
    let faults = faults.unwrap();
    let mut polled = libc::pollfd {
        fd: faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = i32::try_from(TIMEOUT.as_millis()).unwrap();
    // SAFETY: `polled` is one structure, valid for reads and writes.
    let ready = unsafe { libc::poll(&raw mut polled, 1, limit) };
    assert_eq!((ready, polled.revents), (1, libc::POLLIN), "no page was touched");
    (stream, faults)
}

/// Waits until the I/O thread of `process` waits for a page of the handler.
pub fn await_stuck_io(process: &ApiProcess) {
    let tasks = format!("/proc/{}/task", process.id());
    scratch::wait_until("the I/O thread waits for a page", || {
        fs::read_dir(&tasks).unwrap().any(|task| {
            let path = task.unwrap().path();
            let read = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
            // -1 is a thread that is blocked outside of system calls: by a fault.
            read("comm") == "mayfly_io\n" && read("syscall").starts_with("-1 ")
        })
    });
}

#[test]
fn ended_handler_blocks_guest_only() {
    let (directory, _) = create_ticker_snapshot();
    let listener = listen(&directory);
    let waiting = load_with_handler(&directory, "state", RESUME_FIELD);
    let unresolved = await_fault(&listener);
    // A handler that has ended and one that resolves no fault have the same effect.
    assert_eq!(waiting.state(), "Running");
    drop(unresolved);
    let response = waiting.request("PATCH", "/vm", PAUSED);
    if response.text == NO_CONTENT {
        assert_eq!(waiting.state(), "Paused");
    } else {
        // Some KVM versions do not interrupt such a fault for a signal.
        let message = response.fault_message();
        assert!(
            message.contains("a thread waits for a page of the fault handler (fc_vcpu 0)"),
            "{message}"
        );
        assert_eq!(waiting.state(), "Running");
    }
    waiting.terminate();

    let waiting = load_with_handler(&directory, "state", RESUME_FIELD);
    let _unresolved = await_fault(&listener);
    assert_eq!(waiting.state(), "Running");
    waiting.terminate();
}

/// A handler that sends a page at most once per interval.
pub struct TricklingHandler {
    interval: Arc<Mutex<Duration>>,
}

impl TricklingHandler {
    /// Sends each page at once from now on.
    pub fn hurry(&self) {
        *self.interval.lock().unwrap() = Duration::ZERO;
    }
}

/// Provides the pages of the file `memory` in `directory` to the guest that has connected, one per `interval`.
pub fn trickle(
    listener: UnixListener,
    directory: &Directory,
    memory: &str,
    interval: Duration,
) -> TricklingHandler {
    let memory = File::open(directory.path(memory)).unwrap();
    let interval = Arc::new(Mutex::new(interval));
    let delay = interval.clone();
    thread::spawn(move || {
        let stream = scratch::accept(&listener);
        let before_event = || thread::sleep(*delay.lock().unwrap());
        // An error follows the end of the guest.
        let _ = handler::serve_after(&stream, &memory, before_event);
    });
    TricklingHandler { interval }
}

/// A handler that sends a number of pages and no more.
pub struct LimitedHandler {
    last: Receiver<()>,
    _running: Sender<()>,
}

impl LimitedHandler {
    /// Waits until the guest needs a page beyond the limit. Returns false if it needs none for 5 s.
    pub fn await_last_page(&self) -> bool {
        self.last.recv_timeout(Duration::from_secs(5)).is_ok()
    }
}

/// Provides `pages` pages of the file `memory` in `directory` to the guest that has connected. Keeps its descriptors until it is
/// dropped.
pub fn serve_pages(
    listener: UnixListener,
    directory: &Directory,
    memory: &str,
    pages: u64,
) -> LimitedHandler {
    let memory = File::open(directory.path(memory)).unwrap();
    let (reached, last) = mpsc::channel();
    let (running, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        let stream = scratch::accept(&listener);
        let left = Cell::new(pages);
        let before_event = || match left.get().checked_sub(1) {
            Some(rest) => left.set(rest),
            None => {
                let _ = reached.send(());
                let _ = ended.recv_timeout(TIMEOUT);
            }
        };
        // An error follows the end of the guest.
        let _ = handler::serve_after(&stream, &memory, before_event);
    });
    LimitedHandler {
        last,
        _running: running,
    }
}

/// Starts the guest `kernel`, with the drive `d` on `engine`, whose disk is in `directory`. Waits until it has printed `until`.
pub fn start_with_drive(directory: &Directory, kernel: &str, engine: &str, until: &str) -> ApiProcess {
    let mut process = ApiProcess::start();
    let disk = directory.write("disk", [0; 64 * 4096]);
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}","io_engine":"{engine}"}}"#
    );
    process.expect_no_content("PUT", "/drives/d", &drive);
    process.set_kernel(kernel);
    process.run_action("InstanceStart");
    process.expect(until);
    process
}

/// Creates a snapshot of the guest that [`start_with_drive`] starts.
pub fn create_drive_snapshot(kernel: &str, engine: &str, until: &str) -> Directory {
    let directory = Directory::new();
    let process = start_with_drive(&directory, kernel, engine, until);
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();
    directory
}

/// Sends a request, whose response must arrive within [`RESPONSE_LIMIT`].
fn request_in_time(process: &ApiProcess, method: &str, path: &str, body: &str) -> Response {
    let start = Instant::now();
    let response = process.request(method, path, body);
    let elapsed = start.elapsed();
    assert!(elapsed < RESPONSE_LIMIT, "{method} {path}: {elapsed:?}");
    response
}

/// Expects that `response` reports `thread` to wait for the handler.
pub fn expect_wait(response: &Response, thread: &str) {
    let message = response.fault_message();
    assert!(
        message.contains("a thread waits for a page of the fault handler (") && message.contains(thread),
        "{message}"
    );
}

/// Updates the drive while the handler sends no page, and expects the error.
fn expect_rejected_update(process: &ApiProcess) {
    let update = format!(r#"{{"drive_id":"d","rate_limiter":{THROTTLED}}}"#);
    expect_wait(
        &request_in_time(process, "PATCH", "/drives/d", &update),
        "mayfly_io",
    );
}

/// Sends SIGTERM, which must end the process in time.
fn terminate_in_time(process: ApiProcess) {
    let start = Instant::now();
    process.terminate();
    let elapsed = start.elapsed();
    assert!(elapsed < RESPONSE_LIMIT, "{elapsed:?}");
}

#[test]
fn stuck_handler_stalls_no_request_to_running_vm() {
    for engine in ["Sync", "Async"] {
        let directory = create_drive_snapshot("blocks.elf", engine, "round 1\n");
        let listener = listen(&directory);
        let process = ApiProcess::start();
        let body = uffd_body(&directory, "state", SOCKET, RESUME_FIELD);
        let loaded = request_in_time(&process, "PUT", "/snapshot/load", &body);
        assert_eq!(loaded.text, NO_CONTENT);
        let _unresolved = await_fault(&listener);
        assert_eq!(process.state(), "Running");
        // From here on the I/O thread holds the lock of the device.
        await_stuck_io(&process);
        expect_rejected_update(&process);
        expect_wait(&request_in_time(&process, "PATCH", "/vm", PAUSED), "mayfly_io");
        let metrics = request_in_time(&process, "GET", "/metrics", "");
        assert!(metrics.text.starts_with("HTTP/1.1 200"), "{}", metrics.text);
        assert_eq!(process.state(), "Running");
        terminate_in_time(process);
    }
}

#[test]
fn stuck_handler_stalls_no_request_to_paused_vm() {
    let directory = create_drive_snapshot("blocks.elf", "Async", "round 1\n");
    let listener = listen(&directory);
    let process = ApiProcess::start();
    let body = uffd_body(&directory, "state", SOCKET, "");
    let loaded = request_in_time(&process, "PUT", "/snapshot/load", &body);
    assert_eq!(loaded.text, NO_CONTENT);
    let start = Instant::now();
    for kind in ["Full", "Diff"] {
        let response = create_snapshot(&process, &directory, kind, "state-2", "memory-2");
        expect_wait(&response, "mayfly_io");
        assert_eq!(process.state(), "Paused");
    }
    assert!(start.elapsed() < RESPONSE_LIMIT, "{:?}", start.elapsed());
    assert!(!directory.path("state-2").exists() && !directory.path("memory-2").exists());
    let _unresolved = await_fault(&listener);
    expect_rejected_update(&process);
    assert!(
        request_in_time(&process, "GET", "/metrics", "")
            .text
            .starts_with("HTTP/1.1 200")
    );
    assert_eq!(
        request_in_time(&process, "PATCH", "/vm", RESUMED).text,
        NO_CONTENT
    );
    assert_eq!(process.state(), "Running");
    terminate_in_time(process);
}

#[test]
fn stuck_handler_stalls_no_full_snapshot() {
    // Without a drive, only the dump reads memory.
    let (directory, _) = create_ticker_snapshot();
    let listener = listen(&directory);
    let process = load_with_handler(&directory, "state", "");
    let start = Instant::now();
    let response = create_snapshot(&process, &directory, "Full", "state-2", "memory-2");
    assert!(start.elapsed() < RESPONSE_LIMIT, "{:?}", start.elapsed());
    expect_wait(&response, "");
    let _unresolved = await_fault(&listener);
    assert_eq!(process.state(), "Paused");
    terminate_in_time(process);
}

/// kvmclock is of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn stuck_handler_stalls_no_load() {
    // KVM may access the pages of the clock when the vCPU is restored.
    let directory = create_drive_snapshot("kvmclock.elf", "Sync", "ready\n");
    let _listener = listen(&directory);
    let process = ApiProcess::start();
    let body = uffd_body(&directory, "state", SOCKET, RESUME_FIELD);
    let loaded = request_in_time(&process, "PUT", "/snapshot/load", &body);
    if loaded.text == NO_CONTENT {
        assert_eq!(process.state(), "Running");
        terminate_in_time(process);
    } else {
        expect_wait(&loaded, "fc_vcpu 0");
        process.expect_exit(1);
    }
}

#[test]
fn late_handler_continues_guest_and_device() {
    for engine in ["Sync", "Async"] {
        let directory = create_drive_snapshot("blocks.elf", engine, "round 1\n");
        let listener = listen(&directory);
        let mut process = load_with_handler(&directory, "state", RESUME_FIELD);
        await_stuck_io(&process);
        // Without effect, now and later: the drive would stop.
        expect_rejected_update(&process);
        expect_wait(&request_in_time(&process, "PATCH", "/vm", PAUSED), "mayfly_io");
        let handler = FaultHandler::serve(listener, open_memory(&directory, "memory"));
        process.expect("round 3\n");
        let limiter = r#"{"ops":{"size":1000000,"refill_time":1}}"#;
        let update = format!(r#"{{"drive_id":"d","rate_limiter":{limiter}}}"#);
        process.expect_no_content("PATCH", "/drives/d", &update);
        process.expect("round 4\n");
        pause_and_create(&process, &directory, "Full", "state-2", "memory-2");
        process.terminate();
        assert_eq!(handler.join(), ALL_PAGES);
        let mut again = load_snapshot(&directory, "state-2", "memory-2", RESUME_FIELD);
        again.expect("round 6\n");
        again.terminate();
    }
}

#[test]
fn late_handler_continues_network_interface() {
    const PING: &str = "ping -c 1 -w 60 10.0.0.2";
    in_own_network(|| {
        create_host_tap();
        let directory = Directory::new();
        let mut process = ApiProcess::start();
        let interface = r#"{"iface_id":"n","host_dev_name":"tap0","guest_mac":"02:00:00:00:00:07"}"#;
        process.expect_no_content("PUT", "/network-interfaces/n", interface);
        process.set_kernel("net.elf");
        process.run_action("InstanceStart");
        process.expect("net 02:00:00:00:00:07 at 10.0.0.2\n");
        run_command(PING);
        pause_and_create(&process, &directory, "Full", "state", "memory");
        process.kill();

        let listener = listen(&directory);
        let process = load_with_handler(&directory, "state", RESUME_FIELD);
        await_stuck_io(&process);
        let update = format!(r#"{{"iface_id":"n","rx_rate_limiter":{THROTTLED}}}"#);
        let response = request_in_time(&process, "PATCH", "/network-interfaces/n", &update);
        expect_wait(&response, "mayfly_io");
        let handler = FaultHandler::serve(listener, open_memory(&directory, "memory"));
        run_command(PING);
        run_command(PING);
        process.terminate();
        assert!((1..ALL_PAGES / 100).contains(&handler.join()));
    });
}

#[test]
fn resident_guest_continues_without_handler() {
    let (directory, printed) = create_ticker_snapshot();
    let handler = FaultHandler::start(&directory, "memory");
    let mut restored = load_with_handler(&directory, "state", RESUME_FIELD);
    expect_lines(&mut restored, &printed, 3);
    handler.stop();
    // The guest has its working set: it continues, and a diff snapshot needs no other page.
    expect_lines(&mut restored, &printed, 100);
    restored.expect_no_content("PATCH", "/vm", PAUSED);
    let message = create_snapshot(&restored, &directory, "Full", "state", "memory").fault_message();
    assert!(message.contains("the fault handler has ended"), "{message}");
    pause_and_create(&restored, &directory, "Diff", "state", "memory");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    restored.terminate();
    let mut again = load_snapshot(&directory, "state", "memory", RESUME_FIELD);
    again.expect("tick ");
    again.terminate();
}
