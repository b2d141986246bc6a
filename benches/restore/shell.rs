//! Loads into a shell, with a VM of the size of the snapshot.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::fixture::{Fixture, socket, text};
use crate::process::{Process, connect, mayfly};
use crate::table::{Row, median};

/// Measures the time from the request to load a snapshot into a shell to the guest's next byte.
pub fn load(fixture: &Fixture, mib: u32, rounds: usize) -> io::Result<Row> {
    let snapshot = fixture.snapshot("chatter", mib)?;
    let floor_snapshot = fixture.floor_snapshot(mib)?;
    let path = text(&socket());
    let own_arguments = ["shell", &path, "--for", &text(&snapshot)];
    let floor_arguments = ["shell", &text(&floor_snapshot), &path];
    let (mut own, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(once(&mayfly(), &own_arguments, &snapshot)?);
        floor.push(once(&fixture.floor, &floor_arguments, &floor_snapshot)?);
    }
    let [own, floor] = [own, floor].map(|times| median(times).as_secs_f64() * 1e6);
    let name = match mib {
        0..1024 => "load into a shell, 128 MiB: request to next byte",
        _ => "load into a shell, 2 GiB: request to next byte",
    };
    Ok(Row::ratio(name, own, floor, 1.3))
}

/// Compares the private memory of a waiting shell with that of a restored VM.
pub fn memory(fixture: &Fixture, mib: u32) -> io::Result<Row> {
    let snapshot = text(&fixture.snapshot("chatter", mib)?);
    let bytes = u64::from(mib) << 20;
    let path = text(&socket());
    let _ = std::fs::remove_file(socket());
    let mut restored = Process::start(&mayfly(), &["restore", &snapshot])?;
    restored.read(1)?;
    let shell = Process::start(&mayfly(), &["shell", &path, "--for", &snapshot])?;
    drop(connect(&socket()));
    thread::sleep(crate::PAUSE);
    let extra = shell.private_kib(bytes)? - restored.private_kib(bytes)?;
    let extra = f64::from(i32::try_from(extra).unwrap_or(i32::MAX));
    Ok(Row::limit(
        "private memory of a shell beyond a restored VM",
        extra,
        "KiB",
        0.0,
    ))
}

/// Measures one load into the shell of `program`.
pub fn once(program: &Path, arguments: &[&str], snapshot: &Path) -> io::Result<Duration> {
    let _ = std::fs::remove_file(socket());
    let shell = Process::start(program, arguments)?;
    let stream = connect(&socket());
    let directory = text(snapshot);
    let (mut output, stdout) = io::pipe()?;
    let files = [
        File::open("/dev/null")?.into(),
        stdout.into(),
        File::open("/dev/null")?.into(),
        File::open(".")?.into(),
        File::open(snapshot.join("state"))?.into(),
        File::open(snapshot.join("memory"))?.into(),
    ];
    let numbers: Vec<RawFd> = files
        .iter()
        .map(|file: &std::os::fd::OwnedFd| file.as_raw_fd())
        .collect();
    let request = format!(
        "{{\"arguments\":[\"{directory}\"],\"files\":[\"{directory}/state\",\"{directory}/memory\"],\"descriptors\":[]}}\n"
    );
    // The shell may still start to wait.
    thread::sleep(crate::PAUSE);
    let start = Instant::now();
    stream.send_with_fds(&[request.as_bytes()], &numbers)?;
    output.read_exact(&mut [0])?;
    let time = start.elapsed();
    drop(shell);
    Ok(time)
}
