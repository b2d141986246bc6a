//! The queue of an active device.
//!
//! A notification processes all available chains at once, with one interrupt at its end. The eventfd resumes the rest
//! on the event loop: requests that io_uring or the worker ends later, and chains beyond one batch. A batch has at most as
//! many requests as the queue has entries, so that a driver cannot hold the lock of the device.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot::GuestMemory;
use virtio_queue::QueueState;

use super::executor::Executor;
use super::request::{self, QUEUE_SIZE, Request};
use super::transfer::Unfinished;
use crate::virtio::device::Activation;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::queue::chain::{self, Chain, ChainLimits};
use crate::virtio::queue::{self, DescriptorIter, Virtqueue};

/// Maximum number of submissions in one batch: the kernel may complete a request partially, again and again.
const MAX_ROUNDS: usize = 4;

/// Maximum time for the last call of cancelled work.
const CALL_TIMEOUT: Duration = Duration::from_millis(20);

/// Cost limit of one batch in [bytes](Request::cost). The request that reaches the limit is still executed.
const BATCH_BYTES: u64 = 16 << 20;
/// Limits of one request, header and status included. Drivers use a few MiB at most.
const LIMITS: ChainLimits = ChainLimits {
    bytes: (64 << 20) + 4096,
    ..ChainLimits::WIDEST
};

/// Fault of the driver that stops the queue until a reset.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error("cannot process the virtqueue")]
    Queue(#[source] queue::Error),
    #[error("cannot use a descriptor chain")]
    Chain(#[source] chain::Error),
    #[error("cannot execute a request")]
    Request(#[source] request::Error),
}

/// State of a device from activation to reset.
pub(super) struct ActiveQueue {
    queue: Virtqueue,
    memory: GuestMemory,
    interrupt: Arc<VirtioInterrupt>,
    /// A completed write is on the medium.
    write_through: bool,
    is_stopped: bool,
    /// Suspended requests. They precede those that are available.
    unfinished: VecDeque<Unfinished>,
}

impl ActiveQueue {
    pub(super) fn new(activation: Activation, write_through: bool) -> Option<Self> {
        Some(Self {
            // A restored device may still need a reset.
            is_stopped: activation.interrupt.is_reset_needed(),
            queue: Virtqueue::new(activation.queues.into_iter().next()?),
            memory: activation.memory,
            interrupt: activation.interrupt,
            write_through,
            unfinished: VecDeque::new(),
        })
    }

    /// Returns the suspended requests.
    pub(super) fn unfinished(&self) -> Vec<Unfinished> {
        self.unfinished.iter().copied().collect()
    }

    /// Restores suspended requests.
    pub(super) fn restore_unfinished(&mut self, unfinished: Vec<Unfinished>) {
        self.unfinished = unfinished.into();
    }

    /// Makes suspended requests start at their begin: the disk is another one.
    pub(super) fn restart_unfinished(&mut self) {
        self.unfinished.iter_mut().for_each(|request| request.done = 0);
    }

    pub(super) fn interrupt(&self) -> &VirtioInterrupt {
        &self.interrupt
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.state()
    }

    /// Executes available requests and completes those that are done.
    pub(super) fn process(&mut self, executor: &mut Executor) {
        // Before the start: the end of work may end the wait of a request.
        let ended = self.add_completed(executor);
        let may_start = executor.continue_held(&self.memory);
        let started = if self.is_stopped || !may_start || ended.is_err() {
            Ok(())
        } else {
            self.start_requests(executor)
        };
        let full = executor.is_full();
        let reaped = self.reap_completions(executor);
        if full && !executor.is_full() {
            // Requests that were left in the queue fit now, but possibly no completion remains to make the eventfd
            // readable.
            executor.wake_up();
        }
        let notified = self.notify_driver();
        if let Err(error) = ended.and(started).and(reaped).and(notified) {
            self.stop(&error, executor);
        }
    }

    /// Waits for requests in flight and completes them, at most for `timeout`. The caller checks the number of
    /// requests that remain.
    ///
    /// Submits nothing to io_uring: the kernel cancels requests at the exit of the thread that has submitted them, and the caller may
    /// be a thread that exits. The event loop submits the rest.
    pub(super) fn drain(&mut self, executor: &mut Executor, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut was_readable = false;
        let mut result;
        loop {
            was_readable |= executor.clear_wake();
            result = self.add_completed(executor);
            if result.is_err() || executor.in_flight() == 0 || !executor.wait_for_completion(deadline) {
                break;
            }
        }
        if was_readable || !executor.is_submitted() {
            // Possibly for the rest of the queue.
            executor.wake_up();
        }
        if let Err(error) = result.and(self.notify_driver()) {
            self.stop(&error, executor);
        }
    }

    /// Suspends all requests in flight: the next event continues them. A part that is executed twice has the same effect, because the
    /// driver has not seen the request completed. Waits at most for the current call of the worker.
    pub(super) fn suspend(&mut self, executor: &mut Executor) {
        let suspended = executor.suspend(CALL_TIMEOUT);
        if !suspended.is_empty() {
            // Before those that have not been started again since the last time.
            let later = std::mem::replace(&mut self.unfinished, suspended.into());
            self.unfinished.extend(later);
            executor.wake_up();
        }
    }

    fn stop(&mut self, error: &QueueError, executor: &mut Executor) {
        if self.is_stopped {
            return;
        }
        self.is_stopped = true;
        executor.meter.recorder.malformed.add(1);
        // Once: the guest could otherwise flood the log.
        if executor.meter.recorder.malformed.get() == 1 {
            let cause = std::error::Error::source(error);
            let cause = cause.map(ToString::to_string).unwrap_or_default();
            log::warn!("block device stops until its reset: {error}: {cause}");
        }
        self.interrupt.set_needs_reset();
    }

    /// Pops and starts requests, until the queue is empty, the batch is full, or a request must wait.
    fn start_requests(&mut self, executor: &mut Executor) -> Result<(), QueueError> {
        let Self {
            queue,
            memory,
            unfinished,
            write_through,
            ..
        } = self;
        let memory: &GuestMemory = memory;
        let mut chain = Chain::default();
        let mut budget = QUEUE_SIZE;
        let mut cost_left = BATCH_BYTES;
        let mut is_empty = true;
        loop {
            queue.disable_notification(memory).map_err(QueueError::Queue)?;
            // A full io_uring or worker makes the eventfd readable at its next completion.
            while !executor.is_full()
                && budget > 0
                && cost_left > 0
                && let Some((descriptors, done)) =
                    next_chain(queue, unfinished, memory).map_err(QueueError::Queue)?
            {
                is_empty = false;
                budget -= 1;
                chain
                    .refill(descriptors, memory, LIMITS)
                    .map_err(QueueError::Chain)?;
                let mut request = Request::parse(&chain, executor.target()).map_err(QueueError::Request)?;
                let done = request.skip(done);
                if executor.must_wait(&request) || !executor.admit_request(&request) {
                    if unfinished.is_empty() {
                        queue.undo_pop(1);
                    }
                    executor
                        .meter
                        .recorder
                        .left_requests
                        .add(queue.available(memory).into());
                    return Ok(());
                }
                unfinished.pop_front();
                cost_left = cost_left.saturating_sub(request.cost());
                if let Some(length) = executor.begin(request, done, &chain, memory, *write_through) {
                    queue
                        .add_used(memory, &[(chain.head, length)])
                        .map_err(QueueError::Queue)?;
                }
            }
            if executor.is_full() || budget == 0 || cost_left == 0 {
                leave_rest(queue, memory, executor);
                return Ok(());
            }
            // Bounds the loop: a driver may make chains available all the time.
            budget -= 1;
            if !queue.enable_notification(memory).map_err(QueueError::Queue)? {
                executor.meter.recorder.empty_batches.add(u64::from(is_empty));
                return Ok(());
            }
        }
    }

    /// Submits started requests to the kernel and adds completed ones to the used ring.
    fn reap_completions(&mut self, executor: &mut Executor) -> Result<(), QueueError> {
        for _ in 0..MAX_ROUNDS {
            executor.submit();
            self.add_completed(executor)?;
            if executor.is_submitted() {
                return Ok(());
            }
        }
        // Any request in the kernel makes the eventfd readable at its completion.
        if executor
            .uring
            .as_ref()
            .is_some_and(|uring| uring.submitted() == 0)
        {
            executor.wake_up();
        }
        Ok(())
    }

    /// Adds requests that have ended to the used ring.
    fn add_completed(&mut self, executor: &mut Executor) -> Result<(), QueueError> {
        while let Some(done) = executor.reap(&self.memory) {
            let added = self.queue.add_used(&self.memory, &[done]);
            added.map_err(QueueError::Queue)?;
        }
        Ok(())
    }

    /// Sends a used buffer notification if the driver expects one.
    fn notify_driver(&mut self) -> Result<(), QueueError> {
        if self
            .queue
            .needs_notification(&self.memory)
            .map_err(QueueError::Queue)?
        {
            self.interrupt.notify_used();
        }
        Ok(())
    }
}

/// Counts the requests that a full batch leaves in the queue, and makes the event loop continue unless the end of a request does.
fn leave_rest(queue: &Virtqueue, memory: &GuestMemory, executor: &Executor) {
    let left = queue.available(memory);
    executor.meter.recorder.left_requests.add(left.into());
    match executor.is_full() {
        true => executor.meter.recorder.engine_full.add(u64::from(left > 0)),
        false => executor.wake_up(),
    }
}

/// Returns the chain of the first suspended request and its completed bytes, or pops the next available chain.
fn next_chain<'m>(
    queue: &mut Virtqueue,
    unfinished: &VecDeque<Unfinished>,
    memory: &'m GuestMemory,
) -> Result<Option<(DescriptorIter<'m>, u64)>, queue::Error> {
    match unfinished.front() {
        Some(request) => Ok(Some((queue.chain(memory, request.head)?, request.done))),
        None => Ok(queue.pop_chain(memory)?.map(|chain| (chain, 0))),
    }
}
