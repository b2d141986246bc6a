//! SIGKILL during snapshot creation: it leaves the old snapshot, the new one or none.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::http::{self, Client};
use super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, create_snapshot, load_body, load_snapshot, pause_and_create,
};
use super::tracking::{TRACKED, compare};
use crate::calls::SyscallStepper;

pub const CREATE: &str = "/snapshot/create";

/// Guest memory in MiB; small, because each round compares it.
const MEMORY: u32 = 8;

/// Snapshot files in a directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    state: Option<Vec<u8>>,
    memory: Option<Vec<u8>>,
}

impl Content {
    pub fn read(directory: &Path) -> Self {
        Self {
            state: fs::read(directory.join("state")).ok(),
            memory: fs::read(directory.join("memory")).ok(),
        }
    }

    /// Writes new files, with holes for zero pages.
    pub fn write(&self, directory: &Path) {
        for (name, content) in [("state", &self.state), ("memory", &self.memory)] {
            let content = content.as_deref().unwrap();
            let path = directory.join(name);
            let _ = fs::remove_file(&path);
            let file = File::create_new(path).unwrap();
            file.set_len(content.len() as u64).unwrap();
            for (offset, page) in (0..).step_by(4096).zip(content.chunks(4096)) {
                if page.iter().any(|byte| *byte != 0) {
                    file.write_all_at(page, offset).unwrap();
                }
            }
        }
    }
}

/// Starts the ticker with little memory and waits for three ticks.
pub fn start_small_ticker() -> ApiProcess {
    let mut process = ApiProcess::start();
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{MEMORY}}}"#);
    process.expect_no_content("PUT", "/machine-config", &machine);
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 3\n");
    process
}

/// Random numbers with a fixed seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        // Multiplier and increment of Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Time of a SIGKILL: the number of stops at entries and exits of system calls, and the delay after the last stop. Without
/// a delay, the process is still stopped.
#[derive(Clone, Copy)]
pub struct KillPoint {
    stops: usize,
    delay: Option<Duration>,
}

impl KillPoint {
    /// Kill after the response.
    pub const AFTER_RESPONSE: Self = Self::at(usize::MAX);

    const fn at(stops: usize) -> Self {
        Self { stops, delay: None }
    }

    /// Returns `count` kill points spread over `stops`, every second one with a delay.
    pub fn spread(stops: usize, count: usize) -> impl Iterator<Item = Self> {
        let mut random = Random::new(count as u64);
        (0..count).map(move |number| {
            let is_delayed = !number.is_multiple_of(2);
            Self {
                stops: 1 + number * stops / count,
                delay: is_delayed.then(|| Duration::from_micros(random.below(60))),
            }
        })
    }
}

/// Sends `PUT path` with `body` and stops a thread of the process at stop number `stops`, or once the response is there. Returns the
/// number of stops, the stopped process and the connection for the response.
pub fn interrupt_request(
    process: &ApiProcess,
    path: &str,
    body: &str,
    stops: usize,
) -> (usize, SyscallStepper, Client) {
    let mut client = process.connect();
    // After a response, mayfly has accepted the connection: accept makes no stops later.
    assert_eq!(client.request("GET", "/", "").status(), 200);
    let mut stepper = SyscallStepper::seize(process.id());
    client.send(http::go_request("PUT", path, body));
    let mut count = 0;
    while count < stops && !has_response(&client) {
        stepper.step();
        count += 1;
    }
    (count, stepper, client)
}

fn has_response(client: &Client) -> bool {
    let mut poll = libc::pollfd {
        fd: client.stream().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one structure, valid for reads and writes.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Snapshots into one directory by processes that are killed.
pub struct Series {
    kind: &'static str,
    /// Directory of the snapshot.
    directory: PathBuf,
    /// Directory of a reference snapshot, created before each kill.
    reference: Directory,
    /// Numbers of old, new and missing snapshots after a kill.
    pub outcomes: [usize; 3],
}

impl Series {
    pub fn new(kind: &'static str, directory: &Path) -> Self {
        let reference = Directory::new();
        let process = start_small_ticker();
        pause_and_create(&process, &reference, "Full", "state", "memory");
        process.kill();
        Content::read(&reference.path("")).write(directory);
        Self {
            kind,
            directory: directory.to_owned(),
            reference,
            outcomes: [0; 3],
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    pub fn create_body(&self) -> String {
        let (kind, state, memory) = (self.kind, self.path("state"), self.path("memory"));
        format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#)
    }

    /// Loads the snapshot, runs the guest for two ticks and pauses it.
    pub fn load_and_pause(&self) -> ApiProcess {
        let (state, memory) = (self.path("state"), self.path("memory"));
        let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
        let load = format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend},"resume_vm":true}}"#);
        let mut process = ApiProcess::start();
        process.expect_no_content("PUT", "/snapshot/load", &load);
        process.expect("tick ");
        process.expect("tick ");
        process.expect_no_content("PATCH", "/vm", PAUSED);
        process
    }

    /// Kills a process at `kill_point` and checks the files. Returns the number of its stops.
    pub fn run_round(&mut self, kill_point: KillPoint) -> usize {
        let old = Content::read(&self.directory);
        let process = self.load_and_pause();
        // The guest is paused: both snapshots hold the same memory.
        let response = create_snapshot(&process, &self.reference, "Full", "state", "memory");
        assert_eq!(response.text, http::NO_CONTENT);
        let (stops, stepper, _client) =
            interrupt_request(&process, CREATE, &self.create_body(), kill_point.stops);
        if let Some(delay) = kill_point.delay {
            stepper.release();
            let begin = Instant::now();
            while begin.elapsed() < delay {
                std::hint::spin_loop();
            }
        } else {
            stepper.kill();
        }
        process.kill();
        let now = Content::read(&self.directory);
        let new = fs::read(self.reference.path("memory")).unwrap();
        if now.state.is_none() {
            self.outcomes[2] += 1;
            old.write(&self.directory);
        } else if now.state == old.state {
            assert!(
                now.memory == old.memory,
                "the old state file is with a different memory file"
            );
            self.outcomes[0] += 1;
        } else {
            assert!(
                now.memory == Some(new),
                "the new state file is with a different memory file"
            );
            self.outcomes[1] += 1;
        }
        stops
    }

    /// Kills `count` processes at points spread over the whole request.
    fn run(&mut self, count: usize) {
        // A process that follows a killed one makes more system calls: it removes leftover files.
        let undisturbed = self.run_round(KillPoint::AFTER_RESPONSE);
        self.run_round(KillPoint::at(undisturbed / 2));
        let stops = self.run_round(KillPoint::AFTER_RESPONSE);
        KillPoint::spread(stops, count).for_each(|kill_point| {
            self.run_round(kill_point);
        });
        // The snapshot is missing for few stops, which may lie between those points.
        for stop in (0..stops).rev() {
            if self.outcomes.iter().all(|count| *count > 0) {
                break;
            }
            self.run_round(KillPoint::at(stop));
        }
        assert!(
            self.outcomes.iter().all(|count| *count > 0),
            "{:?}",
            self.outcomes
        );
    }
}

pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Kills `count` processes. A process without a kill then leaves no other files.
fn check_series(kind: &'static str, count: usize) {
    let directory = Directory::new();
    let mut series = Series::new(kind, &directory.path(""));
    series.run(count);
    let process = series.load_and_pause();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    assert_eq!(names(&directory.path("")), ["memory", "state"]);
    process.kill();
    let mut last = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
    last.expect("tick ");
}

#[test]
fn kill_during_full_snapshot_keeps_consistency() {
    check_series("Full", 80);
}

#[test]
fn kill_during_diff_snapshot_keeps_consistency() {
    check_series("Diff", 80);
}

/// Loads the snapshot in the files `state` and `memory`, runs the guest and pauses it.
fn load_base(directory: &Directory, fields: &str) -> ApiProcess {
    let mut process = load_snapshot(directory, "state", "memory", fields);
    run_and_pause(&mut process, "tick ");
    process
}

fn run_and_pause(process: &mut ApiProcess, text: &str) {
    process.expect(text);
    process.expect_no_content("PATCH", "/vm", PAUSED);
}

/// Checks that a new VM of the loaded snapshot creates an exact diff in the files `diff-state` and `diff`, which exist in part.
fn expect_exact_diff(directory: &Directory, fields: &str) {
    let process = load_base(directory, fields);
    for (kind, state, memory) in [("Diff", "diff-state", "diff"), ("Full", "next-state", "next")] {
        let response = create_snapshot(&process, directory, kind, state, memory);
        assert_eq!(response.text, http::NO_CONTENT, "{fields}");
    }
    process.kill();
    compare(directory, "memory", "diff", "next");
    let alone = ApiProcess::start();
    let message = alone
        .request(
            "PUT",
            "/snapshot/load",
            &load_body(directory, "diff-state", "diff", ""),
        )
        .fault_message();
    assert!(message.contains("Diff snapshot"), "{fields}: {message}");
}

/// Without its state file, the rest of a killed diff must not become the base of the next one.
#[test]
fn diff_after_kill_during_merge_into_diff_is_exact() {
    for fields in [r#","resume_vm":true"#, TRACKED] {
        let directory = Directory::new();
        let source = start_small_ticker();
        pause_and_create(&source, &directory, "Full", "state", "memory");
        source.kill();
        let [state, memory] = ["diff-state", "diff"].map(|name| directory.text(name));
        let body =
            format!(r#"{{"snapshot_type":"Diff","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        let (mut stops, mut missing) = (usize::MAX, 0);
        while missing < 3 && stops > 0 {
            for name in [&state, &memory] {
                let _ = fs::remove_file(name);
            }
            let mut process = load_base(&directory, fields);
            create_snapshot(&process, &directory, "Diff", "diff-state", "diff");
            process.expect_no_content("PATCH", "/vm", RESUMED);
            run_and_pause(&mut process, "tick ");
            let (count, stepper, _client) = interrupt_request(&process, CREATE, &body, stops);
            stepper.kill();
            process.kill();
            stops = count - 1;
            if !directory.path("diff-state").exists() {
                missing += 1;
                expect_exact_diff(&directory, fields);
            }
        }
        assert_eq!(missing, 3, "{fields}");
    }
}

/// Two VMs of one snapshot share no page by the files of a diff.
#[test]
fn diff_over_diff_of_another_vm_is_exact() {
    for (fields, keeps_state) in [
        (TRACKED, true),
        (r#","resume_vm":true"#, true),
        (r#","resume_vm":true"#, false),
    ] {
        let directory = Directory::new();
        let source = start_small_ticker();
        pause_and_create(&source, &directory, "Full", "state", "memory");
        source.kill();
        let other = load_base(&directory, fields);
        create_snapshot(&other, &directory, "Diff", "diff-state", "diff");
        other.kill();
        // A page that the next guest does not write.
        let file = File::options().write(true).open(directory.path("diff")).unwrap();
        file.write_all_at(&[0xee; 4096], (u64::from(MEMORY) << 20) - 4096)
            .unwrap();
        if !keeps_state {
            fs::remove_file(directory.path("diff-state")).unwrap();
        }
        expect_exact_diff(&directory, fields);
    }
}

/// A copy of the loaded memory file is complete without a state file too.
#[test]
fn diff_into_copy_of_base_is_loadable() {
    let directory = Directory::new();
    let source = start_small_ticker();
    pause_and_create(&source, &directory, "Full", "state", "memory");
    source.kill();
    let process = load_base(&directory, r#","resume_vm":true"#);
    fs::copy(directory.path("memory"), directory.path("copy")).unwrap();
    create_snapshot(&process, &directory, "Diff", "copy-state", "copy");
    create_snapshot(&process, &directory, "Full", "next-state", "next");
    process.kill();
    let [copy, next] = ["copy", "next"].map(|name| fs::read(directory.path(name)).unwrap());
    assert!(copy == next);
    load_snapshot(&directory, "copy-state", "copy", r#","resume_vm":true"#).expect("tick ");
}
