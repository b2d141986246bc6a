//! Sampled durations of frequent operations.

use std::time::Duration;

use serde::Serialize;

use crate::counter::Counter;

/// Number, sum, minimum and maximum of the timed operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Number of timed operations.
    pub timed: u64,
    /// Sum in nanoseconds.
    pub sum_ns: u64,
    /// Minimum in nanoseconds; 0 without a timed operation.
    pub min_ns: u64,
    /// Maximum in nanoseconds.
    pub max_ns: u64,
}

impl Latency {
    /// Estimates the sum of `total` operations in microseconds, rounded up: the timed ones are a sample of them.
    pub fn estimate_us(&self, total: u64) -> u64 {
        if self.timed == 0 {
            return 0;
        }
        let ns = u128::from(self.sum_ns) * u128::from(total) / u128::from(self.timed);
        u64::try_from(ns.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// Returns the minimum in microseconds, rounded up.
    pub fn min_us(&self) -> u64 {
        self.min_ns.div_ceil(1000)
    }

    /// Returns the maximum in microseconds, rounded up.
    pub fn max_us(&self) -> u64 {
        self.max_ns.div_ceil(1000)
    }
}

/// Recorder of a [`Latency`], made of [counters](Counter): one thread records at a time, any thread reads.
#[derive(Debug, Default)]
pub struct LatencyRecorder {
    timed: Counter,
    sum_ns: Counter,
    min_ns: Counter,
    max_ns: Counter,
}

impl LatencyRecorder {
    /// Records the duration of one operation, at least 1 ns.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1);
        if self.min_ns.get() == 0 || ns < self.min_ns.get() {
            self.min_ns.set(ns);
        }
        self.max_ns.set(self.max_ns.get().max(ns));
        self.sum_ns.saturating_add(ns);
        self.timed.add(1);
    }

    /// Returns the latency. An operation that is recorded meanwhile may be included in part.
    pub fn latency(&self) -> Latency {
        Latency {
            timed: self.timed.get(),
            sum_ns: self.sum_ns.get(),
            min_ns: self.min_ns.get(),
            max_ns: self.max_ns.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Latency, LatencyRecorder};

    #[test]
    fn bounds_and_sum_cover_all_recorded_durations() {
        let recorder = LatencyRecorder::default();
        for ns in [1500, 100, 7400] {
            recorder.record(Duration::from_nanos(ns));
        }
        let latency = recorder.latency();
        assert_eq!((latency.min_us(), latency.max_us()), (1, 8));
        // A mean of 3,000 ns.
        assert_eq!(latency.estimate_us(48), 144);
    }

    #[test]
    fn latency_without_timed_operation_is_zero() {
        let latency = Latency::default();
        assert_eq!(
            (latency.estimate_us(5), latency.min_us(), latency.max_us()),
            (0, 0, 0)
        );
    }

    #[test]
    fn extreme_durations_saturate() {
        let recorder = LatencyRecorder::default();
        recorder.record(Duration::ZERO);
        recorder.record(Duration::MAX);
        recorder.record(Duration::MAX);
        let latency = recorder.latency();
        assert_eq!(
            (latency.min_ns, latency.max_ns, latency.sum_ns),
            (1, u64::MAX, u64::MAX)
        );
        assert_eq!(latency.estimate_us(u64::MAX), u64::MAX);
    }
}
