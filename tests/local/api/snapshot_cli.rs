//! Snapshots by the commands of mayfly.

/// CPUID and MSRs are of x86_64 alone.
#[cfg(target_arch = "x86_64")]
mod limits;
mod shell;
mod untrusted;
mod working_set;

pub use working_set::hide_proc;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

fn run_mayfly(arguments: &[&str]) -> Output {
    scratch::run(command_with_timeout().args(arguments))
}

/// Returns mayfly under `timeout`, without arguments.
fn command_with_timeout() -> Command {
    let mut command = Command::new("timeout");
    command.arg("170").arg(program());
    command
}

/// Runs mayfly and expects success. Returns its stdout.
fn run_ok(arguments: &[&str]) -> String {
    let output = run_mayfly(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs mayfly and expects an error without output. Returns its stderr.
fn run_err(arguments: &[&str]) -> String {
    let output = run_mayfly(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

fn start(guest: &str) -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let kernel = file(guest);
    ApiProcess::spawn(
        directory,
        Command::new(program()).args(["run", &kernel, "--memory", "32M", "--api-sock", &socket]),
    )
}

fn restore(snapshot: &str, options: &[&str]) -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["restore", snapshot, "--api-sock", &socket])
        .args(options);
    ApiProcess::spawn(directory, &mut command)
}

fn create_snapshot(vm: &ApiProcess, directory: &str, options: &[&str]) {
    let socket = vm.directory.text("api.sock");
    let command = ["snapshot", directory, "--api-sock", &socket];
    run_ok(&[&command, options].concat());
}

/// Expects `count` consecutive ticks after the next one. Returns the number of that first tick.
fn expect_ticks(vm: &mut ApiProcess, count: u32) -> u32 {
    vm.expect("tick ");
    let first: u32 = vm.read_line().parse().unwrap();
    for number in first + 1..=first + count {
        vm.expect("tick ");
        assert_eq!(vm.read_line(), number.to_string());
    }
    first
}

/// Creates a snapshot of `guest` in the directory `s`, after it has printed `line`.
fn create_snapshot_of(guest: &str, line: &str) -> (Directory, String) {
    let mut vm = start(guest);
    vm.expect(line);
    let kept = Directory::new();
    let directory = kept.text("s");
    create_snapshot(&vm, &directory, &[]);
    vm.terminate();
    (kept, directory)
}

#[test]
fn snapshot_loads_repeatedly() {
    let mut vm = start("ticker.elf");
    vm.expect("tick 7\n");
    let kept = Directory::new();
    let directory = kept.text("s");
    create_snapshot(&vm, &directory, &[]);
    // The source continues after the snapshot.
    expect_ticks(&mut vm, 3);
    vm.terminate();
    let mut clones = [restore(&directory, &[]), restore(&directory, &[])];
    let first = clones.each_mut().map(|clone| expect_ticks(clone, 20));
    assert!(first[0] >= 8 && first[0] == first[1], "{first:?}");
    let info = run_ok(&["snapshot-info", &directory]);
    let state = format!("{directory}/state");
    assert_eq!(run_ok(&["--describe-snapshot", &state]), "v1.0.0\n");
    for text in [
        "format       v1.0.0",
        "architecture ",
        "processor    ",
        "all of the memory",
        "vCPUs        1",
        "memory       32 MiB",
        "32 MiB: ",
        " on disk, ",
        "ticker.elf",
    ] {
        assert!(info.contains(text), "{info} has no {text}");
    }
    clones.into_iter().for_each(ApiProcess::terminate);
}

#[test]
fn diff_snapshot_merges_into_base() {
    let mut vm = start("ticker.elf");
    vm.expect("tick 3\n");
    let kept = Directory::new();
    let [full, diff] = ["full", "diff"].map(|name| kept.text(name));
    create_snapshot(&vm, &full, &[]);
    vm.terminate();
    let mut vm = restore(&full, &[]);
    let start = expect_ticks(&mut vm, 30);
    create_snapshot(&vm, &diff, &["--diff"]);
    vm.terminate();
    assert!(run_ok(&["snapshot-info", &diff]).contains("diff snapshot"));
    assert!(run_err(&["restore", &diff]).contains("mayfly snapshot-merge"));
    assert!(run_err(&["snapshot-merge", &diff, &full]).contains("it belongs to a Full snapshot"));
    run_ok(&["snapshot-merge", &full, &diff]);
    let mut vm = restore(&full, &[]);
    assert!(expect_ticks(&mut vm, 5) > start + 30);
    vm.terminate();
}

#[test]
fn paused_clone_waits_for_resume() {
    let (_kept, directory) = create_snapshot_of("ticker.elf", "tick 2\n");
    let mut clone = restore(&directory, &["--paused"]);
    assert_eq!(clone.state(), "Paused");
    let socket = clone.directory.text("api.sock");
    run_ok(&["ctl", "--api-sock", &socket, "resume"]);
    expect_ticks(&mut clone, 3);
    clone.terminate();
}

/// A new directory does not stay behind, and the VM runs on.
#[test]
fn failed_snapshot_leaves_no_directory() {
    let mut vm = start("ticker.elf");
    let socket = vm.directory.text("api.sock");
    let directory = Directory::new();
    let path = directory.root().join(OsStr::from_bytes(b"\xff"));
    let mut command = command_with_timeout();
    command.arg("snapshot").arg(&path).args(["--api-sock", &socket]);
    let output = scratch::run(&mut command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the path is not UTF-8"), "{stderr}");
    assert!(!path.exists());
    expect_ticks(&mut vm, 1);
}

#[test]
fn missing_or_invalid_snapshot_is_rejected() {
    let kept = Directory::new();
    let directory = kept.text("s");
    let socket = kept.text("unused.sock");
    assert!(run_err(&["snapshot", &directory, "--api-sock", &socket]).contains(&socket));
    assert!(
        !kept.path("s").exists(),
        "the failed command created the directory"
    );
    assert!(run_err(&["restore", &directory]).contains("state"));
    fs::create_dir(kept.path("s")).unwrap();
    fs::write(
        kept.path("s").join("state"),
        "not a state file, but longer than the header of a state file is",
    )
    .unwrap();
    for command in ["restore", "snapshot-info"] {
        let stderr = run_err(&[command, &directory]);
        assert!(stderr.contains(&directory), "{stderr}");
    }
}

/// Input that arrives before the restore must interrupt the guest, which halts at its first entry.
#[test]
fn input_before_restore_reaches_guest() {
    let mut vm = start("echo.elf");
    vm.expect("ready\n");
    let kept = Directory::new();
    let directory = kept.text("s");
    create_snapshot(&vm, &directory, &[]);
    vm.terminate();
    for round in 0..40 {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"xq").unwrap();
        let mut command = command_with_timeout();
        let output = scratch::run_with_input(command.args(["restore", &directory]), reader);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "round {round}: {printed}");
        assert!(printed.contains("bye"), "round {round}: {printed}");
        drop(writer);
    }
}
