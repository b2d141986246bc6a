//! Answers to clients and signals while the guest attacks the VMM. `make attack` measures the same for the goal of 100 ms.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use scratch::{Requirement, require};

use super::http::{Client, NO_CONTENT};
use super::served::{ApiProcess, Directory, PAUSED, RESUMED, create_snapshot};
use crate::guests::file;

/// Limit of the 99th percentile. The goal is 100 ms on an idle host; this one may be busy.
const LIMIT: Duration = Duration::from_secs(10);
/// Processes for each attack, requests to each process, and pauses of each; fewer in the time of an emulated host.
const PROCESSES: usize = if IS_X86_64 { 3 } else { 1 };
const REQUESTS: usize = if IS_X86_64 { 40 } else { 10 };
const PAUSES: usize = if IS_X86_64 { 15 } else { 4 };
const IS_X86_64: bool = cfg!(target_arch = "x86_64");
/// Snapshots of each process whose guest discards. They succeed.
const SNAPSHOTS: usize = 2;
/// Time before each action, in which the attack proceeds.
const INTERVAL: Duration = Duration::from_millis(5);
const BLOCK: usize = 4096;
/// Allocated blocks of a disk for discards, every other one: a discard of all takes seconds, as does its removal.
const BLOCKS: u64 = 12 << 10;
/// Bytes of a disk for flushes, which only the page cache holds: a flush of all takes seconds.
const DIRTY: u64 = 128 << 20;

/// An attack of resources/guests/attack.c.
#[derive(Clone, Copy)]
struct Attack {
    name: &'static str,
    /// I/O engine of an attack on the drive.
    engine: Option<&'static str>,
    /// Labels of the metrics that the attack increases.
    effects: [&'static str; 2],
}

const fn attack(name: &'static str, engine: Option<&'static str>, effects: [&'static str; 2]) -> Attack {
    Attack {
        name,
        engine,
        effects,
    }
}

const DISCARDS: [&str; 2] = [r#"operation="write""#, r#"operation="discard""#];
#[cfg(target_arch = "x86_64")]
const FLUSHES: [&str; 2] = [r#"operation="write""#, r#"operation="flush""#];
const RESETS: [&str; 2] = [r#"operation="write""#, r#"kind="mmio_write""#];
#[cfg(target_arch = "x86_64")]
const PORTS: [&str; 2] = [r#"kind="io_in""#, r#"kind="io_out""#];
const REGISTERS: [&str; 2] = [r#"kind="mmio_read""#, r#"kind="mmio_write""#];

const ATTACKS: &[Attack] = &[
    attack("discard", Some("Sync"), DISCARDS),
    attack("discard", Some("Async"), DISCARDS),
    // The emulated host of aarch64 has no disk.
    #[cfg(target_arch = "x86_64")]
    attack("flush", Some("Sync"), FLUSHES),
    #[cfg(target_arch = "x86_64")]
    attack("flush", Some("Async"), FLUSHES),
    attack("reset", Some("Sync"), RESETS),
    attack("reset", Some("Async"), RESETS),
    #[cfg(target_arch = "x86_64")]
    attack("ports", None, PORTS),
    attack("mmio", None, REGISTERS),
    #[cfg(target_arch = "x86_64")]
    attack("interrupts", None, PORTS),
    // The serial port has registers in memory.
    #[cfg(target_arch = "aarch64")]
    attack("interrupts", None, REGISTERS),
];

impl Attack {
    /// Returns the metrics of `effects`: exits of the vCPU, or successful requests of the drive.
    fn count(self, client: &mut Client) -> [u64; 2] {
        let response = client.request("GET", "/metrics", "");
        self.effects.map(|label| {
            let is_wanted = |line: &&str| {
                let (name, labels) = line.split_once('{').unwrap_or_default();
                let is_counter = ["mayfly_vcpu_exits_total", "mayfly_drive_requests_total"].contains(&name);
                is_counter && labels.contains(label)
            };
            let line = response.body().lines().find(is_wanted).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        })
    }
}

/// Creates a disk at `path` for `attack`.
fn create_disk(path: &str, attack: &str) {
    let file = File::create(path).unwrap();
    if attack == "discard" {
        file.set_len(BLOCKS * 2 * BLOCK as u64).unwrap();
        for block in 0..BLOCKS {
            file.write_all_at(&[1; BLOCK], block * 2 * BLOCK as u64).unwrap();
        }
        file.sync_all().unwrap();
    } else {
        let chunk = vec![1; 1 << 20];
        for offset in (0..DIRTY).step_by(chunk.len()) {
            file.write_all_at(&chunk, offset).unwrap();
        }
    }
}

/// Starts the guest with `attack` on the disk at `path`.
fn start(attack: Attack, path: &str) -> ApiProcess {
    let mut process = ApiProcess::start();
    let engine = attack.engine.unwrap_or("Sync");
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{path}","cache_type":"Writeback","io_engine":"{engine}"}}"#
    );
    process.expect_no_content("PUT", "/drives/d", &drive);
    let kernel = file("attack.elf");
    let boot = format!(
        r#"{{"kernel_image_path":"{kernel}","boot_args":"attack={}"}}"#,
        attack.name
    );
    process.expect_no_content("PUT", "/boot-source", &boot);
    process.run_action("InstanceStart");
    process.expect("begin\n");
    process
}

/// Durations of one action.
#[derive(Default)]
struct Samples(Vec<Duration>);

impl Samples {
    fn measure(&mut self, action: impl FnOnce()) {
        thread::sleep(INTERVAL);
        let begin = Instant::now();
        action();
        self.0.push(begin.elapsed());
    }

    /// Checks the 99th percentile.
    fn check(mut self, action: &str, attack: Attack) {
        self.0.sort_unstable();
        let percentile = self.0[(self.0.len() * 99).div_ceil(100) - 1];
        assert!(
            percentile <= LIMIT,
            "attack {} {}: the 99th percentile of {action} is {percentile:?} of {:?}",
            attack.name,
            attack.engine.unwrap_or_default(),
            self.0
        );
    }
}

fn change_state(client: &mut Client, state: &str) {
    assert_eq!(client.request("PATCH", "/vm", state).text, NO_CONTENT);
}

/// Each request has an answer, and each signal ends its process: none is lost.
fn check_answers(attack: Attack) {
    let [mut requests, mut pauses, mut resumes, mut ends] = <[Samples; 4]>::default();
    for number in 1..=PROCESSES {
        // Each process needs a disk of its own: the attack discards or flushes it.
        let directory = Directory::new();
        let path = directory.text("disk");
        match attack.engine {
            Some(_) => create_disk(&path, attack.name),
            None => drop(directory.write("disk", [0; BLOCK])),
        }
        let process = start(attack, &path);
        let mut client = process.connect();
        let before = attack.count(&mut client);
        let mut snapshots = 0;
        for _ in 0..REQUESTS {
            requests.measure(|| assert_eq!(client.request("GET", "/", "").status(), 200));
        }
        for _ in 0..PAUSES {
            pauses.measure(|| change_state(&mut client, PAUSED));
            if attack.name == "discard" && snapshots < SNAPSHOTS {
                snapshots += 1;
                let created = create_snapshot(&process, &directory, "Full", "state", "memory");
                assert_eq!(created.text, NO_CONTENT);
            }
            resumes.measure(|| change_state(&mut client, RESUMED));
        }
        assert_eq!(process.state(), "Running");
        // The others end in their first slow request.
        if number == PROCESSES {
            let (name, engine) = (attack.name, attack.engine.unwrap_or_default());
            scratch::wait_until(&format!("effects of the attack {name} {engine}"), || {
                let now = attack.count(&mut client);
                now.iter().zip(before).all(|(now, before)| *now > before)
            });
        }
        ends.measure(|| process.terminate());
    }
    for (samples, action) in [
        (requests, "GET /"),
        (pauses, "pause"),
        (resumes, "resume"),
        (ends, "SIGTERM"),
    ] {
        samples.check(action, attack);
    }
}

#[test]
fn guest_attack_delays_no_answer() {
    for attack in ATTACKS {
        if attack.name != "flush" || require(Requirement::DiskDirectory) {
            check_answers(*attack);
        }
    }
}
