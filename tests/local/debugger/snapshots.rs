//! Snapshots of a VM with a debugger.

use std::fs;

use super::client::{Gdb, symbol};
use super::{Debugged, IN_MEMORY, address};
use crate::api::http::NO_CONTENT;
use crate::api::served::{ApiProcess, create_snapshot, load_snapshot, pause_and_create};
use crate::guests::file;

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
    let output =
        scratch::run(std::process::Command::new(crate::guests::program()).args(["restore", &snapshot]));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("ok debug\n"));
    assert!(output.status.success() && !file("debug.elf").is_empty());
}
