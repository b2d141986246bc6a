//! What it takes a restored guest to write to 1,000 pages, with a working set and without.

use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::SMALL;
use crate::process::{Process, mayfly};
use crate::scene::{ApiProcess, Fixture, text};
use crate::table::{Row, median};

/// Turns of the event loop that a paused VM is given to make pages ready, of which it makes 64 in a turn.
const ROUNDS: usize = 50;

/// Of every eight pages, so many are written to.
#[derive(Clone, Copy)]
struct Pattern {
    byte: u8,
    /// What a guest that is loaded and resumed later needs, against one without a set.
    loaded: (&'static str, f64),
    /// The same from the start of the process.
    spawned: (&'static str, f64),
}

/// The goal is that runs are touched 2.5 times as quickly, and that a set never costs time: not where each page stands alone and
/// is left to the guest. A twentieth is what two medians of the same differ by.
const PATTERNS: [Pattern; 3] = [
    Pattern {
        byte: b'8',
        loaded: ("first touch of 1,000 pages in a row: with a set", 0.4),
        spawned: ("the same from spawn", 1.0),
    },
    Pattern {
        byte: b'4',
        loaded: ("first touch of 1,000 pages in runs of 4: with a set", 0.4),
        spawned: ("the same from spawn", 1.0),
    },
    Pattern {
        byte: b'1',
        loaded: ("first touch of 1,000 single pages: with a set", 1.05),
        spawned: ("the same from spawn", 1.05),
    },
];

/// Guests that touch pages, by turns with a set and without.
pub fn first(scene: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let snapshot = text(&scene.snapshot("toucher", SMALL)?);
    let set = text(&scene.new_directory("sets")?.join("set"));
    let mut rows = Vec::new();
    for pattern in PATTERNS {
        record(&snapshot, &set, pattern.byte)?;
        let options = ["--working-set", &set];
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let taken = [
                loaded(&snapshot, &options, pattern.byte)?,
                loaded(&snapshot, &[], pattern.byte)?,
                spawned(&snapshot, &options, pattern.byte)?,
                spawned(&snapshot, &[], pattern.byte)?,
            ];
            times
                .iter_mut()
                .zip(taken)
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

/// Has a working set recorded in which the pages of the pattern are.
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
    process.0.wait()?;
    match Path::new(set).exists() {
        true => Ok(()),
        false => Err(io::Error::other("no working set was recorded")),
    }
}

/// From the byte that a restored guest waits for to the one that it answers when it has touched all pages.
fn loaded(snapshot: &str, options: &[&str], byte: u8) -> io::Result<Duration> {
    let mut live = ApiProcess::start(&[&["restore", snapshot, "--paused"], options].concat())?;
    for _ in 0..ROUNDS {
        live.ask("GET", "/", "")?;
    }
    live.ask("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
    let start = Instant::now();
    send(&mut live.process, byte)?;
    live.process.read(1)?;
    Ok(start.elapsed())
}

/// The same from the start of the process, which finds the byte in its input.
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
