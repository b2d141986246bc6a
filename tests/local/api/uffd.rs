//! Guests with memory from a fault handler: the example of resources/uffd-handler, on a thread.

use std::fs::{self, File};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::http::NO_CONTENT;
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, count_ticks, create_snapshot, expect_progress, load_snapshot,
    pause_and_create, start_ticker,
};
use crate::guest::TIMEOUT;

#[path = "../../../resources/uffd-handler/handler.rs"]
mod handler;

const PAGE: u64 = 4096;
/// Pages of a guest with the default memory size.
const ALL_PAGES: u64 = (128 << 20) / PAGE;
/// Name of the handler's socket, in the directory of the snapshot.
const SOCKET: &str = "uffd.sock";
const RESUME_FIELD: &str = r#","resume_vm":true"#;

/// The example handler, for one guest.
struct FaultHandler {
    thread: JoinHandle<io::Result<u64>>,
    /// Receives the connection of the guest.
    guest: Receiver<UnixStream>,
}

impl FaultHandler {
    /// Listens in `directory` and provides the pages of its file `memory`.
    fn start(directory: &Directory, memory: &str) -> Self {
        let listener = listen(directory);
        let memory = File::open(directory.path(memory)).unwrap();
        let (sender, guest) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
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
    fn join(self) -> u64 {
        self.thread.join().unwrap().unwrap()
    }

    /// Ends the handler and closes its descriptors while the guest runs.
    fn stop(self) -> u64 {
        let guest = self.guest.recv_timeout(TIMEOUT).unwrap();
        guest.shutdown(Shutdown::Both).unwrap();
        drop(guest);
        self.join()
    }
}

/// Listens in `directory` and replaces an old socket.
fn listen(directory: &Directory) -> UnixListener {
    let _ = fs::remove_file(directory.path(SOCKET));
    UnixListener::bind(directory.path(SOCKET)).unwrap()
}

/// Returns the body that loads a snapshot with the handler at `socket`.
fn uffd_body(directory: &Directory, state: &str, socket: &str, fields: &str) -> String {
    let (state, socket) = (directory.text(state), directory.text(socket));
    let backend = format!(r#"{{"backend_type":"Uffd","backend_path":"{socket}"}}"#);
    format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#)
}

/// Starts mayfly and loads the state file `state` with the handler.
fn load_with_handler(directory: &Directory, state: &str, fields: &str) -> ApiProcess {
    let process = ApiProcess::start();
    process.expect_no_content(
        "PUT",
        "/snapshot/load",
        &uffd_body(directory, state, SOCKET, fields),
    );
    process
}

/// Creates a snapshot of the ticker in the files `state` and `memory`. Returns the directory and the guest's output.
fn create_ticker_snapshot() -> (Directory, String) {
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
    drop(listen(&directory));
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
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

/// Receives the message of a guest and waits for its first fault, which it does not resolve.
fn await_fault(listener: &UnixListener) -> (UnixStream, File) {
    let (stream, _) = listener.accept().unwrap();
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
            message.contains("a vCPU waits for a page of the fault handler"),
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
