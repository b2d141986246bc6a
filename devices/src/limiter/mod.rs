//! Rate limiter of a device: a token bucket for bytes and one for operations, as in Firecracker's API.
//!
//! A device calls [`Limiter::consume`] before each request. If the result is false, the device leaves the request in its
//! queue. The limiter has then armed its timerfd for the time at which the request can pass. A throttled queue costs no
//! CPU time.
//!
//! A request larger than the size of the bucket passes once there is no debt, and its overdraft becomes the debt. No
//! other request passes until refills have paid the debt. Over any period, the requests that pass consume at most the
//! initial tokens plus the refill, apart from the overdraft of the last request.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};
use vmm_sys_util::timerfd::TimerFd;

const NANOSECONDS_PER_MILLISECOND: u128 = 1_000_000;

/// Configuration of a token bucket that holds `size` tokens and refills from empty in `refill_time_ms`.
///
/// There is no limit if `size` or `refill_time_ms` is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Tokens in a full bucket: bytes or operations.
    pub size: u64,
    /// Time to refill an empty bucket, in milliseconds.
    pub refill_time_ms: u64,
    /// Initial tokens in addition to `size`. They are consumed first and never refilled.
    pub one_time_burst: u64,
}

impl Bucket {
    /// Returns true if the bucket has a limit.
    fn has_limit(&self) -> bool {
        self.size != 0 && self.refill_time_ms != 0
    }

    fn refill_time(&self) -> u128 {
        u128::from(self.refill_time_ms) * NANOSECONDS_PER_MILLISECOND
    }
}

/// Fill level of a [`Bucket`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BucketLevel {
    bucket: Bucket,
    /// Available tokens, at most `bucket.size`.
    level: u64,
    /// Overdraft of a request larger than the bucket. Zero unless `level` is zero.
    debt: u64,
    /// Tokens left of the initial burst.
    burst: u64,
    /// Accumulated part of the next token, in nanoseconds times `bucket.size`; `refill_time` is one token. Exact, so
    /// that rounding errors do not add up.
    fraction: u128,
    /// Time of the last [`fill`](Self::fill); `None` before the first and after a restore: the time between save and
    /// restore does not count for the guest.
    #[serde(skip)]
    filled_at: Option<Duration>,
}

impl BucketLevel {
    /// Creates a full bucket. `bucket` must have a [limit](Bucket::has_limit).
    fn full(bucket: Bucket) -> Self {
        Self {
            bucket,
            level: bucket.size,
            debt: 0,
            burst: bucket.one_time_burst,
            fraction: 0,
            filled_at: None,
        }
    }

    /// Returns a copy without the time of the last fill.
    fn without_time(&self) -> Self {
        Self {
            filled_at: None,
            ..self.clone()
        }
    }

    /// Adds the tokens of the time up to `now`.
    fn fill(&mut self, now: Duration) {
        let before = self.filled_at.replace(now).unwrap_or(now);
        let elapsed = u64::try_from(now.saturating_sub(before).as_nanos()).unwrap_or(u64::MAX);
        let parts = (u128::from(elapsed) * u128::from(self.bucket.size)).saturating_add(self.fraction);
        let refill = u64::try_from(parts / self.bucket.refill_time()).unwrap_or(u64::MAX);
        self.fraction = parts % self.bucket.refill_time();
        let paid = refill.min(self.debt);
        self.debt -= paid;
        let room = self.bucket.size - self.level;
        if refill - paid >= room {
            // A full bucket drops excess tokens, including the part of the next one.
            self.fraction = 0;
        }
        self.level += (refill - paid).min(room);
    }

    /// Returns the time from the last [`Self::fill`] until a request of `tokens` can pass; zero if it can pass now.
    ///
    /// A request of more tokens than the size of the bucket can pass once there is no debt.
    fn wait_time(&self, tokens: u64) -> Duration {
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

    /// Consumes `tokens`. Tokens that are not available become debt.
    fn consume(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let rest = tokens - from_burst;
        let from_level = rest.min(self.level);
        self.level -= from_level;
        self.debt = self.debt.saturating_add(rest - from_level);
    }

    /// Returns the reason why a saved state is invalid, or `None` if it is valid.
    fn invalid_reason(&self) -> Option<String> {
        if !self.bucket.has_limit() {
            return Some("a bucket without a limit has a level".to_owned());
        }
        if self.level > self.bucket.size {
            return Some(format!(
                "a bucket of size {1} has {0} tokens",
                self.level, self.bucket.size
            ));
        }
        if self.debt != 0 && self.level != 0 {
            return Some(format!(
                "a bucket has {} tokens and a debt of {}",
                self.level, self.debt
            ));
        }
        if self.burst > self.bucket.one_time_burst {
            return Some(format!(
                "{} tokens are left of a burst of {}",
                self.burst, self.bucket.one_time_burst
            ));
        }
        (self.fraction >= self.bucket.refill_time()).then(|| "the fraction is at least one token".to_owned())
    }
}

/// State of a [`Limiter`]: the levels of its buckets. The time between save and restore does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterState {
    bandwidth: Option<BucketLevel>,
    operations: Option<BucketLevel>,
}

impl Schema for LimiterState {
    const NAME: &'static str = "limiter";
    const VERSION: u32 = 1;
}

/// A bucket for bytes, a bucket for operations, and a timerfd, which is the limiter's file descriptor.
///
/// The descriptor becomes readable when a throttled request can pass. The device then calls [`Self::clear_timer`].
#[derive(Debug)]
pub struct Limiter {
    bandwidth: Option<BucketLevel>,
    operations: Option<BucketLevel>,
    timer: TimerFd,
    throttled: bool,
}

impl Limiter {
    /// Creates a limiter with full buckets. `None`, or a bucket without a limit, passes all requests.
    ///
    /// # Errors
    /// Fails if `timerfd_create` fails.
    pub fn new(bandwidth: Option<Bucket>, operations: Option<Bucket>) -> io::Result<Self> {
        Ok(Self {
            bandwidth: bandwidth.and_then(full_level),
            operations: operations.and_then(full_level),
            timer: TimerFd::new()?,
            throttled: false,
        })
    }

    /// Returns true if there is a limit. Without one, [`Self::consume`] ignores the time.
    pub fn has_limit(&self) -> bool {
        self.bandwidth.is_some() || self.operations.is_some()
    }

    /// Consumes the tokens of one operation of `bytes` at `now`, on any clock that does not go back.
    ///
    /// Returns false if tokens are missing: consumes none then, and arms the timerfd for the time at which the
    /// operation can pass.
    pub fn consume(&mut self, bytes: u64, now: Duration) -> bool {
        let mut wait = Duration::ZERO;
        for (bucket, count) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait_time(count));
            }
        }
        if !wait.is_zero() {
            self.wake_after(wait);
            return false;
        }
        for (bucket, count) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.consume(count);
            }
        }
        true
    }

    /// Returns true while a request waits for the timerfd.
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Makes the timerfd unreadable. The device must call [`Self::consume`] again for its throttled request.
    pub fn clear_timer(&mut self) {
        if self.throttled {
            // Not by a read, which would block if the timer is armed again before it. Disarming cannot fail.
            let _ = self.timer.clear();
            self.throttled = false;
        }
    }

    /// Replaces buckets by new, full ones. `None` keeps a bucket; a bucket without a limit removes the limit.
    ///
    /// If a request is throttled, the timerfd becomes readable.
    pub fn update(&mut self, bandwidth: Option<Bucket>, operations: Option<Bucket>) {
        if let Some(bucket) = bandwidth {
            self.bandwidth = full_level(bucket);
        }
        if let Some(bucket) = operations {
            self.operations = full_level(bucket);
        }
        if self.throttled {
            self.wake_after(MIN_TIMER);
        }
    }

    /// Adds the tokens of the time up to `now`, on the clock of [`Self::consume`]. The first call after a restore adds
    /// none: it only records `now`.
    pub fn fill(&mut self, now: Duration) {
        for bucket in [&mut self.bandwidth, &mut self.operations].into_iter().flatten() {
            bucket.fill(now);
        }
    }

    /// Returns the state with the tokens of the time up to `now`, on the clock of [`Self::consume`].
    pub fn state_at(&self, now: Duration) -> LimiterState {
        let filled = |bucket: &Option<BucketLevel>| {
            let mut bucket = bucket.clone()?;
            bucket.fill(now);
            Some(bucket.without_time())
        };
        LimiterState {
            bandwidth: filled(&self.bandwidth),
            operations: filled(&self.operations),
        }
    }

    fn wake_after(&mut self, wait: Duration) {
        self.throttled = true;
        // `timerfd_settime` fails only for an invalid time; the kernel accepts up to 2^63 seconds.
        let _ = self.timer.reset(wait, None);
    }
}

/// Bucket for the bytes of an output that drops bytes beyond the limit. No byte waits, so that it needs no timer.
#[derive(Debug)]
pub struct DropLimiter(BucketLevel);

impl DropLimiter {
    /// Creates a limiter with a full bucket. Returns `None` for a bucket without a limit.
    pub fn new(bucket: Bucket) -> Option<Self> {
        full_level(bucket).map(Self)
    }

    /// Consumes tokens for as many of `bytes` as there are at `now`, on any clock that does not go back. Returns the number of bytes
    /// that pass; the caller drops the others.
    pub fn consume_available(&mut self, bytes: usize, now: Duration) -> usize {
        let Self(level) = self;
        level.fill(now);
        let available = level.burst.saturating_add(level.level);
        let passed = bytes.min(usize::try_from(available).unwrap_or(usize::MAX));
        level.consume(passed as u64);
        passed
    }
}

/// Minimum time for which a timerfd can be armed; zero would disarm it.
const MIN_TIMER: Duration = Duration::from_nanos(1);

fn full_level(bucket: Bucket) -> Option<BucketLevel> {
    bucket.has_limit().then(|| BucketLevel::full(bucket))
}

impl AsRawFd for Limiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Persist for Limiter {
    type State = LimiterState;

    /// Saves the levels of the last fill. [`Limiter::state_at`] includes the tokens since then.
    fn save(&self) -> Result<LimiterState, Error> {
        Ok(LimiterState {
            bandwidth: self.bandwidth.as_ref().map(BucketLevel::without_time),
            operations: self.operations.as_ref().map(BucketLevel::without_time),
        })
    }

    /// Restores the levels. No request is throttled afterwards: the device processes its queue after a restore in any
    /// case. Refill starts with the first [`Limiter::fill`] or [`Limiter::consume`].
    fn restore(&mut self, state: LimiterState) -> Result<(), Error> {
        for bucket in [&state.bandwidth, &state.operations].into_iter().flatten() {
            if let Some(reason) = bucket.invalid_reason() {
                return Err(Error::Invalid {
                    component: LimiterState::NAME,
                    reason,
                });
            }
        }
        self.clear_timer();
        self.bandwidth = state.bandwidth;
        self.operations = state.operations;
        Ok(())
    }
}
