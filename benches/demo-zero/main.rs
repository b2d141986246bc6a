//! Shows functions that are suspended while idle: `make demo-zero` registers 1,000 of them (`N`), all of one snapshot, each with an
//! address on a shared network in a network namespace of its own. curl requests a page of three.

#![allow(clippy::unwrap_used, reason = "a failure ends the demonstration")]

#[allow(dead_code, reason = "tests/local uses all of it")]
#[path = "../../tests/local/guests.rs"]
mod guests;
#[allow(dead_code, reason = "tests/instances uses all of it")]
#[path = "../../tests/instances/host.rs"]
mod host;
#[allow(dead_code, reason = "tests/standby uses all of it")]
#[path = "../../tests/standby/supervisor.rs"]
mod supervisor;

use std::fs;
use std::net::Ipv4Addr;
use std::panic;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use host::{GUEST, MANY, Supervisor};

/// Number of functions without the variable `N`.
const FUNCTIONS: u32 = 1000;
/// Time after which an idle function is suspended, in milliseconds.
const COOLDOWN: u32 = 500;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = interrupt;
        // SAFETY: the handler only stores to an atomic variable.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    panic::set_hook(Box::new(|info| eprintln!("demo-zero: {info}")));
    if !Path::new("/dev/kvm").exists() {
        eprintln!(
            "demo-zero: cannot start a VM: /dev/kvm is missing; load the module kvm, or use another host"
        );
        return ExitCode::FAILURE;
    }
    // The end of the demonstration, also a failure or a signal, ends all its processes and removes its files.
    match panic::catch_unwind(demonstrate) {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Ends the demonstration after a signal.
fn check_signals() {
    assert!(!INTERRUPTED.load(Ordering::Relaxed), "ended by a signal");
}

/// Returns the identifier and the address of function `number`.
fn function(number: u32) -> (String, Ipv4Addr) {
    (
        format!("function-{number:05}"),
        Ipv4Addr::from(0x0a01_0000 + 256 + number),
    )
}

fn demonstrate() -> bool {
    if !host::enter_namespace() {
        return false;
    }
    let functions = std::env::var("N").map_or(FUNCTIONS, |text| text.parse().unwrap());
    assert!(
        (1..=60_000).contains(&functions),
        "N is {functions}; use 1 to 60000"
    );
    let shared_memory = Path::new("/dev/shm");
    let directory = match shared_memory.is_dir() {
        true => scratch::Directory::new_in(shared_memory),
        false => scratch::Directory::new(),
    };
    println!("1. One guest boots, answers HTTP, and gets a snapshot.");
    let start = Instant::now();
    host::create_snapshot(&directory.path("snapshot"), &[], MANY);
    println!(
        "   {} ms, {} KiB on disk",
        start.elapsed().as_millis(),
        disk_usage(&directory.path("snapshot"))
    );
    let supervisor = Supervisor::start_in(directory, &[]);
    register(&supervisor, functions);
    println!("3. curl requests a page of three functions, each twice: asleep, then running.");
    let chosen = [1, functions / 2 + 1, functions].map(|number| number.min(functions));
    for number in chosen {
        request(&supervisor, number);
    }
    print_states(&supervisor);
    println!("4. After {COOLDOWN} ms without a request they are suspended again.");
    let start = Instant::now();
    scratch::wait_until("all functions are suspended", || {
        check_signals();
        supervisor.expect("GET", "/", None)["states"]["suspended"] == functions
    });
    println!("   {} ms later:", start.elapsed().as_millis());
    print_states(&supervisor);
    let kept = disk_usage(&supervisor.directory.path("state/suspended"));
    println!("   their own snapshots take {kept} KiB on disk");
    println!("5. A function goes on where it was.");
    request(&supervisor, chosen[0]);
    true
}

/// Registers the functions.
fn register(supervisor: &Supervisor, functions: u32) {
    println!("2. {functions} functions of this snapshot are registered, from 10.1.1.1 on.");
    let network = json!({
        "host_dev_name": "mtun0",
        "gateways": [{"ip": "10.1.0.1", "prefix_length": 16}],
        "max_taps": 16,
    });
    supervisor.expect("PUT", "/networks/functions", Some(&network));
    let start = Instant::now();
    for number in 1..=functions {
        check_signals();
        let (id, ip) = function(number);
        supervisor.register(
            &id,
            json!({
                "network_interfaces": [{"iface_id": "net0", "network_id": "functions", "ip": ip, "guest_ip": GUEST}],
                "scale_to_zero": {"cooldown_time_ms": COOLDOWN},
            }),
        );
        if number.is_multiple_of(1000) {
            println!("   {number}");
        }
    }
    println!("   {} ms", start.elapsed().as_millis());
    print_states(supervisor);
}

/// Prints the numbers of functions by state, and the memory of the supervisor.
fn print_states(supervisor: &Supervisor) {
    let states = supervisor.expect("GET", "/", None)["states"].clone();
    let states: Vec<String> = states
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let memory = private_memory(i64::from(supervisor.pid()));
    println!("   {}; the supervisor has {memory} KiB", states.join(", "));
}

/// Requests the page of a function twice, and prints times and memory.
fn request(supervisor: &Supervisor, number: u32) {
    check_signals();
    let (id, ip) = function(number);
    let before = supervisor.get(&id)["state"].as_str().unwrap().to_owned();
    let (page, first) = fetch(ip);
    let (_, second) = fetch(ip);
    let instance = supervisor.get(&id);
    let pid = instance["pid"].as_i64();
    let memory = pid.map_or_else(
        || "its process has ended".to_owned(),
        |pid| format!("process {pid} has {} KiB", private_memory(pid)),
    );
    println!(
        "   {id} at {ip} was {before}, is {}: {page:?} after {first:.1} ms, again after {second:.1} ms; {memory}",
        instance["state"].as_str().unwrap()
    );
}

/// Returns the page at `ip`, and the time of curl for it in milliseconds.
fn fetch(ip: Ipv4Addr) -> (String, f64) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]);
    command.args(["--write-out", "%{time_total}", &format!("http://{ip}/")]);
    let output = scratch::run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (page, time) = text.split_once('\n').unwrap_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        panic!("cannot fetch the page of {ip}: {error}");
    });
    (page.to_owned(), 1000.0 * time.parse::<f64>().unwrap())
}

/// Returns the memory of a process that it shares with no other one, in KiB.
fn private_memory(pid: i64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Returns the space of the files below `path` in KiB.
fn disk_usage(path: &Path) -> String {
    let output = scratch::run(Command::new("du").arg("-sk").arg(path));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}
