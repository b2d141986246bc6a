//! A request as soon as the socket file exists must succeed: kraftkit waits for the file and sends one request.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use scratch::{KillOnDrop, TIMEOUT};

use super::http::{Client, json_response};
use super::served::Directory;
use crate::guests::program;

/// Number of starts for each way to detect the socket.
const ROUNDS: usize = 500;

fn start(socket: &Path) -> KillOnDrop {
    let mut command = Command::new(program());
    command.arg("--api-sock").arg(socket).stdin(Stdio::null());
    KillOnDrop(command.spawn().unwrap())
}

/// Sends one request, without retries.
fn request_once(socket: &Path, round: usize) {
    let client = Client::connect(socket);
    let mut client = client.unwrap_or_else(|error| panic!("round {round}: {error}"));
    let body = r#"{"id":"anonymous-instance","state":"Not started","vmm_version":"1.17.0","app_name":"Firecracker"}"#;
    assert_eq!(
        client.request("GET", "/", "").text,
        json_response(200, body),
        "round {round}"
    );
}

/// Creates an inotify descriptor for new files in `directory`.
fn watch_directory(directory: &Path) -> OwnedFd {
    // SAFETY: the call takes no pointer.
    let descriptor = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    assert!(descriptor >= 0, "{}", io::Error::last_os_error());
    // SAFETY: inotify_init1 returned the descriptor, which has no other owner.
    let inotify = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let path = CString::new(directory.to_str().unwrap()).unwrap();
    let mask = libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: `path` is a C string for the length of the call.
    let added = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) };
    assert!(added >= 0, "{}", io::Error::last_os_error());
    inotify
}

/// Waits for the creation of the file `name`.
fn wait_for(inotify: &OwnedFd, name: &str) {
    let name = [name.as_bytes(), &[0]].concat();
    loop {
        scratch::await_readable(inotify.as_fd()).unwrap();
        let mut events = [0_u8; 4096];
        // SAFETY: `events` is valid for writes of its length.
        let length = unsafe { libc::read(inotify.as_raw_fd(), events.as_mut_ptr().cast(), events.len()) };
        let length = usize::try_from(length).unwrap();
        if events[..length].windows(name.len()).any(|part| part == name) {
            return;
        }
    }
}

#[test]
fn visible_socket_accepts_requests() {
    thread::scope(|scope| {
        scope.spawn(|| {
            let directory = Directory::new();
            let socket = directory.path("fc.sock");
            let inotify = watch_directory(&directory.path(""));
            for round in 0..ROUNDS {
                let started = start(&socket);
                wait_for(&inotify, "fc.sock");
                request_once(&socket, round);
                drop(started);
                // The killed process left its socket.
                std::fs::remove_file(&socket).unwrap();
            }
        });
        scope.spawn(|| {
            let directory = Directory::new();
            for round in 0..ROUNDS {
                let socket = directory.path(&format!("{round}.sock"));
                let _started = start(&socket);
                let deadline = Instant::now() + TIMEOUT;
                // Without a pause: the first request must succeed at once.
                while std::fs::symlink_metadata(&socket).is_err() {
                    assert!(Instant::now() < deadline, "the socket is missing");
                    thread::yield_now();
                }
                request_once(&socket, round);
            }
        });
    });
}
