//! Where a device has its time from.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that a device reads; tests set their own.
pub trait Clock: Send {
    /// Time since the clock's origin.
    fn now(&self) -> Duration;
}

/// A clock that never goes back. Its origin is the time it was made.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// A clock that starts at zero.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The host's time of day in UTC. Its origin is 1970-01-01; a host set to an earlier time reads as that.
#[derive(Debug, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
