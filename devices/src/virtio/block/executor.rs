//! State that outlives an activation, and the choice between synchronous execution, io_uring and the worker.
//!
//! The worker executes requests that may take long: flush, discard and write zeroes on both engines. With the
//! synchronous engine, it also flushes after each write of a write-through device. tmpfs has nothing to flush.
//!
//! io_uring executes only requests that wait. For single 4 KiB requests on ext4, a cached read takes a third longer
//! by io_uring than by preadv2. A write takes three times as long as by pwritev2, since the kernel wakes a worker.
//! tmpfs never waits and does not support RWF_NOWAIT, so its reads are synchronous.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use snapshot::GuestMemory;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::disk::{Disk, Extent};
use super::execute::{Completion, Id, complete, execute, read_cached, used_length};
use super::metrics::Meter;
use super::request::{QUEUE_SIZE, Request, RequestKind, Status, Target};
use super::uring::{Operation, UringEngine, UringRequest, wait_readable};
use super::worker::{DirtyRange, PendingRequest, Work, Worker};
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::chain::Chain;

/// Maximum number of bytes that the driver may write during a flush: the kernel writes all of them in one call.
const MAX_DIRTY: u64 = 16 << 20;

/// Execution of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// Sequential, on the thread that handles the notification.
    #[default]
    Sync,
    /// With io_uring.
    Async,
}

/// Disk, engine, rate limiter and metrics of a device, active or not.
pub(super) struct Executor {
    pub(super) disk: Disk,
    pub(super) id: Id,
    pub(super) engine: IoEngine,
    pub(super) limiter: Limiter,
    pub(super) clock: Box<dyn Clock>,
    /// Makes the event loop process the queue without a notification of the driver.
    pub(super) wake: Arc<EventFd>,
    pub(super) meter: Meter,
    /// Created at the first request of the async engine.
    pub(super) uring: Option<UringEngine>,
    /// Started at the first request that may take long.
    pub(super) worker: Option<Worker>,
    /// Bytes written since the last flush.
    pub(super) dirty: DirtyRange,
    /// Number of bytes written since the begin of the oldest flush in flight.
    pub(super) written_in_flush: u64,
}

/// Result of the begin of a request with io_uring.
enum Begun {
    /// Completed from the page cache.
    Completed(Completion),
    /// Queued for io_uring.
    Queued,
    /// Not a request for io_uring.
    Not,
}

impl Executor {
    /// Makes the eventfd unreadable. Returns true if it was readable.
    pub(super) fn clear_wake(&self) -> bool {
        self.wake.read().is_ok()
    }

    /// Makes the event loop process the queue again.
    pub(super) fn wake_up(&self) {
        // Fails only if the counter is at its maximum, and then the eventfd is readable.
        let _ = self.wake.write(1);
    }

    /// Consumes the tokens of `request`, or returns false if it must wait for the rate limiter.
    pub(super) fn admit(&mut self, request: &Request) -> bool {
        if !self.limiter.has_limit() {
            return true;
        }
        // A notification while the request waits does not count as another wait.
        let was_throttled = self.limiter.is_throttled();
        let admitted = self.limiter.consume(request.bytes(), self.clock.now());
        if !admitted && !was_throttled {
            self.meter.metrics.throttled += 1;
        }
        admitted
    }

    /// Returns size and write protection of the disk.
    pub(super) fn target(&self) -> Target {
        Target {
            size: self.disk.size(),
            read_only: self.disk.is_read_only(),
        }
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.uring.as_ref().map_or(0, UringEngine::in_flight)
            + self.worker.as_ref().map_or(0, Worker::in_flight)
    }

    /// Returns true if io_uring or the worker cannot accept a further request.
    pub(super) fn is_full(&self) -> bool {
        self.uring.as_ref().is_some_and(UringEngine::is_full)
            || self
                .worker
                .as_ref()
                .is_some_and(|worker| worker.in_flight() >= usize::from(QUEUE_SIZE))
    }

    /// Returns true if `request` must wait for the end of work in flight, which makes the eventfd readable.
    pub(super) fn must_wait(&self, request: &Request, write_through: bool) -> bool {
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.in_flight() > 0) else {
            return false;
        };
        if matches!(request, Request::Write(_)) && self.written_in_flush >= MAX_DIRTY && worker.is_flushing()
        {
            return true;
        }
        // The synchronous engine is sequential. Thus the work in flight can be popped again after a snapshot.
        self.engine == IoEngine::Sync && !self.may_take_long(request, write_through)
    }

    /// Returns true if the synchronous execution of `request` may take long.
    fn may_take_long(&self, request: &Request, write_through: bool) -> bool {
        match request {
            Request::Flush => self.disk.flush_may_wait(),
            Request::Write(_) => write_through && self.disk.flush_may_wait(),
            Request::Discard(_) | Request::Zero { .. } => true,
            Request::Read(_) | Request::Id | Request::Rejected(_) => false,
        }
    }

    /// Creates the io_uring engine, or keeps that of the last activation, for requests in `memory`.
    pub(super) fn open_uring(&mut self, memory: &GuestMemory) {
        match &mut self.uring {
            Some(uring) => return uring.attach(memory),
            None if self.engine == IoEngine::Sync => return,
            None => {}
        }
        match UringEngine::new(self.wake.as_raw_fd()) {
            Ok(mut uring) => {
                uring.attach(memory);
                self.uring = Some(uring);
            }
            Err(error) => {
                log::warn!("block device uses synchronous I/O: cannot create an io_uring: {error}");
                self.engine = IoEngine::Sync;
            }
        }
    }

    /// Waits for requests of io_uring without completing them, and cancels the work of the others. Keeps a working
    /// io_uring for the next activation.
    pub(super) fn drain(&mut self) {
        self.cancel_work();
        let released = self.uring.as_mut().is_none_or(|uring| uring.release().is_ok());
        if !released || self.engine == IoEngine::Sync {
            self.uring = None;
        }
    }

    /// Cancels all work in flight.
    fn cancel_work(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.cancel();
            // A cancelled flush has written back an unknown part.
            self.dirty = DirtyRange::UNKNOWN;
        }
    }

    /// Cancels all work in flight if its requests can be popped again. Returns their number. Waits for the current
    /// call of the worker, at most for `timeout`.
    pub(super) fn take_back_work(&mut self, timeout: Duration) -> usize {
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_last()) else {
            return 0;
        };
        let count = worker.in_flight();
        if count > 0 {
            self.cancel_work();
            self.is_worker_idle(timeout);
        }
        count
    }

    /// Returns true if the worker accesses no disk. Waits for it at most for `timeout`.
    pub(super) fn is_worker_idle(&self, timeout: Duration) -> bool {
        self.worker
            .as_ref()
            .is_none_or(|worker| worker.wait_idle(timeout))
    }

    /// Waits until a request in flight ends. Returns false after `deadline`.
    pub(super) fn wait_for_completion(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.uring.as_ref().is_none_or(UringEngine::is_submitted) {
            wait_readable(self.wake.as_raw_fd(), left);
        }
        !left.is_zero()
    }

    /// Submits the queued requests to the kernel. If the kernel rejects them permanently, they fail, and the device
    /// continues with synchronous I/O.
    pub(super) fn submit(&mut self) {
        let Some(Err(error)) = self.uring.as_mut().map(UringEngine::submit) else {
            return;
        };
        log::warn!("block device uses synchronous I/O: io_uring rejects its requests: {error}");
        self.engine = IoEngine::Sync;
    }

    /// Returns head and length of the next request that has ended. Its status is written to `memory`.
    pub(super) fn reap(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        if let Some((request, status)) = self.worker.as_mut().and_then(Worker::reap) {
            // Cannot fail: the chain was in guest memory, which does not shrink.
            let _ = memory.write_obj(status.byte(), request.status);
            self.meter
                .count(request.kind, status, request.start, &*self.clock);
            return Some((request.head, request.length));
        }
        let done = self.uring.as_mut()?.reap(&self.disk)?;
        self.count(done.operation.kind(), done.status, done.start);
        Some((done.head, done.length))
    }

    fn count(&mut self, kind: RequestKind, status: Status, start: Option<Duration>) {
        if let RequestKind::Write(extent) = kind {
            self.note_written(extent);
        }
        self.meter.count(kind, status, start, &*self.clock);
    }

    /// Records data in the page cache, for the next flush and the limit during the current one.
    fn note_written(&mut self, extent: Extent) {
        self.dirty.add(extent);
        self.written_in_flush = self.written_in_flush.saturating_add(extent.length);
    }

    /// Executes `request`, parsed from `chain`, and returns its length for the used ring; or queues it for io_uring
    /// or the worker, and returns `None`. With `write_through`, written data is on the medium at completion.
    pub(super) fn begin(&mut self, request: Request, chain: &Chain<'_>, write_through: bool) -> Option<u32> {
        let start = self.meter.start(&request, &*self.clock);
        let kind = request.kind();
        let completion = match self.begin_uring(&request, chain, write_through, start) {
            Begun::Completed(completion) => Some(completion),
            Begun::Queued => None,
            Begun::Not if self.may_take_long(&request, write_through) && self.open_worker() => {
                return self.begin_work(request, chain, write_through, start);
            }
            Begun::Not => Some(execute(&request, chain, &self.disk, &self.id, write_through)),
        };
        if let Some(worker) = &mut self.worker {
            worker.note_other_request();
        }
        let completion = completion?;
        self.count(kind, completion.status, start);
        Some(complete(chain, completion))
    }

    /// Begins `request` with the async engine if it is a read or write that waits.
    fn begin_uring(
        &mut self,
        request: &Request,
        chain: &Chain<'_>,
        write_through: bool,
        start: Option<Duration>,
    ) -> Begun {
        let disk = &self.disk;
        let Some(uring) = self.uring.as_mut().filter(|_| self.engine == IoEngine::Async) else {
            return Begun::Not;
        };
        let (operation, done) = match *request {
            Request::Read(extent) if disk.read_may_wait() => {
                let written = read_cached(extent, chain, disk);
                if written == extent.length {
                    let status = Status::Ok;
                    return Begun::Completed(Completion { status, written });
                }
                (Operation::Read(extent), written)
            }
            Request::Write(extent) if disk.write_may_wait(write_through) => {
                (Operation::Write(extent, write_through), 0)
            }
            _ => return Begun::Not,
        };
        let queued = UringRequest {
            operation,
            done,
            start,
        };
        uring.push(queued, chain, disk);
        Begun::Queued
    }

    /// Queues `request` for the worker like [`Self::begin`]. The data of a write is in the page cache afterwards.
    fn begin_work(
        &mut self,
        request: Request,
        chain: &Chain<'_>,
        write_through: bool,
        start: Option<Duration>,
    ) -> Option<u32> {
        let kind = request.kind();
        if let Request::Write(extent) = request {
            let completion = execute(&request, chain, &self.disk, &self.id, false);
            if completion.status != Status::Ok {
                self.worker.as_mut()?.note_other_request();
                self.count(kind, completion.status, start);
                return Some(complete(chain, completion));
            }
            self.note_written(extent);
        }
        let work = match request {
            Request::Discard(extents) => Work::Discard(extents),
            Request::Zero { extents, unmap } => {
                extents.iter().for_each(|extent| self.dirty.add(*extent));
                Work::Zero {
                    extents,
                    unmap,
                    write_through,
                }
            }
            _ => Work::Flush {
                dirty: std::mem::replace(&mut self.dirty, DirtyRange::CLEAN),
                size: self.disk.size(),
            },
        };
        let pending = PendingRequest {
            head: chain.head,
            // A chain without a status byte is not parsed as a request.
            status: chain.writable.last_address()?,
            length: used_length(chain.writable.len().saturating_sub(1), 0),
            kind,
            start,
        };
        let storage = Arc::clone(&self.disk.storage);
        let worker = self.worker.as_mut()?;
        if !worker.is_flushing() {
            self.written_in_flush = 0;
        }
        worker.push(pending, work, storage);
        None
    }

    /// Starts the worker unless it runs. Returns false, after a warning, if the kernel does not create a thread.
    fn open_worker(&mut self) -> bool {
        if self.worker.is_none() {
            match Worker::start(Arc::clone(&self.wake)) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => log::warn!("a flush or discard delays the VM: cannot start a thread: {error}"),
            }
        }
        self.worker.is_some()
    }
}
