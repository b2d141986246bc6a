//! Requests to random ones of many suspended instances, at the highest rate that the machine holds: `make storm`.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `COUNT` | 10000 | instances of one snapshot |
//! | `SECONDS` | 60 | duration at the highest rate |
//! | `MEMORY_LIMIT` | 1G | `--memory-limit` of the supervisor |
//! | `COOLDOWN` | 1000 | time in milliseconds after which an idle instance is suspended |
//! | `SHELLS` | 0 | `--shells` of the supervisor |
//! | `RATE` | searched | requests a second |
//! | `ALIVE` | COUNT | instances to wake at once, as far as the memory allows |
//!
//! The machine holds a rate if each request is answered, the 99th percentile of the times at most [`MAX_TIME`]. The rate is doubled
//! until the machine does not hold it for [`PROBE`], then searched between both. If the machine does not hold it for `SECONDS`, nine
//! tenths of it follow.

#![allow(missing_docs, reason = "a program")]

mod host;
mod load;
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
#[path = "../zero/supervisor.rs"]
#[allow(dead_code, reason = "make zero uses all of it")]
mod supervisor;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api::client::Client;
use serde_json::json;

use load::{INTERRUPTED, Load, Outcome};
use supervisor::{GATEWAY, Journal, Supervisor, address, in_network, metric};

/// Memory of the guests in MiB.
const MEMORY: u32 = 8;
/// Limit of the 99th percentile of the times.
const MAX_TIME: Duration = Duration::from_millis(500);
/// Duration of an attempt with a rate.
const PROBE: Duration = Duration::from_secs(5);
/// First rate in requests a second.
const FIRST_RATE: f64 = 25.0;
/// Number of attempts between a rate that the machine holds, and the double.
const STEPS: usize = 3;
/// Part of a rate that follows if the machine does not hold it for all of the duration.
const BACKOFF: f64 = 0.9;
/// Maximum number of runs of all of the duration.
const RUNS: usize = 5;
/// Maximum wait for the last responses.
const DRAIN: Duration = Duration::from_secs(60);
/// Interval of samples of the memory.
const SAMPLE: Duration = Duration::from_millis(100);
/// Number of instances in the network that may run at once.
const TAPS: u32 = 50_000;
/// Number of printed messages of the supervisor.
const MAX_MESSAGES: usize = 10;
/// Descriptors of the supervisor: process, tap, shell and request of each running instance.
const DESCRIPTORS: u64 = 200_000;

/// Variables of the environment.
struct Setup {
    count: u32,
    duration: Duration,
    memory_limit: String,
    cooldown: u32,
    shells: String,
    rate: Option<f64>,
    alive: u32,
}

impl Setup {
    fn read() -> io::Result<Self> {
        let count = variable("COUNT", 10_000)?;
        Ok(Self {
            count,
            duration: Duration::from_secs(variable("SECONDS", 60)?),
            memory_limit: variable("MEMORY_LIMIT", "1G".to_owned())?,
            cooldown: variable("COOLDOWN", 1000)?,
            shells: variable("SHELLS", "0".to_owned())?,
            rate: Some(variable("RATE", 0.0)?).filter(|rate| *rate > 0.0),
            alive: variable("ALIVE", count)?.min(count),
        })
    }
}

/// Returns the variable `name` of the environment, or `default`.
fn variable<T: std::str::FromStr>(name: &str, default: T) -> io::Result<T> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .map_err(|_| io::Error::other(format!("cannot use {name}={text}"))),
        _ => Ok(default),
    }
}

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = interrupt;
        // SAFETY: the handler only stores to an atomic variable.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let directory = PathBuf::from(format!("/dev/shm/mayfly-storm-{}", std::process::id()));
    let measured = measure(&directory);
    let _ = fs::remove_dir_all(&directory);
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}; run `make storm` as root, which builds the programs");
            ExitCode::FAILURE
        }
    }
}

fn measure(directory: &Path) -> io::Result<bool> {
    let setup = Setup::read()?;
    namespace::enter()?;
    fs::create_dir_all(directory)?;
    let descriptors = host::raise_descriptors(DESCRIPTORS)?;
    let pids = host::PidMax::raise()?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{} instances, limit of the memory {}, suspended after {} ms, {} shells; {descriptors} descriptors; pid_max was {}; load {}",
        setup.count,
        setup.memory_limit,
        setup.cooldown,
        setup.shells,
        pids.before(),
        load.trim()
    );
    let snapshot = supervisor::create_snapshot(directory, MEMORY)?;
    let is_held = storm(directory, &snapshot, &setup)?;
    let is_correct = setup.alive == 0 || alive(directory, &snapshot, &setup)?;
    Ok(is_held && is_correct)
}

/// Starts a supervisor with `count` instances.
fn start(
    directory: &Path,
    snapshot: &Path,
    count: u32,
    scale_to_zero: &serde_json::Value,
    options: &[&str],
) -> io::Result<Supervisor> {
    let mut journal = Journal::with_network(TAPS);
    for number in 0..count {
        journal.register(number, &in_network(snapshot, number, scale_to_zero));
    }
    Supervisor::start(directory.join("supervisor"), &journal, options)
}

/// Searches the highest rate, and runs it for all of the duration. Returns true if each request was answered.
fn storm(directory: &Path, snapshot: &Path, setup: &Setup) -> io::Result<bool> {
    let scale_to_zero = json!({"policy": "idle", "cooldown_time_ms": setup.cooldown});
    let options = ["--memory-limit", &setup.memory_limit, "--shells", &setup.shells];
    let supervisor = start(directory, snapshot, setup.count, &scale_to_zero, &options)?;
    let mut load = Load::new(GATEWAY, address(0), setup.count)?;
    println!(
        "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6} {:>9} {:>8} {:>9} {:>9}",
        "requests",
        "a second",
        "50 %",
        "90 %",
        "99 %",
        "99.9 %",
        "lost",
        "wrong",
        "wakes/s",
        "running",
        "counted",
        "host"
    );
    let mut rate = match setup.rate {
        Some(rate) => rate,
        None => search(&supervisor, &mut load)?,
    };
    for _ in 0..RUNS {
        println!("{rate:.0} requests a second for {:?}:", setup.duration);
        let (mut outcome, peak) = run(&supervisor, &mut load, rate, setup.duration)?;
        if outcome.wrong > 0 {
            return Ok(false);
        }
        if is_held(&mut outcome) {
            let is_bounded = peak.counted <= bytes(&setup.memory_limit);
            if !is_bounded {
                println!(
                    "missed goal: the memory of the processes exceeds {}",
                    setup.memory_limit
                );
            }
            println!(
                "{} responses before an earlier one of their instance",
                outcome.reordered
            );
            return Ok(is_bounded);
        }
        rate *= BACKOFF;
    }
    println!("missed goal: the machine holds no rate for {:?}", setup.duration);
    Ok(false)
}

/// Returns a size such as 1G in bytes.
fn bytes(text: &str) -> f64 {
    let digits = text.trim_end_matches(|letter: char| letter.is_alphabetic());
    let factor = match text[digits.len()..].chars().next() {
        Some('K') => 1024.0,
        Some('M') => 1024.0 * 1024.0,
        Some('G') => 1024.0 * 1024.0 * 1024.0,
        _ => 1.0,
    };
    digits.parse().unwrap_or(0.0) * factor
}

fn is_held(outcome: &mut Outcome) -> bool {
    outcome.lost == 0 && outcome.wrong == 0 && outcome.percentile(99.0) <= MAX_TIME
}

/// Returns the highest rate that the machine holds.
fn search(supervisor: &Supervisor, load: &mut Load) -> io::Result<f64> {
    let mut holds = |rate| -> io::Result<bool> {
        let (mut outcome, _) = run(supervisor, load, rate, PROBE)?;
        if outcome.wrong > 0 {
            return Err(io::Error::other(format!(
                "wrong responses: {:?}",
                outcome.reports
            )));
        }
        Ok(is_held(&mut outcome))
    };
    let mut high = FIRST_RATE;
    while holds(high)? {
        high *= 2.0;
    }
    let mut low = high / 2.0;
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        if holds(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Largest values of samples.
#[derive(Default)]
struct Peak {
    /// Running instances.
    running: f64,
    /// Memory of the processes in bytes, as the supervisor counts it for its limit.
    counted: f64,
    /// Memory of the host in bytes beyond that before.
    host: i64,
}

/// Runs a rate, and prints its row.
fn run(
    supervisor: &Supervisor,
    load: &mut Load,
    rate: f64,
    duration: Duration,
) -> io::Result<(Outcome, Peak)> {
    let wakes = "mayfly_standby_wakes_total{cause=\"frame\"}";
    let (client, done) = (supervisor.client(), AtomicBool::new(false));
    let before = supervisor.metric(wakes)?;
    let (outcome, peak) = thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&client, &done));
        let outcome = load.run(rate, duration, DRAIN);
        done.store(true, Ordering::Relaxed);
        (outcome, scratch::join(sampler))
    });
    let (mut outcome, peak) = (outcome?, peak?);
    let woken = supervisor.metric(wakes)? - before;
    let ms = [50.0, 90.0, 99.0, 99.9].map(|percent| 1e3 * outcome.percentile(percent).as_secs_f64());
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    #[allow(clippy::cast_precision_loss, reason = "far below the limit")]
    let host = mib(peak.host as f64);
    println!(
        "{:>9} {rate:>9.0} {:>6.1} ms {:>6.1} ms {:>6.1} ms {:>6.1} ms {:>6} {:>6} {:>9.1} {:>8} {:>5.0} MiB {host:>5.0} MiB",
        outcome.requests,
        ms[0],
        ms[1],
        ms[2],
        ms[3],
        outcome.lost,
        outcome.wrong,
        woken / duration.as_secs_f64(),
        peak.running,
        mib(peak.counted),
    );
    print_faults(supervisor, &outcome)?;
    settle(supervisor)?;
    Ok((outcome, peak))
}

/// Prints lost requests and wrong responses, with the counters and messages of the supervisor that may explain them.
fn print_faults(supervisor: &Supervisor, outcome: &Outcome) -> io::Result<()> {
    outcome.reports.iter().for_each(|report| println!("  {report}"));
    if outcome.lost + outcome.wrong > 0 {
        let metrics = supervisor.request("GET", "/metrics", None)?;
        let names = [
            "mayfly_standby_network_packets{",
            "mayfly_standby_failures_total{",
        ];
        let lines = metrics.as_str().unwrap_or_default().lines();
        lines
            .filter(|line| names.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0"))
            .for_each(|line| println!("  {line}"));
        supervisor
            .log()
            .lines()
            .take(MAX_MESSAGES)
            .for_each(|line| println!("  {line}"));
    }
    Ok(())
}

/// Samples instances and memory until `done`.
fn sample(client: &Client, done: &AtomicBool) -> io::Result<Peak> {
    let (before, mut peak) = (host::used_memory()?, Peak::default());
    while !done.load(Ordering::Relaxed) {
        let running = metric(client, "mayfly_standby_instances{state=\"running\"}")?;
        peak.running = peak.running.max(running);
        peak.counted = peak.counted.max(metric(client, "mayfly_standby_memory_bytes")?);
        peak.host = peak.host.max(host::used_memory()? - before);
        thread::sleep(SAMPLE);
    }
    Ok(peak)
}

/// Waits until all instances are suspended. An instance that has failed is an error.
fn settle(supervisor: &Supervisor) -> io::Result<()> {
    let end = Instant::now() + DRAIN;
    loop {
        let body = supervisor.request("GET", "/", None)?;
        let states = &body["states"];
        if states["failed"] != 0 {
            return Err(io::Error::other(format!("instances have failed: {states}")));
        }
        if states["suspended"] == body["instances"] {
            return Ok(());
        }
        if Instant::now() > end || INTERRUPTED.load(Ordering::Relaxed) {
            return Err(io::Error::other(format!(
                "not all instances are suspended: {states}"
            )));
        }
        thread::sleep(SAMPLE);
    }
}

/// Wakes instances that stay awake, until the supervisor has no memory for another one. Returns true if none was lost or wrong.
fn alive(directory: &Path, snapshot: &Path, setup: &Setup) -> io::Result<bool> {
    let supervisor = start(directory, snapshot, setup.count, &json!({"policy": "off"}), &[])?;
    let mut load = Load::new(GATEWAY, address(0), setup.count)?;
    let before = (host::used_memory()?, host::threads()?);
    let start = Instant::now();
    // The memory that the supervisor keeps available ends the loop by a suspend.
    let has_memory = || Ok(supervisor.metric("mayfly_standby_memory_suspends_total")? == 0.0);
    let mut outcome = load.run_each(0..setup.alive, DRAIN, has_memory)?;
    let time = start.elapsed();
    let running = supervisor.request("GET", "/", None)?["states"]["running"].clone();
    let count = i64::try_from(outcome.times.len().max(1)).unwrap_or(i64::MAX);
    let kib = (host::used_memory()? - before.0) / 1024 / count;
    #[allow(clippy::cast_precision_loss, reason = "far below the limit")]
    let threads = (host::threads()? - before.1) as f64 / count as f64;
    let instance = supervisor.request("GET", &format!("/instances/{}", supervisor::id(0)), None)?;
    let own = fs::read_dir(format!("/proc/{}/task", instance["pid"])).map_or(0, Iterator::count);
    let median = outcome.percentile(50.0);
    println!(
        "alive at once: {running} of {}, {} lost, {} wrong, in {time:.1?}; median {median:.1?}; each {kib} KiB of the host, {own} threads of its process, {threads:.1} of the host",
        setup.count, outcome.lost, outcome.wrong,
    );
    print_faults(&supervisor, &outcome)?;
    Ok(outcome.lost == 0 && outcome.wrong == 0)
}
