//! One bucket of tokens that fills by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

const NANOSECONDS_PER_MILLISECOND: u128 = 1_000_000;

/// How much may pass: a bucket that holds `size` tokens and goes from empty to full in `refill_time_ms`.
///
/// With `size` or `refill_time_ms` zero there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Tokens that the bucket holds when it is full: bytes, or operations.
    pub size: u64,
    /// Time that an empty bucket takes to fill, in milliseconds.
    pub refill_time_ms: u64,
    /// Tokens on top of `size` that are there at the beginning, are spent first and never come back.
    pub one_time_burst: u64,
}

impl Bucket {
    /// Whether there is a limit at all.
    pub(super) fn limits(&self) -> bool {
        self.size != 0 && self.refill_time_ms != 0
    }

    fn refill_time(&self) -> u128 {
        u128::from(self.refill_time_ms) * NANOSECONDS_PER_MILLISECOND
    }
}

/// What is in a [`Bucket`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketLevel {
    bucket: Bucket,
    /// Tokens there, at most `bucket.size`.
    level: u64,
    /// Tokens owed, as a request larger than the bucket was let pass. Not zero only when `level` is zero.
    debt: u64,
    /// Left of the initial burst.
    burst: u64,
    /// The part of the next token that has come already, in nanoseconds times `bucket.size` of `refill_time`, so that no
    /// rounding adds up.
    fraction: u128,
    /// Up to when tokens have come; none before the first look, which is also the first after a restore: what passes
    /// between a save and its restore is no time for the guest.
    #[serde(skip)]
    seen: Option<Duration>,
}

impl BucketLevel {
    /// A full bucket. `bucket` must be one that [limits](Bucket::limits).
    pub(super) fn full(bucket: Bucket) -> Self {
        Self {
            bucket,
            level: bucket.size,
            debt: 0,
            burst: bucket.one_time_burst,
            fraction: 0,
            seen: None,
        }
    }

    /// As they are, at no time in particular.
    pub(super) fn at_rest(&self) -> Self {
        Self {
            seen: None,
            ..self.clone()
        }
    }

    /// Adds the tokens that have come up to `now`.
    pub(super) fn fill(&mut self, now: Duration) {
        let before = self.seen.replace(now).unwrap_or(now);
        let elapsed = u64::try_from(now.saturating_sub(before).as_nanos()).unwrap_or(u64::MAX);
        let parts = (u128::from(elapsed) * u128::from(self.bucket.size)).saturating_add(self.fraction);
        let came = u64::try_from(parts / self.bucket.refill_time()).unwrap_or(u64::MAX);
        self.fraction = parts % self.bucket.refill_time();
        let paid = came.min(self.debt);
        self.debt -= paid;
        let room = self.bucket.size - self.level;
        if came - paid >= room {
            // What does not fit is lost, the beginning of the next token with it.
            self.fraction = 0;
        }
        self.level += (came - paid).min(room);
    }

    /// How long it takes from the last [`Self::fill`] until `tokens` may pass; zero when they may at once.
    ///
    /// More tokens than the bucket ever holds pass as soon as nothing is owed, and are owed then.
    pub(super) fn wait(&self, tokens: u64) -> Duration {
        let needed = tokens.saturating_sub(self.burst);
        let level = if needed > self.bucket.size { 0 } else { needed };
        let missing = u128::from(level.saturating_sub(self.level)) + u128::from(self.debt);
        if missing == 0 {
            return Duration::ZERO;
        }
        let parts = missing.saturating_mul(self.bucket.refill_time()) - self.fraction;
        let nanoseconds = parts.div_ceil(u128::from(self.bucket.size));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Takes `tokens`, whether they are there or not.
    pub(super) fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let rest = tokens - from_burst;
        let from_level = rest.min(self.level);
        self.level -= from_level;
        self.debt = self.debt.saturating_add(rest - from_level);
    }

    /// What a saved state has wrong, if anything.
    pub(super) fn invalid_reason(&self) -> Option<String> {
        if !self.bucket.limits() {
            return Some("a bucket without a limit has tokens".to_owned());
        }
        if self.level > self.bucket.size {
            return Some(format!(
                "{} tokens in a bucket of {}",
                self.level, self.bucket.size
            ));
        }
        if self.debt != 0 && self.level != 0 {
            return Some(format!(
                "{} tokens there while {} are owed",
                self.level, self.debt
            ));
        }
        if self.burst > self.bucket.one_time_burst {
            return Some(format!(
                "{} tokens left of {}",
                self.burst, self.bucket.one_time_burst
            ));
        }
        (self.fraction >= self.bucket.refill_time())
            .then(|| "more than one token is still to come".to_owned())
    }
}
