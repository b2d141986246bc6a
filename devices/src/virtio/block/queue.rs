//! The queue at work.
//!
//! A notification is served to the end at once, with one interrupt for all of it. What is put off is put off to the
//! eventfd: what io_uring has not done yet, and what a driver adds faster than it is served, which is stopped after a
//! queue's worth of requests so that the lock becomes free.

use std::sync::Arc;

use snapshot::GuestMemory;
use virtio_queue::QueueState;

use super::executor::Executor;
use super::request::{self, QUEUE_SIZE, Request};
use super::uring::UringEngine;
use crate::virtio::device::Activation;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::queue::chain::{self, Chain, ChainLimits};
use crate::virtio::queue::{self, Virtqueue};

/// How often what the kernel did only in part is given to it again before others have their turn.
const ROUNDS: usize = 4;

/// How many bytes one turn moves before others have theirs, with what counts [as bytes](Request::work); the last request
/// of a turn is still done as a whole.
const BATCH_BYTES: u64 = 16 << 20;
/// What one request may have, its header and status included: drivers ask for a few MiB at most.
const LIMITS: ChainLimits = ChainLimits {
    bytes: (64 << 20) + 4096,
    ..ChainLimits::WIDEST
};

/// Why the queue is stopped. It is the driver's fault, and only a reset helps.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error("the queue is malformed")]
    Queue(#[source] queue::Error),
    #[error("a chain is malformed")]
    Chain(#[source] chain::Error),
    #[error("a chain is no request")]
    Request(#[source] request::Error),
}

/// What a device has from its activation to its reset.
pub(super) struct ActiveQueue {
    queue: Virtqueue,
    memory: GuestMemory,
    signal: Arc<VirtioInterrupt>,
    /// Whether a write that is done is on the medium.
    through: bool,
    stopped: bool,
}

impl ActiveQueue {
    pub(super) fn new(activation: Activation, through: bool) -> Option<Self> {
        Some(Self {
            // A device that needed a reset when it was saved still does.
            stopped: activation.signal.is_reset_needed(),
            queue: Virtqueue::new(activation.queues.into_iter().next()?),
            memory: activation.memory,
            signal: activation.signal,
            through,
        })
    }

    pub(super) fn signal(&self) -> &VirtioInterrupt {
        &self.signal
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.state()
    }

    /// Serves what is in the queue and gives back what is done.
    pub(super) fn serve(&mut self, backend: &mut Executor) {
        let accepted = if self.stopped {
            Ok(())
        } else {
            self.accept(backend)
        };
        let full = backend.is_full();
        let collected = self.collect(backend);
        if full && !backend.is_full() {
            // What was not accepted for want of room has room now, and perhaps nothing in flight is left to say so.
            backend.wake_up();
        }
        let told = self.tell();
        if let Err(stop) = accepted.and(collected).and(told) {
            self.stop(&stop, backend);
        }
    }

    /// Waits for what is in flight and gives it back.
    pub(super) fn drain(&mut self, backend: &mut Executor) {
        let mut result = Ok(());
        while result.is_ok() && backend.in_flight() > 0 {
            result = self.collect(backend);
            // An error that does not pass leaves them in flight, and whoever wants none in flight sees that.
            if backend.ring.as_mut().is_some_and(|ring| ring.wait().is_err()) {
                break;
            }
        }
        if let Err(stop) = result.and(self.tell()) {
            self.stop(&stop, backend);
        }
    }

    fn stop(&mut self, stop: &QueueError, backend: &mut Executor) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        backend.meter.metrics.malformed += 1;
        // A guest can do this as often as it likes, and is told of once.
        if backend.meter.metrics.malformed == 1 {
            let cause = std::error::Error::source(stop);
            let cause = cause.map(ToString::to_string).unwrap_or_default();
            log::warn!("block device stopped until its driver resets it: {stop}: {cause}");
        }
        self.signal.set_needs_reset();
    }

    /// Takes requests out of the queue until there are none, or until they must wait.
    fn accept(&mut self, backend: &mut Executor) -> Result<(), QueueError> {
        backend.open_ring(&self.memory);
        let through = self.through;
        let Self { queue, memory, .. } = self;
        let memory: &GuestMemory = memory;
        let mut chain = Chain::default();
        let mut budget = QUEUE_SIZE;
        let mut work = BATCH_BYTES;
        loop {
            queue.disable_notification(memory).map_err(QueueError::Queue)?;
            while let Some(descriptors) = queue.pop_chain(memory).map_err(QueueError::Queue)? {
                // What is full becomes free, and wakes.
                if backend.is_full() || budget == 0 || work == 0 {
                    queue.undo_pop(1);
                    break;
                }
                budget -= 1;
                chain
                    .refill(descriptors, memory, LIMITS)
                    .map_err(QueueError::Chain)?;
                let request = Request::parse(&chain, backend.target()).map_err(QueueError::Request)?;
                if !backend.allows(&request) {
                    queue.undo_pop(1);
                    return Ok(());
                }
                work = work.saturating_sub(request.work(through));
                if let Some(length) = backend.begin(&request, &chain, through) {
                    queue
                        .add_used(memory, &[(chain.head, length)])
                        .map_err(QueueError::Queue)?;
                }
            }
            if backend.is_full() {
                return Ok(());
            }
            if budget == 0 || work == 0 {
                backend.wake_up();
                return Ok(());
            }
            // A request added meanwhile counts as one, so that this comes to an end.
            budget -= 1;
            if !queue.enable_notification(memory).map_err(QueueError::Queue)? {
                return Ok(());
            }
        }
    }

    /// Gives the kernel what was accepted and the driver what is done.
    fn collect(&mut self, backend: &mut Executor) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            backend.submit();
            while let Some(done) = backend.reap() {
                let added = self.queue.add_used(&self.memory, &[(done.head, done.length)]);
                added.map_err(QueueError::Queue)?;
            }
            if backend.ring.as_ref().is_none_or(UringEngine::is_submitted) {
                return Ok(());
            }
        }
        // What is with the kernel wakes when it is done.
        if backend.ring.as_ref().is_some_and(|ring| ring.with_kernel() == 0) {
            backend.wake_up();
        }
        Ok(())
    }

    /// Interrupts the driver if something was used and it wants to know.
    fn tell(&mut self) -> Result<(), QueueError> {
        if self
            .queue
            .needs_notification(&self.memory)
            .map_err(QueueError::Queue)?
        {
            self.signal.notify_used();
        }
        Ok(())
    }
}
