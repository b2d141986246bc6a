//! Time sources of devices.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time source of a device. Tests replace it.
pub trait Clock: Send {
    /// Returns the time since the clock's origin.
    fn now(&self) -> Duration;
}

/// A clock that never goes back. Its origin is the time of its creation.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// Creates a clock that starts at zero.
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

/// The host's wall-clock time in UTC. Its origin is 1970-01-01; an earlier host time reads as zero.
#[derive(Debug, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
