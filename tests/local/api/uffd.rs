//! Guests whose memory another process serves, page by page: here the example of resources/uffd-handler, on a thread.

use std::fs::{self, File};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::http::DONE;
use super::served::{ApiProcess, Directory};
use super::snapshot::{PAUSED, RESUMED, count, create, goes_on, load_snapshot, pause_and_create, ticking};
use crate::guest::LIMIT;

#[path = "../../../resources/uffd-handler/handler.rs"]
mod handler;

const PAGE: u64 = 4096;
/// Pages of a guest that nobody has given a size.
const ALL: u64 = (128 << 20) / PAGE;
/// The socket of the handler, in the folder of the snapshot.
const SOCKET: &str = "uffd.sock";
const RUNNING: &str = r#","resume_vm":true"#;

/// The example, which serves one guest.
struct Handler {
    serving: JoinHandle<io::Result<u64>>,
    /// The connection, once there is one.
    guest: Receiver<UnixStream>,
}

impl Handler {
    /// Listens in `folder`, and has the pages of the file `memory` there.
    fn of(folder: &Directory, memory: &str) -> Self {
        let listener = listen(folder);
        let memory = File::open(folder.path(memory)).unwrap();
        let (sender, guest) = mpsc::channel();
        let serving = thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            sender.send(stream.try_clone()?).unwrap();
            let served = handler::serve(&stream, &memory);
            if let Err(error) = &served {
                // The guest waits from here on, and the test does not join before it has printed.
                eprintln!("the handler has failed: {error}");
            }
            served
        });
        Self { serving, guest }
    }

    /// Waits for the end of the guest; how many pages it was given.
    fn pages(self) -> u64 {
        self.serving.join().unwrap().unwrap()
    }

    /// Ends, with all its descriptors closed, while the guest is there.
    fn leave(self) -> u64 {
        let guest = self.guest.recv_timeout(LIMIT).unwrap();
        guest.shutdown(Shutdown::Both).unwrap();
        drop(guest);
        self.pages()
    }
}

/// Listens in `folder`, where others may have listened before.
fn listen(folder: &Directory) -> UnixListener {
    let _ = fs::remove_file(folder.path(SOCKET));
    UnixListener::bind(folder.path(SOCKET)).unwrap()
}

/// The body that loads a snapshot by the handler that listens at `socket`.
fn body(folder: &Directory, state: &str, socket: &str, fields: &str) -> String {
    let (state, socket) = (folder.text(state), folder.text(socket));
    let backend = format!(r#"{{"backend_type":"Uffd","backend_path":"{socket}"}}"#);
    format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#)
}

/// A new mayfly that has loaded the state file `state`.
fn load(folder: &Directory, state: &str, fields: &str) -> ApiProcess {
    let served = ApiProcess::start();
    served.expect_no_content("PUT", "/snapshot/load", &body(folder, state, SOCKET, fields));
    served
}

/// A ticker in the files `state` and `memory`, and what it has printed.
fn frozen() -> (Directory, String) {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    (folder, served.kill())
}

/// Waits until the guest prints `lines` more than `printed` has.
fn advance(served: &mut ApiProcess, printed: &str, lines: usize) {
    served.expect(&format!("tick {}\n", count(printed) + lines));
}

#[test]
fn a_served_guest_goes_on() {
    let (folder, printed) = frozen();
    let handler = Handler::of(&folder, "memory");
    let restored = load(&folder, "state", RUNNING);
    assert_eq!(restored.state(), "Running");
    goes_on(restored, printed);
    let pages = handler.pages();
    assert!((1..ALL / 100).contains(&pages), "{pages} pages of {ALL}");
}

#[test]
fn a_served_guest_that_waits_is_given_next_to_nothing() {
    let (folder, printed) = frozen();
    let handler = Handler::of(&folder, "memory");
    let waiting = load(&folder, "state", r#","resume_vm":false"#);
    assert_eq!(waiting.state(), "Paused");
    assert_eq!(waiting.kill(), "", "a paused guest printed");
    let untouched = handler.pages();

    let handler = Handler::of(&folder, "memory");
    let restored = load(&folder, "state", "");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    goes_on(restored, printed);
    let touched = handler.pages();
    assert!(untouched < touched, "{untouched} {touched}");
}

#[test]
fn snapshots_of_a_served_guest_need_no_handler() {
    for (kind, state, memory) in [
        ("Full", "state-2", "memory-2"),
        ("Full", "state", "memory"),
        ("Diff", "state", "memory"),
    ] {
        let (folder, printed) = frozen();
        let handler = Handler::of(&folder, "memory");
        let mut restored = load(&folder, "state", RUNNING);
        advance(&mut restored, &printed, 3);
        pause_and_create(&restored, &folder, kind, state, memory);
        // The handler's file may just have been written to; the pages that are still to come have not changed.
        restored.expect_no_content("PATCH", "/vm", RESUMED);
        advance(&mut restored, &printed, 20);
        let all = printed.clone() + &restored.kill();
        let pages = handler.pages();
        if kind == "Full" {
            assert_eq!(pages, ALL);
        } else {
            assert!(pages < ALL / 100, "{pages}");
        }
        let mut again = load_snapshot(&folder, state, memory, RUNNING);
        advance(&mut again, &all, 3);
        let more = again.kill();
        // What it was frozen in the middle of is what the other printed from there on.
        let last = format!("tick {}\n", count(&all));
        let until = |text: &str| text.find(&last).unwrap();
        assert!(all[..until(&all)].ends_with(&more[..until(&more)]), "{more}");
    }
}

#[test]
fn a_difference_holds_what_was_served() {
    let (folder, printed) = frozen();
    let handler = Handler::of(&folder, "memory");
    let mut restored = load(&folder, "state", RUNNING);
    advance(&mut restored, &printed, 3);
    pause_and_create(&restored, &folder, "Diff", "difference", "pages");
    restored.kill();
    let pages = handler.pages();
    let metadata = folder.path("pages").metadata().unwrap();
    assert_eq!(metadata.len(), ALL * PAGE);
    let kept = metadata.blocks() * 512 / PAGE;
    // The file system's own blocks are among them.
    assert!((1..=2 * pages).contains(&kept), "{kept} of {pages} pages");
}

#[test]
fn a_handler_that_cannot_be_reached_ends_mayfly() {
    let (folder, _) = frozen();
    drop(listen(&folder));
    folder.write("file", "");
    fs::create_dir(folder.path("folder")).unwrap();
    let long = "x".repeat(120);
    for socket in [SOCKET, "none", "file", "folder", "memory", &long] {
        let served = ApiProcess::start();
        let why = served
            .ask("PUT", "/snapshot/load", &body(&folder, "state", socket, RUNNING))
            .fault();
        assert!(
            why.starts_with("Load snapshot error: ") && why.contains(&folder.text(socket)),
            "{socket}: {why}"
        );
        served.ends_with(1);
    }
}

#[test]
fn nobody_serves_a_state_that_is_missing() {
    let (folder, _) = frozen();
    let listener = listen(&folder);
    listener.set_nonblocking(true).unwrap();
    let served = ApiProcess::start();
    let why = served
        .ask("PUT", "/snapshot/load", &body(&folder, "none", SOCKET, ""))
        .fault();
    assert!(why.contains(&folder.text("none")), "{why}");
    served.ends_with(1);
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
}

/// Takes the message of a guest whose pages it will not give; waits until one has been touched.
fn ignore(listener: &UnixListener) -> (UnixStream, File) {
    let (stream, _) = listener.accept().unwrap();
    let mut message = [0; 1024];
    let (_, faults) = stream.recv_with_fd(&mut message).unwrap();
    let faults = faults.unwrap();
    let mut polled = libc::pollfd {
        fd: faults.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = i32::try_from(LIMIT.as_millis()).unwrap();
    // SAFETY: there is one entry.
    let ready = unsafe { libc::poll(&raw mut polled, 1, limit) };
    assert_eq!((ready, polled.revents), (1, libc::POLLIN), "no page was touched");
    (stream, faults)
}

#[test]
fn a_guest_without_its_handler_waits_and_mayfly_does_not() {
    let (folder, _) = frozen();
    let listener = listen(&folder);
    let waiting = load(&folder, "state", RUNNING);
    let ignored = ignore(&listener);
    // It makes no difference whether the handler has gone or only gives nothing.
    assert_eq!(waiting.state(), "Running");
    drop(ignored);
    let answer = waiting.ask("PATCH", "/vm", PAUSED);
    if answer.text == DONE {
        assert_eq!(waiting.state(), "Paused");
    } else {
        // Not every KVM lets a signal interrupt that.
        let why = answer.fault();
        assert!(why.contains("the page fault handler does not give"), "{why}");
        assert_eq!(waiting.state(), "Running");
    }
    waiting.terminate();

    let waiting = load(&folder, "state", RUNNING);
    let _ignored = ignore(&listener);
    assert_eq!(waiting.state(), "Running");
    waiting.terminate();
}

#[test]
fn a_guest_that_has_its_pages_goes_on_without_its_handler() {
    let (folder, printed) = frozen();
    let handler = Handler::of(&folder, "memory");
    let mut restored = load(&folder, "state", RUNNING);
    advance(&mut restored, &printed, 3);
    handler.leave();
    // What it has is all that it needs to go on, and to be saved by.
    advance(&mut restored, &printed, 100);
    restored.expect_no_content("PATCH", "/vm", PAUSED);
    let why = create(&restored, &folder, "Full", "state", "memory").fault();
    assert!(why.contains("the page fault handler has ended"), "{why}");
    pause_and_create(&restored, &folder, "Diff", "state", "memory");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    restored.terminate();
    let mut again = load_snapshot(&folder, "state", "memory", RUNNING);
    again.expect("tick ");
    again.terminate();
}
