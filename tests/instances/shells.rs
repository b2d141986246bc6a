//! Wakes in shells.

use std::fs;

use serde_json::json;

use crate::host::{GUEST, Supervisor, enter_namespace, on_tap, ping, served, signal};

/// Returns the process ID of the shell that waits, if it is not `other`.
fn shell(supervisor: &Supervisor, other: Option<i32>) -> Option<i32> {
    let records = fs::read_dir(supervisor.directory.path("state/run")).unwrap();
    records.flatten().find_map(|entry| {
        let path = entry.path();
        if path.extension()? != "shell" {
            return None;
        }
        let record = fs::read_to_string(path).ok()?;
        let line = record.lines().nth(1).or(record.lines().next())?;
        let pid = line.split(' ').next()?.parse().ok()?;
        (Some(pid) != other).then_some(pid)
    })
}

#[test]
fn guest_wakes_in_a_shell_and_a_dead_shell_is_replaced() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&["--shells", "1"]);
    supervisor.register("web", on_tap(json!({})));
    let shell_wakes = || supervisor.metric("mayfly_standby_shell_wakes_total");
    let first = scratch::wait_for("a shell", || shell(&supervisor, None));
    ping(GUEST, 1);
    assert_eq!(shell_wakes(), 1);
    // The shell has become the process of the instance, unless that is suspended already.
    assert!(supervisor.pid_of("web").is_none_or(|pid| pid == first));
    supervisor.await_state("web", "suspended");
    let second = scratch::wait_for("the next shell", || shell(&supervisor, Some(first)));
    signal(second, libc::SIGKILL);
    scratch::wait_until("the end of the shell is counted", || {
        supervisor.failures("shell") == 1
    });
    // Without a shell, or in the next one.
    ping(GUEST, 1);
    supervisor.await_state("web", "suspended");
    scratch::wait_for("another shell", || shell(&supervisor, Some(second)));
    let before = shell_wakes();
    assert_eq!(served(GUEST).pings, 2);
    assert_eq!(shell_wakes(), before + 1);
    supervisor.await_state("web", "suspended");
    assert_eq!(supervisor.failures("shell"), 1);
}

#[test]
fn shell_that_ends_during_its_request_fails_the_wake() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&["--shells", "1"]);
    supervisor.register("web", on_tap(json!({})));
    let stopped = scratch::wait_for("a shell", || shell(&supervisor, None));
    signal(stopped, libc::SIGSTOP);
    supervisor.set("web", "wake");
    assert_eq!(supervisor.pid_of("web"), Some(stopped));
    signal(stopped, libc::SIGKILL);
    let reason = supervisor.await_state("web", "failed");
    assert_eq!(reason, "cannot wake the instance: signal 9 has ended the process");
    supervisor.set("web", "wake");
    assert_eq!(served(GUEST).pings, 0);
}
