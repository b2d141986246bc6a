//! VMs and supervisors that are killed at any moment.
//!
//! `KILLS` is the number of kills of each test, `SEED` selects the moments; `make cycles` kills 200 times.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::thread;

use serde_json::json;

use crate::host::{GUEST, STATUS, Supervisor, enter_namespace, on_tap, served, signal};
use crate::network::{at, register_network};
use crate::random::{Random, number};

/// Cool-down of the instances in milliseconds.
const COOLDOWN: u64 = 20;

/// Datagrams to one guest, and the number that it had served at its last suspend.
#[derive(Default)]
struct Account {
    saved: u32,
    sent: u32,
}

impl Account {
    /// Sends a datagram without a wait for its response.
    fn send(&mut self, address: &str) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // The interface may be in change.
        let _ = socket.send_to(b"mayfly", (address, STATUS));
        self.sent += 1;
    }

    /// Expects that the guest has served the datagrams of its last suspend, and none twice. It is suspended then.
    fn check(&mut self, supervisor: &Supervisor, id: &str, address: &str) {
        let served = served(address);
        let (min, max) = (self.saved, self.saved + self.sent + served.requests);
        assert!(
            (min..max).contains(&served.datagrams),
            "{id} has served {}, expected {min} to {max}: {}",
            served.datagrams,
            supervisor.get(id)
        );
        supervisor.await_state(id, "suspended");
        // Responses that are late count for the next suspend.
        self.saved = served.datagrams + 1;
        self.sent = served.requests - 1;
    }
}

#[test]
fn killed_vm_wakes_from_its_last_suspend() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    supervisor.register(
        "web",
        on_tap(json!({"scale_to_zero": {"cooldown_time_ms": COOLDOWN}})),
    );
    let (mut random, mut account) = (Random::new(), Account::default());
    let mut states = BTreeMap::new();
    for round in 1..=number("KILLS", 20) {
        account.send(GUEST);
        let pid = scratch::wait_for("the process of the instance", || {
            // Without a frame that has been dropped, or after a suspend.
            supervisor.set("web", "wake");
            supervisor.pid_of("web")
        });
        thread::sleep(random.time(2 * COOLDOWN));
        let before = supervisor.get("web");
        // The process may have ended, and another one may run.
        if before["pid"] == pid {
            signal(pid, libc::SIGKILL);
        }
        let state = before["state"].as_str().unwrap().to_owned();
        *states.entry(state).or_insert(0) += 1;
        scratch::wait_until(&format!("the end of kill {round}"), || {
            let state = supervisor.get("web")["state"].clone();
            state == "failed" || state == "suspended"
        });
        supervisor.set("web", "wake");
        account.check(&supervisor, "web", GUEST);
    }
    eprintln!(
        "killed when {states:?}; {} failures",
        supervisor.failures("guest")
    );
}

/// Instances of the shared network with their addresses.
const SHARED: [(&str, &str); 3] = [("a", "10.1.0.7"), ("b", "10.1.0.8"), ("c", "10.1.0.9")];

/// Expects at most one process for each instance.
fn expect_single_processes(supervisor: &Supervisor, round: u32) {
    let state = supervisor.directory.text("state");
    let lines = fs::read_dir("/proc").unwrap().flatten();
    let lines: Vec<String> = lines
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(&state))
        .collect();
    for (id, _) in SHARED {
        let option = format!("\0--id\0{id}\0");
        let count = lines.iter().filter(|line| line.contains(&option)).count();
        assert!(count <= 1, "{count} processes of {id} after kill {round}");
    }
}

#[test]
fn killed_supervisor_finds_guests_that_lose_nothing() {
    if !enter_namespace() {
        return;
    }
    let mut supervisor = Supervisor::start(&[]);
    register_network(&supervisor);
    let mut accounts = BTreeMap::new();
    for (id, address) in SHARED {
        let mut body = at(address);
        body["scale_to_zero"]["cooldown_time_ms"] = json!(COOLDOWN);
        supervisor.register(id, body);
        accounts.insert(id, Account::default());
    }
    let mut random = Random::new();
    for round in 1..=number("KILLS", 20) {
        for _ in 0..2 {
            let (id, address) = SHARED[usize::try_from(random.below(3)).unwrap()];
            match random.below(4) {
                0 => {
                    // A running suspend may reject it.
                    let body = json!({"state": "suspend"});
                    supervisor.request("PUT", &format!("/instances/{id}/state"), Some(&body));
                }
                1 => supervisor.set(id, "wake"),
                _ => accounts.get_mut(id).unwrap().send(address),
            }
            thread::sleep(random.time(COOLDOWN / 2));
        }
        supervisor.kill();
        thread::sleep(random.time(COOLDOWN));
        supervisor.restart();
        for (id, address) in SHARED {
            let instance = supervisor.get(id);
            assert_ne!(instance["state"], "failed", "after kill {round}: {instance}");
            accounts.get_mut(id).unwrap().check(&supervisor, id, address);
        }
        expect_single_processes(&supervisor, round);
    }
}
