//! Measures a command from its spawn to its first byte on stdout and to its exit.

use std::io::{self, Read};
use std::mem;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Result of one run of a command.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Time to the first byte on stdout.
    pub first_byte: Duration,
    /// Time to the exit of the process, as its parent observes it.
    pub end: Duration,
    /// Peak resident set in KiB.
    #[allow(dead_code, reason = "only some benchmarks read it")]
    pub peak_kib: i64,
}

/// Runs `command` once.
///
/// # Errors
/// Fails if the command cannot be spawned, prints nothing or fails.
#[allow(
    clippy::zombie_processes,
    reason = "wait4 waits for the child, because it also returns the resident set"
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
    // SAFETY: both pointers are valid for writes, and no other code waits for the child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let end = start.elapsed();
    if waited != pid || status != 0 {
        return Err(io::Error::other(format!(
            "{command:?} failed: wait status {status:#x}"
        )));
    }
    Ok(Run {
        first_byte,
        end,
        peak_kib: usage.ru_maxrss,
    })
}
