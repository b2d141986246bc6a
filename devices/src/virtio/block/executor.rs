//! State that outlives an activation, and the choice between execution at once, io_uring and the worker.
//!
//! A request is executed at once as far as it does not wait for the disk: [`Disk`] defines that. The rest of a read or write goes to
//! io_uring with the asynchronous engine, and to the worker with the synchronous one. The worker executes flush, discard and write
//! zeroes on both engines. With the synchronous engine, it also flushes after each write of a write-through device. tmpfs has nothing
//! to flush.
//!
//! The synchronous engine is sequential: while the worker has a request, all later ones follow it.
//!
//! io_uring executes only requests that wait. For single 4 KiB requests on ext4, a cached read takes a third longer
//! by io_uring than by preadv2. A write takes three times as long as by pwritev2, since the kernel wakes a worker.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use snapshot::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::execute::{Completion, Id, Progress, complete, read_now, write_id, write_now};
use super::extent::Extent;
use super::metrics::Meter;
use super::request::{QUEUE_SIZE, Request, RequestKind, Status, Target};
use super::transfer::{MAX_BUFFERED, PendingRequest, Unfinished};
use super::uring::{UringEngine, wait_readable};
use super::worker::{DirtyRange, Job, Outcome, Work, Worker};
use crate::clock::Clock;
use crate::limiter::Limiter;
use crate::virtio::queue::chain::Chain;

/// Maximum number of bytes that the driver may write during a flush: the kernel writes all of them in one call.
const MAX_DIRTY: u64 = 16 << 20;

/// Execution of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// Sequential: on the thread that handles the notification, or on the worker thread of the drive if the disk delays the request.
    #[default]
    Sync,
    /// With io_uring if the disk delays the request.
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
    /// Of the async engine, created with the device: the restricted process cannot create it later.
    pub(super) uring: Option<UringEngine>,
    /// Started at the first request that may take long.
    pub(super) worker: Option<Worker>,
    /// Bytes written since the last flush.
    pub(super) dirty: DirtyRange,
    /// Number of bytes written since the begin of the oldest flush in flight.
    pub(super) written_in_flush: u64,
}

impl Drop for Executor {
    fn drop(&mut self) {
        // The kernel may still write: no other VM may lock the disk.
        if self.uring.as_mut().is_some_and(|uring| !uring.stop()) {
            self.disk.keep_locked();
        }
    }
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

    /// Consumes the tokens of `request` up to the end of its first piece, or returns false if it must wait for the rate limiter.
    pub(super) fn admit_request(&mut self, request: &Request) -> bool {
        self.admit(request.bytes(self.disk.storage.discard_pieces()))
    }

    /// Consumes the tokens of one operation of `bytes`, or returns false if it must wait for the rate limiter.
    fn admit(&mut self, bytes: u64) -> bool {
        if !self.limiter.has_limit() {
            return true;
        }
        // A notification while the request waits does not count as another wait.
        let was_throttled = self.limiter.is_throttled();
        let admitted = self.limiter.consume(bytes, self.clock.now());
        if !admitted && !was_throttled {
            self.meter.recorder.throttled.add(1);
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

    /// Returns true if io_uring or the worker cannot accept a further request. The end of one makes the eventfd readable. Together they
    /// have at most as many as the queue, also of a hostile driver: those that a snapshot suspends fit into the state.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= usize::from(QUEUE_SIZE)
            || self.uring.as_ref().is_some_and(UringEngine::is_full)
            || self
                .worker
                .as_ref()
                .is_some_and(|worker| worker.buffered() >= MAX_BUFFERED)
    }

    /// Returns true if `request` must wait for the end of work in flight, which makes the eventfd readable.
    pub(super) fn must_wait(&mut self, request: &Request) -> bool {
        let is_write = matches!(request, Request::Write(_));
        let is_async = self.engine == IoEngine::Async;
        if request.is_change() && self.uring.as_ref().is_some_and(UringEngine::has_abandoned) {
            return true;
        }
        let Some(worker) = &mut self.worker else {
            return false;
        };
        if is_async && is_write && worker.has_stale_work() {
            return true;
        }
        if worker.in_flight() == 0 {
            return false;
        }
        if is_write && self.written_in_flush >= MAX_DIRTY && worker.is_flushing() {
            return true;
        }
        // A request without work would complete before those that the worker has.
        !is_async && !request.is_work()
    }

    /// Passes the replaced file of the disk to io_uring, which has no request. Selects synchronous I/O if that fails.
    pub(super) fn replace_uring_file(&mut self) {
        let Some(uring) = &mut self.uring else {
            return;
        };
        if let Err(error) = self.disk.pass_to_uring(|file| uring.replace_file(file)) {
            log::warn!("block device uses synchronous I/O: cannot replace the file of its io_uring: {error}");
            self.uring = None;
            self.engine = IoEngine::Sync;
        }
    }

    /// Abandons all requests in flight, and does not wait for them. Keeps a working io_uring for the next activation, and a failed one
    /// while the kernel has requests of it.
    pub(super) fn abandon(&mut self) {
        self.cancel_work();
        if let Some(uring) = &mut self.uring {
            uring.abandon();
        }
    }

    /// Returns true if the kernel may still execute an abandoned request of io_uring.
    pub(super) fn has_abandoned(&self) -> bool {
        self.uring.as_ref().is_some_and(UringEngine::has_abandoned)
    }

    /// Frees abandoned requests that have ended. No other request may be in flight.
    pub(super) fn reap_abandoned(&mut self) {
        let Some(uring) = &mut self.uring else {
            return;
        };
        let is_settled = uring.settle(Duration::ZERO);
        self.leave_failed_uring();
        if is_settled && self.engine == IoEngine::Sync {
            self.uring = None;
        }
    }

    /// Selects synchronous I/O if io_uring has failed while it abandoned requests.
    fn leave_failed_uring(&mut self) {
        if self.engine == IoEngine::Async && self.uring.as_ref().is_some_and(UringEngine::has_failed) {
            log::warn!("block device uses synchronous I/O: io_uring rejects its requests");
            self.engine = IoEngine::Sync;
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

    /// Abandons all requests in flight like [`Self::abandon`], and returns them for a later start. Waits for the current call of the
    /// worker, at most for `timeout`.
    pub(super) fn suspend(&mut self, timeout: Duration) -> Vec<Unfinished> {
        let mut unfinished = Vec::new();
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.in_flight() > 0) {
            unfinished = worker.suspend(timeout);
            // As in `cancel_work`.
            self.dirty = DirtyRange::UNKNOWN;
        }
        if let Some(uring) = self.uring.as_mut().filter(|uring| uring.in_flight() > 0) {
            unfinished.extend(uring.suspend());
            self.leave_failed_uring();
        }
        unfinished
    }

    /// Returns true if the worker accesses no disk. Waits for it at most for `timeout`.
    pub(super) fn is_worker_idle(&self, timeout: Duration) -> bool {
        self.worker
            .as_ref()
            .is_none_or(|worker| worker.wait_idle(timeout))
    }

    /// Returns true if no request is queued for submission to io_uring.
    pub(super) fn is_submitted(&self) -> bool {
        self.uring.as_ref().is_none_or(UringEngine::is_submitted)
    }

    /// Waits until a request in flight ends. Returns false after `deadline`, or if none can end before [`Self::submit`].
    pub(super) fn wait_for_completion(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let submitted = self.uring.as_ref().map_or(0, UringEngine::submitted);
        if submitted == 0 && self.worker.as_ref().is_none_or(|worker| worker.in_flight() == 0) {
            return false;
        }
        wait_readable(self.wake.as_raw_fd(), left);
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

    /// Returns head and length of the next request that has ended. Its data and status are written to `memory`.
    pub(super) fn reap(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        if let Some((request, outcome)) = self.worker.as_mut().and_then(Worker::reap)
            && let Some(ended) = self.end_work(request, outcome, memory)
        {
            return Some(ended);
        }
        let (request, status) = self.uring.as_mut()?.reap(&self.disk, memory)?;
        Some(self.end(&request, status, memory))
    }

    /// Ends `request`, or queues its rest and returns `None`.
    fn end_work(
        &mut self,
        mut request: PendingRequest,
        outcome: Outcome,
        memory: &GuestMemory,
    ) -> Option<(u16, u32)> {
        if matches!(request.kind, RequestKind::Write(_)) && request.next_piece().is_some() {
            self.disk.note_write(outcome.elapsed);
        }
        request.advance(&outcome.data, memory);
        request.add_done(outcome.done);
        if outcome.status != Status::Ok || !(request.next_piece().is_some() || request.rest.is_some()) {
            return Some(self.end(&request, outcome.status, memory));
        }
        if let Some(work) = transfer(&request, memory) {
            let job = self.job(work, &request);
            self.worker.as_mut()?.resume(request, job);
        } else {
            self.worker.as_mut()?.hold(request);
            self.continue_held(memory);
        }
        None
    }

    /// Queues the next piece of a discard or write zeroes that waits for the rate limiter. Returns false if it must wait longer: all
    /// other requests wait then.
    pub(super) fn continue_held(&mut self, memory: &GuestMemory) -> bool {
        let pieces = self.disk.storage.discard_pieces();
        let held = self.worker.as_ref().and_then(Worker::held);
        let Some(rest) = held.and_then(|request| request.rest.as_ref()) else {
            return true;
        };
        if !self.admit(rest.bytes(pieces)) {
            return false;
        }
        if let Some(mut request) = self.worker.as_mut().and_then(Worker::take_held)
            && let Some(rest) = request.rest.take()
        {
            let (piece, rest) = rest.split(pieces);
            request.rest = rest;
            let work = self.work(piece, &request, memory);
            let job = self.job(work, &request);
            if let Some(worker) = &mut self.worker {
                worker.resume(request, job);
            }
        }
        true
    }

    fn end(&mut self, request: &PendingRequest, status: Status, memory: &GuestMemory) -> (u16, u32) {
        self.count(request.kind, status, request.start);
        request.complete(status, memory)
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

    /// Executes `request`, parsed from `chain` in `memory`, and returns its length for the used ring; or queues it for io_uring
    /// or the worker, and returns `None`. Of its parts, `done` bytes are complete already. With `write_through`, written data is on the
    /// medium at completion.
    pub(super) fn begin(
        &mut self,
        request: Request,
        done: u64,
        chain: &Chain<'_>,
        memory: &GuestMemory,
        write_through: bool,
    ) -> Option<u32> {
        let start = self.meter.start(&request, &*self.clock);
        let kind = request.kind();
        let progress = match done {
            0 => self.execute_now(&request, chain, write_through),
            done => Progress::Waits(done),
        };
        match progress {
            Progress::Completed(completion) => {
                self.count(kind, completion.status, start);
                Some(complete(chain, completion))
            }
            Progress::Waits(done) => {
                let pending = PendingRequest::new((kind, done), start, write_through, chain, memory)?;
                let is_transfer = pending.next_piece().is_some();
                if let Some(uring) = self
                    .uring
                    .as_mut()
                    .filter(|_| self.engine == IoEngine::Async && is_transfer)
                {
                    uring.push(pending, memory, &self.disk);
                    None
                } else {
                    self.begin_work(request, pending, memory)
                }
            }
        }
    }

    /// Executes `request` as far as it does not wait for the disk.
    fn execute_now(&mut self, request: &Request, chain: &Chain<'_>, write_through: bool) -> Progress {
        match *request {
            Request::Rejected(status) => Progress::Completed(Completion { status, written: 0 }),
            Request::Id => Progress::completed(Ok(()), write_id(chain, &self.id)),
            Request::Flush if self.disk.is_in_memory() => Progress::completed(self.disk.storage.flush(), 0),
            Request::Flush | Request::Discard(_) | Request::Zero { .. } => Progress::Waits(0),
            Request::Read(Extent { length: 0, .. }) | Request::Write(Extent { length: 0, .. }) => {
                Progress::completed(Ok(()), 0)
            }
            Request::Read(extent) => match &self.worker {
                Some(worker) if self.engine == IoEngine::Sync && worker.in_flight() > 0 => Progress::Waits(0),
                _ => read_now(extent, chain, &self.disk),
            },
            Request::Write(extent) => self.execute_write(extent, chain, write_through),
        }
    }

    /// Writes `extent` as far as it does not wait for the disk. The flush of a write-through write waits.
    fn execute_write(&mut self, extent: Extent, chain: &Chain<'_>, write_through: bool) -> Progress {
        let is_async = self.engine == IoEngine::Async;
        if is_async && (write_through || self.disk.is_block_device() || self.is_changing_disk()) {
            return Progress::Waits(0);
        }
        // The kernel locks the file for a write, and a write without RWF_NOWAIT would wait for the lock.
        if self.disk.pace.lacks_nowait_writes.get() && self.uring.as_ref().is_some_and(UringEngine::has_write)
        {
            return Progress::Waits(0);
        }
        let must_flush = write_through && !self.disk.is_in_memory();
        if let Some(worker) = self.worker.as_mut().filter(|_| !is_async)
            && (worker.has_stale_work() || !(worker.in_flight() == 0 || must_flush && worker.only_flushes()))
        {
            return Progress::Waits(0);
        }
        match write_now(extent, chain, &self.disk) {
            Progress::Completed(Completion {
                status: Status::Ok, ..
            }) if must_flush => Progress::Waits(extent.length),
            progress => progress,
        }
    }

    /// Returns true if the worker has a discard or write zeroes. File systems lock the file for its calls, one after the other, and a
    /// write would wait for the lock.
    fn is_changing_disk(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| !worker.only_flushes())
    }

    /// Queues `request`, whose rest is `pending`, for the worker. Executes it if there is no worker, and returns its length for the
    /// used ring.
    fn begin_work(
        &mut self,
        mut request: Request,
        mut pending: PendingRequest,
        memory: &GuestMemory,
    ) -> Option<u32> {
        let has_worker = self.open_worker();
        // Without a limit, the worker itself splits the work.
        if has_worker && self.limiter.has_limit() {
            (request, pending.rest) = request.split(self.disk.storage.discard_pieces());
        }
        let work = self.work(request, &pending, memory);
        let job = self.job(work, &pending);
        if has_worker {
            let worker = self.worker.as_mut()?;
            if !worker.is_flushing() {
                self.written_in_flush = 0;
            }
            worker.push(pending, job);
            return None;
        }
        let (mut request, mut job) = (pending, job);
        loop {
            let outcome = job.perform(|_| true);
            request.advance(&outcome.data, memory);
            match transfer(&request, memory).filter(|_| outcome.status == Status::Ok) {
                Some(work) => job = self.job(work, &request),
                None => return Some(self.end(&request, outcome.status, memory).1),
            }
        }
    }

    /// Returns the next work for `request`, whose data or other pieces are in `pending`.
    fn work(&mut self, request: Request, pending: &PendingRequest, memory: &GuestMemory) -> Work {
        match request {
            Request::Discard(extents) => Work::Discard(extents),
            Request::Zero { extents, unmap } => {
                extents.iter().for_each(|extent| self.dirty.add(*extent));
                Work::Zero {
                    extents,
                    unmap,
                    write_through: pending.write_through && pending.rest.is_none(),
                }
            }
            _ => transfer(pending, memory).unwrap_or_else(|| {
                if let RequestKind::Write(extent) = pending.kind {
                    self.note_written(extent);
                }
                Work::Flush {
                    dirty: std::mem::replace(&mut self.dirty, DirtyRange::CLEAN),
                    size: self.disk.size(),
                }
            }),
        }
    }

    /// Returns the job of `work` for `request` on the disk.
    fn job(&self, work: Work, request: &PendingRequest) -> Job {
        Job {
            work,
            storage: Arc::clone(&self.disk.storage),
            is_split: request.is_split(),
        }
    }

    /// Starts the worker unless it runs. Returns false, after a warning, if the kernel does not create a thread.
    fn open_worker(&mut self) -> bool {
        if self.worker.is_none() {
            match Worker::start(Arc::clone(&self.wake)) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => log::warn!("a slow disk delays the VM: cannot start a thread: {error}"),
            }
        }
        self.worker.is_some()
    }
}

/// Returns the next transfer of `request`, with the data of a write; or `None` if all bytes are transferred.
fn transfer(request: &PendingRequest, memory: &GuestMemory) -> Option<Work> {
    let piece = request.next_piece()?;
    Some(match request.kind {
        RequestKind::Read(_) => Work::Read(piece),
        _ => Work::Write {
            offset: piece.offset,
            data: request.buffer(piece, memory),
            write_through: request.write_through && !request.is_split(),
        },
    })
}
