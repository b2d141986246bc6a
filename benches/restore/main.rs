//! Measures the cost of snapshots against the floor: `make restore`. ROUNDS in the environment sets the
//! number of rounds. All files are in /dev/shm, so that no disk affects the results.

#![allow(missing_docs, reason = "a program")]

mod fixture;
#[path = "../control/process.rs"]
#[allow(dead_code, reason = "only the benchmark of the API socket uses all of it")]
mod process;
mod shell;
mod table;
mod touch;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use fixture::{ApiProcess, Fixture, text};
use process::{Process, directory, mayfly};
use table::{Row, median};

/// Memory sizes of the guests in MiB.
const SMALL: u32 = 128;
const LARGE: u32 = 2048;

/// Time between the preparation of a process and its load.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(50);
    let measured = Fixture::new().and_then(|fixture| measure(&fixture, rounds));
    let _ = fs::remove_dir_all(directory());
    match measured {
        Ok(rows) => table::print(rounds, &rows),
        Err(error) => {
            eprintln!("{error}; run `make restore`, which builds the programs");
            ExitCode::FAILURE
        }
    }
}

fn measure(fixture: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let mut rows = spawn(fixture, rounds)?;
    rows.push(load(fixture, rounds)?);
    rows.push(shell::load(fixture, SMALL, rounds)?);
    rows.push(shell::load(fixture, LARGE, rounds)?);
    rows.push(shell::memory(fixture, SMALL)?);
    rows.push(resume(fixture, rounds)?);
    rows.extend(full(fixture, rounds)?);
    rows.extend(suspend(fixture, rounds)?);
    for mib in [SMALL, LARGE] {
        rows.extend(repeated(fixture, mib, rounds)?);
    }
    rows.extend(touch::first(fixture, rounds)?);
    Ok(rows)
}

/// Measures the time from the start of a process to the guest's next byte.
fn first_byte(program: &Path, arguments: &[&str]) -> io::Result<Duration> {
    let start = Instant::now();
    let mut process = Process::start(program, arguments)?;
    process.read(1)?;
    Ok(start.elapsed())
}

/// Alternates restores of a small and a large guest with those of the floor, so that other load of the host
/// affects all alike.
fn spawn(fixture: &Fixture, rounds: usize) -> io::Result<Vec<Row>> {
    let mut snapshots = Vec::new();
    for mib in [SMALL, LARGE] {
        let own = fixture.snapshot("chatter", mib)?;
        snapshots.push((text(&own), text(&fixture.floor_snapshot(mib)?)));
    }
    let mut times = [const { Vec::new() }; 4];
    // The first two rounds fill the page cache and do not count.
    for round in 0..rounds + 2 {
        let mut durations = Vec::new();
        for (own, floor) in &snapshots {
            durations.push(first_byte(&mayfly(), &["restore", own])?);
            durations.push(first_byte(&fixture.floor, &["restore", floor])?);
        }
        if round >= 2 {
            times
                .iter_mut()
                .zip(durations)
                .for_each(|(times, time)| times.push(time));
        }
    }
    let [own, floor, own_large, floor_large] =
        times.map(|times: Vec<Duration>| median(times).as_secs_f64() * 1e6);
    let size_cost = (floor_large - floor).max(0.0);
    Ok(vec![
        Row::ratio("restore, 128 MiB: spawn to the next byte", own, floor, 1.4),
        Row::ratio(
            "restore, 2 GiB: spawn to the next byte",
            own_large,
            floor_large,
            1.4,
        ),
        // The cost of a larger memory slot, which the floor has too, is not mayfly's.
        Row::ratio(
            "restore, 2 GiB less the floor's extra, to 128 MiB",
            own_large - size_cost,
            own,
            1.1,
        ),
    ])
}

/// Measures the time from the request to load and resume a snapshot in a waiting process to the guest's next byte.
fn load(fixture: &Fixture, rounds: usize) -> io::Result<Row> {
    let snapshot = text(&fixture.snapshot("chatter", SMALL)?);
    let floor_snapshot = text(&fixture.floor_snapshot(SMALL)?);
    let body = format!(
        r#"{{"snapshot_path":"{snapshot}/state","mem_backend":{{"backend_type":"File","backend_path":"{snapshot}/memory"}},"resume_vm":true}}"#
    );
    let once = |mut vm: ApiProcess| {
        // The process has prepared its VM.
        thread::sleep(PAUSE);
        let start = Instant::now();
        vm.send("PUT", "/snapshot/load", &body)?;
        vm.process.read(1)?;
        io::Result::Ok(start.elapsed())
    };
    let (mut own, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(once(ApiProcess::start(&[])?)?);
        floor.push(once(ApiProcess::wait(&fixture.floor, &floor_snapshot)?)?);
    }
    let [own, floor] = [own, floor].map(|times| median(times).as_secs_f64() * 1e6);
    Ok(Row::ratio(
        "load in a waiting process: request to next byte",
        own,
        floor,
        1.3,
    ))
}

/// Measures the time from the request to resume a loaded VM to the guest's next byte.
fn resume(fixture: &Fixture, rounds: usize) -> io::Result<Row> {
    let snapshot = text(&fixture.snapshot("chatter", SMALL)?);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut vm = ApiProcess::start(&["restore", &snapshot, "--paused"])?;
        vm.request("GET", "/", "")?;
        let start = Instant::now();
        vm.send("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
        vm.process.read(1)?;
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

/// Measures full snapshots of a guest that has touched 2 MiB.
fn full(fixture: &Fixture, rounds: usize) -> io::Result<[Row; 2]> {
    let mut vm = ApiProcess::start(&["run", &process::guest("touch"), "--memory", "128M"])?;
    vm.process.read("touched 512 pages\n".len())?;
    vm.request("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
    let directory_path = fixture.new_directory("full")?;
    let mut times = Vec::new();
    let mut kib = 0.0;
    for _ in 0..rounds {
        times.push(create(&mut vm, "Full", &directory_path)?);
        kib = f64::from(u32::try_from(disk_usage(&directory_path)? >> 10).unwrap_or(u32::MAX));
        clear(&directory_path)?;
    }
    let millis = median(times).as_secs_f64() * 1e3;
    Ok([
        Row::limit("create Full, 2 MiB of 128 touched", millis, "ms", 5.0),
        Row::limit("size of its files on disk", kib, "KiB", 2560.0),
    ])
}

/// Measures the time from a request to suspend a guest that has touched 2 MiB to the end of the process, against its parts: a full
/// snapshot by request, and the end of a killed process.
fn suspend(fixture: &Fixture, rounds: usize) -> io::Result<[Row; 2]> {
    let directory_path = fixture.new_directory("suspend")?;
    let parts_path = fixture.new_directory("parts")?;
    let path = text(&directory_path);
    let start = || {
        let guest = process::guest("touch");
        let mut vm = ApiProcess::start(&["run", &guest, "--memory", "128M", "--suspend-to", &path])?;
        vm.process.read("touched 512 pages\n".len())?;
        io::Result::Ok(vm)
    };
    let (mut own, mut parts) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut vm = start()?;
        let begin = Instant::now();
        vm.send("PATCH", "/scale-to-zero", r#"{"action":"Suspend"}"#)?;
        wait_end(&mut vm)?;
        own.push(begin.elapsed());
        let mut vm = start()?;
        let begin = Instant::now();
        vm.request("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
        create(&mut vm, "Full", &parts_path)?;
        vm.process.0.kill()?;
        wait_end(&mut vm)?;
        parts.push(begin.elapsed());
        clear(&parts_path)?;
    }
    let [own, parts] = [own, parts].map(|times| median(times).as_secs_f64() * 1e6);
    Ok([
        Row::limit(
            "suspend, 2 MiB of 128 touched: to process gone",
            own / 1e3,
            "ms",
            5.0,
        ),
        Row::ratio("the same to its parts: pause, create Full, kill", own, parts, 1.3),
    ])
}

/// Measures full and diff snapshots of a restored guest that has just written to 256 pages. The floor's guest
/// does the same before its snapshot, so both have warm caches.
fn repeated(fixture: &Fixture, mib: u32, rounds: usize) -> io::Result<[Row; 2]> {
    let snapshot = text(&fixture.snapshot("writer", mib)?);
    let floor_snapshot = text(&fixture.floor_snapshot(mib)?);
    let mut vm = ApiProcess::start(&["restore", &snapshot])?;
    let directory_path = fixture.new_directory("diff")?;
    let (mut full, mut own, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        write_and_pause(&mut vm)?;
        own.push(create(&mut vm, "Diff", &directory_path)?);
        resume_vm(&mut vm)?;
        clear(&directory_path)?;
        floor.push(floor_diff(fixture, &floor_snapshot, &directory_path)?);
        clear(&directory_path)?;
    }
    for _ in 0..rounds {
        write_and_pause(&mut vm)?;
        full.push(create(&mut vm, "Full", &directory_path)?);
        resume_vm(&mut vm)?;
        clear(&directory_path)?;
    }
    let [diff_name, full_name] = match mib {
        SMALL => [
            "create Diff, 256 pages, 128 MiB",
            "create Full of the same, 128 MiB",
        ],
        _ => ["create Diff, 256 pages, 2 GiB", "create Full of the same, 2 GiB"],
    };
    let [full, own, floor] = [full, own, floor].map(|times| median(times).as_secs_f64() * 1e6);
    Ok([
        Row::ratio(diff_name, own, floor, 1.3),
        Row::limit(full_name, full / 1e3, "ms", 5.0),
    ])
}

/// Measures a diff snapshot of the floor, which waits for a request and responds, like mayfly.
fn floor_diff(fixture: &Fixture, snapshot: &str, directory_path: &Path) -> io::Result<Duration> {
    let mut process = Process::start(&fixture.floor, &["diff", snapshot, &text(directory_path)])?;
    process.read(1)?;
    let start = Instant::now();
    process.send_byte()?;
    process.read(1)?;
    Ok(start.elapsed())
}

/// Waits for the end of the process. Polls without sleep, for precision.
fn wait_end(vm: &mut ApiProcess) -> io::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if vm.process.0.try_wait()?.is_some() {
            return Ok(());
        }
        thread::yield_now();
    }
    Err(io::Error::other("the process does not end"))
}

/// Makes the writer guest write to its pages, then pauses the VM.
fn write_and_pause(vm: &mut ApiProcess) -> io::Result<()> {
    vm.process.send_byte()?;
    vm.process.read(1)?;
    vm.request("PATCH", "/vm", r#"{"state":"Paused"}"#)
}

fn resume_vm(vm: &mut ApiProcess) -> io::Result<()> {
    vm.request("PATCH", "/vm", r#"{"state":"Resumed"}"#)
}

/// Creates a snapshot of a paused VM in `directory_path`. Returns the duration.
fn create(vm: &mut ApiProcess, kind: &str, directory_path: &Path) -> io::Result<Duration> {
    let (state, memory) = (directory_path.join("state"), directory_path.join("memory"));
    let body = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"{}","mem_file_path":"{}"}}"#,
        state.display(),
        memory.display()
    );
    let start = Instant::now();
    vm.request("PUT", "/snapshot/create", &body)?;
    Ok(start.elapsed())
}

fn disk_usage(directory_path: &Path) -> io::Result<u64> {
    fs::read_dir(directory_path)?
        .map(|entry| Ok(entry?.metadata()?.blocks() * 512))
        .sum()
}

fn clear(directory_path: &Path) -> io::Result<()> {
    fs::read_dir(directory_path)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}
