//! Measures the cost of dirty page tracking while the guest runs: `make tracking`. ROUNDS in the environment sets the number of
//! rounds, MAYFLY the binary. The guest rewrites pages; all files are in /dev/shm, so that no disk affects the results. The first table
//! is that of this process without KVM.

#![allow(missing_docs, reason = "a program")]

#[path = "control/process.rs"]
#[allow(dead_code, reason = "only the benchmark of the API socket uses all of it")]
mod process;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::memory::{self, DirtyTracker};

use process::{Process, connect, directory, guest, mayfly, request_text};

/// Pages that the guest rewrites.
const PAGES: u32 = 4096;

/// Runs the rest of the command with an empty /proc.
const WITHOUT_PROC: &str = "mount -t tmpfs proc /proc && exec \"$0\" \"$@\"";

/// Source of dirty pages.
#[derive(Clone, Copy)]
enum Source {
    Off,
    WriteProtect,
    Log,
}

impl Source {
    const ALL: [Self; 3] = [Self::Off, Self::WriteProtect, Self::Log];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "no tracking",
            Self::WriteProtect => "write-protection",
            Self::Log => "KVM's dirty log",
        }
    }
}

/// Times of one VM.
struct Times {
    /// Rewrite before the first snapshot, first and second rewrite after it.
    rewrites: [Duration; 3],
    full: Duration,
    diff: Duration,
}

struct Vm {
    process: Process,
    stream: UnixStream,
}

impl Vm {
    fn start(source: Source, files: &Path) -> io::Result<Self> {
        let socket = files.join("s");
        let _ = fs::remove_file(&socket);
        let program = std::env::var_os("MAYFLY").map_or_else(mayfly, PathBuf::from);
        let (program, path) = (program.to_string_lossy(), socket.to_string_lossy());
        let process = match source {
            Source::Log => Process::start(
                Path::new("unshare"),
                &["-m", "sh", "-c", WITHOUT_PROC, &program, "--api-sock", &path],
            ),
            Source::Off | Source::WriteProtect => {
                Process::start(Path::new(&*program), &["--api-sock", &path])
            }
        }?;
        let stream = connect(&socket);
        let mut vm = Self { process, stream };
        let is_tracked = !matches!(source, Source::Off);
        let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":{is_tracked}}}"#);
        vm.request("PUT", "/machine-config", &machine)?;
        let (image, mib) = (guest("touch"), PAGES / 256);
        let boot = format!(r#"{{"kernel_image_path":"{image}","boot_args":"mib={mib}"}}"#);
        vm.request("PUT", "/boot-source", &boot)?;
        vm.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#)?;
        vm.process.read(format!("touched {PAGES} pages\n").len())?;
        Ok(vm)
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        self.stream
            .write_all(request_text(method, path, body).as_bytes())?;
        let mut response = [0; 4096];
        let length = self.stream.read(&mut response)?;
        if response[..length].starts_with(b"HTTP/1.1 20") {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&response[..length]);
        Err(io::Error::other(text.into_owned()))
    }

    /// Waits until the guest has rewritten and checked its pages.
    fn rewrite(&mut self) -> io::Result<Duration> {
        let begin = Instant::now();
        let input = self.process.0.stdin.as_mut();
        input.ok_or(io::ErrorKind::BrokenPipe)?.write_all(b"w")?;
        self.process.read(format!("ok touch {PAGES} pages\n").len())?;
        Ok(begin.elapsed())
    }

    fn snapshot(&mut self, kind: &str, files: &Path) -> io::Result<Duration> {
        self.request("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
        let [state, memory] =
            ["state", "memory"].map(|name| files.join(format!("{kind}-{name}")).display().to_string());
        let body =
            format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        let begin = Instant::now();
        self.request("PUT", "/snapshot/create", &body)?;
        let took = begin.elapsed();
        self.request("PATCH", "/vm", r#"{"state":"Resumed"}"#)?;
        Ok(took)
    }
}

fn measure(source: Source, files: &Path) -> io::Result<Times> {
    let mut vm = Vm::start(source, files)?;
    // The first rewrite maps the pages; its time is that of a start.
    vm.rewrite()?;
    let before = vm.rewrite()?;
    let full = vm.snapshot("Full", files)?;
    let rewrites = [before, vm.rewrite()?, vm.rewrite()?];
    let _ = fs::remove_file(files.join("Diff-memory"));
    let diff = vm.snapshot("Diff", files)?;
    Ok(Times { rewrites, full, diff })
}

/// Returns the nanoseconds for each page: first write to absent memory, protection, first write after it, second write.
fn measure_process() -> io::Result<[u128; 4]> {
    let size = PAGES as usize * 4096;
    let guest = memory::allocate(&[(GuestAddress(0), size)]).map_err(io::Error::other)?;
    let tracker = DirtyTracker::select(false);
    let timed = |work: &dyn Fn() -> io::Result<()>| {
        let begin = Instant::now();
        work()?;
        Ok::<_, io::Error>(begin.elapsed().as_nanos() / u128::from(PAGES))
    };
    let write = || {
        let addresses = (0..u64::from(PAGES)).map(|page| GuestAddress(page * 4096));
        for address in addresses {
            guest.write_obj(1_u8, address).map_err(io::Error::other)?;
        }
        Ok(())
    };
    let protect = || {
        let no_log = |_, _| Ok(Vec::new());
        tracker.clear(&guest, &no_log).map_err(io::Error::other)
    };
    Ok([timed(&write)?, timed(&protect)?, timed(&write)?, timed(&write)?])
}

/// Prints the medians of `rounds` measurements of this process.
fn print_process(rounds: usize) -> io::Result<()> {
    let all = (0..rounds)
        .map(|_| measure_process())
        .collect::<io::Result<Vec<_>>>()?;
    let [touch, protect, first, second] = [0, 1, 2, 3].map(|at| {
        let mut values: Vec<u128> = all.iter().map(|times| times[at]).collect();
        values.sort_unstable();
        values[values.len() / 2]
    });
    println!("{rounds} rounds, medians in ns for each of {PAGES} pages");
    println!("| write to absent memory | write-protection | first write after it | second write |");
    println!("|---|---|---|---|");
    println!("| {touch} | {protect} | {first} | {second} |");
    println!();
    Ok(())
}

fn median(times: &[Times], value: impl Fn(&Times) -> Duration) -> u128 {
    let mut values: Vec<_> = times.iter().map(|times| value(times).as_micros()).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

fn run(rounds: usize, files: &Path) -> io::Result<()> {
    let mut times = Source::ALL.map(|_| Vec::new());
    for _ in 0..rounds {
        for (source, times) in Source::ALL.into_iter().zip(&mut times) {
            times.push(measure(source, files)?);
        }
    }
    println!(
        "{rounds} rounds, medians in us; rewrite of {PAGES} pages: before a snapshot, first and second after it"
    );
    println!("| source | before | first | second | create Full | create Diff |");
    println!("|---|---|---|---|---|---|");
    for (source, times) in Source::ALL.into_iter().zip(&times) {
        let [before, first, second] = [0, 1, 2].map(|at| median(times, |times| times.rewrites[at]));
        let (full, diff) = (
            median(times, |times| times.full),
            median(times, |times| times.diff),
        );
        let name = source.name();
        println!("| {name} | {before} | {first} | {second} | {full} | {diff} |");
    }
    Ok(())
}

fn main() -> ExitCode {
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|rounds| *rounds > 0)
        .unwrap_or(20);
    let files = PathBuf::from(format!("/dev/shm/mayfly-tracking-{}", std::process::id()));
    let measured = fs::create_dir_all(directory())
        .and_then(|()| fs::create_dir_all(&files))
        .and_then(|()| print_process(rounds))
        .and_then(|()| run(rounds, &files));
    let _ = fs::remove_dir_all(&files);
    let _ = fs::remove_dir_all(directory());
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}; run `make tracking` as root, which builds the programs");
            ExitCode::FAILURE
        }
    }
}
