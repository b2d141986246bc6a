//! How much a device may do in a time: token buckets for bytes and for operations, as Firecracker's API has them.
//!
//! A device asks [`Limiter::consume`] before each request. When it may not go on it leaves the request where it is and
//! goes away; the limiter has set its timerfd to the very moment at which the request will pass, so that a throttled
//! queue costs no CPU.
//!
//! A request larger than the whole bucket passes as soon as nothing is owed, and what it took too much is owed: until it
//! has come in, nothing else passes. Over any time no more passes than the buckets held plus what came in, but for the
//! overdraft of the last request.

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
    fn limits(&self) -> bool {
        self.size != 0 && self.refill_time_ms != 0
    }

    fn refill_time(&self) -> u128 {
        u128::from(self.refill_time_ms) * NANOSECONDS_PER_MILLISECOND
    }
}

/// What is in a [`Bucket`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BucketLevel {
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
    fn full(bucket: Bucket) -> Self {
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
    fn at_rest(&self) -> Self {
        Self {
            seen: None,
            ..self.clone()
        }
    }

    /// Adds the tokens that have come up to `now`.
    fn fill(&mut self, now: Duration) {
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
    fn wait(&self, tokens: u64) -> Duration {
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
    fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let rest = tokens - from_burst;
        let from_level = rest.min(self.level);
        self.level -= from_level;
        self.debt = self.debt.saturating_add(rest - from_level);
    }

    /// What a saved state has wrong, if anything.
    fn invalid_reason(&self) -> Option<String> {
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

/// State of a [`Limiter`]: what is in its buckets. No time passes between saving it and its restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterState {
    bandwidth: Option<BucketLevel>,
    operations: Option<BucketLevel>,
}

impl Schema for LimiterState {
    const NAME: &'static str = "limiter";
    const VERSION: u32 = 1;
}

/// A bucket for bytes, a bucket for operations, and a timerfd, which is its file descriptor.
///
/// The descriptor becomes readable when a request that had to wait may pass; [`Self::clear_timer`] is called then.
#[derive(Debug)]
pub struct Limiter {
    bandwidth: Option<BucketLevel>,
    operations: Option<BucketLevel>,
    timer: TimerFd,
    throttled: bool,
}

impl Limiter {
    /// A limiter with full buckets; none, or one that has no limit, lets everything pass.
    ///
    /// # Errors
    /// The kernel's answer when no timerfd can be made.
    pub fn new(bandwidth: Option<Bucket>, operations: Option<Bucket>) -> io::Result<Self> {
        Ok(Self {
            bandwidth: bandwidth.and_then(tokens),
            operations: operations.and_then(tokens),
            timer: TimerFd::new()?,
            throttled: false,
        })
    }

    /// Whether there is any limit. Without one, [`Self::consume`] needs no true time.
    pub fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.operations.is_some()
    }

    /// Asks whether one operation with `bytes` may pass at `now`, on any clock that does not go back. When it may, its
    /// tokens are taken. When it may not, none are, and the timerfd is set for when it may.
    pub fn consume(&mut self, bytes: u64, now: Duration) -> bool {
        let mut wait = Duration::ZERO;
        for (tokens, count) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(tokens) = tokens {
                tokens.fill(now);
                wait = wait.max(tokens.wait(count));
            }
        }
        if !wait.is_zero() {
            self.wake_after(wait);
            return false;
        }
        for (tokens, count) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(tokens) = tokens {
                tokens.take(count);
            }
        }
        true
    }

    /// Whether a request waits for the timerfd.
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Makes the timerfd unreadable; whoever waited for it asks again.
    pub fn clear_timer(&mut self) {
        if self.throttled {
            // It is not read, which would block when it has been set again meanwhile; clearing cannot fail.
            let _ = self.timer.clear();
            self.throttled = false;
        }
    }

    /// Replaces buckets by new, full ones: none keeps what is there, one without a limit takes the limit away. Who is
    /// throttled is woken to ask again.
    pub fn update(&mut self, bandwidth: Option<Bucket>, operations: Option<Bucket>) {
        if let Some(bucket) = bandwidth {
            self.bandwidth = tokens(bucket);
        }
        if let Some(bucket) = operations {
            self.operations = tokens(bucket);
        }
        if self.throttled {
            self.wake_after(SOON);
        }
    }

    /// Adds the tokens that have come up to `now`, on the clock of [`Self::consume`]; after a restore, has them come from
    /// then on.
    pub fn fill(&mut self, now: Duration) {
        for tokens in [&mut self.bandwidth, &mut self.operations].into_iter().flatten() {
            tokens.fill(now);
        }
    }

    /// The state with the tokens that have come up to `now`, on the clock of [`Self::consume`].
    pub fn state_at(&self, now: Duration) -> LimiterState {
        let filled = |tokens: &Option<BucketLevel>| {
            let mut tokens = tokens.clone()?;
            tokens.fill(now);
            Some(tokens.at_rest())
        };
        LimiterState {
            bandwidth: filled(&self.bandwidth),
            operations: filled(&self.operations),
        }
    }

    fn wake_after(&mut self, wait: Duration) {
        self.throttled = true;
        // Fails only for what is not a time: the kernel takes any number of seconds up to 2^63.
        let _ = self.timer.reset(wait, None);
    }
}

/// The shortest time for which a timerfd can be set; zero would disarm it.
const SOON: Duration = Duration::from_nanos(1);

fn tokens(bucket: Bucket) -> Option<BucketLevel> {
    bucket.limits().then(|| BucketLevel::full(bucket))
}

impl AsRawFd for Limiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Persist for Limiter {
    type State = LimiterState;

    /// With the tokens that were there at the last look; [`Limiter::state_at`] has those that have come since too.
    fn save(&self) -> Result<LimiterState, Error> {
        Ok(LimiterState {
            bandwidth: self.bandwidth.as_ref().map(BucketLevel::at_rest),
            operations: self.operations.as_ref().map(BucketLevel::at_rest),
        })
    }

    /// Nobody is throttled afterwards: the device looks at its queue after a restore anyway. Tokens come from the first look
    /// on, which [`Limiter::fill`] is.
    fn restore(&mut self, state: LimiterState) -> Result<(), Error> {
        for tokens in [&state.bandwidth, &state.operations].into_iter().flatten() {
            if let Some(reason) = tokens.invalid_reason() {
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
