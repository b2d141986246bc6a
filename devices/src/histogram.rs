//! Distribution of durations in a fixed set of buckets.

use std::time::Duration;

use serde::Serialize;

use crate::counter::Counter;

/// Number of buckets with an upper bound: 1 us, 2 us, 4 us and so on, up to 2^23 us, which is 8.4 s.
pub const BUCKETS: usize = 24;

/// Distribution of durations over buckets bounded by powers of two of microseconds. Its size is fixed: metrics embed
/// it without an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    count: u64,
    sum_us: u64,
    /// Durations in each bucket, not cumulative. `count` includes the durations beyond the last bound.
    buckets: [u64; BUCKETS],
}

impl Histogram {
    /// Records one duration, rounded up to microseconds, also in the sum. Bounds are inclusive.
    pub fn record(&mut self, duration: Duration) {
        let (us, bucket) = round(duration);
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += 1;
        }
    }

    /// Returns the number of recorded durations, including those beyond the last bound.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the sum of all durations in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Returns each bucket as its bound in microseconds and its cumulative count, as in Prometheus.
    /// [`count`](Self::count) is the bucket without a bound.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        self.buckets.iter().enumerate().map(move |(index, count)| {
            sum += count;
            (1 << index, sum)
        })
    }
}

/// Returns `duration` in microseconds, rounded up, and the index of its bucket: [`BUCKETS`] beyond the last bound.
fn round(duration: Duration) -> (u64, usize) {
    let us = duration.as_nanos().div_ceil(1000);
    let us = u64::try_from(us).unwrap_or(u64::MAX);
    // The index of the smallest power of two that is at least `us`.
    let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
    let bucket = usize::try_from(bits).unwrap_or(BUCKETS);
    (us, bucket.min(BUCKETS))
}

/// Recorder of a [`Histogram`], made of [counters](Counter): one thread records at a time, any thread reads.
#[derive(Debug, Default)]
pub struct HistogramRecorder {
    sum_us: Counter,
    /// The last one counts the durations beyond the last bound.
    buckets: [Counter; BUCKETS + 1],
}

impl HistogramRecorder {
    /// Records one duration like [`Histogram::record`].
    pub fn record(&self, duration: Duration) {
        let (us, bucket) = round(duration);
        self.sum_us.saturating_add(us);
        self.buckets[bucket].add(1);
    }

    /// Returns the distribution. The sum may include one duration more than the buckets, which is recorded meanwhile.
    pub fn histogram(&self) -> Histogram {
        let counts = self.buckets.each_ref().map(Counter::get);
        Histogram {
            // The sum of the same counts: a bucket never exceeds it.
            count: counts.iter().sum(),
            sum_us: self.sum_us.get(),
            buckets: std::array::from_fn(|bucket| counts[bucket]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BUCKETS, Histogram, HistogramRecorder};

    /// Returns the bound of the bucket of `duration`, or `None` beyond the last bound.
    fn bound(duration: Duration) -> Option<u64> {
        let mut histogram = Histogram::default();
        histogram.record(duration);
        histogram
            .buckets()
            .find(|(_, count)| *count == 1)
            .map(|(bound, _)| bound)
    }

    #[test]
    fn bucket_bound_is_inclusive() {
        for (ns, us) in [
            (0, 1),
            (1, 1),
            (1000, 1),
            (1001, 2),
            (2000, 2),
            (2001, 4),
            (4000, 4),
            (4_194_304_000, 1 << 22),
            (4_194_304_001, 1 << 23),
            (8_388_608_000, 1 << 23),
        ] {
            assert_eq!(bound(Duration::from_nanos(ns)), Some(us), "{ns} ns");
        }
        for beyond in [Duration::from_nanos(8_388_608_001), Duration::MAX] {
            assert_eq!(bound(beyond), None, "{beyond:?}");
        }
    }

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::default();
        for us in [1, 3, 3, 500, 9_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets.len(), BUCKETS);
        assert_eq!(buckets[..4], [(1, 1), (2, 1), (4, 3), (8, 3)]);
        assert_eq!(
            (buckets[8], buckets[9], buckets[23]),
            ((256, 3), (512, 4), (1 << 23, 4))
        );
        assert_eq!((histogram.count(), histogram.sum_us()), (5, 9_000_507));
    }

    #[test]
    fn recorder_returns_same_histogram() {
        let (recorder, mut histogram) = (HistogramRecorder::default(), Histogram::default());
        for us in [0, 1, 3, 3, 500, 8_388_608, 8_388_609, u64::MAX, u64::MAX] {
            let duration = Duration::from_micros(us);
            recorder.record(duration);
            histogram.record(duration);
            assert_eq!(recorder.histogram(), histogram);
        }
    }

    #[test]
    fn sum_saturates() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::MAX);
        assert_eq!((histogram.count(), histogram.sum_us()), (2, u64::MAX));
    }
}
