//! Supervisors with many registered instances that sleep: restart, memory of the supervisor and of the kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::supervisor::{Journal, Supervisor, address, host_memory, in_network, run};

/// Number of instances in a shared network.
pub const COUNT: u32 = 100_000;
/// Number of instances with a tap each.
pub const TAPS: u32 = 1000;

/// Measurement of many sleepers.
pub struct Measured {
    /// Times of restarts.
    pub times: Vec<Duration>,
    /// Processor times of the restarts.
    pub processor: Vec<Duration>,
    /// Memory of each instance in the supervisor in bytes.
    pub user: i64,
    /// Memory of each instance in the kernel in bytes.
    pub kernel: i64,
}

/// Restarts supervisors with [`COUNT`] instances in a shared network.
pub fn in_shared_network(directory: &Path, snapshot: &Path, rounds: usize) -> io::Result<Measured> {
    let mut journal = Journal::with_network(1);
    let scale_to_zero = json!({"policy": "idle", "cooldown_time_ms": 1000});
    for number in 0..COUNT {
        journal.register(number, &in_network(snapshot, number, &scale_to_zero));
    }
    let empty = Journal::with_network(1);
    measure(directory.join("shared"), &empty, &journal, COUNT, rounds)
}

/// Restarts supervisors with [`TAPS`] instances that have a tap each.
pub fn with_taps(directory: &Path, snapshot: &Path, rounds: usize) -> io::Result<Measured> {
    let mut journal = Journal::default();
    for number in 0..TAPS {
        let [_, _, high, low] = number.to_be_bytes();
        journal.register(
            number,
            &json!({
                "snapshot_path": snapshot,
                "network_interfaces": [{
                    "iface_id": "net0", "host_dev_name": tap(number), "ip": address(number),
                    "mac": format!("02:00:00:00:{high:02x}:{low:02x}"),
                }],
                "scale_to_zero": {"policy": "idle", "cooldown_time_ms": 1000},
            }),
        );
    }
    let path = directory.join("taps.batch");
    let batch = |line: &dyn Fn(String) -> String| {
        let lines = (0..TAPS).map(|number| line(tap(number)));
        fs::write(&path, lines.collect::<String>())?;
        run(&format!("ip -batch {}", path.display()))
    };
    let before = kernel_bytes()?;
    batch(&|tap| format!("tuntap add {tap} mode tap\nlink set {tap} up\n"))?;
    let created = kernel_bytes()? - before;
    let measured = measure(
        directory.join("taps"),
        &Journal::default(),
        &journal,
        TAPS,
        rounds,
    );
    batch(&|tap| format!("link delete {tap}\n"))?;
    let mut measured = measured?;
    measured.kernel += created / i64::from(TAPS);
    Ok(measured)
}

fn tap(number: u32) -> String {
    format!("sleep{number}")
}

/// Measures a supervisor with `journal`, which has `count` instances, beside one with the journal `empty`.
fn measure(
    directory: PathBuf,
    empty: &Journal,
    journal: &Journal,
    count: u32,
    rounds: usize,
) -> io::Result<Measured> {
    let supervisor = Supervisor::start(directory.clone(), empty, &[])?;
    let before = (resident(&supervisor)?, kernel_bytes()?);
    drop(supervisor);
    let mut supervisor = Supervisor::start(directory, journal, &[])?;
    let (mut times, mut processor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        times.push(supervisor.restart(&[])?);
        processor.push(processor_time(&supervisor)?);
        let body = supervisor.request("GET", "/", None)?;
        if body["states"]["suspended"] != count {
            return Err(io::Error::other(format!(
                "the supervisor has not {count} sleepers: {body} {}",
                supervisor.log()
            )));
        }
    }
    let after = (resident(&supervisor)?, kernel_bytes()?);
    Ok(Measured {
        times,
        processor,
        user: (after.0 - before.0) / i64::from(count),
        kernel: (after.1 - before.1) / i64::from(count),
    })
}

/// Returns the memory of the kernel in bytes that no pressure frees: unreclaimable slab and per-processor memory.
fn kernel_bytes() -> io::Result<i64> {
    Ok(host_memory("SUnreclaim")? + host_memory("Percpu")?)
}

/// Returns the resident memory of a process in bytes.
fn resident(supervisor: &Supervisor) -> io::Result<i64> {
    let text = fs::read_to_string(format!("/proc/{}/statm", supervisor.pid()))?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok());
    pages
        .map(|pages| pages * 4096)
        .ok_or_else(|| io::Error::other("statm has no second number"))
}

/// Returns the processor time of a process, in ticks of 10 ms.
fn processor_time(supervisor: &Supervisor) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{}/stat", supervisor.pid()))?;
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    // User and system time.
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok());
    Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
}
