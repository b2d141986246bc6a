//! Snapshots of a VM with a debugger.

use std::fs;
use std::process::Command;

use super::client::{Gdb, symbol};
use super::{Debugged, IN_MEMORY, address};
use crate::api::http::NO_CONTENT;
use crate::api::served::{ApiProcess, create_snapshot, load_snapshot, pause_and_create};
use crate::guests::{file, program};

/// A loaded VM is paused, whether it has been resumed before or not.
#[test]
fn snapshot_of_a_vm_that_was_never_resumed_has_no_breakpoint() {
    let directory = scratch::Directory::new();
    let mut process = ApiProcess::start();
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    process.expect("looping\n");
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.terminate();

    let process = load_snapshot(&directory, "state", "memory", "");
    assert_eq!(process.state(), "Paused");
    let mut gdb = Gdb::attach(&process.socket(), IN_MEMORY);
    let (ip, guest) = (gdb.ip(), symbol(&file("loop.elf"), "guest"));
    let originals = [ip, guest].map(|place| gdb.word(place));
    for place in [ip, guest] {
        assert_eq!(gdb.set_breakpoint(place), "OK");
    }
    assert_eq!([ip, guest].map(|place| gdb.word(place)), originals);
    let created = create_snapshot(&process, &directory, "Full", "state2", "memory2");
    assert_eq!(created.text, NO_CONTENT);
    let [first, second] = ["memory", "memory2"].map(|name| fs::read(directory.path(name)).unwrap());
    let differences = first.iter().zip(&second).enumerate();
    let differences: Vec<_> = differences
        .filter(|(_, (one, other))| one != other)
        .map(|(place, _)| place)
        .collect();
    assert!(
        first.len() == second.len() && differences.is_empty(),
        "{differences:x?}"
    );
    drop(gdb);
    process.terminate();
}

#[test]
fn snapshot_of_a_stopped_vm_has_no_breakpoint_and_is_debugged() {
    let directory = scratch::Directory::new();
    let snapshot = directory.text("snapshot");
    let inner = address("inner");
    let mut vm = Debugged::run("debug.elf", &["--allow", directory.root().to_str().unwrap()]);
    let mut gdb = vm.connect();
    let original = gdb.word(inner);
    // More breakpoints than registers, where the host has those in memory.
    let mut set = vec![inner];
    assert_eq!(gdb.set_breakpoint(inner), "OK");
    assert!(gdb.resume().starts_with("T05"));
    for number in 1..=16 {
        let place = address("guest") + 4 * number;
        if gdb.set_breakpoint(place) != "OK" {
            break;
        }
        set.push(place);
    }
    let text = gdb.monitor(&format!("snapshot {snapshot}"));
    assert_eq!(text, format!("snapshot created in {snapshot}\n"));
    set.iter().for_each(|place| gdb.remove_breakpoint(*place));
    assert_eq!(gdb.resume(), "W00");
    vm.running.expect("ok debug\n");
    vm.running.expect_exit(0);

    // The loaded VM waits before the instruction at which it was saved.
    let mut vm = Debugged::start(&["restore", &snapshot]);
    let mut gdb = vm.connect();
    assert_eq!((gdb.ip(), gdb.argument()), (inner, 1));
    assert_eq!(gdb.word(inner), original);
    for place in set {
        assert_eq!(gdb.set_breakpoint(place), "OK");
        gdb.remove_breakpoint(place);
    }
    assert_eq!(gdb.resume(), "W00");
    vm.running.expect("ok debug\n");
    vm.running.expect_exit(0);

    // And without a debugger, it runs to the end.
    let output = scratch::run(Command::new(program()).args(["restore", &snapshot]));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok debug\n"));
    assert!(output.status.success() && !file("debug.elf").is_empty());
}

#[test]
fn crash_that_gdb_holds_is_saved() {
    let directory = scratch::Directory::new();
    let (snapshot, socket, core) = (
        directory.text("snapshot"),
        directory.text("api.sock"),
        directory.text("core"),
    );
    let image = file("crash.elf");
    let options = ["run", &image, "--memory", "16M", "--api-sock", &socket];
    let allow = ["--allow", &directory.text("")];
    let mut vm = Debugged::start_with(&[&options[..], &allow].concat(), &["mmio=1"]);
    let mut gdb = vm.connect();
    let stop = gdb.resume();
    assert!(stop.starts_with("T0b"), "{stop}");
    let ip = gdb.ip();
    let text = gdb.monitor(&format!("snapshot {snapshot}"));
    assert_eq!(text, format!("snapshot created in {snapshot}\n"));
    let output = scratch::run(Command::new(program()).args(["core", "--api-sock", &socket, &core]));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(gdb.ip(), ip);
    assert_eq!(gdb.resume(), "W79");
    vm.running.expect_exit(121);
    let output = scratch::run(Command::new(program()).args(["restore", &snapshot]));
    assert_eq!(output.status.code(), Some(121), "{output:?}");
}

/// Sets the maximum length of the files that a process writes.
fn limit_files(process: u32, length: libc::rlim_t) {
    let limit = libc::rlimit {
        rlim_cur: length,
        rlim_max: libc::RLIM_INFINITY,
    };
    let process = i32::try_from(process).unwrap();
    // SAFETY: `limit` is valid for reads, and the limit before is not requested.
    let set = unsafe {
        libc::prlimit(
            process,
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0);
}

#[test]
fn failed_snapshot_leaves_no_new_directory() {
    let directory = scratch::Directory::new();
    let mut vm = Debugged::run("debug.elf", &["--allow", &directory.text("")]);
    let mut gdb = vm.connect();
    fs::create_dir(directory.path("old")).unwrap();
    limit_files(vm.running.id(), 4096);
    for name in ["old", "new"] {
        let text = gdb.monitor(&format!("snapshot {}", directory.text(name)));
        assert!(text.contains("File too large"), "{text}");
    }
    assert_eq!(directory.names(), ["old"]);
    limit_files(vm.running.id(), libc::RLIM_INFINITY);
    let snapshot = directory.text("new");
    let text = gdb.monitor(&format!("snapshot {snapshot}"));
    assert_eq!(text, format!("snapshot created in {snapshot}\n"));
    assert_eq!(gdb.resume(), "W00");
    vm.running.expect_exit(0);
}
