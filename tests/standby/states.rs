//! States of an instance and their reasons.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::{fs, process};

use serde_json::{Value, json};

use crate::fake;
use crate::fixture::Supervisor;

#[test]
fn instance_wakes_and_is_suspended() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    assert_eq!(supervisor.await_state("web", "suspended"), "registered");
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let instance = supervisor.get("web");
    assert!(instance["pid"].as_u64().unwrap() > 1 && supervisor.is_alive("web"));
    assert!(
        instance["api_socket"]
            .as_str()
            .unwrap()
            .ends_with("/state/run/web.sock")
    );
    assert_eq!(
        (&instance["wakes"], &instance["config"]["snapshot_path"]),
        (&json!(1), &json!(supervisor.directory.text("snapshot")))
    );
    supervisor.set("web", "suspend");
    assert!(
        supervisor
            .await_state("web", "suspended")
            .contains("at a request")
    );
    assert_eq!(supervisor.get("web")["pid"], Value::Null);
    // From its own snapshot now.
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let starts = supervisor.starts();
    let source = |line: &str| line.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(source(&starts[0]), supervisor.directory.text("snapshot"));
    assert_eq!(
        source(&starts[1]),
        supervisor.directory.text("state/suspended/web")
    );
    assert_eq!(
        supervisor.metric("mayfly_standby_wakes_total{cause=\"request\"}"),
        2
    );
    assert_eq!(supervisor.metric("mayfly_standby_wake_seconds_count"), 2);
    assert_eq!(supervisor.metric("mayfly_standby_suspends_total"), 1);
    assert_eq!(
        supervisor.metric("mayfly_standby_instances{state=\"running\"}"),
        1
    );
}

#[test]
fn invalid_registration_is_rejected_with_its_reason() {
    let supervisor = Supervisor::start(&["--max-instances", "2"]);
    let put = |id: &str, body: &Value, status: u16| {
        supervisor.expect_rejection(status, "PUT", &format!("/instances/{id}"), Some(body))
    };
    assert!(put("a_b", &supervisor.body(json!({})), 400).contains("letters, digits and hyphens"));
    assert!(put("a", &supervisor.body(json!({"more": 1})), 400).contains("more: the key is unknown"));
    assert!(put("a", &json!({"snapshot_path": "/missing"}), 400).starts_with("snapshot_path: "));
    fs::remove_file(supervisor.directory.path("snapshot/memory")).unwrap();
    assert!(put("a", &supervisor.body(json!({})), 400).contains("cannot find the file"));
    supervisor.directory.write("snapshot/memory", "");
    let mut damaged = fs::read(supervisor.directory.path("snapshot/state")).unwrap();
    let state = damaged.clone();
    damaged[5000] ^= 1;
    supervisor.directory.write("snapshot/state", &damaged);
    assert!(put("a", &supervisor.body(json!({})), 400).contains("snapshot_path:"));
    supervisor.directory.write("snapshot/state", &state);
    let drive = json!({"drives": [{"drive_id": "d", "path_on_host": "/d"}]});
    assert!(
        put("a", &supervisor.body(drive), 400).contains("drives: the snapshot has no \"d\"; it has none")
    );
    let limits = json!({"limits": {"memory_max_mib": 64}});
    assert!(put("a", &supervisor.body(limits), 400).contains("--cgroup DIR"));
    assert_eq!(
        supervisor.expect("GET", "/instances", None)["instances"],
        json!([])
    );
    supervisor.register("a", json!({}));
    assert!(put("a", &supervisor.body(json!({})), 409).contains("identifier is in use"));
    supervisor.register("b", json!({}));
    assert!(put("c", &supervisor.body(json!({})), 503).contains("raise --max-instances"));
    assert!(
        supervisor
            .expect_rejection(404, "GET", "/instances/x", None)
            .contains("not registered")
    );
    assert!(
        supervisor
            .expect_rejection(404, "PATCH", "/instances", None)
            .contains("no such request")
    );
    assert!(supervisor.metric("mayfly_standby_rejected_total") >= 9);
}

#[test]
fn failed_wake_has_the_last_message_as_its_reason() {
    let mut supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("fail");
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert_eq!(
        reason,
        "cannot wake the instance: the process has ended with status 1: cannot use the snapshot: it is of another host"
    );
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"load\"}"),
        1
    );
    let rejected = supervisor.expect_rejection(
        409,
        "PUT",
        "/instances/web/state",
        Some(&json!({"state": "suspend"})),
    );
    assert!(rejected.contains("it is failed"), "{rejected}");
    // The failure survives the supervisor; a request wakes the instance.
    supervisor.kill();
    supervisor.restart();
    assert_eq!(supervisor.await_state("web", "failed"), reason);
    supervisor.set_behavior("");
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
}

#[test]
fn end_without_a_response_is_a_failed_wake() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({"on_crash": "discard"}));
    supervisor.set_behavior("hang-up");
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert_eq!(
        reason,
        "cannot wake the instance: the process has ended with status 1"
    );
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"load\"}"),
        1
    );
}

#[test]
fn end_of_the_guest_follows_the_policy() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("fail", json!({}));
    supervisor.register("discard", json!({"on_crash": "discard"}));
    supervisor.register(
        "boot",
        json!({"on_crash": "boot", "boot": ["/kernel", "--", "guest"]}),
    );
    supervisor.register("stateless", json!({"scale_to_zero": {"stateful": false}}));
    let ids = ["fail", "discard", "boot", "stateless"];
    // Snapshots of their own.
    for id in &ids[..3] {
        supervisor.set(id, "wake");
        supervisor.await_state(id, "running");
        supervisor.set(id, "suspend");
        supervisor.await_state(id, "suspended");
    }
    supervisor.set_behavior("end 0");
    for id in ids {
        supervisor.set(id, "wake");
        let state = if id == "fail" { "failed" } else { "suspended" };
        scratch::wait_until(id, || {
            supervisor.get(id)["state"] == state && !supervisor.is_alive(id)
        });
    }
    let reason = |id| supervisor.get(id)["reason"].as_str().unwrap().to_owned();
    assert_eq!(
        reason("fail"),
        "the process has ended with status 0: the guest has ended"
    );
    assert!(reason("discard").ends_with("starts from the registered snapshot"));
    assert!(reason("boot").ends_with("the next wake boots"));
    assert!(reason("stateless").contains("starts from its snapshot"));
    supervisor.set_behavior("");
    for id in ids {
        supervisor.set(id, "wake");
        supervisor.await_state(id, "running");
    }
    let starts = supervisor.starts();
    let last = |id: &str| {
        starts
            .iter()
            .rfind(|line| line.starts_with(&format!("{id} ")))
            .unwrap()
    };
    let snapshot = supervisor.directory.text("snapshot");
    assert!(
        last("fail").contains("/state/suspended/fail --untrusted"),
        "{}",
        last("fail")
    );
    assert!(
        last("discard").contains(&format!("restore {snapshot} ")),
        "{}",
        last("discard")
    );
    assert!(
        last("boot").contains(" run /kernel ") && last("boot").contains(" -- guest "),
        "{}",
        last("boot")
    );
    assert!(last("stateless").contains("--stateless"));
}

#[test]
fn refused_snapshot_follows_the_policy() {
    let supervisor = Supervisor::start(&[]);
    supervisor.directory.write("snapshot/loaded", "");
    let suspended = |id: &str| supervisor.directory.text(&format!("state/suspended/{id}"));
    supervisor.register("fail", json!({}));
    supervisor.register("discard", json!({"on_crash": "discard"}));
    supervisor.register("boot", json!({"on_crash": "boot", "boot": ["/kernel"]}));
    for id in ["fail", "discard", "boot"] {
        supervisor.set(id, "wake");
        supervisor.await_state(id, "running");
        supervisor.set(id, "suspend");
        supervisor.await_state(id, "suspended");
        supervisor.set_behavior(&format!("changed restore {}", suspended(id)));
        supervisor.set(id, "wake");
        let state = if id == "fail" { "failed" } else { "running" };
        let reason = supervisor.await_state(id, state);
        if id == "fail" {
            assert!(
                reason.ends_with("status 119: cannot load the snapshot: drive d has changed"),
                "{reason}"
            );
        }
        supervisor.set_behavior("");
    }
    let last = |id: &str| {
        supervisor
            .starts()
            .into_iter()
            .rfind(|line| line.starts_with(id))
            .unwrap()
    };
    assert!(last("discard").contains(&format!("restore {} ", supervisor.directory.text("snapshot"))));
    assert!(last("boot").contains(" run /kernel "), "{}", last("boot"));
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"load\"}"),
        3
    );
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"guest\"}"),
        0
    );
    // The registered snapshot is refused, too.
    supervisor.set("discard", "suspend");
    supervisor.await_state("discard", "suspended");
    supervisor.set_behavior("changed restore ");
    supervisor.set("discard", "wake");
    supervisor.await_state("discard", "failed");
    assert_eq!(
        supervisor
            .starts()
            .iter()
            .filter(|line| line.starts_with("discard"))
            .count(),
        5
    );
}

#[test]
fn killed_process_is_a_failure() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let pid = i32::try_from(supervisor.get("web")["pid"].as_i64().unwrap()).unwrap();
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    assert!(supervisor.await_state("web", "failed").contains("signal 9"));
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"guest\"}"),
        1
    );
}

#[test]
fn rejected_suspend_leaves_the_instance_running() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("refuse");
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    supervisor.set("web", "suspend");
    scratch::wait_until("the suspend is rejected", || {
        supervisor.get("web")["reason"] == "cannot suspend the guest: not today"
    });
    assert_eq!(supervisor.get("web")["state"], "running");
}

/// Starts a supervisor with `options` of `web`, which a client wakes while its process rejects to cancel the suspend.
fn wake_too_late(options: &[&str]) -> Supervisor {
    let supervisor = Supervisor::start(options);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("committed");
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    supervisor.set_behavior("");
    supervisor.set("web", "suspend");
    supervisor.set("web", "wake");
    supervisor
}

#[test]
fn wake_after_the_commit_of_a_suspend_follows_its_end() {
    let supervisor = wake_too_late(&[]);
    assert_eq!(supervisor.get("web")["state"], "suspending");
    supervisor.directory.write("snapshot/loaded", "");
    scratch::wait_until("the next process runs", || {
        let web = supervisor.get("web");
        web["state"] == "running" && web["wakes"] == 2
    });
    assert_eq!(supervisor.metric("mayfly_standby_suspends_total"), 1);
    assert_eq!(supervisor.starts().len(), 2);
}

#[test]
fn rejected_cancel_of_a_suspend_that_has_ended_leaves_the_instance_running() {
    let supervisor = wake_too_late(&[]);
    supervisor.directory.write("snapshot/reported", "Busy");
    assert_eq!(
        supervisor.await_state("web", "running"),
        "the suspend is cancelled"
    );
    assert_eq!(supervisor.get("web")["wakes"], 1);
    // No wake follows a later end.
    supervisor.set("web", "suspend");
    supervisor.directory.write("snapshot/loaded", "");
    supervisor.await_state("web", "suspended");
}

#[test]
fn committed_suspend_without_end_is_given_up_and_its_end_wakes() {
    let supervisor = wake_too_late(&["--timeout", crate::limits::TIMEOUT]);
    let reason = supervisor.await_state("web", "running");
    assert!(reason.contains("has not ended in time"), "{reason}");
    assert_eq!(supervisor.get("web")["wakes"], 1);
    supervisor.directory.write("snapshot/loaded", "");
    scratch::wait_until("the next process runs", || {
        let web = supervisor.get("web");
        web["state"] == "running" && web["wakes"] == 2
    });
}

#[test]
fn suspend_after_a_wake_is_repeated_once_the_cancel_has_succeeded() {
    let supervisor = wake_too_late(&[]);
    supervisor.set("web", "suspend");
    supervisor.directory.write("snapshot/reported", "Busy");
    let requests = supervisor.directory.path("snapshot/suspends");
    scratch::wait_until("the suspend is requested again", || {
        fs::read(&requests).unwrap_or_default().len() == 2
    });
    assert_eq!(supervisor.get("web")["state"], "suspending");
}

#[test]
fn suspend_before_the_guest_runs_follows_the_wake() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set("web", "wake");
    supervisor.set("web", "suspend");
    assert!(supervisor.await_state("web", "suspended").contains("request"));
    assert!(!supervisor.is_alive("web"));
}

#[test]
fn wakes_beyond_the_limit_wait_in_order() {
    let supervisor = Supervisor::start(&["--max-wakes", "1"]);
    supervisor.set_behavior("silent");
    for id in ["a", "b", "c", "d"] {
        supervisor.register(id, json!({}));
        supervisor.set(id, "wake");
    }
    scratch::wait_until("the first wake has a process", || supervisor.is_alive("a"));
    assert_eq!(supervisor.metric("mayfly_standby_waiting_wakes"), 3);
    assert!(
        ["b", "c", "d"]
            .iter()
            .all(|id| supervisor.get(id)["pid"] == Value::Null)
    );
    supervisor.set_behavior("");
    supervisor.set("c", "suspend");
    assert_eq!(
        supervisor.await_state("c", "suspended"),
        "a client has requested it"
    );
    supervisor.expect("DELETE", "/instances/a?kill=true", None);
    supervisor.await_state("b", "running");
    supervisor.await_state("d", "running");
    let order: String = supervisor
        .starts()
        .iter()
        .filter_map(|line| line.chars().next())
        .collect();
    assert_eq!(order, "abd");
}

#[test]
fn running_instance_is_deleted_only_with_its_process() {
    let mut supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let reason = supervisor.expect_rejection(409, "DELETE", "/instances/web", None);
    assert!(reason.contains("it is running; suspend it first"), "{reason}");
    supervisor.set("web", "suspend");
    supervisor.await_state("web", "suspended");
    supervisor.expect("DELETE", "/instances/web", None);
    let directory = supervisor.directory.path("state/suspended");
    let is_empty = || fs::read_dir(&directory).unwrap().next().is_none();
    scratch::wait_until("its snapshots are removed", is_empty);
    supervisor.expect_rejection(404, "DELETE", "/instances/web", None);
    // A supervisor that is killed during a removal.
    supervisor.kill();
    fs::create_dir(directory.join("web.removed-0")).unwrap();
    supervisor.restart();
    scratch::wait_until("the rest is removed", is_empty);
}

#[test]
fn least_recently_used_instance_makes_room() {
    // The limit permits two processes, but not a third one.
    let supervisor = Supervisor::start(&["--memory-limit", "40M"]);
    supervisor.set_behavior("large");
    for id in ["a", "b", "c"] {
        supervisor.register(id, json!({}));
    }
    for id in ["a", "b"] {
        supervisor.set(id, "wake");
        supervisor.await_state(id, "running");
    }
    let large = u64::try_from(2 * fake::LARGE).unwrap();
    scratch::wait_until("both are sampled", || {
        supervisor.metric("mayfly_standby_memory_bytes") > large
    });
    supervisor.set("c", "wake");
    supervisor.await_state("c", "running");
    let state = |id| supervisor.get(id)["state"].as_str().unwrap().to_owned();
    assert_eq!([state("a"), state("b")], ["suspended", "running"]);
    assert_eq!(supervisor.metric("mayfly_standby_memory_suspends_total"), 1);
}

#[test]
fn pages_show_all_instances_once() {
    let supervisor = Supervisor::start(&[]);
    for number in 0..25 {
        supervisor.register(&format!("i-{number:02}"), json!({}));
    }
    let (mut ids, mut next) = (Vec::new(), String::new());
    loop {
        let page = supervisor.expect("GET", &format!("/instances?limit=10{next}"), None);
        let instances = page["instances"].as_array().unwrap();
        ids.extend(
            instances
                .iter()
                .map(|instance| instance["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(id) => next = format!("&after={id}"),
            None => break,
        }
    }
    let expected: Vec<_> = (0..25).map(|number| format!("i-{number:02}")).collect();
    assert_eq!(ids, expected);
    for query in ["limit=0", "limit=x", "state=asleep", "page=1"] {
        supervisor.expect_rejection(400, "GET", &format!("/instances?{query}"), None);
    }
}

#[test]
fn socket_and_state_are_private() {
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    for (name, mode) in [
        ("sock", 0o600),
        ("state", 0o700),
        ("state/journal", 0o600),
        ("state/run", 0o700),
    ] {
        let metadata = fs::metadata(supervisor.directory.path(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn responses_have_the_name_of_the_supervisor() {
    let supervisor = Supervisor::start(&[]);
    let mut stream = std::os::unix::net::UnixStream::connect(supervisor.directory.path("sock")).unwrap();
    stream.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut response = [0; 1024];
    let length = stream.read(&mut response).unwrap();
    let head = String::from_utf8_lossy(&response[..length]);
    assert!(
        head.starts_with("HTTP/1.1 200 \r\nServer: mayfly-standby\r\n"),
        "{head}"
    );
}

#[test]
fn second_supervisor_is_refused() {
    let supervisor = Supervisor::start(&[]);
    let mut command = process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
    command.args(["standby", "--api-sock", &supervisor.directory.text("other")]);
    command.args([
        "--state-dir",
        &supervisor.directory.text("state"),
        "--mayfly",
        "/bin/true",
    ]);
    let output = scratch::run(&mut command);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("another supervisor uses it"), "{message}");
}
