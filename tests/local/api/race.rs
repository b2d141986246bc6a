//! kraftkit waits until it sees the socket's file, and asks once. Whoever sees the file must be served.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::http::{Client, json};
use super::served::Directory;
use crate::guests::program;

/// Starts of each way to see the socket.
const ROUNDS: usize = 500;

struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(socket: &Path) -> Started {
    let mut command = Command::new(program());
    command.arg("--api-sock").arg(socket).stdin(Stdio::null());
    Started(command.spawn().unwrap())
}

/// One request, once.
fn ask(socket: &Path, round: usize) {
    let client = Client::connect(socket);
    let mut client = client.unwrap_or_else(|error| panic!("round {round}: {error}"));
    let body = r#"{"id":"anonymous-instance","state":"Not started","vmm_version":"1.14.0","app_name":"Firecracker"}"#;
    assert_eq!(client.ask("GET", "/", "").text, json(200, body), "round {round}");
}

/// What is told of files that appear in `folder`.
fn watch(folder: &Path) -> OwnedFd {
    // SAFETY: the call takes no pointer.
    let descriptor = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    assert!(descriptor >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just made it for this call.
    let inotify = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let path = CString::new(folder.to_str().unwrap()).unwrap();
    let mask = libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: `path` is a C string for the length of the call.
    let added = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) };
    assert!(added >= 0, "{}", io::Error::last_os_error());
    inotify
}

/// Waits until a file called `name` appears.
fn wait_for(inotify: &OwnedFd, name: &str) {
    let name = [name.as_bytes(), &[0]].concat();
    loop {
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
fn who_sees_the_socket_is_served() {
    thread::scope(|scope| {
        scope.spawn(|| {
            let folder = Directory::new();
            let socket = folder.path("fc.sock");
            let inotify = watch(&folder.path(""));
            for round in 0..ROUNDS {
                let started = start(&socket);
                wait_for(&inotify, "fc.sock");
                ask(&socket, round);
                drop(started);
                // What a killed process leaves. The next one shall make its own.
                std::fs::remove_file(&socket).unwrap();
            }
        });
        scope.spawn(|| {
            let folder = Directory::new();
            for round in 0..ROUNDS {
                let socket = folder.path(&format!("{round}.sock"));
                let _started = start(&socket);
                while std::fs::symlink_metadata(&socket).is_err() {
                    thread::yield_now();
                }
                ask(&socket, round);
            }
        });
    });
}
