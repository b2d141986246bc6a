//! Measures the cost of the API socket against the floor: `make control`. ROUNDS in the environment sets the
//! number of rounds.

#![allow(missing_docs, reason = "a program")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
mod process;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use process::{Process, compile, connect, directory, guest, mayfly, pin, put, request_text};

/// Requests on one connection.
const REQUESTS: u32 = 10_000;
/// Default guest memory in bytes.
const MEMORY: u64 = 128 << 20;
/// Time between the preparation of a process and its start.
const PAUSE: Duration = Duration::from_millis(5);
/// Requests before memory is measured, so that their allocations exist.
const WARM: usize = 1000;

/// Row of the table.
struct Row {
    name: &'static str,
    own: f64,
    floor: f64,
    unit: &'static str,
    reached: f64,
    goal: f64,
    at_most: bool,
}

impl Row {
    fn is_missed(&self) -> bool {
        if self.at_most {
            self.reached > self.goal
        } else {
            self.reached < self.goal
        }
    }
}

fn main() -> ExitCode {
    let rounds = env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200);
    let measured = fs::create_dir_all(directory()).and_then(|()| measure(rounds));
    let _ = fs::remove_dir_all(directory());
    let rows = match measured {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("{error}; run `make control`, which builds the programs");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "medians of {rounds} rounds; load {}",
        fs::read_to_string("/proc/loadavg").unwrap_or_default().trim()
    );
    println!(
        "{:<46} {:>12} {:>12} {:>12} {:>12}",
        "", "mayfly", "floor", "result", "goal"
    );
    for row in &rows {
        let relation = if row.at_most { "<=" } else { ">=" };
        println!(
            "{:<46} {:>8.1} {:<3} {:>8.1} {:<3} {:>12.2} {relation} {:>9.2}",
            row.name, row.own, row.unit, row.floor, row.unit, row.reached, row.goal
        );
    }
    let missed: Vec<&Row> = rows.iter().filter(|row| row.is_missed()).collect();
    missed
        .iter()
        .for_each(|row| println!("missed goal: {}", row.name));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn measure(rounds: usize) -> io::Result<Vec<Row>> {
    Ok(vec![
        socket(rounds)?,
        start(rounds, true)?,
        start(rounds, false)?,
        rate()?,
        memory(rounds.div_ceil(20))?,
    ])
}

/// Creates a row for the ratio of two medians.
fn ratio(name: &'static str, own: Vec<Duration>, floor: Vec<Duration>, goal: f64) -> Row {
    let micros = |durations: Vec<Duration>| median(durations).as_secs_f64() * 1e6;
    let (own, floor) = (micros(own), micros(floor));
    Row {
        name,
        own,
        floor,
        unit: "us",
        reached: own / floor,
        goal,
        at_most: true,
    }
}

/// Measures the time from the start of a process until its socket accepts a connection.
fn socket(rounds: usize) -> io::Result<Row> {
    let listen = compile("listen", &["control/listen.c"])?;
    let path = directory().join("s");
    let text = path.to_string_lossy().into_owned();
    let once = |program: &Path, arguments: &[&str]| {
        let _ = fs::remove_file(&path);
        let start = Instant::now();
        let process = Process::start(program, arguments)?;
        let stream = connect(&path);
        let elapsed = start.elapsed();
        drop((process, stream));
        io::Result::Ok(elapsed)
    };
    let (mut own, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(once(&mayfly(), &["--api-sock", &text])?);
        floor.push(once(&listen, &[&text])?);
    }
    Ok(ratio("process start to a connectable socket", own, floor, 1.2))
}

/// Starts mayfly with an API socket at `path` and configures a guest without starting it.
fn ready(path: &Path, name: &str) -> io::Result<(Process, UnixStream)> {
    let _ = fs::remove_file(path);
    let process = Process::start(&mayfly(), &["--api-sock", &path.to_string_lossy()])?;
    let mut stream = connect(path);
    put(
        &mut stream,
        "/boot-source",
        &format!("{{\"kernel_image_path\":\"{}\",\"boot_args\":\"\"}}", guest(name)),
    )?;
    Ok((process, stream))
}

const START: &str = r#"{"action_type":"InstanceStart"}"#;

/// Measures the time from the InstanceStart request to the guest's first byte, with or without a size of memory
/// in advance.
fn start(rounds: usize, has_memory: bool) -> io::Result<Row> {
    let floor_program = compile("wait", &["-pthread", "control/wait.c"])?;
    let (path, floor_path) = (directory().join("s"), directory().join("f"));
    let floor_text = floor_path.to_string_lossy().into_owned();
    let (name, slot) = match has_memory {
        true => ("InstanceStart to the guest's first byte", "slot"),
        false => ("the same without PUT /machine-config", "no-slot"),
    };
    let (mut own, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut process, mut stream) = ready(&path, "hello")?;
        if has_memory {
            put(
                &mut stream,
                "/machine-config",
                r#"{"vcpu_count":1,"mem_size_mib":128}"#,
            )?;
        }
        // The process has prepared its VM.
        thread::sleep(PAUSE);
        own.push(time_start(&mut process, &mut stream)?);
        let _ = fs::remove_file(&floor_path);
        let mut process = Process::start(&floor_program, &[&floor_text, "128", slot])?;
        let mut stream = connect(&floor_path);
        process.read(1)?;
        thread::sleep(PAUSE);
        floor.push(time_start(&mut process, &mut stream)?);
    }
    Ok(ratio(name, own, floor, 1.3))
}

/// Sends the InstanceStart request. Returns the time to the guest's first byte.
fn time_start(process: &mut Process, stream: &mut UnixStream) -> io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(request_text("PUT", "/actions", START).as_bytes())?;
    process.read(1)?;
    Ok(start.elapsed())
}

/// Measures the rate of requests on one connection. Both sides are pinned to one processor: on two, they wait
/// for each other's wake-ups.
fn rate() -> io::Result<Row> {
    let path = directory().join("s");
    let _ = fs::remove_file(&path);
    let process = Process::start(&mayfly(), &["--api-sock", &path.to_string_lossy()])?;
    pin(process.0.id())?;
    let client = thread::spawn(move || {
        pin(0)?;
        let mut stream = connect(&path);
        let request = request_text("GET", "/", "").replace("Content-Length: 0\r\n", "");
        let mut response = [0; 1024];
        let start = Instant::now();
        for _ in 0..REQUESTS {
            stream.write_all(request.as_bytes())?;
            let length = stream.read(&mut response)?;
            if !response[..length].starts_with(b"HTTP/1.1 200 ") || !response[..length].ends_with(b"}") {
                return Err(io::Error::other(
                    String::from_utf8_lossy(&response[..length]).into_owned(),
                ));
            }
        }
        Ok(start.elapsed())
    });
    let elapsed = scratch::join(client)?;
    let reached = f64::from(REQUESTS) / elapsed.as_secs_f64();
    let micros = elapsed.as_secs_f64() * 1e6 / f64::from(REQUESTS);
    let name = "GET / requests per second, one connection";
    Ok(Row {
        name,
        own: micros,
        floor: 0.0,
        unit: "us",
        reached,
        goal: 20_000.0,
        at_most: false,
    })
}

/// Measures the private memory of mayfly in KiB with an API socket and without.
fn memory(rounds: usize) -> io::Result<Row> {
    let path = directory().join("s");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut process = Process::start(&mayfly(), &["run", &guest("ticker")])?;
        process.read(20)?;
        without.push(process.private_kib(MEMORY)?);
        // Two processes at once would share the pages of the program, which makes the private memory of each
        // smaller.
        drop(process);
        let (mut process, mut stream) = ready(&path, "ticker")?;
        put(&mut stream, "/actions", START)?;
        for _ in 0..WARM {
            stream.write_all(
                request_text("GET", "/version", "")
                    .replace("Content-Length: 0\r\n", "")
                    .as_bytes(),
            )?;
            let _ = stream.read(&mut [0; 1024])?;
        }
        process.read(20)?;
        with.push(process.private_kib(MEMORY)?);
    }
    let [own, floor] = [with, without].map(|kib| f64::from(i32::try_from(median(kib)).unwrap_or(i32::MAX)));
    let name = "extra private memory with an API socket";
    Ok(Row {
        name,
        own,
        floor,
        unit: "KiB",
        reached: own - floor,
        goal: 200.0,
        at_most: true,
    })
}

/// Returns the median.
fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort();
    values[values.len() / 2]
}
