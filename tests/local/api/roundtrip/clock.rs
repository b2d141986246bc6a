//! The guest's time, by KVM's paravirtual clock.

use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use super::super::served::{ApiProcess, Directory};
use super::{Snapshot, run};
use crate::guests::program;

/// How long the guest stays frozen, at least.
const FROZEN: Duration = Duration::from_millis(500);
/// How far the clocks of guest and host may come apart meanwhile.
const DRIFT: Duration = Duration::from_millis(20);

/// The host's clock.
fn host() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

/// The guest's clock.
fn guest(served: &mut ApiProcess) -> Duration {
    served.act("SendCtrlAltDel");
    served.expect("time ");
    Duration::from_nanos(served.line().parse().unwrap())
}

/// By how much the guest's clock has gone on, how long the guest was frozen, and how long it may have run, all from before it was
/// frozen until after it was restored as `restore` does.
fn passes(restore: impl FnOnce(&Snapshot) -> ApiProcess) -> [Duration; 3] {
    let snapshot = Snapshot::new();
    let mut served = run("kvmclock.elf", "", "");
    served.expect("ready\n");
    let begin = host();
    let before = guest(&mut served);
    snapshot.take(&served, "Full");
    served.kill();
    let frozen = host();
    while host() < frozen + FROZEN {
        thread::sleep(FROZEN);
    }
    let thawed = host();
    let mut served = restore(&snapshot);
    let after = guest(&mut served);
    let end = host();
    served.kill();
    [
        after.checked_sub(before).unwrap(),
        thawed - frozen,
        frozen - begin + (end - thawed),
    ]
}

/// As if it had not been frozen.
fn goes_on(restore: impl FnOnce(&Snapshot) -> ApiProcess) {
    let [passed, frozen, ran] = passes(restore);
    assert!(
        passed <= ran + DRIFT,
        "{passed:?} passed, of which it was frozen for {frozen:?}"
    );
}

/// As on the host.
fn jumps(restore: impl FnOnce(&Snapshot) -> ApiProcess) {
    let [passed, frozen, ran] = passes(restore);
    assert!(passed + DRIFT >= frozen, "{passed:?} of {frozen:?} passed");
    assert!(
        passed <= frozen + ran + DRIFT,
        "{passed:?} passed, which is more than {frozen:?} and {ran:?}"
    );
}

fn command(snapshot: &Snapshot, options: &[&str]) -> ApiProcess {
    let folder = Directory::new();
    let socket = folder.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["restore", &snapshot.folder(), "--api-sock", &socket])
        .args(options);
    ApiProcess::called(folder, &mut command)
}

#[test]
fn time_goes_on_from_where_it_stood() {
    goes_on(|snapshot| snapshot.load(r#","resume_vm":true,"clock_realtime":false"#));
}

#[test]
fn time_jumps_to_where_it_would_be() {
    jumps(|snapshot| snapshot.load(r#","resume_vm":true,"clock_realtime":true"#));
}

#[test]
fn time_goes_on_by_the_command() {
    goes_on(|snapshot| command(snapshot, &[]));
}

#[test]
fn time_jumps_by_the_command() {
    jumps(|snapshot| command(snapshot, &["--realtime"]));
}
