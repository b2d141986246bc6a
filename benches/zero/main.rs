//! Measures wakes of suspended VMs by a packet, suspends, and sleepers: `make zero`. ROUNDS in the environment sets the number of rounds.
//!
//! A client sends a datagram to the address of a sleeper of `mayfly-standby`, and waits for its echo. The supervisor then suspends the
//! instance. The baseline is the floor of a restore, or of a shell, with the time of an echo of the running guest. All files are in
//! /dev/shm, so that no disk affects the results.

#![allow(missing_docs, reason = "a program")]

#[path = "../restore/fixture.rs"]
#[allow(dead_code, reason = "make restore uses all of it")]
mod fixture;
#[path = "../queue/namespace.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "make queue uses all of it; an error ends the program"
)]
mod namespace;
#[path = "../control/process.rs"]
#[allow(dead_code, reason = "the benchmark of the API socket uses all of it")]
mod process;
mod registered;
#[path = "../restore/shell.rs"]
#[allow(dead_code, reason = "make restore uses all of it")]
mod shell;
#[allow(dead_code, reason = "make storm uses all of it")]
mod supervisor;
mod suspend;
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
use registered::Measured;
use wake::{Form, Sleepers};

/// Memory of the guests in MiB.
const MEMORY: u32 = 128;
/// Numbers of registered instances.
const REGISTERED: [u32; 3] = [1, 100, 10_000];
/// Limit of the ratio to the baseline.
const GOAL: f64 = 1.3;
/// Limit of the times with many instances, as a ratio to those with one.
const FLAT: f64 = 1.2;
/// Limit of the median time of a suspend in microseconds.
const MAX_SUSPEND: f64 = 5e3;
/// Limit of the median time of a restart with [`registered::COUNT`] instances, in microseconds.
const MAX_RESTART: f64 = 2e6;
/// Limit of the memory of a registered instance in bytes.
const MAX_BYTES: i32 = 2048;
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
        "{:<54} {:>9} {:>9} {:>9} {:>7}",
        "", "median", "99 %", "baseline", "ratio"
    );
    let directory = fixture.new_directory("zero")?;
    let snapshot = supervisor::create_snapshot(&directory, MEMORY)?;
    let mut goals = Goals(true);
    for form in [Form::Spawn, Form::Shell] {
        measure_wakes(fixture, &directory, &snapshot, (form, rounds), &mut goals)?;
    }
    measure_suspends(&directory.join("suspend"), rounds, &mut goals)?;
    measure_sleepers(&directory, &snapshot, &mut goals)?;
    Ok(goals.0)
}

/// Prints the rows of wakes. Each wake is measured in turn with its floor, because the speed of a host varies.
fn measure_wakes(
    fixture: &Fixture,
    directory: &Path,
    snapshot: &Path,
    (form, rounds): (Form, usize),
    goals: &mut Goals,
) -> io::Result<()> {
    let floor_snapshot = fixture.floor_snapshot(MEMORY)?;
    let (floor, socket) = (text(&floor_snapshot), text(&fixture::socket()));
    let shell = ["shell", &floor, &socket];
    let (name, floor_name) = match form {
        Form::Spawn => ("without a shell", "  floor: restore, spawn to next byte"),
        Form::Shell => ("shell waiting", "  floor: load into a shell, request to byte"),
    };
    let mut first = None;
    for count in REGISTERED {
        let sleepers = Sleepers::new(directory.join("wake"), snapshot, count, form)?;
        let mut wakes = sleepers.measure(rounds, || match form {
            Form::Spawn => first_byte(fixture, &floor),
            Form::Shell => shell::once(&fixture.floor, &shell, &floor_snapshot),
        })?;
        let baseline = wakes.floor.percentile(50) + wakes.echoes.percentile(50);
        let name = format!("packet to answer, {name}, {count} registered");
        print(&name, &mut wakes.answers, Some(baseline));
        print(floor_name, &mut wakes.floor, None);
        print("  echo of the running guest", &mut wakes.echoes, None);
        println!("{:<54} {:>9.0}", "  mean, packet to running", wakes.supervised);
        print("  suspend: request to process gone", &mut wakes.suspends, None);
        let ratios = [50, 99].map(|percent| wakes.answers.percentile(percent) / baseline);
        let one = *first.get_or_insert(ratios);
        goals.check(&name, "of the baseline", ratios[0], GOAL);
        goals.check(&name, "of the ratio with one", ratios[0] / one[0], FLAT);
        goals.check(
            &name,
            "of that with one, 99th percentile",
            ratios[1] / one[1],
            FLAT,
        );
    }
    Ok(())
}

/// Goals, true if all of them are reached.
struct Goals(bool);

impl Goals {
    fn check(&mut self, name: &str, unit: &str, value: f64, limit: f64) {
        if value > limit {
            self.0 = false;
            println!("missed goal: {name}: {value:.2} {unit}, at most {limit}");
        }
    }
}

/// Prints the rows of suspends.
fn measure_suspends(directory: &Path, rounds: usize, goals: &mut Goals) -> io::Result<()> {
    type Row = (&'static str, fn(&Path, usize) -> io::Result<Times>);
    let rows: [Row; 3] = [
        ("suspend, 2 MiB: request to process gone", suspend::by_request),
        (
            "suspend, 2 MiB, idle: pause to process gone",
            suspend::by_idleness,
        ),
        (
            "suspend, 2 MiB, by the supervisor: request to gone",
            suspend::by_supervisor,
        ),
    ];
    for (name, measure) in rows {
        let mut times = measure(directory, rounds)?;
        print(name, &mut times, None);
        goals.check(name, "us", times.percentile(50), MAX_SUSPEND);
    }
    Ok(())
}

/// Prints the rows of restarts, and of the memory of sleepers in both forms.
fn measure_sleepers(directory: &Path, snapshot: &Path, goals: &mut Goals) -> io::Result<()> {
    let forms = [
        (
            "shared TUN",
            registered::COUNT,
            registered::in_shared_network(directory, snapshot, RESTARTS)?,
        ),
        (
            "a tap each",
            registered::TAPS,
            registered::with_taps(directory, snapshot, RESTARTS)?,
        ),
    ];
    for (form, count, measured) in forms {
        let Measured {
            times,
            processor,
            user,
            kernel,
        } = measured;
        let name = format!("restart of the supervisor, {count} sleepers, {form}");
        let mut times = Times(times);
        print(&name, &mut times, None);
        print("  its processor time", &mut Times(processor), None);
        println!("{:<54} {user:>9} bytes", "  memory of each in the supervisor");
        println!("{:<54} {kernel:>9} bytes", "  memory of each in the kernel");
        goals.check(&name, "us", times.percentile(50), MAX_RESTART);
        let user = f64::from(i32::try_from(user).unwrap_or(i32::MAX));
        goals.check(&name, "bytes in the supervisor", user, f64::from(MAX_BYTES));
    }
    Ok(())
}

fn print(name: &str, times: &mut Times, baseline: Option<f64>) {
    let (median, high) = (times.percentile(50), times.percentile(99));
    let baseline = baseline.map(|baseline| format!(" {baseline:>9.0} {:>7.2}", median / baseline));
    println!(
        "{name:<54} {median:>9.0} {high:>9.0}{}",
        baseline.unwrap_or_default()
    );
}

fn first_byte(fixture: &Fixture, snapshot: &str) -> io::Result<Duration> {
    let start = std::time::Instant::now();
    let mut process = Process::start(&fixture.floor, &["restore", snapshot])?;
    process.read(1)?;
    Ok(start.elapsed())
}
