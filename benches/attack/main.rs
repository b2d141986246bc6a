//! Measures the delay of answers while a guest attacks the VMM: `make attack`. ROUNDS in the environment sets the
//! number of processes for each attack.

#![allow(missing_docs, reason = "a program")]

#[path = "../control/process.rs"]
#[allow(dead_code, reason = "only the benchmark of the API socket uses all of it")]
mod process;

use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use process::{Process, connect, directory, guest, mayfly, put, request_text};

/// Limit of the 99th percentile of each action.
const GOAL: Duration = Duration::from_millis(100);
/// Requests, and pauses, of each process.
const REQUESTS: usize = 20;
/// Time before each action, in which the attack proceeds.
const INTERVAL: Duration = Duration::from_millis(5);
const BLOCK: usize = 4096;
/// Allocated blocks of a disk for discards, every other one.
const BLOCKS: u64 = 4 << 10;
/// Bytes of a disk for flushes and resets, which only the page cache holds.
const DIRTY: usize = 64 << 20;
/// Attacks of resources/guests/attack.c, and the I/O engines to attack.
const ATTACKS: [(&str, &[&str]); 7] = [
    ("none", &["Sync"]),
    ("discard", &["Sync", "Async"]),
    ("flush", &["Sync", "Async"]),
    ("reset", &["Sync", "Async"]),
    ("ports", &["Sync"]),
    ("mmio", &["Sync"]),
    ("interrupts", &["Sync"]),
];

/// Row of the table.
struct Row {
    attack: &'static str,
    engine: &'static str,
    action: &'static str,
    /// Sorted.
    samples: Vec<Duration>,
}

impl Row {
    fn percentile(&self, percent: usize) -> Duration {
        self.samples[(self.samples.len() * percent).div_ceil(100) - 1]
    }
}

fn main() -> ExitCode {
    let rounds = env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20);
    let measured = fs::create_dir_all(directory()).and_then(|()| measure(rounds));
    let _ = fs::remove_dir_all(directory());
    let rows = match measured {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("{error}; run `make attack`, which builds the programs");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{rounds} processes for each attack; load {}",
        fs::read_to_string("/proc/loadavg").unwrap_or_default().trim()
    );
    println!(
        "{:<12} {:<6} {:<8} {:>8} {:>11} {:>11} {:>11}  goal: 99 % within {GOAL:?}",
        "attack", "engine", "action", "samples", "median", "99 %", "maximum"
    );
    let mut is_missed = false;
    for row in &rows {
        let [median, high, maximum] = [50, 99, 100].map(|percent| row.percentile(percent));
        println!(
            "{:<12} {:<6} {:<8} {:>8} {:>8.2} ms {:>8.2} ms {:>8.2} ms{}",
            row.attack,
            row.engine,
            row.action,
            row.samples.len(),
            median.as_secs_f64() * 1e3,
            high.as_secs_f64() * 1e3,
            maximum.as_secs_f64() * 1e3,
            if high > GOAL { "  missed" } else { "" }
        );
        is_missed |= high > GOAL;
    }
    if is_missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn measure(rounds: usize) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (attack, engines) in ATTACKS {
        for engine in engines {
            rows.extend(measure_attack(attack, engine, rounds)?);
        }
    }
    Ok(rows)
}

/// Measures `GET /`, pause, resume and SIGTERM under `attack`. A missing answer is an error.
fn measure_attack(attack: &'static str, engine: &'static str, rounds: usize) -> io::Result<[Row; 4]> {
    let disk = directory().join("disk");
    let mut rows = ["GET /", "pause", "resume", "SIGTERM"].map(|action| Row {
        attack,
        engine,
        action,
        samples: Vec::new(),
    });
    for _ in 0..rounds {
        create_disk(&disk, attack)?;
        let (mut process, mut client) = start(attack, engine, &disk.to_string_lossy())?;
        for _ in 0..REQUESTS {
            thread::sleep(INTERVAL);
            let begin = Instant::now();
            get(&mut client)?;
            rows[0].samples.push(begin.elapsed());
            for (row, state) in [(1, "Paused"), (2, "Resumed")] {
                thread::sleep(INTERVAL);
                let begin = Instant::now();
                patch(&mut client, &format!(r#"{{"state":"{state}"}}"#))?;
                rows[row].samples.push(begin.elapsed());
            }
        }
        thread::sleep(INTERVAL);
        let begin = Instant::now();
        let id = libc::pid_t::try_from(process.0.id()).map_err(io::Error::other)?;
        // SAFETY: the call takes no pointers, and the process is a child that has not been waited for.
        if unsafe { libc::kill(id, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error());
        }
        scratch::wait_exit(&mut process.0);
        rows[3].samples.push(begin.elapsed());
    }
    rows.iter_mut().for_each(|row| row.samples.sort_unstable());
    Ok(rows)
}

/// Creates a disk at `path` that takes long to discard or to flush.
fn create_disk(path: &Path, attack: &str) -> io::Result<()> {
    let file = fs::File::create(path)?;
    if attack != "discard" {
        return file.write_all_at(&vec![1; DIRTY], 0);
    }
    file.set_len(BLOCKS * 2 * BLOCK as u64)?;
    for block in 0..BLOCKS {
        file.write_all_at(&[1; BLOCK], block * 2 * BLOCK as u64)?;
    }
    file.sync_all()
}

/// Starts a guest with `attack`, or one that idles without an attack.
fn start(attack: &str, engine: &str, disk: &str) -> io::Result<(Process, UnixStream)> {
    let socket = directory().join("s");
    let _ = fs::remove_file(&socket);
    let mut process = Process::start(&mayfly(), &["--api-sock", &socket.to_string_lossy()])?;
    let mut client = connect(&socket);
    client.set_read_timeout(Some(scratch::TIMEOUT))?;
    let name = if attack == "none" { "ticker" } else { "attack" };
    let boot = format!(
        r#"{{"kernel_image_path":"{}","boot_args":"attack={attack}"}}"#,
        guest(name)
    );
    put(&mut client, "/boot-source", &boot)?;
    let drive = format!(
        r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}","cache_type":"Writeback","io_engine":"{engine}"}}"#
    );
    put(&mut client, "/drives/d", &drive)?;
    put(&mut client, "/actions", r#"{"action_type":"InstanceStart"}"#)?;
    process.read("begin\n".len())?;
    Ok((process, client))
}

fn get(client: &mut UnixStream) -> io::Result<()> {
    exchange(
        client,
        &request_text("GET", "/", "").replace("Content-Length: 0\r\n", ""),
        "200",
    )
}

fn patch(client: &mut UnixStream, body: &str) -> io::Result<()> {
    exchange(client, &request_text("PATCH", "/vm", body), "204")
}

/// Sends `request` and reads its response, which arrives in one piece, and must have `status`.
fn exchange(client: &mut UnixStream, request: &str, status: &str) -> io::Result<()> {
    client.write_all(request.as_bytes())?;
    let mut response = [0; 1024];
    let length = client.read(&mut response)?;
    let text = String::from_utf8_lossy(&response[..length]);
    match text.starts_with(&format!("HTTP/1.1 {status} ")) {
        true => Ok(()),
        false => Err(io::Error::other(text.into_owned())),
    }
}
