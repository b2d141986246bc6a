//! How long things took, counted in buckets of a fixed size.

use std::time::Duration;

use serde::Serialize;

/// Buckets with an upper bound: 1 us, 2 us, 4 us and so on, up to 2^23 us, which is 8.4 s.
pub const BUCKETS: usize = 24;

/// Durations by the power of two of their microseconds, with their number and their sum. It takes no memory as it fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    count: u64,
    sum_us: u64,
    /// Of each bucket, the durations that none before it holds. What no bucket holds is in `count` alone.
    buckets: [u64; BUCKETS],
}

impl Histogram {
    /// Counts one duration. A bucket holds durations up to and with its bound; the part of a microsecond counts as a whole
    /// one, in the sum too.
    pub fn record(&mut self, duration: Duration) {
        let us = duration.as_nanos().div_ceil(1000);
        let us = u64::try_from(us).unwrap_or(u64::MAX);
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        // The number of bits of the last that is below the bound.
        let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
        let bucket = usize::try_from(bits).unwrap_or(BUCKETS);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += 1;
        }
    }

    /// Durations recorded, those beyond the last bound included.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Microseconds of all of them together.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Of each bucket its bound in microseconds and the durations up to it, those of the buckets before it included, as
    /// Prometheus has them; [`count`](Self::count) is the bucket without a bound.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        self.buckets.iter().enumerate().map(move |(index, count)| {
            sum += count;
            (1 << index, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BUCKETS, Histogram};

    /// The bound of the bucket that `duration` is in, or none when it is beyond all.
    fn bound(duration: Duration) -> Option<u64> {
        let mut histogram = Histogram::default();
        histogram.record(duration);
        histogram
            .buckets()
            .find(|(_, count)| *count == 1)
            .map(|(bound, _)| bound)
    }

    #[test]
    fn a_bucket_ends_with_its_bound() {
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
    fn buckets_add_up() {
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
    fn a_sum_does_not_overflow() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        histogram.record(Duration::MAX);
        assert_eq!((histogram.count(), histogram.sum_us()), (2, u64::MAX));
    }
}
