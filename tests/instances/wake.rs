//! Wakes of a real guest by frames and requests, and its suspends.

use serde_json::json;

use crate::host::{GUEST, Supervisor, enter_namespace, on_tap, ping, served};

#[test]
fn idle_guest_is_suspended_and_woken_by_a_ping() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", on_tap(json!({})));
    assert_eq!(supervisor.get("web")["state"], "suspended");
    ping(GUEST, 1);
    let reason = supervisor.await_state("web", "suspended");
    assert_eq!(reason, "the guest was idle");
    let first = supervisor.generation("web");
    // Each wake continues the guest of the last suspend.
    let before = served(GUEST);
    supervisor.await_state("web", "suspended");
    assert_ne!(supervisor.generation("web"), first);
    ping(GUEST, 1);
    supervisor.await_state("web", "suspended");
    let after = served(GUEST);
    assert_eq!(before.pings, 1);
    assert_eq!(after.pings, 2);
    // It may have served the repeated requests, too.
    let (min, max) = (
        before.datagrams + 1,
        before.datagrams + before.requests + after.requests,
    );
    assert!((min..max).contains(&after.datagrams), "{before:?} {after:?}");
    let wakes = supervisor.metric("mayfly_standby_wakes_total{cause=\"frame\"}");
    assert!(wakes >= 3, "{wakes} wakes by a frame");
    assert_eq!(
        supervisor.metric("mayfly_standby_wakes_total{cause=\"request\"}"),
        0
    );
}

#[test]
fn request_wakes_and_suspends_a_guest() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    let more = json!({"scale_to_zero": {"policy": "off"}, "wake_on": {"rule": "none"}});
    supervisor.register("web", on_tap(more));
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    ping(GUEST, 1);
    let pid = supervisor.pid_of("web");
    assert!(pid.is_some());
    supervisor.suspend("web");
    assert_eq!(
        supervisor.get("web")["reason"],
        "the guest is suspended at a request"
    );
    assert_eq!(supervisor.pid_of("web"), None);
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    assert_eq!(served(GUEST).pings, 1);
    assert_ne!(supervisor.pid_of("web"), pid);
}
