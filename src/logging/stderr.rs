//! Writes to stderr, and the limit of log messages.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::serial::NonblockingWriter;
use vmm::emergency;

/// Maximum time that an unread stderr blocks mayfly. Often stderr and stdout are the same pipe.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum number of log messages in one period: a guest can cause any number.
const MAX_LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// Writes `text` to stderr unchanged. Drops it if stderr is closed or stays unread for [`TIMEOUT`].
pub fn print(text: &str) {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(file) => _ = write(file, text, TIMEOUT),
        // The process is at its limit of descriptors, and the message may be about it.
        Err(_) => _ = emergency::print(text.as_bytes()),
    }
}

/// Writes `text` like [`print()`]. After a timeout, further calls do not wait until stderr is read again. For text that a guest or
/// a client can cause repeatedly.
pub fn print_unless_blocked(text: &str) {
    static BLOCKED: AtomicBool = AtomicBool::new(false);
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(file) => write_unless_blocked(file, text, &BLOCKED),
        Err(_) if BLOCKED.load(Ordering::Relaxed) => {}
        Err(_) => BLOCKED.store(!emergency::print(text.as_bytes()), Ordering::Relaxed),
    }
}

fn write_unless_blocked(file: OwnedFd, text: &str, blocked: &AtomicBool) {
    let timeout = if blocked.load(Ordering::Relaxed) {
        Duration::ZERO
    } else {
        TIMEOUT
    };
    blocked.store(!write(file, text, timeout), Ordering::Relaxed);
}

/// Returns true if all of `text` was written within `timeout`.
fn write(file: OwnedFd, text: &str, timeout: Duration) -> bool {
    let Ok(mut writer) = NonblockingWriter::new(file) else {
        return false;
    };
    let mut rest = text.as_bytes();
    let start = Instant::now();
    while !rest.is_empty() {
        match writer.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let remaining = timeout.saturating_sub(start.elapsed());
                if remaining.is_zero() || writer.wait(remaining).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Limit of log messages, per period.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    spent: u32,
    dropped: u64,
    /// Dropped messages of all periods.
    total: u64,
}

impl Budget {
    /// Returns an unspent budget for the period that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            spent: 0,
            dropped: 0,
            total: 0,
        }
    }

    /// Returns the number of all dropped messages.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Spends one message at `now`. Returns the number of messages dropped before it and not reported yet, or nothing if this
    /// message is dropped too.
    pub fn spend(&mut self, now: Instant) -> Option<u64> {
        let mut dropped = 0;
        if now.duration_since(self.start) >= PERIOD {
            dropped = self.dropped;
            *self = Self {
                total: self.total,
                ..Self::new(now)
            };
        }
        if self.spent == MAX_LINES {
            self.dropped += 1;
            self.total += 1;
            return None;
        }
        self.spent += 1;
        Some(dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::{Budget, MAX_LINES, PERIOD, TIMEOUT, write_unless_blocked};

    #[test]
    fn blocked_stderr_times_out_once() {
        let (reader, writer) = io::pipe().unwrap();
        let mut reader = scratch::Limited(File::from(OwnedFd::from(reader)));
        let blocked = AtomicBool::new(false);
        let print = |text: &str| write_unless_blocked(writer.try_clone().unwrap().into(), text, &blocked);
        // More than the capacity of a pipe.
        print(&"x".repeat(4 << 20));
        assert!(blocked.load(Ordering::Relaxed));
        let start = Instant::now();
        (0..100).for_each(|_| print("again\n"));
        assert!(start.elapsed() < 10 * TIMEOUT, "{:?}", start.elapsed());
        reader.read_exact(&mut [0; 16384]).unwrap();
        print("last\n");
        assert!(!blocked.load(Ordering::Relaxed));
    }

    #[test]
    fn budget_limits_and_counts_a_flood() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..100).filter(|_| budget.spend(start).is_some()).count();
        assert_eq!(allowed, usize::try_from(MAX_LINES).unwrap());
        assert_eq!(budget.spend(start + PERIOD), Some(100 - u64::from(MAX_LINES)));
        assert_eq!(budget.spend(start + PERIOD + Duration::from_millis(1)), Some(0));
    }
}
