//! What a device has done, and how long it took.
//!
//! A request takes the time from its being taken out of the queue to its being given back; with io_uring, the wait in the
//! ring is part of it. Looking at the clock twice takes a twentieth of a cached read of 4 KiB (0.82 of the rate of bare
//! pread, and 0.87 without), so that of reads and writes only one of [`SAMPLE`] is timed. Flushes are slow and rare, and are timed all.

use std::time::Duration;

use serde::Serialize;

use super::request::{Request, Status};
use super::uring::Operation;
use crate::clock::Clock;
use crate::histogram::Histogram;

/// Of so many reads and writes, one is timed.
pub const SAMPLE: u32 = 16;

/// What a device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockMetrics {
    /// Reads done.
    pub reads: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes read by reads that were done.
    pub read_bytes: u64,
    /// Bytes written by writes that were done.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discard and write-zeroes requests done.
    pub discards: u64,
    /// Requests of any kind that did not end well.
    pub errors: u64,
    /// How long reads took, a [sample](SAMPLE) of those that ended well.
    pub read_latency: Histogram,
    /// How long writes took, a [sample](SAMPLE) of those that ended well.
    pub write_latency: Histogram,
    /// How long flushes took, all that ended well.
    pub flush_latency: Histogram,
    /// Times that a request had to wait for the limiter.
    pub throttled: u64,
    /// Times that the driver's queue was malformed, which stopped it.
    pub malformed: u64,
}

/// The metrics of a device at work.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) metrics: BlockMetrics,
    /// Requests that come before the next one that is timed.
    untimed: u32,
}

impl Meter {
    /// When `request` begins, if it is to be timed.
    pub(super) fn start(&mut self, request: &Request, clock: &dyn Clock) -> Option<Duration> {
        match request {
            Request::Flush => return Some(clock.now()),
            Request::Read(_) | Request::Write(_) => {}
            _ => return None,
        }
        match self.untimed.checked_sub(1) {
            Some(left) => {
                self.untimed = left;
                None
            }
            None => {
                self.untimed = SAMPLE - 1;
                Some(clock.now())
            }
        }
    }

    /// `operation`, which has begun at `start` if it is timed, has ended with `status`.
    pub(super) fn count(
        &mut self,
        operation: Operation,
        status: Status,
        start: Option<Duration>,
        clock: &dyn Clock,
    ) {
        let metrics = &mut self.metrics;
        if status != Status::Ok {
            metrics.errors += 1;
            return;
        }
        let latency = match operation {
            Operation::Read(extent) => {
                metrics.reads += 1;
                metrics.read_bytes += extent.length;
                &mut metrics.read_latency
            }
            Operation::Write(extent, _) => {
                metrics.writes += 1;
                metrics.written_bytes += extent.length;
                &mut metrics.write_latency
            }
            Operation::Flush => {
                metrics.flushes += 1;
                &mut metrics.flush_latency
            }
        };
        if let Some(start) = start {
            latency.record(clock.now().saturating_sub(start));
        }
    }
}
