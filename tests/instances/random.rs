//! Pseudo-random numbers, and numbers of rounds.

use std::time::Duration;

/// Xorshift with a fixed seed.
pub struct Random(u64);

impl Random {
    /// Starts with the seed of the variable `SEED`, or a fixed one.
    pub fn new() -> Self {
        let seed = number("SEED", 0x6d61_7966);
        eprintln!("SEED={seed}");
        Self(u64::from(seed.max(1)) << 7 | 1)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// Returns a time below `milliseconds`.
    pub fn time(&mut self, milliseconds: u64) -> Duration {
        Duration::from_micros(self.below(milliseconds * 1000))
    }
}

/// Returns the number in the environment variable `name`, or `default`.
pub fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
