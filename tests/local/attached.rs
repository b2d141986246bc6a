//! Clients of a serial console: they attach and detach while the guest runs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use scratch::{Directory, Limited};
use serde_json::json;

use crate::api::served::ApiProcess;
use crate::console::Terminal;
use crate::guest::Running;
use crate::guests::{file, program};

/// Runs `guest` with its console at `serial`.
fn start(guest: &str, serial: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program());
    command.arg("run").arg(file(guest)).args(["--serial", serial]);
    Running::start(command.args(arguments).stdin(Stdio::null()))
}

/// Connects once the socket at `path` exists and has a listener.
fn attach(path: &Path) -> Limited<UnixStream> {
    Limited(scratch::wait_for("the socket of the console", || {
        UnixStream::connect(path).ok()
    }))
}

fn expect(client: &mut impl Read, text: &str) {
    let mut bytes = vec![0; text.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// Waits for the end of mayfly with status 0. It must print nothing.
fn expect_silent_end(mut running: Running) {
    running.expect_exit(0);
    assert_eq!(running.rest(), "");
    assert_eq!(running.read_stderr(), "");
}

fn ctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("ctl").args(arguments).stderr(Stdio::piped());
    command
}

#[test]
fn clients_attach_and_detach_while_guest_runs() {
    let directory = Directory::new();
    let path = directory.path("console");
    let running = start("echo.elf", &format!("unix:{}", path.display()), &[]);
    let mut first = attach(&path);
    expect(&mut first, "ready\n");
    first.write_all(b"one").unwrap();
    expect(&mut first, "one");
    // Until its execve, a child that another test starts has this descriptor: a close alone would not detach.
    first.0.shutdown(Shutdown::Both).unwrap();
    let mut second = attach(&path);
    expect(&mut second, "ready\none");
    second.write_all(b"q").unwrap();
    expect(&mut second, "\nbye\n");
    expect_silent_end(running);
    assert!(!path.exists());
}

#[test]
fn client_that_reads_nothing_does_not_stall_guest() {
    let process = ApiProcess::start();
    let path = process.directory.path("console");
    let body = format!(r#"{{"console": "unix:{}"}}"#, path.display());
    process.expect_no_content("PUT", "/serial", &body);
    let boot = json!({"kernel_image_path": file("flood.elf"), "boot_args": "kib=1024"});
    process.expect_no_content("PUT", "/boot-source", &boot.to_string());
    let mut client = attach(&path);
    process.run_action("InstanceStart");
    process.expect_exit(0);
    // What its socket holds.
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(!text.is_empty());
}

#[test]
fn signal_ends_vm_with_clients() {
    let directory = Directory::new();
    let path = directory.path("console");
    // It prints until the signal.
    let serial = format!("unix:{}", path.display());
    let mut running = start("flood.elf", &serial, &["--", "kib=1000000"]);
    let mut client = attach(&path);
    expect(&mut client, "00000000:");
    running.terminate();
    assert_eq!(running.read_stderr(), "");
    assert!(!path.exists());
}

/// systemd connects stdout with a socket.
#[test]
fn stdout_may_be_socket() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let mut command = Command::new(program());
    command.arg("run").arg(file("hello.elf")).stdin(Stdio::null());
    command.stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    let mut printed = String::new();
    Limited(reader).read_to_string(&mut printed).unwrap();
    let output = scratch::finish(child);
    assert!(output.status.success() && !printed.is_empty(), "{output:?}");
}

#[test]
fn ctl_attaches_terminal_to_socket_and_pty() {
    for serial in ["unix", "pty"] {
        let directory = Directory::new();
        let (path, socket) = (directory.text("console"), directory.text("api.sock"));
        let serial = if serial == "unix" {
            format!("unix:{path}")
        } else {
            serial.into()
        };
        let mut running = start("echo.elf", &serial, &["--api-sock", &socket]);
        scratch::wait_until("the API", || UnixStream::connect(&socket).is_ok());
        let mut terminal = Terminal::attach(ctl(&["--api-sock", &socket, "console"]));
        terminal.expect("ready");
        assert!(terminal.is_raw());
        terminal.press(b"<\x03\x01\x01>");
        terminal.expect("<\x03\x01>");
        terminal.press(b"\x01h\x01d");
        let (status, stderr) = terminal.wait();
        assert!(status.success(), "{stderr}");
        assert!(
            stderr.contains("Ctrl-A d       detach") && stderr.ends_with("mayfly: detached\n"),
            "{stderr}"
        );
        let status = scratch::run(&mut ctl(&["--api-sock", &socket, "status"]));
        let status = String::from_utf8(status.stdout).unwrap();
        let line = format!("The serial console is at {}", serial.split(':').next().unwrap());
        assert!(status.contains(&line), "{status}");
        let mut terminal = Terminal::attach(ctl(&["--api-sock", &socket, "console"]));
        // A pseudoterminal that is opened again before mayfly has noticed the close begins with the next output.
        terminal.press(b"again");
        terminal.expect("again");
        terminal.press(b"q");
        let (status, stderr) = terminal.wait();
        assert!(
            status.success() && stderr.ends_with("mayfly: the console has ended\n"),
            "{stderr}"
        );
        running.expect_exit(0);
    }
}

#[test]
fn signal_restores_terminal_of_ctl() {
    let directory = Directory::new();
    let path = directory.text("console");
    let mut running = start("echo.elf", &format!("unix:{path}"), &[]);
    drop(attach(Path::new(&path)));
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let mut terminal = Terminal::attach(ctl(&["console", &path]));
        terminal.expect("ready");
        assert!(terminal.is_raw());
        terminal.signal(number);
        assert_eq!(terminal.wait().0.signal(), Some(number));
    }
    running.terminate();
}

#[test]
fn ctl_passes_piped_input_without_api() {
    let directory = Directory::new();
    let path = directory.text("console");
    let running = start("echo.elf", &format!("unix:{path}"), &[]);
    drop(attach(Path::new(&path)));
    directory.write("keys", "typed q");
    let keys = File::open(directory.path("keys")).unwrap();
    let output = scratch::run_with_input(&mut ctl(&["console", &path]), keys);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "ready\ntyped \nbye\n");
    expect_silent_end(running);
}

#[test]
fn console_that_cannot_be_attached_is_named() {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let process = ApiProcess::start();
    // The client does not wait for the socket.
    drop(process.connect());
    let output = scratch::run(&mut ctl(&[
        "--api-sock",
        process.socket().to_str().unwrap(),
        "console",
    ]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("it is connected with stdio; start the VM with --serial unix:PATH"),
        "{stderr}"
    );
    let output = scratch::run(&mut ctl(&["console", &socket]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains(&format!("cannot use the serial console at {socket}")),
        "{stderr}"
    );
    process.terminate();
}

/// Opens the pseudoterminal that `GET /vm/status` names.
fn open_pty(process: &ApiProcess) -> Limited<File> {
    let status = process.request("GET", "/vm/status", "").json();
    let name = status["console"].as_str().unwrap().to_owned();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    Limited(options.open(name.strip_prefix("pty:").unwrap()).unwrap())
}

#[test]
fn api_connects_console_before_start() {
    let process = ApiProcess::start();
    let path = process.directory.path("console");
    let body = format!(r#"{{"console": "unix:{}"}}"#, path.display());
    process.expect_no_content("PUT", "/serial", &body);
    // The same socket again, and its replacement.
    process.expect_no_content("PUT", "/serial", &body);
    assert!(path.exists());
    process.expect_no_content("PUT", "/serial", r#"{"console": "pty"}"#);
    assert!(!path.exists());
    let taken = process.directory.write("taken", "");
    let fault = process.request("PUT", "/serial", &format!(r#"{{"console": "unix:{taken}"}}"#));
    assert!(
        fault
            .fault_message()
            .contains("the file is in use, or is no socket"),
        "{}",
        fault.body()
    );
    process.set_kernel("echo.elf");
    process.run_action("InstanceStart");
    let mut terminal = open_pty(&process);
    expect(&mut terminal, "ready\n");
    terminal.0.write_all(b"key").unwrap();
    expect(&mut terminal, "key");
    let fault = process.request("PUT", "/serial", &body);
    assert_eq!(fault.status(), 400);
    terminal.0.write_all(b"q").unwrap();
    process.expect_exit(0);
}

#[test]
fn restored_guest_has_console_of_its_own() {
    let directory = Directory::new();
    let (path, socket) = (directory.path("console"), directory.text("api.sock"));
    let serial = format!("unix:{}", path.display());
    let running = start("echo.elf", &serial, &["--api-sock", &socket]);
    let mut client = attach(&path);
    expect(&mut client, "ready\n");
    let mut command = Command::new(program());
    let output = scratch::run(command.args(["snapshot", &directory.text("s"), "--api-sock", &socket]));
    assert!(output.status.success(), "{output:?}");
    client.write_all(b"q").unwrap();
    expect(&mut client, "\nbye\n");
    expect_silent_end(running);
    for with_shell in [false, true] {
        let shell = with_shell.then(|| start_shell(&directory));
        let mut command = Command::new(program());
        command.args(["restore", &directory.text("s"), "--serial", &serial]);
        if with_shell {
            command.args(["--shell", &directory.text("shell")]);
        }
        let running = Running::start(command.stdin(Stdio::null()));
        let mut client = attach(&path);
        client.write_all(b"again q").unwrap();
        expect(&mut client, "again \nbye\n");
        expect_silent_end(running);
        drop(shell);
    }
}

/// Starts a shell for the snapshot in `directory`, and waits for its socket.
fn start_shell(directory: &Directory) -> Running {
    let mut command = Command::new(program());
    command.args(["shell", &directory.text("shell"), "--for", &directory.text("s")]);
    let shell = Running::start(command.stdin(Stdio::null()));
    scratch::wait_until("the socket of the shell", || {
        fs::symlink_metadata(directory.path("shell")).is_ok()
    });
    shell
}
