//! The program of the instances: this test program, which a script executes with the arguments in a variable.
//!
//! It behaves as the file `behavior` in the directory of the registered snapshot requests:
//!
//! | behavior | meaning |
//! |---|---|
//! | (none) | runs until a suspend is requested |
//! | `fail` | prints a message and fails before it runs |
//! | `silent` | never opens its API socket |
//! | `hang-up` | fails after the connection of a client |
//! | `end N` | runs for some milliseconds, then ends with status N |
//! | `refuse` | rejects each suspend |
//! | `hang` | accepts each suspend, and goes on |
//! | `committed` | never responds to a suspend, rejects to cancel it, and reports the state in the file `reported`; ends with the suspend once the file `loaded` exists |
//! | `large` | uses 20 MiB of memory |
//! | `shells end`, `shells refuse` | the shells end at once, or refuse their requests |
//! | `shells stay` | the shells go on when their sockets are closed |
//! | `late` | opens its API socket once the file `loaded` exists beside `behavior` |
//! | `changed TEXT` | ends with status 119 if its arguments contain TEXT, once the file `loaded` exists |

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process;
use std::thread;
use std::time::Duration;

/// Variable with the arguments.
const ARGUMENTS: &str = "MAYFLY_FAKE_ARGUMENTS";
/// Variable with the directory of behavior and records.
const RECORDS: &str = "MAYFLY_FAKE_RECORDS";

/// Exit status of a suspend.
const SUSPENDED: i32 = 123;

/// Writes the program to `directory`, and returns its path.
pub fn install(directory: &scratch::Directory) -> String {
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n{RECORDS}={} {ARGUMENTS}=\"$*\" exec {} --exact fake::program --nocapture\n",
        directory.text("snapshot"),
        this.display()
    );
    let path = directory.text("mayfly");
    scratch::write_program(&path, &script);
    path
}

/// Returns the value of `option`.
fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let index = words.iter().position(|word| *word == option)?;
    words.get(index + 1).copied()
}

#[test]
fn program() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let words: Vec<&str> = arguments.split(' ').collect();
    run(&words);
}

/// Size of a process with the behavior `large` in bytes.
pub const LARGE: usize = 20 << 20;

/// Behaves as a shell with the socket `words[1]`.
fn run_shell(words: &[&str], records: &Path, behavior: &str) {
    let log = records.join("shells");
    let mut log = File::options().create(true).append(true).open(log).unwrap();
    writeln!(log, "{} {}", process::id(), words.join(" ")).unwrap();
    if behavior == "shells end" {
        process::exit(1);
    }
    let number = words[1].strip_prefix("fd:").unwrap().parse().unwrap();
    // SAFETY: this process has inherited the descriptor, and nothing else uses it.
    let mut stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(number) });
    // The end of the supervisor closes the socket.
    let length = stream.read(&mut [0; 4096]).unwrap_or(0);
    if behavior == "shells stay" {
        thread::sleep(Duration::from_secs(100));
    }
    if length > 0 {
        stream.write_all(b"{\"refused\":\"not this one\"}\n").unwrap();
        thread::sleep(Duration::from_secs(100));
    }
}

/// Returns the lengths of the first frames of all interfaces, as in `eth0:58+60,eth1:58`.
fn first_frames(words: &[&str]) -> String {
    let options = words.windows(2).filter(|pair| pair[0] == "--first-frames");
    let lengths = options.map(|pair| {
        let (id, number) = pair[1].split_once('=').unwrap();
        let records = fs::read(format!("/proc/self/fd/{number}")).unwrap();
        let (mut rest, mut lengths) = (records.as_slice(), Vec::new());
        while let Some((prefix, packets)) = rest.split_first_chunk() {
            let length = u32::from_le_bytes(*prefix);
            lengths.push(length.to_string());
            rest = &packets[usize::try_from(length).unwrap()..];
        }
        format!("{id}:{}", lengths.join("+"))
    });
    lengths.collect::<Vec<_>>().join(",")
}

/// Returns the number of files with first frames that this process has inherited.
fn count_files() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let links = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains("memfd:first-frames"))
        .count()
}

fn run(words: &[&str]) {
    if words[0] == "shell" {
        let records = std::env::var(RECORDS).unwrap();
        let records = Path::new(&records);
        let behavior = fs::read_to_string(records.join("behavior")).unwrap_or_default();
        return run_shell(words, records, &behavior);
    }
    let id = value(words, "--id").unwrap();
    let records = std::env::var(RECORDS).unwrap();
    let records = Path::new(&records);
    let behavior = fs::read_to_string(records.join("behavior")).unwrap_or_default();
    let log = records.join("starts");
    let mut log = File::options().create(true).append(true).open(log).unwrap();
    let alive = File::create(records.join(format!("alive-{id}"))).unwrap();
    if alive.try_lock().is_err() {
        log.write_all(format!("TWICE {id} {}\n", process::id()).as_bytes())
            .unwrap();
    }
    // By one write: other processes append lines at the same time.
    let (pid, words_text, frames) = (process::id(), words.join(" "), first_frames(words));
    let line = format!(
        "{id} {pid} {words_text} files={} frames={frames}\n",
        count_files()
    );
    log.write_all(line.as_bytes()).unwrap();
    if behavior == "fail" {
        eprintln!("mayfly: an earlier line\nmayfly: cannot use the snapshot: it is of another host");
        process::exit(1);
    }
    if let Some(text) = behavior.strip_prefix("changed ")
        && words.join(" ").contains(text)
    {
        await_loaded(records);
        eprintln!("mayfly: cannot load the snapshot: drive d has changed");
        process::exit(119);
    }
    if behavior == "silent" {
        thread::sleep(Duration::from_secs(100));
    }
    if behavior == "late" {
        await_loaded(records);
    }
    let mut memory = Vec::new();
    if behavior == "large" {
        memory.resize(LARGE, 1_u8);
        std::hint::black_box(&memory);
    }
    let listener = UnixListener::bind(value(words, "--api-sock").unwrap()).unwrap();
    if behavior == "hang-up" {
        drop(scratch::accept(&listener));
        process::exit(1);
    }
    if let Some(status) = behavior.strip_prefix("end ") {
        let status = status.parse().unwrap();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            eprintln!("mayfly: the guest has ended");
            process::exit(status);
        });
    }
    serve(&listener, value(words, "--suspend-to"), &behavior);
}

fn await_loaded(records: &Path) {
    scratch::wait_until("the snapshot is loaded", || records.join("loaded").exists());
}

/// Replaces the generation in `directory` by the next one.
fn write_generation(directory: &Path) {
    let current = directory.join("current");
    let last = fs::read_link(&current).map_or(0, |name| {
        name.to_str()
            .unwrap()
            .trim_start_matches("gen-")
            .parse::<u64>()
            .unwrap()
    });
    let name = format!("gen-{}", last + 1);
    fs::create_dir_all(directory.join(&name)).unwrap();
    let new = directory.join("next");
    let _ = fs::remove_file(&new);
    symlink(&name, &new).unwrap();
    fs::rename(&new, &current).unwrap();
}

/// Serves the API until a suspend.
#[allow(
    clippy::disallowed_methods,
    reason = "the supervisor or the test ends this process"
)]
fn serve(listener: &UnixListener, suspend_to: Option<&str>, behavior: &str) {
    let records = std::env::var(RECORDS).unwrap();
    let records = Path::new(&records);
    let mut held = Vec::new();
    loop {
        let mut stream = listener.accept().unwrap().0;
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..length]);
        if request.contains("Suspend") && !matches!(behavior, "refuse" | "hang" | "committed") {
            if let Some(directory) = suspend_to {
                write_generation(Path::new(directory));
            }
            process::exit(SUSPENDED);
        }
        if request.contains("Suspend") && behavior == "committed" {
            let (loaded, directory) = (records.to_owned(), suspend_to.map(Path::new).unwrap().to_owned());
            thread::spawn(move || {
                await_loaded(&loaded);
                write_generation(&directory);
                process::exit(SUSPENDED);
            });
            let mut log = File::options();
            let mut log = log
                .create(true)
                .append(true)
                .open(records.join("suspends"))
                .unwrap();
            log.write_all(b"s").unwrap();
            held.push(stream);
            continue;
        }
        if request.starts_with("GET /scale-to-zero") {
            let state = fs::read_to_string(records.join("reported")).unwrap_or("Suspended".into());
            let body = format!("{{\"state\":\"{state}\"}}");
            let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
            continue;
        }
        let response = match request.starts_with("GET") || behavior == "hang" {
            true => "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}",
            false => "HTTP/1.1 400 \r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"not today\"}",
        };
        let _ = stream.write_all(response.as_bytes());
    }
}
