//! Options, signals, and the socket file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use super::served::{ApiProcess, Directory, connect, create_fifo, create_stale_socket};
use crate::guests::{file, program};

fn run_mayfly(flags: &[&str]) -> Output {
    scratch::run(Command::new(program()).args(flags))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_error_has_firecracker_exit_status() {
    let socket = scratch::process_path("usage.sock");
    let socket = socket.to_str().unwrap();
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
            &["--api-sock", socket, "--log-path", "/nowhere/log"],
            1,
            "/nowhere/log",
        ),
    ] {
        let output = run_mayfly(flags);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{flags:?}: {}",
            stderr(&output)
        );
        assert!(stderr(&output).contains(text), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn firecracker_name_prints_firecracker_version() {
    let directory = Directory::new();
    let link = directory.path("firecracker");
    symlink(program(), &link).unwrap();
    let version = scratch::run(Command::new(link).arg("--version"));
    // kata reads the first line and requires at least 0.21.1.
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        "Firecracker v1.17.0\n\n"
    );
    let own = run_mayfly(&["--version"]);
    assert!(String::from_utf8(own.stdout).unwrap().starts_with("mayfly "));
}

#[test]
fn sigterm_ends_mayfly_in_each_instance_state() {
    for steps in 0..3 {
        let mut process = ApiProcess::start();
        process.set_kernel("ticker.elf");
        if steps > 0 {
            process.run_action("InstanceStart");
            process.expect("tick 1\n");
        }
        if steps > 1 {
            process.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
        }
        // An open connection makes no difference.
        let _client = process.connect();
        process.terminate();
    }
}

/// Waits until the main thread of `process` blocks in the system call `call`.
fn await_call(process: &ApiProcess, call: libc::c_long) {
    let wanted = format!("{call} ");
    scratch::wait_until(&format!("system call {call}"), || {
        let current = fs::read_to_string(format!("/proc/{}/syscall", process.id()));
        current.unwrap().starts_with(&wanted)
    });
}

/// Signals end mayfly while it opens a FIFO without a peer, and while it reads one without data.
#[test]
fn sigterm_ends_mayfly_blocked_on_fifo() {
    let directory = Directory::new();
    let (fifo, image) = (create_fifo(&directory, "fifo"), file("hello.elf"));
    let start = |flags: &[&str]| {
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let mut command = Command::new(program());
        let process = ApiProcess::spawn(directory, command.args(flags).args(["--api-sock", &socket]));
        await_call(&process, libc::SYS_openat);
        process
    };
    start(&["run", &image, "--trace", &fifo]).terminate();
    start(&["--config-file", &fifo]).terminate();
    let process = start(&["--config-file", &fifo]);
    let _writer = fs::File::options().write(true).open(&fifo).unwrap();
    await_call(&process, libc::SYS_read);
    process.terminate();
}

#[test]
fn stale_socket_is_replaced() {
    let directory = Directory::new();
    create_stale_socket(&directory.path("api.sock"));
    let process = start_and_wait(directory);
    assert_eq!(process.state(), "Not started");
    process.terminate();
}

/// Starts mayfly and waits until it listens. The stale socket file exists before, so its existence is no criterion.
fn start_and_wait(directory: Directory) -> ApiProcess {
    let process = ApiProcess::start_with(directory, &[]);
    scratch::wait_until("a listener", || {
        super::http::Client::connect(&process.socket()).is_ok()
    });
    process
}

#[test]
fn active_socket_is_kept() {
    let process = ApiProcess::start();
    assert_eq!(process.state(), "Not started");
    let output = run_mayfly(&["--api-sock", process.socket().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("api.sock"), "{}", stderr(&output));
    assert_eq!(process.state(), "Not started");
    process.terminate();
}

#[test]
fn regular_file_at_socket_path_is_kept() {
    let directory = Directory::new();
    let path = directory.write("api.sock", "precious");
    let output = run_mayfly(&["--api-sock", &path]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

/// kraftkit removes the files itself and fails if they are missing.
#[test]
fn log_and_metrics_files_stay() {
    let directory = Directory::new();
    let (log, metrics) = (directory.text("machine.log"), directory.write("metrics", ""));
    let flags = ["--log-path", &log, "--metrics-path", &metrics];
    let other = Directory::new();
    let process = ApiProcess::start_with(other, &flags);
    process.set_kernel("hello.elf");
    process.run_action("InstanceStart");
    process.expect_exit(0);
    assert!(fs::exists(log).unwrap() && fs::exists(metrics).unwrap());
}

#[test]
fn closed_standard_descriptors_become_dev_null() {
    let directory = Directory::new();
    let socket = directory.path("s");
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
    scratch::kill(&mut child);
}
