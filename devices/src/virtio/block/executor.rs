//! What a device has whether it is activated or not, and how it does a request.
//!
//! With io_uring, only what has to wait goes into the ring. Of 4 KiB requests one at a time on ext4, a read from the page
//! cache takes a third longer through the ring than by preadv2, and a write, for which the kernel wakes a worker, three
//! times as long as by pwritev2. On tmpfs, which cannot say what it has and never waits, reads do not go there either.

use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};
use snapshot::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::execute::{Completion, Id, execute, finish, read_cached};
use super::metrics::Meter;
use super::request::{Request, Status, Target};
use super::uring::{Completed, Operation, UringEngine, UringRequest};
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::chain::Chain;

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One after the other, by whoever notifies.
    #[default]
    Sync,
    /// By io_uring.
    Async,
}

/// What a device has whether it is activated or not.
pub(super) struct Executor {
    pub(super) disk: Disk,
    pub(super) id: Id,
    pub(super) engine: IoEngine,
    pub(super) limiter: Limiter,
    pub(super) clock: Box<dyn Clock>,
    /// Readable when the queue is to be looked at without its driver saying so.
    pub(super) wake: EventFd,
    pub(super) meter: Meter,
    /// There from the first request on, when the engine wants it.
    pub(super) ring: Option<UringEngine>,
}

impl Executor {
    /// Makes the eventfd unreadable.
    pub(super) fn quiet(&self) {
        // Fails when it is unreadable already.
        let _ = self.wake.read();
    }

    /// Has the queue looked at again.
    pub(super) fn wake_up(&self) {
        // Fails when the counter is at its end, and then it is readable.
        let _ = self.wake.write(1);
    }

    /// Whether the limiter lets `request` pass now.
    pub(super) fn allows(&mut self, request: &Request) -> bool {
        if !self.limiter.limits() {
            return true;
        }
        // A driver that notifies while it has to wait does not wait once more.
        let waits = self.limiter.is_throttled();
        let passes = self.limiter.consume(request.bytes(), self.clock.now());
        if !passes && !waits {
            self.meter.metrics.throttled += 1;
        }
        passes
    }

    pub(super) fn target(&self) -> Target {
        Target {
            size: self.disk.size(),
            read_only: self.disk.is_read_only(),
        }
    }

    /// Requests that io_uring has not done yet.
    pub(super) fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, UringEngine::in_flight)
    }

    /// Whether io_uring has no room for a further request.
    pub(super) fn is_full(&self) -> bool {
        self.ring.as_ref().is_some_and(UringEngine::is_full)
    }

    /// Makes the ring at the first request, or takes the one of another activation, for requests in `memory`.
    pub(super) fn open_ring(&mut self, memory: &GuestMemory) {
        match &mut self.ring {
            Some(ring) => return ring.attach(memory),
            None if self.engine == IoEngine::Sync => return,
            None => {}
        }
        match UringEngine::new(self.wake.as_raw_fd()) {
            Ok(mut ring) => {
                ring.attach(memory);
                self.ring = Some(ring);
            }
            Err(error) => {
                log::warn!("block device goes on without io_uring: {error}");
                self.engine = IoEngine::Sync;
            }
        }
    }

    /// Waits for what is in flight, of which nobody is told. The ring is kept for the next activation if it still works.
    pub(super) fn drain(&mut self) {
        let released = self.ring.as_mut().is_none_or(|ring| ring.release().is_ok());
        if !released || self.engine == IoEngine::Sync {
            self.ring = None;
        }
    }

    /// Gives the kernel what was put into the ring. When it takes nothing any more, there will be no more of that, and what
    /// it has not taken has failed.
    pub(super) fn submit(&mut self) {
        let Some(Err(error)) = self.ring.as_mut().map(UringEngine::submit) else {
            return;
        };
        log::warn!("block device goes on without io_uring, which takes no requests any more: {error}");
        self.engine = IoEngine::Sync;
    }

    /// The next request that io_uring has done.
    pub(super) fn reap(&mut self) -> Option<Completed> {
        let done = self.ring.as_mut()?.reap(&self.disk)?;
        self.meter
            .count(done.operation, done.status, done.start, &*self.clock);
        Some(done)
    }

    /// Does `request`, which was parsed from `chain`, and returns the length for the used ring, or puts it into the ring.
    /// With `through`, what it writes is on the medium afterwards.
    pub(super) fn begin(&mut self, request: &Request, chain: &Chain<'_>, through: bool) -> Option<u32> {
        let start = self.meter.start(request, &*self.clock);
        let operation = match request {
            Request::Read(extent) => Some(Operation::Read(*extent)),
            Request::Write(extent) => Some(Operation::Write(*extent, through)),
            Request::Flush => Some(Operation::Flush),
            _ => None,
        };
        let disk = &self.disk;
        let waits = |operation| match operation {
            Operation::Read(_) => false,
            Operation::Write(..) => disk.waits_to_write(through),
            Operation::Flush => true,
        };
        let ring = match self.engine {
            IoEngine::Async => self.ring.as_mut(),
            IoEngine::Sync => None,
        };
        let outcome = match (ring, operation) {
            (Some(ring), Some(Operation::Read(extent))) if disk.waits_to_read() => {
                let given = read_cached(extent, chain, disk);
                if given < extent.length {
                    let todo = UringRequest {
                        operation: Operation::Read(extent),
                        done: given,
                        start,
                    };
                    ring.push(todo, chain, disk);
                    return None;
                }
                let status = Status::Ok;
                Completion { status, given }
            }
            (Some(ring), Some(operation)) if waits(operation) => {
                let done = 0;
                let todo = UringRequest {
                    operation,
                    done,
                    start,
                };
                ring.push(todo, chain, disk);
                return None;
            }
            _ => execute(request, chain, disk, &self.id, through),
        };
        match operation {
            Some(operation) => self.meter.count(operation, outcome.status, start, &*self.clock),
            None if outcome.status != Status::Ok => self.meter.metrics.errors += 1,
            None if matches!(request, Request::Id) => {}
            None => self.meter.metrics.discards += 1,
        }
        Some(finish(chain, outcome))
    }
}
