//! What one turn of a queue works with, and how it ends.

use std::time::Duration;

use snapshot::GuestMemory;

use super::backend::Backend;
use super::metrics::Counters;
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::Virtqueue;

/// The most packets that one turn serves.
pub(super) const MAX_PACKETS: usize = 512;

/// What one queue is served with.
pub(super) struct Batch<'a> {
    /// Features that the driver has accepted.
    pub(super) features: u64,
    /// Bytes of the longest frame for the driver that is not to be cut up.
    pub(super) longest: usize,
    pub(super) memory: &'a GuestMemory,
    pub(super) ring: &'a mut Virtqueue,
    pub(super) backend: &'a mut dyn Backend,
    pub(super) limiter: &'a mut Limiter,
    pub(super) clock: &'a dyn Clock,
    pub(super) counters: &'a mut Counters,
}

/// Why a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchEnd {
    /// There is nothing to do before the driver or the back end has something.
    Idle,
    /// The rate limiter says when to go on.
    Throttled,
    /// The back end takes no more before it is writable.
    Full,
    /// There is more to do.
    Exhausted,
}

impl Batch<'_> {
    /// Asks the rate limiter whether a frame of `bytes` may pass now.
    pub(super) fn permits(&mut self, bytes: usize) -> bool {
        let now = match self.limiter.limits() {
            true => self.clock.now(),
            false => Duration::ZERO,
        };
        let permitted = self.limiter.consume(bytes as u64, now);
        self.counters.throttled += u64::from(!permitted);
        permitted
    }

    /// Counts a frame of `bytes` that has passed.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.counters.packets += 1;
        self.counters.bytes += bytes as u64;
    }
}
