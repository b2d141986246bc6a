//! Restart of a supervisor with many registered instances in a shared network.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use api::client::Client;
use serde_json::{Value, json};

use crate::fixture::{Fixture, text};
use crate::process::{Process, mayfly};

/// Number of instances.
pub const COUNT: u32 = 100_000;
/// Maximum wait for the supervisor.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of attempts to reach it.
const INTERVAL: Duration = Duration::from_millis(1);

/// Times of the restarts with their processor times, and the memory of each instance in bytes.
pub struct Restart {
    pub times: Vec<Duration>,
    pub processor: Vec<Duration>,
    pub bytes: u64,
}

/// CRC-32 of IEEE 802.3, as in the journal.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

fn add_line(journal: &mut String, record: &Value) {
    let line = record.to_string();
    let _ = writeln!(journal, "{:08x} {line}", checksum(line.as_bytes()));
}

/// Returns a journal with a network and `count` instances of `snapshot`.
fn journal(snapshot: &Path, count: u32) -> String {
    let mut journal = String::new();
    let network = json!({
        "host_dev_name": "many",
        "gateways": [{"ip": "10.128.0.1", "prefix_length": 9}],
    });
    add_line(
        &mut journal,
        &json!({"set": "network", "id": "many", "config": network}),
    );
    for number in 0..count {
        let config = json!({
            "snapshot_path": snapshot,
            "network_interfaces": [{
                "iface_id": "net0", "network_id": "many", "ip": Ipv4Addr::from(0x0a80_0100 + number),
                "guest_ip": "10.0.0.2", "mac": "02:00:00:00:00:01",
            }],
            "scale_to_zero": {"policy": "idle", "cooldown_time_ms": 1000},
        });
        let id = format!("function-{number:06}");
        add_line(
            &mut journal,
            &json!({"set": "instance", "id": id, "config": config}),
        );
    }
    journal
}

/// Starts a supervisor. Returns it with the time until its response, which must have `count` instances.
fn start(directory: &Path, count: u32) -> io::Result<(Process, Duration)> {
    let program = mayfly().with_file_name("mayfly-standby");
    let socket = directory.join("sock");
    let (sock, state) = (text(&socket), text(&directory.join("state")));
    let start = Instant::now();
    let process = Process::start(&program, &["--api-sock", &sock, "--state-dir", &state])?;
    let client = Client::new(&socket, TIMEOUT);
    loop {
        match client.request("GET", "/", None) {
            Ok(response) => {
                let time = start.elapsed();
                let body: Value = serde_json::from_slice(&response.body)?;
                return match body["instances"] == count {
                    true => Ok((process, time)),
                    false => Err(io::Error::other(format!(
                        "the supervisor has not {count} instances: {body}"
                    ))),
                };
            }
            Err(error) if start.elapsed() > TIMEOUT => return Err(io::Error::other(error.to_string())),
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Returns the resident memory of a process in bytes.
fn resident(process: &Process) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/statm", process.0.id()))?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages
        .map(|pages| pages * 4096)
        .ok_or_else(|| io::Error::other("statm has no second number"))
}

/// Returns the processor time of a process, in ticks of 10 ms.
fn processor_time(process: &Process) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{}/stat", process.0.id()))?;
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    // User and system time.
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok());
    Ok(Duration::from_millis(10 * ticks.sum::<u64>()))
}

/// Restarts a supervisor `rounds` times.
pub fn measure(fixture: &Fixture, snapshot: &Path, rounds: usize) -> io::Result<Restart> {
    let directory = fixture.new_directory("registered")?;
    fs::create_dir(directory.join("state"))?;
    let (mut times, mut processor, mut sizes) = (Vec::new(), Vec::new(), [0; 2]);
    for (count, size) in [0, COUNT].into_iter().zip(&mut sizes) {
        fs::write(directory.join("state/journal"), journal(snapshot, count))?;
        for _ in 0..rounds {
            let (process, time) = start(&directory, count)?;
            *size = resident(&process)?;
            if count > 0 {
                times.push(time);
                processor.push(processor_time(&process)?);
            }
        }
    }
    Ok(Restart {
        times,
        processor,
        bytes: sizes[1].saturating_sub(sizes[0]) / u64::from(COUNT),
    })
}
