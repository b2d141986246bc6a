//! Supervisors that are killed at any time.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::fixture::Supervisor;

/// Number of kills.
const KILLS: u32 = 200;

/// Identifiers of the instances.
const IDS: [&str; 4] = ["a", "b", "c", "d"];

/// Pseudo-random numbers, xorshift with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Expects that the supervisor and the processes agree.
fn expect_agreement(supervisor: &Supervisor, round: u32) {
    for id in IDS {
        scratch::wait_until(&format!("{id} is settled after kill {round}"), || {
            let state = supervisor.get(id)["state"].as_str().unwrap().to_owned();
            match state.as_str() {
                "running" => supervisor.is_alive(id),
                "suspended" => !supervisor.is_alive(id),
                "failed" => panic!("{id} after kill {round}: {}", supervisor.get(id)),
                _ => false,
            }
        });
    }
    let twice = supervisor
        .starts()
        .into_iter()
        .find(|line| line.starts_with("TWICE"));
    assert_eq!(twice, None, "after kill {round}");
}

#[test]
fn killed_supervisor_finds_sleepers_and_running_instances() {
    let mut supervisor = Supervisor::start(&[]);
    let mut random = Random(0x6d61_7966_6c79);
    for id in IDS {
        supervisor.register(id, json!({}));
    }
    for round in 0..KILLS {
        let requests: Vec<_> = (0..3)
            .map(|_| {
                let id = IDS[usize::try_from(random.below(4)).unwrap()];
                (id, ["wake", "suspend"][usize::try_from(random.below(2)).unwrap()])
            })
            .collect();
        let delay = Duration::from_micros(random.below(12_000));
        for (id, state) in requests {
            let path = format!("/instances/{id}/state");
            // A running suspend may reject it.
            supervisor.request("PUT", &path, Some(&json!({ "state": state })));
        }
        thread::sleep(delay);
        supervisor.kill();
        supervisor.restart();
        expect_agreement(&supervisor, round);
    }
    let found = supervisor.starts().len();
    assert!(found > 20, "only {found} processes were started");
}

#[test]
fn instances_go_on_after_the_supervisor() {
    let mut supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    let pid = supervisor.get("web")["pid"].clone();
    supervisor.kill();
    supervisor.restart();
    assert!(
        supervisor
            .await_state("web", "running")
            .contains("earlier supervisor")
    );
    assert_eq!(supervisor.get("web")["pid"], pid);
    assert_eq!(supervisor.metric("mayfly_standby_found_total"), 1);
    supervisor.set("web", "suspend");
    assert!(
        supervisor
            .await_state("web", "suspended")
            .contains("at a request")
    );
}

/// Waits until a process has ended, also for its kernel: a supervisor that finds it before learns its status.
fn await_end(pid: i32) {
    scratch::wait_until("the process ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |line| line.contains(") Z "))
    });
}

/// Returns the process ID of a running instance.
fn pid(supervisor: &Supervisor, id: &str) -> i32 {
    i32::try_from(supervisor.get(id)["pid"].as_i64().unwrap()).unwrap()
}

/// Wakes `id`, and kills its process while no supervisor runs.
fn crash_unsupervised(supervisor: &mut Supervisor, id: &str) {
    supervisor.set(id, "wake");
    supervisor.await_state(id, "running");
    let pid = pid(supervisor, id);
    supervisor.kill();
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    await_end(pid);
    supervisor.restart();
}

#[test]
fn end_between_supervisors_is_decided_by_the_generation() {
    let mut supervisor = Supervisor::start(&[]);
    supervisor.register("fail", json!({}));
    supervisor.register("discard", json!({"on_crash": "discard"}));
    supervisor.register("boot", json!({"on_crash": "boot", "boot": ["/kernel"]}));
    supervisor.register("stateless", json!({"scale_to_zero": {"stateful": false}}));
    // A thread reads its generation.
    let suspend_path = supervisor.directory.text("elsewhere");
    supervisor.register("elsewhere", json!({ "suspend_path": suspend_path }));
    for (id, state, reason) in [
        ("elsewhere", "failed", "has ended without a suspend"),
        ("fail", "failed", "has ended without a suspend"),
        ("discard", "suspended", "starts from the registered snapshot"),
        ("boot", "suspended", "the next wake boots"),
        ("stateless", "suspended", "does not report its exit status"),
    ] {
        crash_unsupervised(&mut supervisor, id);
        let found = supervisor.await_state(id, state);
        assert!(found.contains(reason), "{id}: {found}");
    }
    // A suspend without a supervisor writes a generation.
    for id in ["fail", "elsewhere"] {
        supervisor.set(id, "wake");
        supervisor.await_state(id, "running");
        let socket = supervisor.directory.path(&format!("state/run/{id}.sock"));
        let pid = pid(&supervisor, id);
        supervisor.kill();
        let client = api::client::Client::new(socket, std::time::Duration::from_secs(10));
        let _ = client.request("PATCH", "/scale-to-zero", Some(b"{\"action\":\"Suspend\"}"));
        await_end(pid);
        supervisor.restart();
        let found = supervisor.await_state(id, "suspended");
        assert!(found.contains("does not report its exit status"), "{found}");
    }
}

#[test]
fn process_that_still_loads_is_asked_after_a_restart() {
    let mut supervisor = Supervisor::start(&[]);
    supervisor.register("web", json!({}));
    supervisor.set_behavior("late");
    supervisor.set("web", "wake");
    scratch::wait_until("the process has started", || supervisor.is_alive("web"));
    supervisor.kill();
    supervisor.restart();
    assert_eq!(supervisor.get("web")["state"], "waking");
    supervisor.directory.write("snapshot/loaded", "");
    assert!(
        supervisor
            .await_state("web", "running")
            .contains("earlier supervisor")
    );
    assert_eq!(supervisor.metric("mayfly_standby_wake_seconds_count"), 0);
}
