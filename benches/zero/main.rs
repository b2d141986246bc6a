//! Measures the wake of a suspended VM by a packet: `make zero`. ROUNDS in the environment sets the number of rounds.
//!
//! A client sends a datagram to the address of a sleeper, and waits for its echo. The program is the supervisor: it reads the shared TUN,
//! gives the instance a tap, and starts it with the packet. The baseline is the floor of a restore, or of a shell, with the time of an
//! echo of the running guest. All files are in /dev/shm, so that no disk affects the results.

#![allow(missing_docs, reason = "a program")]

#[path = "../restore/fixture.rs"]
#[allow(dead_code, reason = "make restore uses all of it")]
mod fixture;
#[path = "../../src/shell/message.rs"]
#[allow(dead_code, unused_imports, reason = "a shell uses all of it")]
mod message;
#[path = "../queue/namespace.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "make queue uses all of it; an error ends the program"
)]
mod namespace;
#[path = "../../src/standby/net/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the supervisor uses all of it")]
mod net;
#[path = "../control/process.rs"]
#[allow(dead_code, reason = "the benchmark of the API socket uses all of it")]
mod process;
mod registered;
#[path = "../restore/shell.rs"]
#[allow(dead_code, reason = "make restore uses all of it")]
mod shell;
#[path = "../restore/table.rs"]
#[allow(dead_code, reason = "make restore uses all of it")]
mod table;
mod wake;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fixture::{Fixture, text};
use process::{Process, directory};
use wake::{Form, Sleepers};

/// Memory of the guests in MiB.
const MEMORY: u32 = 128;
/// Numbers of registered instances.
const REGISTERED: [u32; 3] = [1, 100, 10_000];
/// Limit of the ratio to the baseline.
const GOAL: f64 = 1.3;
/// Limit of the median with most instances, as a ratio to that with one.
const FLAT: f64 = 1.2;
/// Limit of the median time of a restart with [`registered::COUNT`] instances, in microseconds.
const MAX_RESTART: f64 = 2e6;
/// Limit of the memory of a registered instance in bytes.
const MAX_BYTES: u64 = 2048;
/// Number of restarts.
const RESTARTS: usize = 5;
/// Time between the preparation of a process and its use.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100);
    let measured = namespace::enter()
        .and_then(|()| Fixture::new())
        .and_then(|fixture| {
            let result = measure(&fixture, rounds);
            let _ = fs::remove_dir_all(directory());
            result
        });
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}; run `make zero` as root, which builds the programs");
            ExitCode::FAILURE
        }
    }
}

/// Times of one row.
struct Times(Vec<Duration>);

impl Times {
    /// Returns the given percentile in microseconds.
    fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort();
        let index = self.0.len() * percent / 100;
        let time = self.0.get(index.min(self.0.len() - 1));
        time.copied().unwrap_or_default().as_secs_f64() * 1e6
    }
}

fn collect(rounds: usize, mut once: impl FnMut(usize) -> io::Result<Duration>) -> io::Result<Times> {
    // The first two rounds fill caches and do not count.
    let times: Result<Vec<_>, _> = (0..rounds + 2).map(&mut once).collect();
    times.map(|mut times| Times(times.split_off(2)))
}

/// Prints all rows. Returns true if all goals are reached.
fn measure(fixture: &Fixture, rounds: usize) -> io::Result<bool> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{rounds} rounds, times in microseconds; load {}", load.trim());
    println!(
        "{:<52} {:>9} {:>9} {:>9} {:>7}",
        "", "median", "99 %", "baseline", "ratio"
    );
    let floor_snapshot = fixture.floor_snapshot(MEMORY)?;
    let floor = text(&floor_snapshot);
    let mut spawn = collect(rounds, |_| first_byte(fixture, &floor))?;
    let path = text(&fixture::socket());
    let mut shell = collect(rounds, |_| {
        shell::once(&fixture.floor, &["shell", &floor, &path], &floor_snapshot)
    })?;
    let snapshot = wake::create_snapshot(fixture)?;
    let mut running = wake::measure_running(&snapshot, rounds)?;
    let (echo, spawn, shell) = (running.percentile(50), spawn.percentile(50), shell.percentile(50));
    print("echo of the running guest", &mut running, None);
    println!("{:<52} {spawn:>9.0}", "floor: restore, spawn to next byte");
    println!(
        "{:<52} {shell:>9.0}",
        "floor: load into a shell, request to next byte"
    );
    let mut reached = true;
    for (form, name, floor) in [
        (Form::Spawn, "without a shell", spawn),
        (Form::Shell, "shell waiting", shell),
    ] {
        let mut first = None;
        for count in REGISTERED {
            let mut sleepers = Sleepers::new(&snapshot, count)?;
            let mut times = collect(rounds, |round| sleepers.wake(form, round))?;
            let median = times.percentile(50);
            let name = format!("packet to answer, suspended, {name}, {count} registered");
            print(&name, &mut times, Some(floor + echo));
            let first = *first.get_or_insert(median);
            for (what, ratio, goal) in [
                ("floor", median / (floor + echo), GOAL),
                ("one", median / first, FLAT),
            ] {
                if ratio > goal {
                    reached = false;
                    println!("missed goal: {name}: {ratio:.2} times {what}, at most {goal}");
                }
            }
        }
    }
    for count in [1, 100_000] {
        let mut sleepers = Sleepers::new(&snapshot, count)?;
        let mut times = collect(rounds, |round| sleepers.wake(Form::None, round))?;
        let name = format!("packet to tap and first frames, {count} registered");
        print(&name, &mut times, None);
    }
    Ok(restart(fixture, &snapshot)? && reached)
}

/// Prints the row of the restarts. Returns true if its goals are reached.
fn restart(fixture: &Fixture, snapshot: &Path) -> io::Result<bool> {
    let measured = registered::measure(fixture, snapshot, RESTARTS)?;
    let (mut times, bytes) = (Times(measured.times), measured.bytes);
    let name = format!("restart of the supervisor, {} registered", registered::COUNT);
    print(&name, &mut times, None);
    print("its processor time", &mut Times(measured.processor), None);
    println!("{:<52} {bytes:>9} bytes", "memory of each in the supervisor");
    let reached = times.percentile(50) <= MAX_RESTART && bytes <= MAX_BYTES;
    if !reached {
        println!("missed goal: {name}: at most {MAX_RESTART} us, and {MAX_BYTES} bytes each");
    }
    Ok(reached)
}

fn print(name: &str, times: &mut Times, baseline: Option<f64>) {
    let (median, high) = (times.percentile(50), times.percentile(99));
    let baseline = baseline.map(|baseline| format!(" {baseline:>9.0} {:>7.2}", median / baseline));
    println!(
        "{name:<52} {median:>9.0} {high:>9.0}{}",
        baseline.unwrap_or_default()
    );
}

fn first_byte(fixture: &Fixture, snapshot: &str) -> io::Result<Duration> {
    let start = std::time::Instant::now();
    let mut process = Process::start(&fixture.floor, &["restore", snapshot])?;
    process.read(1)?;
    Ok(start.elapsed())
}
