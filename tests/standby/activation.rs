//! The API socket of systemd, which listens before the supervisor starts and after it has ended.

use std::env;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use api::client::Client;
use scratch::{Directory, KillOnDrop};

/// Starts the supervisor as systemd does: at the first connection to the socket at `path`.
fn activate(directory: &Directory, path: &str) -> Command {
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={}", directory.text("sock")));
    command
        .arg("--fdname=api")
        .arg(env!("CARGO_BIN_EXE_mayfly-standby"));
    command.args(["--api-sock", path, "--state-dir", &directory.text("state")]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Returns false, with a message, if systemd is missing.
fn has_systemd() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|directory| directory.join("systemd-socket-activate").is_file());
    if !found {
        scratch::skip(
            "the program systemd-socket-activate",
            "install the package systemd",
        );
    }
    found
}

#[test]
fn first_request_starts_supervisor() {
    if !has_systemd() {
        return;
    }
    let directory = Directory::new();
    let socket = directory.text("sock");
    let mut process = KillOnDrop(activate(&directory, &socket).spawn().unwrap());
    // Without a connection no supervisor starts.
    scratch::wait_until("the socket of systemd", || directory.path("sock").exists());
    assert!(!directory.path("state").exists());
    let client = Client::new(directory.path("sock"), Duration::from_secs(60));
    // The file exists shortly before systemd listens.
    let response = scratch::wait_for("a response", || client.request("GET", "/", None).ok());
    assert_eq!(response.status, 200);
    // The socket is that of systemd, which goes on with it.
    let _ = scratch::kill(&mut process.0);
    assert!(directory.path("sock").exists());
}

#[test]
fn socket_at_another_path_is_rejected() {
    if !has_systemd() {
        return;
    }
    let directory = Directory::new();
    let child = activate(&directory, &directory.text("other")).spawn().unwrap();
    let _client = scratch::wait_for("the socket of systemd", || {
        UnixStream::connect(directory.path("sock")).ok()
    });
    let output = scratch::finish(child);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot serve the API at ") && stderr.contains("name the same path"),
        "{stderr}"
    );
}

#[test]
fn socket_that_does_not_listen_is_rejected() {
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.path("sock")).unwrap();
    let client = UnixStream::connect(directory.path("sock")).unwrap();
    let mut command = Command::new("sh");
    // The shell keeps its process ID.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api exec \"$0\" --api-sock \"$1/sock\" --state-dir \"$1/state\" 3<&0";
    command.args([
        "-c",
        script,
        env!("CARGO_BIN_EXE_mayfly-standby"),
        directory.root().to_str().unwrap(),
    ]);
    let output = scratch::run_with_input(&mut command, std::os::fd::OwnedFd::from(client));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot use descriptor 3 as the API socket; pass a listening unix stream socket"),
        "{stderr}"
    );
    drop(listener);
}
