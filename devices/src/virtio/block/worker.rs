//! Thread for requests that may take long: flush, discard, write zeroes, and the flush of a write-through write.
//!
//! No caller waits for the disk: the device queues work without guest memory, and the thread reports its end by the
//! eventfd of the device. The thread starts at the first work.
//!
//! A thread leaves the kernel only at the end of a call. So the thread issues short calls, and between two of them it
//! ends work that the device has cancelled. Thus a reset, a snapshot and the end of the process wait for at most one
//! call. On ext4, mounted with online discard, the kernel needs up to 65 us for each extent. So [`CHUNK_SIZE`] takes
//! 10 ms if every other block is allocated. A flush writes back dirty pages by [`FLUSH_SIZE`] before its fdatasync,
//! which then only writes metadata and the data of the last few milliseconds.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::disk::{Extent, Storage};
use super::request::{RequestKind, Status};
use crate::lock;

/// Alignment and maximum length of one discard or write of zeros, in bytes.
pub(super) const CHUNK_SIZE: u64 = 1 << 20;
/// Alignment and maximum length of one write-back before a flush, in bytes.
pub(super) const FLUSH_SIZE: u64 = 4 << 20;
/// Bytes of stack of the thread.
const STACK_SIZE: usize = 128 << 10;

/// Dirty bytes of the page cache: those written since the last flush. It limits the write-back before a flush, which
/// covers all data in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirtyRange {
    start: u64,
    end: u64,
    /// Number of written bytes; repeated writes count repeatedly.
    bytes: u64,
}

impl DirtyRange {
    /// No byte is dirty.
    pub(super) const CLEAN: Self = Self {
        start: u64::MAX,
        end: 0,
        bytes: 0,
    };

    /// Any byte may be dirty, like those that another process wrote before the disk was opened.
    pub(super) const UNKNOWN: Self = Self {
        start: 0,
        end: u64::MAX,
        bytes: u64::MAX,
    };

    /// Adds a written extent.
    pub(super) fn add(&mut self, extent: Extent) {
        self.start = self.start.min(extent.offset);
        self.end = self.end.max(extent.offset + extent.length);
        self.bytes = self.bytes.saturating_add(extent.length);
    }

    /// Adds the bytes of `other`.
    fn merge(&mut self, other: Self) {
        self.start = self.start.min(other.start);
        self.end = self.end.max(other.end);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// Returns the extent to write back before a flush of a disk of `size` bytes.
    fn extent(&self, size: u64) -> Extent {
        let offset = self.start.min(size);
        // One call of the kernel writes a few bytes as fast as two.
        let end = if self.bytes <= FLUSH_SIZE {
            offset
        } else {
            self.end
        };
        Extent {
            offset,
            length: end.min(size).saturating_sub(offset),
        }
    }
}

/// Work of the thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Flushes a disk of `size` bytes.
    Flush { dirty: DirtyRange, size: u64 },
    /// Discards the extents.
    Discard(Vec<Extent>),
    /// Zeroes the extents, and then flushes them if the device is write-through.
    Zero {
        extents: Vec<Extent>,
        unmap: bool,
        write_through: bool,
    },
}

/// A request whose work is queued. The device writes its status.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRequest {
    pub(super) head: u16,
    /// Address of the status byte.
    pub(super) status: GuestAddress,
    /// Length for the used ring.
    pub(super) length: u32,
    pub(super) kind: RequestKind,
    /// Start time, if it is timed.
    pub(super) start: Option<Duration>,
}

/// The thread, and the requests whose work it has. Drop ends the work after the current call.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// In the order of their work, which ends in this order.
    pending: VecDeque<PendingRequest>,
    /// The pending requests are the last ones that were popped.
    is_last: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Notified after each change of `jobs`, `is_running` and `is_stopping`.
    changed: Condvar,
    /// Readable after each end of work.
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Results of work in its order.
    results: VecDeque<Status>,
    /// Number of cancellations: work from before the last one has no result.
    generation: u64,
    is_running: bool,
    is_stopping: bool,
}

struct Job {
    work: Work,
    storage: Arc<dyn Storage>,
}

impl Worker {
    /// Starts the thread. It makes `wake` readable at each end of work.
    ///
    /// # Errors
    /// Fails if the kernel does not create a thread.
    pub(super) fn start(wake: Arc<EventFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake,
        });
        let thread = Builder::new()
            .name("block".to_owned())
            .stack_size(STACK_SIZE)
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            pending: VecDeque::new(),
            is_last: true,
        })
    }

    /// Queues `work` on `storage` for `request`.
    pub(super) fn push(&mut self, request: PendingRequest, work: Work, storage: Arc<dyn Storage>) {
        self.is_last |= self.pending.is_empty();
        self.pending.push_back(request);
        lock(&self.shared.state).jobs.push_back(Job { work, storage });
        self.shared.changed.notify_all();
    }

    /// Returns the number of requests whose end [`Self::reap`] has not returned.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Returns true if a flush, or a write that ends with one, is in flight.
    pub(super) fn is_flushing(&self) -> bool {
        let mut kinds = self.pending.iter().map(|request| request.kind);
        kinds.any(|kind| matches!(kind, RequestKind::Flush | RequestKind::Write(_)))
    }

    /// Records that a request was popped that is not pending here.
    pub(super) fn note_other_request(&mut self) {
        self.is_last = false;
    }

    /// Returns the next request whose work has ended, with its status.
    pub(super) fn reap(&mut self) -> Option<(PendingRequest, Status)> {
        if self.pending.is_empty() {
            return None;
        }
        let status = lock(&self.shared.state).results.pop_front()?;
        Some((self.pending.pop_front()?, status))
    }

    /// Returns true if all requests in flight can be popped again later: no other request was popped after them.
    pub(super) fn is_last(&self) -> bool {
        self.is_last || self.pending.is_empty()
    }

    /// Forgets all requests in flight. Their work has no result, and ends with the current call. Does not wait.
    pub(super) fn cancel(&mut self) {
        self.pending.clear();
        let mut state = lock(&self.shared.state);
        state.generation += 1;
        state.jobs.clear();
        state.results.clear();
    }

    /// Returns true if the thread has no work. Waits for it at most for `timeout`.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.shared.state);
        while state.is_running || !state.jobs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Worker {
    #[allow(
        clippy::disallowed_methods,
        reason = "the work is cancelled: the wait lasts one call of the kernel"
    )]
    fn drop(&mut self) {
        self.cancel();
        lock(&self.shared.state).is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread has panicked.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        // A write-back takes the error of a lost write from the kernel. If its flush is cancelled, the next one fails.
        let mut lost_write = false;
        while let Some((job, count, generation)) = self.next_job() {
            let is_flush = matches!(job.work, Work::Flush { .. });
            let mut result = job.perform(|| lock(&self.state).generation == generation);
            drop(job);
            if is_flush && std::mem::take(&mut lost_write) {
                result = Err(io::ErrorKind::WriteZero.into());
            }
            let status = if result.is_ok() {
                Status::Ok
            } else {
                Status::IoError
            };
            let mut state = lock(&self.state);
            state.is_running = false;
            if state.generation == generation {
                state.results.extend(std::iter::repeat_n(status, count));
                // Before the unlock: no eventfd becomes readable after a cancellation. Fails only if the counter is
                // at its maximum, and then the eventfd is readable.
                let _ = self.wake.write(1);
            } else {
                lost_write = is_flush && result.is_err();
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for the next work. Returns it with the number of requests it serves, or `None` at the end of the thread.
    fn next_job(&self) -> Option<(Job, usize, u64)> {
        let mut state = lock(&self.state);
        while state.jobs.is_empty() && !state.is_stopping {
            state = self.wait(state);
        }
        if state.is_stopping {
            return None;
        }
        let mut job = state.jobs.pop_front()?;
        let mut count = 1;
        // Writes that a later flush covers precede this flush too: one flush completes both requests.
        while let Work::Flush { dirty, .. } = &mut job.work
            && let Some(Job {
                work: Work::Flush { dirty: more, .. },
                ..
            }) = state.jobs.front()
        {
            dirty.merge(*more);
            state.jobs.pop_front();
            count += 1;
        }
        state.is_running = true;
        Some((job, count, state.generation))
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// Performs the work in chunks while `is_current` returns true.
    fn perform(&self, is_current: impl Fn() -> bool) -> io::Result<()> {
        let each = |extents: &[Extent], size: u64, call: &dyn Fn(Extent) -> io::Result<()>| {
            let mut chunks = extents.iter().flat_map(|extent| extent.chunks(size));
            // A cancelled work has no result.
            chunks.try_for_each(|chunk| if is_current() { call(chunk) } else { Ok(()) })
        };
        let storage = &*self.storage;
        let flush = |extents: &[Extent]| {
            each(extents, FLUSH_SIZE, &|chunk| storage.write_back(chunk))?;
            if is_current() { storage.flush() } else { Ok(()) }
        };
        match &self.work {
            Work::Flush { dirty, size } => flush(&[dirty.extent(*size)]),
            Work::Discard(extents) => each(extents, CHUNK_SIZE, &|chunk| storage.discard(chunk)),
            Work::Zero {
                extents,
                unmap,
                write_through,
            } => {
                each(extents, CHUNK_SIZE, &|chunk| storage.zero(chunk, *unmap))?;
                if *write_through { flush(extents) } else { Ok(()) }
            }
        }
    }
}
