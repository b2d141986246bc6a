//! Thread for requests that wait for the disk: flush, discard, write zeroes, the flush of a write-through write, and with the
//! synchronous engine reads and writes beyond the page cache.
//!
//! No caller waits for the disk: the device queues work without guest memory, and the thread reports its end by the
//! eventfd of the device. The thread starts at the first work. Data moves through buffers, see [`super::transfer`]. A longer request
//! is split; the thread takes no other work until the device has collected a piece and queued the next one.
//!
//! A thread leaves the kernel only at the end of a call. So the thread issues short calls, and between two of them it
//! ends work that the device has cancelled. A suspended discard or write zeroes continues after its last call. Thus a
//! reset, a snapshot and the end of the process wait for at most one call. On ext4, mounted with online discard, the
//! kernel needs up to 65 us for each extent. So [`Pieces::CHUNKS`] take 10 ms if every other block is allocated. A flush
//! writes back dirty pages by [`FLUSH_SIZE`] before its fdatasync, which then only writes metadata and the data of the
//! last few milliseconds.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::disk::Storage;
use super::extent::{Extent, Pieces};
use super::request::Status;
use super::transfer::{PendingRequest, Unfinished};
use crate::sync::{lock, wait_while};
use crate::thread_role::ThreadRole;

/// Alignment and maximum length of one write-back before a flush, in bytes.
pub(super) const FLUSH_SIZE: u64 = 4 << 20;
/// Alignment and maximum length of an extent that is skipped by a flush if it is clean, in bytes. The kernel inspects the pages in the
/// page cache: 1 GiB takes a few milliseconds.
const CLEAN_SIZE: u64 = 1 << 30;
/// Maximum time for the last call at a drop.
const STOP_TIMEOUT: Duration = Duration::from_millis(50);
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
    /// Reads the extent.
    Read(Extent),
    /// Writes `data`, and then flushes it if the device is write-through.
    Write {
        offset: u64,
        data: Vec<u8>,
        write_through: bool,
    },
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

/// Work on a disk.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) storage: Arc<dyn Storage>,
    /// If it succeeds, [`Worker::resume`] follows before all other work.
    pub(super) is_split: bool,
}

/// End of work.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) status: Status,
    /// Bytes that were read or written.
    pub(super) data: Vec<u8>,
    /// Bytes that were discarded or zeroed.
    pub(super) done: u64,
    /// Time of the work, without the flush after a write.
    pub(super) elapsed: Duration,
}

/// The thread, and the requests whose work it has. Drop ends the work after the current call.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// In the order of their work, which ends in this order.
    pending: VecDeque<PendingRequest>,
    /// Bytes of host memory for the pending requests.
    buffered: u64,
    /// The first pending request waits for the rate limiter before its next work.
    is_held: bool,
    /// Cancelled work may still be in its last call.
    has_stale_work: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Notified after each change of `jobs`, `running` and `is_stopping`.
    changed: Condvar,
    /// Readable after each end of work.
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Results of work in its order.
    results: VecDeque<Outcome>,
    /// Number of cancellations: work from before the last one has no result.
    generation: u64,
    /// Generation of the work in a call.
    running: Option<u64>,
    /// Bytes that the last work in a call has discarded or zeroed.
    done: u64,
    /// The last work was split, and the rest is not queued yet.
    is_split: bool,
    /// The device waits for the end of cancelled work.
    is_awaited: bool,
    is_stopping: bool,
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
                move || {
                    ThreadRole::Worker.enter_or_log();
                    shared.run();
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            pending: VecDeque::new(),
            buffered: 0,
            is_held: false,
            has_stale_work: false,
        })
    }

    /// Queues `job` for `request`.
    pub(super) fn push(&mut self, request: PendingRequest, job: Job) {
        self.buffered += request.buffered;
        self.pending.push_back(request);
        lock(&self.shared.state).jobs.push_back(job);
        self.shared.changed.notify_all();
    }

    /// Queues `job` for the rest of `request`, whose last work was split, before all other work.
    pub(super) fn resume(&mut self, request: PendingRequest, job: Job) {
        self.buffered += request.buffered;
        self.pending.push_front(request);
        let mut state = lock(&self.shared.state);
        state.is_split = false;
        state.jobs.push_front(job);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Holds `request`, whose last work was split, until [`Self::take_held`]. Other work waits for it.
    pub(super) fn hold(&mut self, request: PendingRequest) {
        self.buffered += request.buffered;
        self.pending.push_front(request);
        self.is_held = true;
    }

    /// Returns the held request.
    pub(super) fn held(&self) -> Option<&PendingRequest> {
        self.pending.front().filter(|_| self.is_held)
    }

    /// Takes the held request, for [`Self::resume`].
    pub(super) fn take_held(&mut self) -> Option<PendingRequest> {
        if !std::mem::take(&mut self.is_held) {
            return None;
        }
        let request = self.pending.pop_front()?;
        self.buffered -= request.buffered;
        Some(request)
    }

    /// Returns the bytes of host memory for the requests in flight.
    pub(super) fn buffered(&self) -> u64 {
        self.buffered
    }

    /// Returns the number of requests whose end [`Self::reap`] has not returned.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Returns true if a flush, or a write that ends with one, is in flight.
    pub(super) fn is_flushing(&self) -> bool {
        self.pending.iter().any(PendingRequest::is_flush)
    }

    /// Returns true if the requests in flight only flush data in the page cache.
    pub(super) fn only_flushes(&self) -> bool {
        let mut pending = self.pending.iter();
        pending.all(|request| request.is_flush() && request.next_piece().is_none())
    }

    /// Returns true if cancelled work is in its last call: it could overwrite later data. Its end makes the eventfd readable then.
    pub(super) fn has_stale_work(&mut self) -> bool {
        if self.has_stale_work {
            let mut state = lock(&self.shared.state);
            self.has_stale_work = state.running.is_some_and(|running| running != state.generation);
            state.is_awaited |= self.has_stale_work;
        }
        self.has_stale_work
    }

    /// Returns the next request whose work has ended, with its end.
    pub(super) fn reap(&mut self) -> Option<(PendingRequest, Outcome)> {
        if self.pending.is_empty() {
            return None;
        }
        let outcome = lock(&self.shared.state).results.pop_front()?;
        let request = self.pending.pop_front()?;
        self.buffered -= request.buffered;
        Some((request, outcome))
    }

    /// Forgets all requests in flight. Their work has no result, and ends with the current call. Does not wait.
    pub(super) fn cancel(&mut self) {
        self.take_pending();
    }

    /// Takes all requests in flight, for a later start. Their work ends as for [`Self::cancel`]. Waits for the current call, at most
    /// for `timeout`: then its bytes count as completed.
    pub(super) fn suspend(&mut self, timeout: Duration) -> Vec<Unfinished> {
        let (mut pending, running) = self.take_pending();
        if let Some(request) = running.and_then(|index| pending.get_mut(index)) {
            self.wait_idle(timeout);
            request.add_done(lock(&self.shared.state).done);
        }
        pending.iter().map(PendingRequest::unfinished).collect()
    }

    /// Cancels all work. Returns the requests in flight, and the index of the one whose work is in a call.
    fn take_pending(&mut self) -> (VecDeque<PendingRequest>, Option<usize>) {
        self.buffered = 0;
        self.is_held = false;
        let mut state = lock(&self.shared.state);
        let is_running = state.running == Some(state.generation);
        let running = is_running.then_some(state.results.len());
        state.generation += 1;
        // New lists: those of many requests would keep their memory.
        state.jobs = VecDeque::new();
        state.results = VecDeque::new();
        state.is_split = false;
        self.has_stale_work = state.running.is_some();
        (std::mem::take(&mut self.pending), running)
    }

    /// Returns true if the thread has no work. Waits for it at most for `timeout`.
    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let Shared { state, changed, .. } = &*self.shared;
        wait_while(state, changed, timeout, |state| {
            state.running.is_some() || !state.jobs.is_empty()
        })
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
        let is_idle = self.wait_idle(STOP_TIMEOUT);
        if let Some(thread) = self.thread.take().filter(|_| is_idle) {
            // Fails only if the thread has panicked.
            let _ = thread.join();
        }
        // A thread in a call of a stuck disk goes on without effect: it owns the disk and the buffer of the call.
    }
}

impl Shared {
    fn run(&self) {
        // A write-back takes the error of a lost write from the kernel. If its flush is cancelled, the next one fails.
        let mut lost_write = false;
        while let Some((job, count, generation)) = self.next_job() {
            let is_flush = job.work.is_flush();
            let is_split = job.is_split;
            let mut outcome = job.perform(|count| {
                let mut state = lock(&self.state);
                state.done += count;
                state.generation == generation
            });
            if is_flush && std::mem::take(&mut lost_write) {
                outcome.status = Status::IoError;
            }
            let mut state = lock(&self.state);
            state.running = None;
            let is_current = state.generation == generation;
            if is_current {
                outcome.done = state.done;
                state.is_split = is_split && outcome.status == Status::Ok;
                state.results.extend(std::iter::repeat_n(outcome, count));
            } else {
                lost_write |= is_flush && outcome.status != Status::Ok;
            }
            if is_current || std::mem::take(&mut state.is_awaited) {
                // Before the unlock: no eventfd becomes readable after a cancellation, unless the device waits for it. Fails only if
                // the counter is at its maximum, and then the eventfd is readable.
                let _ = self.wake.write(1);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for the next work. Returns it with the number of requests it serves, or `None` at the end of the thread.
    fn next_job(&self) -> Option<(Job, usize, u64)> {
        let mut state = lock(&self.state);
        while (state.jobs.is_empty() || state.is_split) && !state.is_stopping {
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
        state.running = Some(state.generation);
        state.done = 0;
        Some((job, count, state.generation))
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Returns true if the work ends with a flush of written data.
    fn is_flush(&self) -> bool {
        matches!(
            self,
            Self::Flush { .. }
                | Self::Write {
                    write_through: true,
                    ..
                }
                | Self::Zero {
                    write_through: true,
                    ..
                }
        )
    }
}

impl Job {
    /// Performs the work in chunks while `record` returns true. It receives the number of bytes that were discarded or zeroed since its
    /// last call.
    pub(super) fn perform(self, record: impl Fn(u64) -> bool) -> Outcome {
        let begin = Instant::now();
        let is_current = || record(0);
        let storage = &*self.storage;
        let mut data = Vec::new();
        let mut elapsed = None;
        let result = match self.work {
            Work::Read(extent) => read(storage, extent, &mut data, &is_current),
            Work::Write {
                offset,
                data: written,
                write_through,
            } => {
                data = written;
                let result = write(storage, offset, &data, &is_current);
                elapsed = Some(begin.elapsed());
                result.and_then(|()| {
                    if write_through && is_current() {
                        storage.flush()
                    } else {
                        Ok(())
                    }
                })
            }
            Work::Flush { dirty, size } => flush(storage, &[dirty.extent(size)], &is_current),
            Work::Discard(extents) => change(&extents, storage.discard_pieces(), &record, |piece| {
                storage.discard(piece)
            }),
            Work::Zero {
                extents,
                unmap,
                write_through,
            } => change(&extents, Pieces::CHUNKS, &record, |piece| {
                storage.zero(piece, unmap)
            })
            .and_then(|()| {
                if write_through {
                    flush(storage, &extents, &is_current)
                } else {
                    Ok(())
                }
            }),
        };
        Outcome {
            status: result.map_or(Status::IoError, |()| Status::Ok),
            data,
            done: 0,
            elapsed: elapsed.unwrap_or_else(|| begin.elapsed()),
        }
    }
}

/// Calls `call` for each of the `pieces` of `extents`. A cancelled work has no result.
fn each(
    extents: &[Extent],
    pieces: Pieces,
    is_current: &impl Fn() -> bool,
    call: impl Fn(Extent) -> io::Result<()>,
) -> io::Result<()> {
    let mut pieces = extents.iter().flat_map(|extent| extent.pieces(pieces));
    pieces.try_for_each(|piece| if is_current() { call(piece) } else { Ok(()) })
}

/// Calls `call` for each piece of a discard or write zeroes of `extents`, and then `record` with its length.
fn change(
    extents: &[Extent],
    pieces: Pieces,
    record: &impl Fn(u64) -> bool,
    call: impl Fn(Extent) -> io::Result<()>,
) -> io::Result<()> {
    each(extents, pieces, &|| record(0), |piece| {
        call(piece)?;
        record(piece.length);
        Ok(())
    })
}

/// Flushes all data, `extents` first. Most parts of a large disk are clean: they need no call for each [`FLUSH_SIZE`].
fn flush(storage: &dyn Storage, extents: &[Extent], is_current: &impl Fn() -> bool) -> io::Result<()> {
    each(extents, Pieces::of_size(CLEAN_SIZE), is_current, |part| {
        if part.length > FLUSH_SIZE && storage.is_clean(part) {
            return Ok(());
        }
        each(&[part], Pieces::of_size(FLUSH_SIZE), is_current, |chunk| {
            storage.write_back(chunk)
        })
    })?;
    if is_current() { storage.flush() } else { Ok(()) }
}

/// Reads `extent` into `data`, which has the bytes before a failure too.
fn read(
    storage: &dyn Storage,
    extent: Extent,
    data: &mut Vec<u8>,
    is_current: &impl Fn() -> bool,
) -> io::Result<()> {
    data.resize(usize::try_from(extent.length).unwrap_or_default(), 0);
    let mut done = 0;
    let result = loop {
        if done == data.len() || !is_current() {
            break Ok(());
        }
        match storage.read(&mut data[done..], extent.offset + done as u64) {
            // The file has been truncated since the last size update.
            Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    data.truncate(done);
    result
}

/// Writes `data` at `offset`.
fn write(storage: &dyn Storage, offset: u64, data: &[u8], is_current: &impl Fn() -> bool) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() && is_current() {
        match storage.write(&data[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
