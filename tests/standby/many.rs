//! Many registered instances.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::fixture::Supervisor;

/// Number of instances.
const COUNT: usize = 100_000;
/// Maximum processor time of a restart with a release program: other processes do not lengthen it.
const MAX_RESTART: Duration = Duration::from_secs(2);
/// Factor by which a program without optimization is slower.
const UNOPTIMIZED: u32 = 10;
/// Maximum memory of a sleeping instance in bytes.
const MAX_BYTES: usize = 2048;

/// CRC-32 of IEEE 802.3, as in the journal.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[test]
fn restart_with_many_instances_is_quick_and_small() {
    let mut supervisor = Supervisor::start(&[]);
    let empty = resident(&supervisor);
    supervisor.kill();
    let mut journal = String::new();
    for number in 0..COUNT {
        let body = supervisor.body(json!({
            "drives": [{"drive_id": "rootfs", "path_on_host": format!("/var/lib/functions/disks/{number}.img"), "is_read_only": true}],
            "scale_to_zero": {"policy": "idle", "cooldown_time_ms": 1000},
            "wake_on": {"rule": "ports", "ports": [80, 443]},
        }));
        let line =
            json!({"set": "instance", "id": format!("function-{number:06}"), "config": body}).to_string();
        writeln!(journal, "{:08x} {line}", checksum(line.as_bytes())).unwrap();
    }
    fs::write(supervisor.directory.path("state/journal"), journal).unwrap();
    supervisor.restart();
    let time = processor_time(&supervisor);
    assert_eq!(supervisor.expect("GET", "/", None)["instances"], COUNT);
    let max = if cfg!(debug_assertions) {
        MAX_RESTART * UNOPTIMIZED
    } else {
        MAX_RESTART
    };
    let each = (resident(&supervisor) - empty) / COUNT;
    eprintln!("{COUNT} instances: restart in {time:?}, {each} bytes each");
    assert!(time <= max, "{time:?}");
    assert!(each <= MAX_BYTES, "{each} bytes");
    let last = supervisor.get("function-099999");
    assert_eq!(last["state"], "suspended");
}

/// Returns the processor time of the supervisor, in ticks of 10 ms.
fn processor_time(supervisor: &Supervisor) -> Duration {
    let text = fs::read_to_string(format!("/proc/{}/stat", supervisor.pid())).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum::<u64>();
    Duration::from_millis(10 * ticks)
}

/// Returns the resident memory of the supervisor in bytes.
fn resident(supervisor: &Supervisor) -> usize {
    let pid = supervisor.pid();
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
