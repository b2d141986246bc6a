//! What snapshots cost, side by side with the least that they could: `make restore`. ROUNDS in the environment changes the number of
//! rounds. All files are in /dev/shm, so that no disk is measured.

#![allow(missing_docs, reason = "a program")]

#[path = "../control/process.rs"]
#[allow(dead_code, reason = "benchmarks of the control socket use all of it")]
mod process;
mod scene;
mod table;
mod touch;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use process::{Process, directory, mayfly};
use scene::{ApiProcess, Fixture, text};
use table::{Row, median};

/// Sizes of the guests, in MiB.
const SMALL: u32 = 128;
const LARGE: u32 = 2048;

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(50);
    let measured = Fixture::new().and_then(|scene| measure(&scene, rounds));
    let _ = fs::remove_dir_all(directory());
    match measured {
        Ok(rows) => table::print(rounds, &rows),
        Err(error) => {
            eprintln!("{error}: run make restore, which builds what is needed");
            ExitCode::FAILURE
        }
    }
}

fn measure(scene: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let mut rows = spawn(scene, rounds)?;
    rows.push(resume(scene, rounds)?);
    rows.extend(full(scene, rounds)?);
    for mib in [SMALL, LARGE] {
        rows.extend(again(scene, mib, rounds)?);
    }
    rows.extend(touch::first(scene, rounds)?);
    Ok(rows)
}

/// From the start of a process to the guest's next byte.
fn first_byte(program: &Path, arguments: &[&str]) -> io::Result<Duration> {
    let start = Instant::now();
    let mut process = Process::start(program, arguments)?;
    process.read(1)?;
    Ok(start.elapsed())
}

/// Restores of a small and a large guest, by turns with those of the floor, so that whatever else the machine does hits all alike.
fn spawn(scene: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let mut snapshots = Vec::new();
    for mib in [SMALL, LARGE] {
        let own = scene.snapshot("chatter", mib)?;
        snapshots.push((text(&own), text(&scene.floor_snapshot(mib)?)));
    }
    let mut times = [const { Vec::new() }; 4];
    // The first two rounds fill the page cache and are not counted.
    for round in 0..rounds + 2 {
        let mut taken = Vec::new();
        for (own, floor) in &snapshots {
            taken.push(first_byte(&mayfly(), &["restore", own])?);
            taken.push(first_byte(&scene.floor, &["restore", floor])?);
        }
        if round >= 2 {
            times
                .iter_mut()
                .zip(taken)
                .for_each(|(times, time)| times.push(time));
        }
    }
    let [own, floor, own_large, floor_large] =
        times.map(|times: Vec<Duration>| median(times).as_secs_f64() * 1e6);
    let of_size = (floor_large - floor).max(0.0);
    Ok(vec![
        Row::ratio("restore, 128 MiB: spawn to the next byte", own, floor, 1.4),
        Row::ratio(
            "restore, 2 GiB: spawn to the next byte",
            own_large,
            floor_large,
            1.4,
        ),
        // The slot's own cost, which the floor has too, is not mayfly's.
        Row::ratio(
            "restore, 2 GiB less the floor's more, and 128 MiB",
            own_large - of_size,
            own,
            1.1,
        ),
    ])
}

/// From the request to resume a loaded VM to the guest's next byte.
fn resume(scene: &Fixture, rounds: usize) -> io::Result<Row> {
    let snapshot = text(&scene.snapshot("chatter", SMALL)?);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut live = ApiProcess::start(&["restore", &snapshot, "--paused"])?;
        live.ask("GET", "/", "")?;
        let start = Instant::now();
        live.send("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
        live.process.read(1)?;
        times.push(start.elapsed());
    }
    let micros = median(times).as_secs_f64() * 1e6;
    Ok(Row::limit(
        "PATCH /vm Resumed to the next byte",
        micros,
        "us",
        150.0,
    ))
}

/// Full snapshots of a guest that has touched 2 MiB.
fn full(scene: &Fixture, rounds: usize) -> io::Result<[Row; 2]> {
    let mut live = ApiProcess::start(&["run", &process::guest("touch"), "--memory", "128M"])?;
    live.process.read("touched 512 pages\n".len())?;
    live.ask("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
    let folder = scene.new_directory("full")?;
    let mut times = Vec::new();
    let mut kib = 0.0;
    for _ in 0..rounds {
        times.push(create(&mut live, "Full", &folder)?);
        kib = f64::from(u32::try_from(on_disk(&folder)? >> 10).unwrap_or(u32::MAX));
        empty(&folder)?;
    }
    let millis = median(times).as_secs_f64() * 1e3;
    Ok([
        Row::limit("create Full, 2 MiB of 128 touched", millis, "ms", 5.0),
        Row::limit("its files on disk", kib, "KiB", 2560.0),
    ])
}

/// Snapshots, of both kinds, of a restored guest that has just written to 256 pages, as the floor's has: they are as warm.
fn again(scene: &Fixture, mib: u32, rounds: usize) -> io::Result<[Row; 2]> {
    let snapshot = text(&scene.snapshot("writer", mib)?);
    let floor_snapshot = text(&scene.floor_snapshot(mib)?);
    let mut live = ApiProcess::start(&["restore", &snapshot])?;
    let folder = scene.new_directory("difference")?;
    let (mut full, mut own, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        write_and_pause(&mut live)?;
        own.push(create(&mut live, "Diff", &folder)?);
        resume_again(&mut live)?;
        empty(&folder)?;
        floor.push(least_difference(scene, &floor_snapshot, &folder)?);
        empty(&folder)?;
    }
    for _ in 0..rounds {
        write_and_pause(&mut live)?;
        full.push(create(&mut live, "Full", &folder)?);
        resume_again(&mut live)?;
        empty(&folder)?;
    }
    let [difference, whole] = match mib {
        SMALL => [
            "create Diff, 256 pages, 128 MiB",
            "create Full of the same, 128 MiB",
        ],
        _ => ["create Diff, 256 pages, 2 GiB", "create Full of the same, 2 GiB"],
    };
    let [full, own, floor] = [full, own, floor].map(|times| median(times).as_secs_f64() * 1e6);
    Ok([
        Row::ratio(difference, own, floor, 1.3),
        Row::limit(whole, full / 1e3, "ms", 5.0),
    ])
}

/// Has the floor make a difference: it waits to be asked and answers, as mayfly does.
fn least_difference(scene: &Fixture, snapshot: &str, folder: &Path) -> io::Result<Duration> {
    let mut process = Process::start(&scene.floor, &["diff", snapshot, &text(folder)])?;
    process.read(1)?;
    let start = Instant::now();
    process.prod()?;
    process.read(1)?;
    Ok(start.elapsed())
}

/// Has the writer write to its pages.
fn write_and_pause(live: &mut ApiProcess) -> io::Result<()> {
    live.process.prod()?;
    live.process.read(1)?;
    live.ask("PATCH", "/vm", r#"{"state":"Paused"}"#)
}

fn resume_again(live: &mut ApiProcess) -> io::Result<()> {
    live.ask("PATCH", "/vm", r#"{"state":"Resumed"}"#)
}

/// Has a paused VM make a snapshot in `folder`.
fn create(live: &mut ApiProcess, kind: &str, folder: &Path) -> io::Result<Duration> {
    let (state, memory) = (folder.join("state"), folder.join("memory"));
    let body = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"{}","mem_file_path":"{}"}}"#,
        state.display(),
        memory.display()
    );
    let start = Instant::now();
    live.ask("PUT", "/snapshot/create", &body)?;
    Ok(start.elapsed())
}

fn on_disk(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.metadata()?.blocks() * 512))
        .sum()
}

fn empty(folder: &Path) -> io::Result<()> {
    fs::read_dir(folder)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}
