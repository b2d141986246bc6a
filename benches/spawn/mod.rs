//! Times a command from just before it is spawned to its first byte on stdout and to its end.

use std::io::{self, Read};
use std::mem;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run of a command took.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// To the first byte on stdout.
    pub first_byte: Duration,
    /// To the end of the process, as its parent sees it.
    pub end: Duration,
    /// Largest resident set in KiB.
    #[allow(dead_code, reason = "benchmarks of time alone do not read it")]
    pub peak_kib: i64,
}

/// Runs `command` once.
///
/// # Errors
/// When it cannot be spawned, prints nothing, or fails.
#[allow(
    clippy::zombie_processes,
    reason = "wait4 is what waits, because it also tells the resident set"
)]
pub fn run(command: &[&str]) -> io::Result<Run> {
    let mut spawned = Command::new(command[0]);
    spawned
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let start = Instant::now();
    let mut child = spawned.spawn()?;
    let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let mut byte = [0];
    stdout.read_exact(&mut byte)?;
    let first_byte = start.elapsed();
    io::copy(&mut stdout, &mut io::sink())?;
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: all-zero bytes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    let mut status = 0;
    // SAFETY: both pointers are valid for writes, and nobody else waits for the child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let end = start.elapsed();
    if waited != pid || status != 0 {
        return Err(io::Error::other(format!(
            "{command:?} ended with wait status {status:#x}"
        )));
    }
    Ok(Run {
        first_byte,
        end,
        peak_kib: usage.ru_maxrss,
    })
}
