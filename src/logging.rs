//! What mayfly has to say goes to stderr, a line each, and never makes anybody wait for long.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use devices::lock;
use devices::serial::Sink;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// How long a stderr that nobody reads may hold mayfly up. It is often the same pipe as stdout.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many lines of the libraries are said in one period: a guest may be behind them.
const MOST_LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// The log of the libraries.
struct Stderr {
    budget: Mutex<Option<Budget>>,
}

/// What may be said until the end of a period.
struct Budget {
    start: Instant,
    said: u32,
    withheld: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            start: now,
            said: 0,
            withheld: 0,
        }
    }

    /// Whether a line may be said at `now`, and how many were withheld before it that nobody knows of.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        let mut withheld = 0;
        if now.duration_since(self.start) >= PERIOD {
            withheld = self.withheld;
            *self = Self::new(now);
        }
        if self.said == MOST_LINES {
            self.withheld += 1;
            return None;
        }
        self.said += 1;
        Some(withheld)
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = Instant::now();
        let allowed = lock(&self.budget)
            .get_or_insert_with(|| Budget::new(now))
            .spend(now);
        let Some(withheld) = allowed else { return };
        let mut text = format!(
            "{}: {}",
            record.level().as_str().to_ascii_lowercase(),
            record.args()
        );
        if withheld > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, " ({withheld} lines before this one were withheld)");
        }
        say(&text);
    }

    fn flush(&self) {}
}

/// Starts the log.
pub fn start() {
    static STDERR: Stderr = Stderr {
        budget: Mutex::new(None),
    };
    // It fails only when there is a log already, and then that one serves.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Says `text` on stderr, in one write.
pub fn say(text: &str) {
    put(&format!("mayfly: {text}\n"));
}

/// Writes `text` to stderr as it is. A stderr that is closed or not read is no reason to end or to wait.
pub fn put(text: &str) {
    let Ok(mut sink) = io::stderr().as_fd().try_clone_to_owned().and_then(Sink::new) else {
        return;
    };
    let mut rest = text.as_bytes();
    let start = Instant::now();
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = PATIENCE.saturating_sub(start.elapsed());
                if left.is_zero() || sink.wait(left).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Budget, MOST_LINES, PERIOD};

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..100).filter(|_| budget.spend(start).is_some()).count();
        assert_eq!(allowed, usize::try_from(MOST_LINES).unwrap());
        assert_eq!(budget.spend(start + PERIOD), Some(100 - u64::from(MOST_LINES)));
        assert_eq!(budget.spend(start + PERIOD + Duration::from_millis(1)), Some(0));
    }
}
