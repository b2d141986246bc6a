//! Flags, signals, and the socket's file.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use super::served::{ApiProcess, Directory, connect, fifo};
use crate::guest::LIMIT;
use crate::guests::{file, program};

fn mayfly(flags: &[&str]) -> Output {
    Command::new(program()).args(flags).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_that_make_no_sense_have_firecrackers_status() {
    for (flags, status, text) in [
        (&["--api-sock=/x"][..], 153, "--api-sock=/x"),
        (&["--api-sock"], 153, "--api-sock"),
        (&["--api-sock", "--id"], 153, "--api-sock"),
        (&["--api-sock", "/x", "--api-sock", "/y"], 153, "twice"),
        (&["--no-api"], 153, "--config-file"),
        (&["--bogus"], 153, "--bogus"),
        (&["--id", "a_b"], 153, "a_b"),
        (&["--enable-pci"], 153, "--enable-pci"),
        (&["--api-sock", "/x", "--level", "loud"], 152, "loud"),
        (
            &["--no-api", "--config-file", "/nowhere/fc.json"],
            1,
            "/nowhere/fc.json",
        ),
        (&["--api-sock", "/nowhere/api.sock"], 1, "/nowhere/api.sock"),
        (
            &["--api-sock", "/tmp/x", "--log-path", "/nowhere/log"],
            1,
            "/nowhere/log",
        ),
    ] {
        let output = mayfly(flags);
        assert_eq!(output.status.code(), Some(status), "{flags:?}: {}", said(&output));
        assert!(said(&output).contains(text), "{flags:?}: {}", said(&output));
    }
}

#[test]
fn the_version_is_firecrackers_under_its_name() {
    let folder = Directory::new();
    let link = folder.path("firecracker");
    symlink(program(), &link).unwrap();
    let version = Command::new(link).arg("--version").output().unwrap();
    // kata reads the first line, and wants at least 0.21.1.
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        "Firecracker v1.14.0\n\n"
    );
    let own = mayfly(&["--version"]);
    assert!(String::from_utf8(own.stdout).unwrap().starts_with("mayfly "));
}

#[test]
fn a_signal_ends_it_in_every_phase() {
    for steps in 0..3 {
        let mut served = ApiProcess::start();
        served.boots("ticker.elf");
        if steps > 0 {
            served.act("InstanceStart");
            served.expect("tick 1\n");
        }
        if steps > 1 {
            served.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        }
        // A client that stays changes nothing.
        let _client = served.connect();
        served.terminate();
    }
}

/// Waits until `served` waits in the system call `call`.
fn await_call(served: &ApiProcess, call: libc::c_long) {
    let deadline = Instant::now() + LIMIT;
    let wanted = format!("{call} ");
    while !fs::read_to_string(format!("/proc/{}/syscall", served.id()))
        .unwrap()
        .starts_with(&wanted)
    {
        assert!(Instant::now() < deadline, "it never waits in system call {call}");
        std::thread::yield_now();
    }
}

/// Who names a FIFO of which nobody has the other end, or says nothing, can still end it.
#[test]
fn a_signal_ends_it_while_a_fifo_keeps_it_waiting() {
    let folder = Directory::new();
    let (fifo, image) = (fifo(&folder, "fifo"), file("hello.elf"));
    let start = |flags: &[&str]| {
        let folder = Directory::new();
        let socket = folder.text("api.sock");
        let mut command = Command::new(program());
        let served = ApiProcess::called(folder, command.args(flags).args(["--api-sock", &socket]));
        await_call(&served, libc::SYS_openat);
        served
    };
    start(&["run", &image, "--trace", &fifo]).terminate();
    start(&["--config-file", &fifo]).terminate();
    let served = start(&["--config-file", &fifo]);
    let _writer = fs::File::options().write(true).open(&fifo).unwrap();
    await_call(&served, libc::SYS_read);
    served.terminate();
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = Directory::new();
    drop(UnixListener::bind(folder.path("api.sock")).unwrap());
    assert!(folder.path("api.sock").exists());
    let served = wait_until_listening(folder);
    assert_eq!(served.state(), "Not started");
    served.terminate();
}

/// The file is there before mayfly is, so that its appearance says nothing.
fn wait_until_listening(folder: Directory) -> ApiProcess {
    let served = ApiProcess::with(folder, &[]);
    while super::http::Client::connect(&served.socket()).is_err() {
        assert!(fs::exists(format!("/proc/{}", served.id())).unwrap());
        std::thread::yield_now();
    }
    served
}

#[test]
fn a_socket_that_is_in_use_is_left_alone() {
    let served = ApiProcess::start();
    assert_eq!(served.state(), "Not started");
    let output = mayfly(&["--api-sock", served.socket().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("api.sock"), "{}", said(&output));
    assert_eq!(served.state(), "Not started");
    served.terminate();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Directory::new();
    let path = folder.write("api.sock", "precious");
    let output = mayfly(&["--api-sock", &path]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

/// kraftkit removes them itself, and fails when they are gone.
#[test]
fn files_that_clients_named_stay() {
    let folder = Directory::new();
    let (log, metrics) = (folder.text("machine.log"), folder.write("metrics", ""));
    let flags = ["--log-path", &log, "--metrics-path", &metrics];
    let other = Directory::new();
    let served = ApiProcess::with(other, &flags);
    served.boots("hello.elf");
    served.act("InstanceStart");
    served.ends_with(0);
    assert!(fs::exists(log).unwrap() && fs::exists(metrics).unwrap());
}

#[test]
fn no_file_becomes_the_console_because_a_standard_descriptor_is_closed() {
    let folder = Directory::new();
    let socket = folder.path("s");
    let mut child = Command::new("sh")
        .args(["-c", r#"exec "$0" --api-sock "$1" <&- >&- 2>&-"#])
        .arg(program())
        .arg(&socket)
        .spawn()
        .unwrap();
    connect(Path::new(&socket));
    for descriptor in 0..3 {
        let open = fs::read_link(format!("/proc/{}/fd/{descriptor}", child.id())).unwrap();
        assert_eq!(open, Path::new("/dev/null"), "descriptor {descriptor}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
