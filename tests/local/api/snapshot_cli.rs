//! Snapshots by the commands.

mod working_set;

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output};

use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

fn mayfly(arguments: &[&str]) -> Output {
    within_limit().args(arguments).output().unwrap()
}

/// mayfly, to be given arguments; it is ended when it does something else than to end soon.
fn within_limit() -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program());
    command
}

/// What mayfly prints when it does what `arguments` say.
fn run_ok(arguments: &[&str]) -> String {
    let output = mayfly(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says when it does not.
fn run_err(arguments: &[&str]) -> String {
    let output = mayfly(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty());
    said
}

fn run(guest: &str) -> ApiProcess {
    let folder = Directory::new();
    let socket = folder.text("api.sock");
    let kernel = file(guest);
    ApiProcess::called(
        folder,
        Command::new(program()).args(["run", &kernel, "--memory", "32M", "--api-sock", &socket]),
    )
}

fn restore(snapshot: &str, options: &[&str]) -> ApiProcess {
    let folder = Directory::new();
    let socket = folder.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["restore", snapshot, "--api-sock", &socket])
        .args(options);
    ApiProcess::called(folder, &mut command)
}

fn create_snapshot(vm: &ApiProcess, folder: &str, options: &[&str]) {
    let socket = vm.folder.text("api.sock");
    let command = ["snapshot", folder, "--api-sock", &socket];
    run_ok(&[&command, options].concat());
}

/// The number of the first tick, after which `count` follow without one missing or doubled.
fn ticks(vm: &mut ApiProcess, count: u32) -> u32 {
    vm.expect("tick ");
    let first: u32 = vm.line().parse().unwrap();
    for number in first + 1..=first + count {
        vm.expect("tick ");
        assert_eq!(vm.line(), number.to_string());
    }
    first
}

#[test]
fn a_guest_goes_on_from_a_snapshot_as_often_as_one_likes() {
    let mut vm = run("ticker.elf");
    vm.expect("tick 7\n");
    let kept = Directory::new();
    let folder = kept.text("s");
    create_snapshot(&vm, &folder, &[]);
    // It has gone on, and is over.
    ticks(&mut vm, 3);
    vm.terminate();
    let mut clones = [restore(&folder, &[]), restore(&folder, &[])];
    let first = clones.each_mut().map(|clone| ticks(clone, 20));
    assert!(first[0] >= 8 && first[0] == first[1], "{first:?}");
    let info = run_ok(&["snapshot-info", &folder]);
    let state = format!("{folder}/state");
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
fn a_difference_is_merged_into_what_it_differs_from() {
    let mut vm = run("ticker.elf");
    vm.expect("tick 3\n");
    let kept = Directory::new();
    let [whole, part] = ["whole", "part"].map(|name| kept.text(name));
    create_snapshot(&vm, &whole, &[]);
    vm.terminate();
    let mut vm = restore(&whole, &[]);
    let start = ticks(&mut vm, 30);
    create_snapshot(&vm, &part, &["--diff"]);
    vm.terminate();
    assert!(run_ok(&["snapshot-info", &part]).contains("diff snapshot"));
    assert!(run_err(&["restore", &part]).contains("mayfly snapshot-merge"));
    assert!(run_err(&["snapshot-merge", &part, &whole]).contains("no difference"));
    run_ok(&["snapshot-merge", &whole, &part]);
    let mut vm = restore(&whole, &[]);
    assert!(ticks(&mut vm, 5) > start + 30);
    vm.terminate();
}

#[test]
fn a_paused_clone_waits_for_its_owner() {
    let mut vm = run("ticker.elf");
    vm.expect("tick 2\n");
    let kept = Directory::new();
    let folder = kept.text("s");
    create_snapshot(&vm, &folder, &[]);
    vm.terminate();
    let mut clone = restore(&folder, &["--paused"]);
    assert_eq!(clone.state(), "Paused");
    let socket = clone.folder.text("api.sock");
    run_ok(&["ctl", "--api-sock", &socket, "resume"]);
    ticks(&mut clone, 3);
    clone.terminate();
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let kept = Directory::new();
    let folder = kept.text("s");
    let socket = kept.text("nobody.sock");
    assert!(run_err(&["snapshot", &folder, "--api-sock", &socket]).contains(&socket));
    assert!(!kept.path("s").exists(), "there is nothing to be put there");
    assert!(run_err(&["restore", &folder]).contains("state"));
    fs::create_dir(kept.path("s")).unwrap();
    fs::write(
        kept.path("s").join("state"),
        "not a state file, but long enough to have a header, it is hoped",
    )
    .unwrap();
    for command in ["restore", "snapshot-info"] {
        let said = run_err(&[command, &folder]);
        assert!(said.contains(&folder), "{said}");
    }
}

/// What waits for the guest when it is restored interrupts it although it is halted and has not run since.
#[test]
fn input_that_waits_for_a_restored_guest_reaches_it() {
    let mut vm = run("echo.elf");
    vm.expect("ready\n");
    let kept = Directory::new();
    let folder = kept.text("s");
    create_snapshot(&vm, &folder, &[]);
    vm.terminate();
    for round in 0..40 {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"xq").unwrap();
        let mut command = within_limit();
        let output = command.args(["restore", &folder]).stdin(reader).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "round {round}: {printed}");
        assert!(printed.contains("bye"), "round {round}: {printed}");
        drop(writer);
    }
}
