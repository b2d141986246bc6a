//! Pages that a restored guest touches first, recorded and made ready.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use super::super::served::{ApiProcess, Directory};
use super::{create_snapshot, restore, run, run_err, run_ok, ticks, within_limit};
use crate::guest::LIMIT;
use crate::guests::{file, program};

/// A snapshot of the guest that has written to 512 pages and waits for input, in the folder `s`.
fn touched() -> (Directory, String) {
    let mut vm = run("touch.elf");
    vm.expect("touched 512 pages\n");
    let kept = Directory::new();
    let folder = kept.text("s");
    create_snapshot(&vm, &folder, &[]);
    vm.terminate();
    (kept, folder)
}

/// A snapshot of the ticker.
fn ticking() -> (Directory, String) {
    let mut vm = run("ticker.elf");
    vm.expect("tick 2\n");
    let kept = Directory::new();
    let folder = kept.text("s");
    create_snapshot(&vm, &folder, &[]);
    vm.terminate();
    (kept, folder)
}

/// What comes of `mayfly restore` when the guest gets `input`, on which it ends.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(input).unwrap();
    let output = command.stdin(reader).output().unwrap();
    drop(writer);
    output
}

fn restored(folder: &str, options: &[&str], input: &[u8]) -> String {
    let mut command = within_limit();
    command.args(["restore", folder]).args(options);
    let output = fed(&mut command, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{said}");
    assert!(printed.contains("ok touch 512 pages"), "{printed}{said}");
    said
}

/// Pages touched and written, as snapshot-info has them.
fn pages(set: &str) -> [u64; 2] {
    let info = run_ok(&["snapshot-info", set]);
    ["touched", "written"].map(|name| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    })
}

/// Names in the folder, but for the snapshot's.
fn names(kept: &Directory) -> Vec<String> {
    let entries = fs::read_dir(kept.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "s").collect()
}

/// Pages on disk of a difference of the paused clone.
fn difference(clone: &ApiProcess, kept: &Directory, name: &str) -> u64 {
    assert_eq!(clone.state(), "Paused");
    create_snapshot(clone, &kept.text(name), &["--diff"]);
    fs::metadata(kept.path(name).join("memory")).unwrap().blocks() / 8
}

#[test]
fn what_a_guest_has_written_is_recorded_when_it_ends() {
    let (kept, folder) = touched();
    let [reads, writes] = ["reads", "writes"].map(|name| kept.text(name));
    let length = ["--record-ms", "600000"];
    restored(
        &folder,
        &[&["--record-working-set", &reads], &length[..]].concat(),
        b"q",
    );
    restored(
        &folder,
        &[&["--record-working-set", &writes], &length[..]].concat(),
        b"wq",
    );
    let ([touched, written], [touched_2, written_2]) = (pages(&reads), pages(&writes));
    assert!(touched >= 512 && written < 100, "{touched} {written}");
    assert!(
        (512..612).contains(&written_2) && touched_2 >= written_2,
        "{written_2}"
    );
    for set in [&reads, &writes] {
        for input in [&b"q"[..], b"wq"] {
            restored(&folder, &["--working-set", set], input);
        }
    }
}

#[test]
fn pages_that_are_ready_count_as_changed() {
    let (kept, folder) = touched();
    let set = kept.text("set");
    restored(&folder, &["--record-working-set", &set], b"wq");
    let without = restore(&folder, &["--paused"]);
    let before = difference(&without, &kept, "without");
    without.terminate();
    let with = restore(&folder, &["--paused", "--working-set", &set]);
    let after = difference(&with, &kept, "with");
    with.terminate();
    assert!(before < 100 && after >= 500, "{before} {after}");
    // They hold what they held.
    run_ok(&["snapshot-merge", &folder, &kept.text("with")]);
    restored(&folder, &[], b"q");
    // By that it is another snapshot.
    let said = run_err(&["restore", &folder, "--working-set", &set]);
    assert!(
        said.contains(&set) && said.contains("belongs to another snapshot"),
        "{said}"
    );
}

#[test]
fn a_recording_ends_by_itself_and_the_guest_goes_on() {
    let (kept, folder) = ticking();
    let set = kept.text("set");
    let mut clone = restore(&folder, &["--record-working-set", &set, "--record-ms", "1"]);
    let start = Instant::now();
    while !Path::new(&set).exists() {
        assert!(start.elapsed() < LIMIT, "no working set comes");
        ticks(&mut clone, 1);
    }
    // In a millisecond it need not have done anything.
    pages(&set);
    ticks(&mut clone, 5);
    clone.terminate();
    assert_eq!(names(&kept), ["set"]);
}

#[test]
fn what_ends_a_recording_early_completes_it() {
    let (kept, folder) = ticking();
    let [frozen, ended] = ["frozen", "ended"].map(|name| kept.text(name));
    let length = ["--record-ms", "600000"];
    let record = |set| restore(&folder, &[&["--record-working-set", set], &length[..]].concat());
    let mut clone = record(&frozen);
    ticks(&mut clone, 2);
    assert!(!Path::new(&frozen).exists(), "it has ended before its time");
    create_snapshot(&clone, &kept.text("again"), &[]);
    assert!(pages(&frozen)[1] >= 1);
    ticks(&mut clone, 2);
    clone.terminate();
    let mut clone = record(&ended);
    ticks(&mut clone, 2);
    clone.terminate();
    assert!(pages(&ended)[1] >= 1);
}

#[test]
fn of_a_guest_that_does_not_run_nothing_is_recorded() {
    let (kept, folder) = ticking();
    let set = kept.text("set");
    let options = ["--record-working-set", &set, "--record-ms", "1"];
    let clone = restore(&folder, &[&options[..], &["--paused"]].concat());
    assert_eq!(clone.state(), "Paused");
    // What is frozen before it has run is recorded later, when it does.
    create_snapshot(&clone, &kept.text("again"), &[]);
    assert!(!Path::new(&set).exists());
    clone.terminate();
    assert_eq!(names(&kept), ["again"]);
}

#[test]
fn what_is_no_working_set_is_refused_before_the_guest_runs() {
    let (kept, folder) = touched();
    let set = kept.text("set");
    restored(&folder, &["--record-working-set", &set], b"q");
    let good = fs::read(&set).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    kept.write(
        "text",
        "no working set, but long enough to have the header of one",
    );
    kept.write("empty", "");
    kept.write("cut", &good[..good.len() - 1]);
    kept.write("half", &good[..middle]);
    kept.write("longer", [&good[..], b"x"].concat());
    kept.write("flipped", flipped);
    kept.fifo("fifo");
    for (name, why) in [
        ("none", "No such file"),
        ("text", "not a state file of mayfly"),
        ("empty", "too short"),
        ("cut", "bytes has a header for"),
        ("half", "bytes has a header for"),
        ("longer", "bytes has a header for"),
        ("flipped", "checksum"),
        ("fifo", "not a regular file"),
        ("s", "not a regular file"),
        ("s/state", "not a working set"),
        ("s/memory", "cannot use the working set"),
    ] {
        let path = kept.text(name);
        let said = run_err(&["restore", &folder, "--working-set", &path]);
        assert!(said.contains(&path) && said.contains(why), "{name}: {said}");
    }
}

#[test]
fn a_set_of_another_snapshot_is_refused() {
    let (kept, folder) = touched();
    let set = kept.text("set");
    restored(&folder, &["--record-working-set", &set], b"q");
    let again = kept.text("again");
    let clone = restore(&folder, &["--paused"]);
    assert_eq!(clone.state(), "Paused");
    create_snapshot(&clone, &again, &[]);
    clone.terminate();
    let said = run_err(&["restore", &again, "--working-set", &set]);
    assert!(
        said.contains(&set) && said.contains("belongs to another snapshot"),
        "{said}"
    );
    let socket = kept.text("large.sock");
    let mut large = ApiProcess::called(
        Directory::new(),
        Command::new(program()).args([
            "run",
            &file("touch.elf"),
            "--memory",
            "64M",
            "--api-sock",
            &socket,
        ]),
    );
    large.expect("touched 512 pages\n");
    let other = kept.text("large");
    run_ok(&["snapshot", &other, "--api-sock", &socket]);
    drop(large);
    let said = run_err(&["restore", &other, "--working-set", &set]);
    assert!(said.contains("bytes of memory, the guest has"), "{said}");
}

#[test]
fn where_nothing_can_be_recorded_the_guest_does_not_run() {
    let (kept, folder) = touched();
    for (name, why) in [
        ("none/set", "directory must exist"),
        ("s", "a directory, pipe or device"),
    ] {
        let path = kept.text(name);
        let said = run_err(&["restore", &folder, "--record-working-set", &path]);
        assert!(
            said.contains("cannot record a working set") && said.contains(why),
            "{said}"
        );
    }
    assert!(names(&kept).is_empty());
}

/// mayfly where /proc is empty. Takes root's rights.
fn without_proc(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["60".as_ref(), program().as_os_str()])
        .args(arguments);
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let enter = move || {
        // SAFETY: the call takes no pointer, and changes only the process that is to be.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        let nothing = std::ptr::null();
        // SAFETY: the target is a C string, and the rest is not looked at.
        check(unsafe { libc::mount(nothing, c"/".as_ptr(), nothing, flags, nothing.cast()) })?;
        let (kind, place) = (c"tmpfs".as_ptr(), c"/proc".as_ptr());
        // SAFETY: all pointers are C strings for the length of the call, but for the last, which may be null.
        check(unsafe { libc::mount(kind, place, kind, 0, nothing.cast()) })
    };
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn without_proc_a_working_set_is_used_and_none_recorded() {
    let (kept, folder) = touched();
    let set = kept.text("set");
    restored(&folder, &["--record-working-set", &set], b"wq");
    let output = fed(
        &mut without_proc(&["restore", &folder, "--working-set", &set]),
        b"q",
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = fed(
        &mut without_proc(&["restore", &folder, "--record-working-set", &set]),
        b"q",
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot record a working set") && said.contains("mount /proc"),
        "{said}"
    );
    assert!(output.stdout.is_empty(), "the guest ran");
}
