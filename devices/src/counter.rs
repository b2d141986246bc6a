//! Counters that any thread reads without the lock of the device.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Number of events.
///
/// Additions must not overlap: a counter belongs to one thread, or to the holder of the lock of a device. So they need no locked
/// instruction, and cost as much as an addition to a plain number. Any thread reads at any time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `number`. Wraps around.
    pub fn add(&self, number: u64) {
        self.0.store(self.get().wrapping_add(number), Ordering::Relaxed);
    }

    /// Adds `number`, up to `u64::MAX`.
    pub fn saturating_add(&self, number: u64) {
        self.0.store(self.get().saturating_add(number), Ordering::Relaxed);
    }

    /// Replaces the number.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// Returns the current number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn additions_wrap_or_saturate() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.saturating_add(2);
        assert_eq!(counter.get(), u64::MAX);
        counter.add(2);
        assert_eq!(counter.get(), 1);
    }
}
