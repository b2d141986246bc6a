//! Time of a restored guest to write to 1,000 pages, with and without a working set.

use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::SMALL;
use crate::fixture::{ApiProcess, Fixture, text};
use crate::process::{Process, mayfly};
use crate::table::{Row, median};

/// Iterations of the event loop in which a paused VM prefetches pages, 64 in each.
const ITERATIONS: usize = 50;

/// Number of written pages of every eight.
#[derive(Clone, Copy)]
struct Pattern {
    byte: u8,
    /// Name and goal for a guest that is resumed some time after its load. The baseline has no working set.
    loaded: (&'static str, f64),
    /// Name and goal, measured from the start of the process.
    spawned: (&'static str, f64),
}

/// With a working set, page ranges are touched 2.5 times as fast. Single pages are populated only while the VM is paused;
/// a working set must not cost time there. Two medians of the same measurement differ by up to a twentieth.
const PATTERNS: [Pattern; 3] = [
    Pattern {
        byte: b'8',
        loaded: ("first touch, range of 1,000 pages, working set", 0.4),
        spawned: ("the same from spawn", 1.0),
    },
    Pattern {
        byte: b'4',
        loaded: ("first touch, 1,000 pages in ranges of 4, working set", 0.4),
        spawned: ("the same from spawn", 1.0),
    },
    Pattern {
        byte: b'1',
        loaded: ("first touch, 1,000 single pages, working set", 1.05),
        spawned: ("the same from spawn", 1.05),
    },
];

/// Measures first touches, alternating with and without a working set.
pub fn first(fixture: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let snapshot = text(&fixture.snapshot("toucher", SMALL)?);
    let set = text(&fixture.new_directory("sets")?.join("set"));
    let mut rows = Vec::new();
    for pattern in PATTERNS {
        record(&snapshot, &set, pattern.byte)?;
        let options = ["--working-set", &set];
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let durations = [
                loaded(&snapshot, &options, pattern.byte)?,
                loaded(&snapshot, &[], pattern.byte)?,
                spawned(&snapshot, &options, pattern.byte)?,
                spawned(&snapshot, &[], pattern.byte)?,
            ];
            times
                .iter_mut()
                .zip(durations)
                .for_each(|(times, time)| times.push(time));
        }
        let [with, without, spawn_with, spawn_without] =
            times.map(|times: Vec<Duration>| median(times).as_secs_f64() * 1e6);
        let (name, goal) = pattern.loaded;
        rows.push(Row::ratio(name, with, without, goal));
        let (name, goal) = pattern.spawned;
        rows.push(Row::ratio(name, spawn_with, spawn_without, goal));
    }
    Ok(rows)
}

/// Records a working set with the pages of the pattern.
fn record(snapshot: &str, set: &str, byte: u8) -> io::Result<()> {
    let options = ["--record-working-set", set, "--record-ms", "600000"];
    let mut process = Process::start(&mayfly(), &[&["restore", snapshot], &options[..]].concat())?;
    send(&mut process, byte)?;
    process.read(1)?;
    let id = libc::pid_t::try_from(process.0.id()).map_err(io::Error::other)?;
    // SAFETY: the call takes no pointers, and the process is a child that has not been waited for.
    if unsafe { libc::kill(id, libc::SIGTERM) } != 0 {
        return Err(io::Error::last_os_error());
    }
    scratch::wait_exit(&mut process.0);
    match Path::new(set).exists() {
        true => Ok(()),
        false => Err(io::Error::other("mayfly has not recorded a working set")),
    }
}

/// Measures the time from the byte sent to a restored guest to its response, when it has touched all pages.
fn loaded(snapshot: &str, options: &[&str], byte: u8) -> io::Result<Duration> {
    let mut vm = ApiProcess::start(&[&["restore", snapshot, "--paused"], options].concat())?;
    for _ in 0..ITERATIONS {
        vm.request("GET", "/", "")?;
    }
    vm.request("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
    let start = Instant::now();
    send(&mut vm.process, byte)?;
    vm.process.read(1)?;
    Ok(start.elapsed())
}

/// Measures the time from the start of the process, with the byte already in its input, to the response.
fn spawned(snapshot: &str, options: &[&str], byte: u8) -> io::Result<Duration> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(&[byte])?;
    let mut command = std::process::Command::new(mayfly());
    command.args(["restore", snapshot]).args(options);
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::null());
    let start = Instant::now();
    let mut process = Process(command.spawn()?);
    process.read(1)?;
    Ok(start.elapsed())
}

fn send(process: &mut Process, byte: u8) -> io::Result<()> {
    let input = process.0.stdin.as_mut();
    let input = input.ok_or_else(|| io::Error::other("no pipe"))?;
    input.write_all(&[byte])
}
