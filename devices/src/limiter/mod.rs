//! How much a device may do in a time: token buckets for bytes and for operations, as Firecracker's API has them.
//!
//! A device asks [`Limiter::consume`] before each request. When it may not go on it leaves the request where it is and
//! goes away; the limiter has set its timerfd to the very moment at which the request will pass, so that a throttled
//! queue costs no CPU.
//!
//! A request larger than the whole bucket passes as soon as nothing is owed, and what it took too much is owed: until it
//! has come in, nothing else passes. Over any time no more passes than the buckets held plus what came in, but for the
//! overdraft of the last request.

mod bucket;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};
use vmm_sys_util::timerfd::TimerFd;

pub use bucket::Bucket;
use bucket::BucketLevel;

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
