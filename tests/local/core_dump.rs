//! ELF cores by `mayfly core`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use scratch::{Directory, Requirement};
use vmm::arch::{Architecture, Native, Platform};
use vmm::persistence::SavedMachine;

use crate::api::served::ApiProcess;
use crate::forged::change_config;
use crate::guest::Running;
use crate::guests::{file, program};
use crate::profile::wait_vcpu_time;

fn mayfly(arguments: &[&str]) -> Output {
    scratch::run(Command::new(program()).args(arguments).stdin(Stdio::null()))
}

/// Runs mayfly and expects success. Returns its messages.
fn run_ok(arguments: &[&str]) -> String {
    let output = mayfly(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty());
    text
}

/// Runs mayfly and expects `message`.
fn run_err(arguments: &[&str], message: &str) {
    let output = mayfly(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(text.starts_with(&format!("mayfly: {message}")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// Returns a directory with the snapshot of a crash in `third` of `crash.elf`, with two vCPUs.
fn crash() -> Directory {
    let directory = Directory::new();
    let (image, path) = (file("crash.elf"), directory.text(""));
    let options = ["--memory", "16M", "--cpus", "2", "--core-on-crash", &path];
    let output = mayfly(&[&["run", &image], &options[..], &["--", "mmio=1"]].concat());
    assert_eq!(output.status.code(), Some(121));
    directory
}

/// Starts `crash.elf`, which loops in `third`.
fn start_loop() -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let mut command = Command::new(program());
    command.args([
        "run",
        &file("crash.elf"),
        "--memory",
        "16M",
        "--api-sock",
        &socket,
    ]);
    let mut vm = ApiProcess::spawn(directory, command.args(["--", "wait=1"]));
    vm.expect("crashing\n");
    // It prints before the calls.
    wait_vcpu_time(vm.id(), Duration::from_millis(50));
    vm
}

/// Returns the output of gdb that executes `commands` on a core of `crash.elf`.
fn gdb(core: &Path, commands: &[&str]) -> String {
    let mut command = Command::new("gdb");
    command.args(["-batch", "-nx", "-ex", "set width 0"]);
    for line in commands {
        command.args(["-ex", line]);
    }
    let output = scratch::run(command.arg(file("crash.elf")).arg(core));
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

/// Checks that `text` has all of `parts`, in their order.
fn expect_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part:?} is missing: {text}"));
        rest = &rest[at + part.len()..];
    }
}

const BACKTRACE: [&str; 5] = [
    "third (value=",
    "second (value=",
    "first (value=",
    "guest ()",
    "\n",
];

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Program headers of a core: type, offset, virtual and physical address, length.
fn program_headers(core: &[u8]) -> Vec<[u64; 5]> {
    let count = usize::from(u16::from_le_bytes(core[56..58].try_into().unwrap()));
    let headers = core[64..].chunks_exact(56).take(count);
    headers
        .map(|header| {
            let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
            [
                kind.into(),
                word(header, 8),
                word(header, 16),
                word(header, 24),
                word(header, 32),
            ]
        })
        .collect()
}

/// Returns `length` bytes of the core at the virtual `address`.
fn memory(core: &[u8], address: u64, length: usize) -> Option<&[u8]> {
    let headers = program_headers(core);
    let [_, offset, start, ..] = headers
        .iter()
        .find(|[kind, _, start, _, size]| *kind == 1 && address.wrapping_sub(*start) < *size)?;
    let at = usize::try_from(offset + (address - start)).unwrap();
    core.get(at..at + length)
}

#[test]
fn core_has_registers_and_memory() {
    let directory = crash();
    let path = directory.text("core");
    let text = run_ok(&["core", &directory.text(""), &path]);
    assert!(
        text.starts_with(&format!("mayfly: core created in {path}, ")),
        "{text}"
    );
    let core = fs::read(&path).unwrap();
    // PT_NOTE, the first NT_PRSTATUS behind its header, and the registers in it.
    let notes = usize::try_from(program_headers(&core)[0][1]).unwrap();
    let registers = notes + 20 + 112;
    let (pc, window) = match Native::ARCHITECTURE {
        Architecture::X86_64 => (16, 1 << 63),
        Architecture::Aarch64 => (32, 1 << 52),
    };
    let pc = word(&core, registers + pc * 8);
    // The image is mapped to itself, and its first segment begins at 4096 in the file.
    let code = memory(&core, pc, 4).unwrap();
    let image = fs::read(file("crash.elf")).unwrap();
    let at = image.windows(4).position(|bytes| bytes == code);
    assert!(at.is_some(), "{code:x?} at {pc:#x} is no code of the image");
    assert_eq!(memory(&core, window | pc, 4).unwrap(), code);
    assert_eq!(memory(&core, 0xffff_0000_0000_0000, 4), None);
    let [.., physical, length] = *program_headers(&core).last().unwrap();
    assert!((physical..physical + length).contains(&pc), "{physical:#x}");
}

#[test]
fn gdb_shows_backtrace_of_crash() {
    if !scratch::require(Requirement::Gdb) {
        return;
    }
    let directory = crash();
    let core = directory.path("core");
    run_ok(&["core", &directory.text(""), &directory.text("core")]);
    let text = gdb(&core, &["backtrace"]);
    expect_in_order(&text, &BACKTRACE);
    // vCPU 1 has not been started.
    let text = gdb(&core, &["info threads"]);
    expect_in_order(&text, &["* 1 ", "LWP 1", "2 ", "LWP 2"]);
    let text = gdb(&core, &["print rounds", "print &rounds", "info symbol $pc"]);
    expect_in_order(&text, &["$1 = 0", "<rounds>", "third + "]);
}

#[test]
fn running_vm_goes_on_after_its_core() {
    let vm = start_loop();
    let directory = Directory::new();
    let (path, socket) = (directory.text("core"), vm.directory.text("api.sock"));
    run_ok(&["core", "--api-sock", &socket, &path]);
    // Its snapshot is removed.
    assert_eq!(directory.names(), ["core"]);
    assert_eq!(vm.state(), "Running");
    vm.terminate();
}

#[test]
fn gdb_shows_loop_of_running_vm() {
    if !scratch::require(Requirement::Gdb) {
        return;
    }
    let vm = start_loop();
    let directory = Directory::new();
    let (core, socket) = (directory.path("core"), vm.directory.text("api.sock"));
    run_ok(&["core", "--api-sock", &socket, &directory.text("core")]);
    expect_in_order(&gdb(&core, &["backtrace"]), &BACKTRACE);
    // The loop adds to it.
    let text = gdb(&core, &["print rounds != 0 && rounds % 43 == 0"]);
    assert!(text.contains("$1 = 1"), "{text}");
    vm.terminate();
}

#[test]
fn paused_vm_stays_paused() {
    let vm = start_loop();
    let directory = Directory::new();
    let socket = vm.directory.text("api.sock");
    vm.expect_no_content("PATCH", "/vm", r#"{"state":"Paused"}"#);
    run_ok(&["core", "--api-sock", &socket, &directory.text("core")]);
    assert_eq!(vm.state(), "Paused");
    vm.terminate();
}

#[test]
fn unusable_sources_are_rejected_and_leave_no_file() {
    let directory = Directory::new();
    let (path, core) = (directory.text(""), directory.text("core"));
    run_err(&["core", &path, &core], "cannot make a core of the snapshot in ");
    run_err(
        &["core", "--api-sock", &directory.text("none"), &core],
        "cannot connect",
    );
    assert_eq!(directory.names(), [""; 0]);
    let snapshot = crash();
    directory.write("core", "mine");
    run_err(
        &["core", &snapshot.text(""), &core],
        &format!("cannot write the core to {core}; name a file that does not exist"),
    );
    assert_eq!(fs::read_to_string(&core).unwrap(), "mine");
    fs::remove_file(&core).unwrap();
    // The memory file of another size.
    let memory = fs::OpenOptions::new().write(true).open(snapshot.path("memory"));
    memory.unwrap().set_len(4096).unwrap();
    run_err(
        &["core", &snapshot.text(""), &core],
        "cannot make a core of the snapshot in ",
    );
    assert_eq!(directory.names(), [""; 0]);
}

/// Returns the messages of a failing `mayfly core` of the snapshot in `directory`.
fn core_error(directory: &Directory) -> String {
    let core = Directory::new();
    let output = mayfly(&["core", &directory.text(""), &core.text("core")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(core.names(), [""; 0]);
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn forged_number_of_vcpus_is_rejected() {
    let snapshot = crash();
    for vcpus in [0, 33, 1000] {
        change_config(&snapshot.path("state"), |config| config.vcpus = vcpus);
        let text = core_error(&snapshot);
        let expected = format!("cannot read {vcpus} vCPUs of the state file: a VM has 1 to 32");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn memory_file_without_content_is_rejected() {
    let snapshot = crash();
    fs::remove_file(snapshot.path("memory")).unwrap();
    assert!(core_error(&snapshot).contains("cannot open the memory file"));
    snapshot.fifo("memory");
    let text = core_error(&snapshot);
    assert!(text.contains("cannot use the memory file"), "{text}");
}

#[test]
fn change_of_memory_file_is_detected() {
    let snapshot = crash();
    let path = snapshot.path("memory");
    let machine = SavedMachine::open(&snapshot.path("state"), &path).unwrap();
    machine.check_memory_file().unwrap();
    let memory = fs::OpenOptions::new().write(true).open(path);
    memory.unwrap().set_len(4096).unwrap();
    assert!(machine.check_memory_file().is_err());
}

#[test]
fn diff_snapshot_is_rejected() {
    let snapshot = crash();
    let state = fs::read(snapshot.path("state")).unwrap();
    assert_eq!(state[22], 0);
    let (vm_directory, diff) = (Directory::new(), Directory::new());
    let socket = vm_directory.text("api.sock");
    let mut command = Command::new(program());
    command.args(["restore", &snapshot.text(""), "--paused", "--api-sock", &socket]);
    let vm = ApiProcess::spawn(vm_directory, &mut command);
    assert_eq!(vm.state(), "Paused");
    run_ok(&["snapshot", &diff.text(""), "--diff", "--api-sock", &socket]);
    let core = diff.text("core");
    run_err(
        &["core", &diff.text(""), &core],
        "cannot make a core of the snapshot in ",
    );
    let output = mayfly(&["core", &diff.text(""), &core]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("merge it into its base by mayfly snapshot-merge"),
        "{output:?}"
    );
    vm.terminate();
}

/// Receives a request with all of `parts`.
fn receive(listener: &UnixListener, parts: &[&str]) -> UnixStream {
    let mut stream = scratch::accept(listener);
    let (mut text, mut bytes) = (String::new(), [0; 1024]);
    while !parts.iter().all(|part| text.contains(part)) {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "{parts:?}: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    stream
}

fn reply(mut stream: UnixStream, body: &str) {
    write!(
        stream,
        "HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
}

#[test]
fn signal_during_snapshot_waits_for_resume() {
    for name in ["core", "snapshot"] {
        let directory = Directory::new();
        let listener = UnixListener::bind(directory.path("api.sock")).unwrap();
        let (socket, target) = (directory.text("api.sock"), directory.text("target"));
        let mut command = Command::new(program());
        command
            .args([name, "--api-sock", &socket, &target])
            .stdin(Stdio::null());
        let mut client = Running::start(&mut command);
        reply(receive(&listener, &["GET / "]), r#"{"state":"Running"}"#);
        reply(receive(&listener, &["PATCH /vm", "Paused"]), "");
        let request = receive(&listener, &["PUT /snapshot/create", "mem_file_path"]);
        client.signal(libc::SIGTERM);
        reply(request, "");
        reply(receive(&listener, &["PATCH /vm", "Resumed"]), "");
        client.expect_signal(libc::SIGTERM);
        let left: &[&str] = match name {
            "core" => &["api.sock"],
            _ => &["api.sock", "target"],
        };
        assert_eq!(directory.names(), left);
    }
}

#[test]
fn existing_file_is_rejected_before_the_pause() {
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.path("api.sock")).unwrap();
    let (socket, core) = (directory.text("api.sock"), directory.write("core", "mine"));
    thread::scope(|scope| {
        scope.spawn(|| reply(receive(&listener, &["GET / "]), r#"{"state":"Running"}"#));
        run_err(
            &["core", "--api-sock", &socket, &core],
            &format!("cannot write the core to {core}; name a file that does not exist"),
        );
    });
    assert_eq!(fs::read_to_string(&core).unwrap(), "mine");
    assert_eq!(directory.names(), ["api.sock", "core"]);
}
