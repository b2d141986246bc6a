//! The queue at work.
//!
//! A notification is served to the end at once, with one interrupt for all of it. What is put off is put off to the
//! eventfd: what io_uring has not done yet, and what a driver adds faster than it is served, which is stopped after a
//! queue's worth of requests so that the lock becomes free.
//!
//! With io_uring, only what has to wait goes into the ring. Of 4 KiB requests one at a time on ext4, a read from the page
//! cache takes a third longer through the ring than by preadv2, and a write, for which the kernel wakes a worker, three
//! times as long as by pwritev2. On tmpfs, which cannot say what it has and never waits, reads do not go there either.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use snapshot::GuestMemory;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::device::{IoEngine, Metrics};
use super::file::Disk;
use super::request::{self, Request, Status, Target};
use super::serve::{Id, Outcome, execute, finish, read_cached};
use super::space::QUEUE_SIZE;
use super::uring::{Operation, Ring};
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::chain::{self, Chain, Limits};
use crate::virtio::device::Activation;
use crate::virtio::signal::Signal;
use crate::virtio::split::{self, Split};

/// How often what the kernel did only in part is given to it again before others have their turn.
const ROUNDS: usize = 4;

/// How many bytes one turn moves, before others have theirs; the last request of a turn is still done as a whole.
const TURN: u64 = 16 << 20;
/// What one request may have, its header and status included: drivers ask for a few MiB at most.
const LIMITS: Limits = Limits {
    bytes: (64 << 20) + 4096,
    ..Limits::WIDEST
};

/// Why the queue is stopped. It is the driver's fault, and only a reset helps.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the queue is malformed")]
    Queue(#[source] split::Error),
    #[error("a chain is malformed")]
    Chain(#[source] chain::Error),
    #[error("a chain is no request")]
    Request(#[source] request::Error),
}

/// What a device has whether it is activated or not.
pub(super) struct Backend {
    pub(super) disk: Disk,
    pub(super) id: Id,
    pub(super) engine: IoEngine,
    pub(super) limiter: Limiter,
    pub(super) clock: Box<dyn Clock>,
    /// Readable when the queue is to be looked at without its driver saying so.
    pub(super) wake: EventFd,
    pub(super) metrics: Metrics,
}

impl Backend {
    /// Makes the eventfd unreadable.
    pub(super) fn quiet(&self) {
        // Fails when it is unreadable already.
        let _ = self.wake.read();
    }

    /// Has the queue looked at again.
    fn wake_up(&self) {
        // Fails when the counter is at its end, and then it is readable.
        let _ = self.wake.write(1);
    }

    /// Whether the limiter lets `request` pass now.
    fn allows(&mut self, request: &Request) -> bool {
        let passes = !self.limiter.limits() || self.limiter.consume(request.bytes(), self.clock.now());
        if !passes {
            self.metrics.throttled += 1;
        }
        passes
    }

    fn target(&self) -> Target {
        Target {
            size: self.disk.size(),
            read_only: self.disk.is_read_only(),
        }
    }
}

/// What a device has from its activation to its reset.
pub(super) struct Active {
    queue: Split,
    memory: GuestMemory,
    signal: Arc<Signal>,
    /// Whether a write that is done is on the medium.
    through: bool,
    ring: Option<Ring>,
    stopped: bool,
}

impl Active {
    pub(super) fn new(activation: Activation, through: bool) -> Option<Self> {
        Some(Self {
            // A device that needed a reset when it was saved still does.
            stopped: activation.signal.is_broken(),
            queue: Split::new(activation.queues.into_iter().next()?),
            memory: activation.memory,
            signal: activation.signal,
            through,
            ring: None,
        })
    }

    pub(super) fn signal(&self) -> &Signal {
        &self.signal
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.state()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Serves what is in the queue and gives back what is done.
    pub(super) fn serve(&mut self, backend: &mut Backend) {
        let accepted = if self.stopped {
            Ok(())
        } else {
            self.accept(backend)
        };
        let full = self.ring.as_ref().is_some_and(Ring::is_full);
        let collected = self.collect(backend);
        if full && self.ring.as_ref().is_some_and(|ring| !ring.is_full()) {
            // What was not accepted for want of room has room now, and perhaps nothing in flight is left to say so.
            backend.wake_up();
        }
        let told = self.tell();
        if let Err(stop) = accepted.and(collected).and(told) {
            self.stop(&stop, backend);
        }
    }

    /// Waits for what is in flight and gives it back.
    pub(super) fn drain(&mut self, backend: &mut Backend) {
        let mut result = Ok(());
        while result.is_ok() && self.in_flight() > 0 {
            // An error that does not pass leaves them in flight, and whoever wants none in flight sees that.
            let waited = self.ring.as_mut().is_some_and(|ring| ring.wait().is_ok());
            result = self.collect(backend);
            if !waited {
                break;
            }
        }
        if let Err(stop) = result.and(self.tell()) {
            self.stop(&stop, backend);
        }
    }

    fn stop(&mut self, stop: &Stop, backend: &mut Backend) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        backend.metrics.malformed += 1;
        // A guest can do this as often as it likes, and is told of once.
        if backend.metrics.malformed == 1 {
            let cause = std::error::Error::source(stop);
            let cause = cause.map(ToString::to_string).unwrap_or_default();
            log::warn!("block device stopped until its driver resets it: {stop}: {cause}");
        }
        self.signal.needs_reset();
    }

    /// Takes requests out of the queue until there are none, or until they must wait.
    fn accept(&mut self, backend: &mut Backend) -> Result<(), Stop> {
        self.open_ring(backend);
        let Self { queue, memory, .. } = self;
        let memory: &GuestMemory = memory;
        let mut chain = Chain::default();
        let mut budget = QUEUE_SIZE;
        let mut bytes = TURN;
        loop {
            queue.mute(memory).map_err(Stop::Queue)?;
            while let Some(descriptors) = queue.pop(memory).map_err(Stop::Queue)? {
                // What is full becomes free, and wakes.
                let full = self.ring.as_ref().is_some_and(Ring::is_full);
                if full || budget == 0 || bytes == 0 {
                    queue.put_back(1);
                    break;
                }
                budget -= 1;
                chain.take(descriptors, memory, LIMITS).map_err(Stop::Chain)?;
                let request = Request::parse(&chain, backend.target()).map_err(Stop::Request)?;
                bytes = bytes.saturating_sub(request.bytes());
                if !backend.allows(&request) {
                    queue.put_back(1);
                    return Ok(());
                }
                if let Some(length) = begin(&request, &chain, backend, self.ring.as_mut(), self.through) {
                    queue
                        .publish(memory, &[(chain.head, length)])
                        .map_err(Stop::Queue)?;
                }
            }
            if self.ring.as_ref().is_some_and(Ring::is_full) {
                return Ok(());
            }
            if budget == 0 || bytes == 0 {
                backend.wake_up();
                return Ok(());
            }
            // A request added meanwhile counts as one, so that this comes to an end.
            budget -= 1;
            if !queue.listen(memory).map_err(Stop::Queue)? {
                return Ok(());
            }
        }
    }

    /// Makes the ring at the first request.
    fn open_ring(&mut self, backend: &mut Backend) {
        if backend.engine == IoEngine::Sync || self.ring.is_some() {
            return;
        }
        match Ring::new(self.memory.clone(), backend.wake.as_raw_fd()) {
            Ok(ring) => self.ring = Some(ring),
            Err(error) => {
                log::warn!("block device goes on without io_uring: {error}");
                backend.engine = IoEngine::Sync;
            }
        }
    }

    /// Gives the kernel what was accepted and the driver what is done.
    fn collect(&mut self, backend: &mut Backend) -> Result<(), Stop> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        for _ in 0..ROUNDS {
            if ring.submit().is_err() {
                break;
            }
            while let Some(done) = ring.reap(&backend.disk) {
                count(&mut backend.metrics, done.operation, done.status);
                let added = self.queue.publish(&self.memory, &[(done.head, done.length)]);
                added.map_err(Stop::Queue)?;
            }
            if ring.is_submitted() {
                return Ok(());
            }
        }
        backend.wake_up();
        Ok(())
    }

    /// Interrupts the driver if something was used and it wants to know.
    fn tell(&mut self) -> Result<(), Stop> {
        if self.queue.wants_interrupt(&self.memory).map_err(Stop::Queue)? {
            self.signal.used_buffers();
        }
        Ok(())
    }
}

/// Does `request`, and returns the length for the used ring, or puts it into `ring`.
fn begin(
    request: &Request,
    chain: &Chain<'_>,
    backend: &mut Backend,
    ring: Option<&mut Ring>,
    through: bool,
) -> Option<u32> {
    let operation = match request {
        Request::Read(extent) => Some(Operation::Read(*extent)),
        Request::Write(extent) => Some(Operation::Write(*extent, through)),
        Request::Flush => Some(Operation::Flush),
        _ => None,
    };
    let disk = &backend.disk;
    let outcome = match (ring, operation) {
        (Some(ring), Some(Operation::Read(extent))) if disk.waits_to_read() => {
            let given = read_cached(extent, chain, disk);
            if given < extent.length {
                ring.push(Operation::Read(extent), chain, given, disk);
                return None;
            }
            let status = Status::Ok;
            Outcome { status, given }
        }
        (Some(ring), Some(operation @ Operation::Write(..))) if disk.waits_to_write(through) => {
            ring.push(operation, chain, 0, disk);
            return None;
        }
        (Some(ring), Some(operation @ Operation::Flush)) => {
            ring.push(operation, chain, 0, disk);
            return None;
        }
        _ => execute(request, chain, disk, &backend.id, through),
    };
    match operation {
        Some(operation) => count(&mut backend.metrics, operation, outcome.status),
        None if outcome.status != Status::Ok => backend.metrics.errors += 1,
        None if matches!(request, Request::Id) => {}
        None => backend.metrics.discards += 1,
    }
    Some(finish(chain, outcome))
}

fn count(metrics: &mut Metrics, operation: Operation, status: Status) {
    if status != Status::Ok {
        metrics.errors += 1;
        return;
    }
    match operation {
        Operation::Read(extent) => {
            metrics.reads += 1;
            metrics.read_bytes += extent.length;
        }
        Operation::Write(extent, _) => {
            metrics.writes += 1;
            metrics.written_bytes += extent.length;
        }
        Operation::Flush => metrics.flushes += 1,
    }
}
