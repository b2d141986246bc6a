//! Guest time of a restored guest, by kvmclock.

use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use super::super::served::{ApiProcess, Directory, PAUSED};
use super::{Snapshot, start};
use crate::guests::program;

/// Minimum time between snapshot and load.
const SUSPENSION: Duration = Duration::from_millis(500);
/// Maximum drift between the clocks of guest and host.
const DRIFT: Duration = Duration::from_millis(20);

/// Returns the time of the host.
fn host_time() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

/// Returns the time of the guest.
fn guest_time(process: &mut ApiProcess) -> Duration {
    process.run_action("SendCtrlAltDel");
    process.expect("time ");
    Duration::from_nanos(process.read_line().parse().unwrap())
}

/// Creates a snapshot and loads it with `restore`. Returns the passed guest time, the time between snapshot and load, and the
/// maximum run time of the guest.
fn measure(restore: impl FnOnce(&Snapshot) -> ApiProcess) -> [Duration; 3] {
    let snapshot = Snapshot::new();
    let mut process = start("kvmclock.elf", "", "");
    process.expect("ready\n");
    let begin = host_time();
    let before = guest_time(&mut process);
    process.expect_no_content("PATCH", "/vm", PAUSED);
    snapshot.create(&process, "Full");
    process.kill();
    let created = host_time();
    while host_time() < created + SUSPENSION {
        thread::sleep(SUSPENSION);
    }
    let loaded = host_time();
    let mut process = restore(&snapshot);
    let after = guest_time(&mut process);
    let end = host_time();
    process.kill();
    [
        after.checked_sub(before).unwrap(),
        loaded - created,
        created - begin + (end - loaded),
    ]
}

/// Expects guest time without the suspension.
fn expect_continuous_time(restore: impl FnOnce(&Snapshot) -> ApiProcess) {
    let [passed, suspended, ran] = measure(restore);
    assert!(
        passed <= ran + DRIFT,
        "{passed:?} passed, with a suspension of {suspended:?}"
    );
}

/// Expects guest time with the suspension.
fn expect_time_jump(restore: impl FnOnce(&Snapshot) -> ApiProcess) {
    let [passed, suspended, ran] = measure(restore);
    assert!(passed + DRIFT >= suspended, "{passed:?} of {suspended:?} passed");
    assert!(
        passed <= suspended + ran + DRIFT,
        "{passed:?} passed, more than {suspended:?} and {ran:?}"
    );
}

fn run_restore(snapshot: &Snapshot, options: &[&str]) -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["restore", &snapshot.text(""), "--api-sock", &socket])
        .args(options);
    ApiProcess::spawn(directory, &mut command)
}

#[test]
fn api_load_continues_guest_time() {
    expect_continuous_time(|snapshot| snapshot.load(r#","resume_vm":true,"clock_realtime":false"#));
}

#[test]
fn api_load_with_clock_realtime_advances_guest_time() {
    expect_time_jump(|snapshot| snapshot.load(r#","resume_vm":true,"clock_realtime":true"#));
}

#[test]
fn restore_command_continues_guest_time() {
    expect_continuous_time(|snapshot| run_restore(snapshot, &[]));
}

#[test]
fn restore_command_with_realtime_advances_guest_time() {
    expect_time_jump(|snapshot| run_restore(snapshot, &["--realtime"]));
}
