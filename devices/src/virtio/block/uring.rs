//! Reads and writes with io_uring.
//!
//! One call submits a batch of requests. The kernel makes an eventfd readable at each completion. Until the completion, the slot of
//! a request owns the buffer of its data, see [`super::transfer`]. A reset abandons the requests in flight: the kernel cancels those
//! that it can, and the slots of the others stay in use until their completions. Entries that the kernel has not accepted stay queued
//! with an empty iovec: the kernel completes them without effect.
//!
//! If the kernel permanently rejects submissions, the requests that it has not accepted fail, and the device
//! continues with synchronous I/O.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use libc::iovec;
use snapshot::GuestMemory;

use super::disk::{Disk, coarse_time, open_file};
use super::request::{QUEUE_SIZE, RequestKind, Status};
use super::transfer::{MAX_BUFFERED, PendingRequest, Unfinished};

/// Flag of an entry for a registered file.
const FIXED_FILE: Flags = Flags::FIXED_FILE;
/// `IORING_REGISTER_FILES_UPDATE` of linux/io_uring.h.
const REGISTER_FILES_UPDATE: u8 = 6;
/// User data of a cancellation, no index of a slot.
const CANCEL: u64 = u64::MAX;
/// Maximum time for the requests in flight at a drop.
const STOP_TIMEOUT: Duration = Duration::from_millis(50);

/// An io_uring of one device. It survives resets of the device.
pub(super) struct UringEngine {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots in the submission queue that the kernel has not accepted, in their order.
    unsubmitted: VecDeque<usize>,
    /// Slots that the kernel has permanently rejected.
    rejected: Vec<usize>,
    /// The submission queue has a cancellation that the kernel has not accepted.
    has_cancellation: bool,
    /// Number of slots without a request that are not free.
    abandoned: usize,
    /// Bytes of host memory for the requests, and for the buffers of abandoned ones.
    buffered: u64,
    /// Number of submissions in a row that the kernel has rejected while it had no request.
    retries: u8,
    /// The kernel has permanently rejected submissions: entries in the submission queue are never submitted.
    has_failed: bool,
}

impl UringEngine {
    /// Creates an io_uring for the file `disk`, which makes `eventfd` readable at each completion.
    ///
    /// Seccomp filters do not see what the kernel does for an io_uring. It is therefore created before the guest runs, disabled, and
    /// enabled with the restriction to reads and writes of the registered file, and their cancellation.
    ///
    /// # Errors
    /// Fails if the kernel does not create the io_uring or does not restrict it (before Linux 5.10).
    pub(super) fn new(eventfd: RawFd, disk: RawFd) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(QUEUE_SIZE.into())?;
        let submitter = ring.submitter();
        submitter.register_eventfd(eventfd)?;
        submitter.register_files(&[disk])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::AsyncCancel2::CODE),
            Restriction::sqe_flags_allowed((FIXED_FILE | Flags::ASYNC).bits()),
            Restriction::sqe_flags_required(FIXED_FILE.bits()),
            Restriction::register_op(REGISTER_FILES_UPDATE),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            unsubmitted: VecDeque::new(),
            rejected: Vec::new(),
            has_cancellation: false,
            abandoned: 0,
            buffered: 0,
            retries: 0,
            has_failed: false,
        })
    }

    /// Replaces the file of the disk, while the kernel has no request.
    ///
    /// # Errors
    /// Fails if the kernel lacks memory; the io_uring has the old file then.
    pub(super) fn replace_file(&mut self, disk: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(0, &[disk]).map(drop)
    }

    /// Returns the number of requests in flight, without abandoned ones.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.abandoned
    }

    /// Returns the number of requests that the kernel has accepted and not completed, without abandoned ones.
    pub(super) fn submitted(&self) -> usize {
        let not_accepted = self.unsubmitted.iter().chain(&self.rejected);
        let count = not_accepted
            .filter(|index| self.slots[**index].request.is_some())
            .count();
        self.in_flight() - count
    }

    /// Returns true if a write is in flight.
    pub(super) fn has_write(&self) -> bool {
        let mut requests = self.slots.iter().filter_map(|slot| slot.request.as_ref());
        requests.any(|request| matches!(request.kind, RequestKind::Write(_)))
    }

    /// Returns true if the kernel may still execute an abandoned request, or has not accepted its entry. The end of the request makes
    /// the eventfd readable.
    pub(super) fn has_abandoned(&self) -> bool {
        self.abandoned > 0
    }

    /// Returns true if the kernel has permanently rejected submissions.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Returns true if no further request fits.
    pub(super) fn is_full(&self) -> bool {
        // The submission queue has an entry for each slot, or for a cancellation.
        let entries = self.in_flight() + self.abandoned + usize::from(self.has_cancellation);
        entries >= usize::from(QUEUE_SIZE) || self.buffered >= MAX_BUFFERED
    }

    /// Queues the rest of `request`, a read or write in `memory`, for [`Self::submit`]. The engine must be neither full nor failed.
    pub(super) fn push(&mut self, request: PendingRequest, memory: &GuestMemory, disk: &Disk) {
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.buffered += request.buffered;
        let slot = &mut self.slots[index];
        slot.retries = 0;
        slot.fill(&request, memory);
        slot.request = Some(request);
        self.enqueue(index, disk);
    }

    /// Submits queued requests to the kernel. Requests that it rejects temporarily stay queued.
    ///
    /// # Errors
    /// Fails if the kernel rejects submissions permanently. [`Self::reap`] then returns the queued requests as
    /// failed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.unsubmitted.is_empty() {
            let before = self.ring.submission().len();
            let result = self.ring.submit();
            let left = self.ring.submission().len();
            let accepted = self.unsubmitted.len().saturating_sub(left);
            self.unsubmitted.drain(..accepted);
            self.has_cancellation &= left > self.unsubmitted.len();
            if left < before {
                self.retries = 0;
                continue;
            }
            let error = match result {
                // The kernel has accepted nothing: the same as a temporary rejection.
                Ok(_) => io::Error::from_raw_os_error(libc::EAGAIN),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if self.is_permanent(&error) {
                self.has_failed = true;
                self.rejected.extend(self.unsubmitted.drain(..));
                return Err(error);
            }
            return Ok(());
        }
        Ok(())
    }

    /// Counts a rejected submission. Returns true if no further submission may follow `error`.
    fn is_permanent(&mut self, error: &io::Error) -> bool {
        if !is_transient(error) {
            return true;
        }
        // Not counted while the kernel has requests: a completion may free the memory that a submission needs.
        if self.submitted() == 0 {
            self.retries += 1;
        }
        self.retries >= MAX_RETRIES
    }

    /// Returns true if no request is queued for submission.
    pub(super) fn is_submitted(&self) -> bool {
        self.unsubmitted.is_empty()
    }

    /// Returns the next completed request with its status. Queues the rest of a partially completed one again. The data of a read is
    /// written to `memory`.
    pub(super) fn reap(&mut self, disk: &Disk, memory: &GuestMemory) -> Option<(PendingRequest, Status)> {
        while let Some(index) = self.rejected.pop() {
            if let Some(request) = self.release(index) {
                return Some((request, Status::IoError));
            }
        }
        loop {
            let (index, result) = self.next_completion()?;
            self.slots[index].note_write(disk);
            let status = match self.slots[index].advance(result, memory) {
                None if self.has_failed => Status::IoError,
                None => {
                    self.enqueue(index, disk);
                    continue;
                }
                Some(status) => status,
            };
            if let Some(request) = self.release(index) {
                return Some((request, status));
            }
        }
    }

    /// Returns slot and result of the next completed entry, except for a cancellation.
    fn next_completion(&mut self) -> Option<(usize, i32)> {
        loop {
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            if index < self.slots.len() {
                return Some((index, entry.result()));
            }
        }
    }

    /// Returns the bytes of heap for slots and requests.
    #[cfg(test)]
    pub(super) fn heap_size(&self) -> u64 {
        let slots = self.slots.capacity() * size_of::<Slot>() + self.free.capacity() * size_of::<usize>();
        let data = self.slots.iter().map(|slot| slot.data.capacity()).sum::<usize>();
        self.buffered + (slots + data) as u64
    }

    /// Returns the addresses of the buffers.
    #[cfg(test)]
    pub(super) fn buffers(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.data.as_ptr().addr()).collect()
    }

    /// Frees a slot that the kernel does not use. Returns its request, or `None` if it was abandoned.
    fn release(&mut self, index: usize) -> Option<PendingRequest> {
        let slot = &mut self.slots[index];
        let data = mem::take(&mut slot.data);
        let request = slot.request.take();
        if let Some(request) = &request {
            self.buffered -= request.buffered;
        } else {
            self.buffered -= data.len() as u64;
            self.abandoned -= 1;
        }
        self.free.push(index);
        request
    }

    /// Abandons all requests like [`Self::abandon`], and returns them for a later start.
    pub(super) fn suspend(&mut self) -> Vec<Unfinished> {
        let requests = self.slots.iter().filter_map(|slot| slot.request.as_ref());
        let unfinished = requests.map(PendingRequest::unfinished).collect();
        self.abandon();
        unfinished
    }

    /// Abandons all requests, and cancels those in the kernel. Does not wait for it: [`Self::settle`] follows.
    pub(super) fn abandon(&mut self) {
        for index in mem::take(&mut self.rejected) {
            self.release(index);
        }
        self.unsubmitted
            .iter()
            .for_each(|index| self.slots[*index].clear());
        self.abandoned += self.in_flight();
        // The kernel still uses the buffers: a driver that resets a stuck device again and again must not add more.
        self.buffered = self.slots.iter().map(|slot| slot.data.len() as u64).sum();
        self.slots.iter_mut().for_each(|slot| slot.request = None);
        // The entries of the first call are without effect.
        if self.abandoned > 0 && self.submit().is_ok() {
            self.cancel();
        }
    }

    /// Cancels all requests in the kernel, if it supports that.
    fn cancel(&mut self) {
        // Otherwise an earlier cancellation is still queued, or the kernel accepts no entry at present.
        if self.has_failed || !self.ring.submission().is_empty() {
            return;
        }
        // All entries have the flag that the restriction requires.
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any())
            .build()
            .flags(FIXED_FILE);
        // SAFETY: the entry refers to no memory.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(CANCEL)) };
        if pushed.is_ok() {
            // Fails if the kernel lacks memory. The next submission repeats the entry: no request precedes it.
            let _ = self.ring.submit();
            self.has_cancellation = !self.ring.submission().is_empty();
        }
    }

    /// Abandons all requests, and waits a short time for the kernel. Returns true if it has none.
    pub(super) fn stop(&mut self) -> bool {
        self.abandon();
        self.settle(STOP_TIMEOUT)
    }

    fn enqueue(&mut self, index: usize, disk: &Disk) {
        let Some(entry) = self.slots[index].entry(disk) else {
            return;
        };
        // SAFETY: the entry refers to iovec and buffer of the slot, which stay unchanged until the completion.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) };
        self.slots[index].begin = coarse_time();
        match pushed {
            Ok(()) => self.unsubmitted.push_back(index),
            // Never: see [`Self::is_full`].
            Err(_) => self.rejected.push(index),
        }
    }

    /// Waits for abandoned requests, at most for `timeout`. Returns true if none is left: the heap is free then. No other request may
    /// be in flight.
    pub(super) fn settle(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        // A failure moves the entries to the rejected ones.
        let _ = self.submit();
        loop {
            while let Some(index) = self.rejected.pop() {
                self.release(index);
            }
            while let Some((index, _)) = self.next_completion() {
                self.release(index);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.abandoned == 0 {
                self.slots = Vec::new();
                self.free = Vec::new();
                return true;
            }
            if left.is_zero() {
                return false;
            }
            wait_readable(self.ring.as_raw_fd(), left);
        }
    }
}

/// Waits until `descriptor` is readable, at most for `timeout`. May return earlier.
pub(super) fn wait_readable(descriptor: RawFd, timeout: Duration) {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    // Rounded up: a timeout of 0 would make the loop of the caller spin.
    let milliseconds = i32::try_from(timeout.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: the call accesses one `pollfd`, which outlives it.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
}

#[cfg(test)]
impl AsRawFd for UringEngine {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        if !self.stop() {
            // The kernel may still access the buffers: leak them.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

impl Disk {
    /// Opens the file a second time if an io_uring is to use it. Without the second one, for example because another file is at the path,
    /// the io_uring uses the locked one.
    pub(super) fn open_for_uring(&mut self) {
        let inode = &self.file.inode;
        let opened = self
            .options
            .for_uring
            .then(|| open_file(&self.path, self.options.read_only));
        self.uring_file = opened.and_then(Result::ok).filter(|file| {
            let other = file.metadata();
            other.is_ok_and(|other| (other.dev(), other.ino()) == (inode.dev(), inode.ino()))
        });
    }

    /// Calls `pass` with the file for an io_uring, which keeps it.
    pub(super) fn pass_to_uring<T>(&mut self, pass: impl FnOnce(RawFd) -> T) -> T {
        let own = self.uring_file.take();
        pass(
            own.as_ref()
                .map_or(self.file.file.as_raw_fd(), AsRawFd::as_raw_fd),
        )
    }

    /// Keeps the disk locked until the end of this process.
    pub(super) fn keep_locked(&self) {
        mem::forget(self.file.clone());
    }
}

/// Maximum number of temporary errors in a row: of submissions while the kernel has no request, and of one request.
/// The kernel returns them if it lacks memory.
const MAX_RETRIES: u8 = 16;

/// Place of a request in flight.
#[derive(Default)]
struct Slot {
    /// `None` if the slot is free or abandoned.
    request: Option<PendingRequest>,
    /// Data of the current transfer. The kernel accesses it while the request is in flight.
    data: Vec<u8>,
    /// The rest of `data`. The kernel reads it while the request is in flight.
    iovec: Option<Box<iovec>>,
    /// Coarse time at the begin of the current transfer.
    begin: Duration,
    /// Number of temporary errors in a row.
    retries: u8,
}

// SAFETY: the pointer refers to the buffer of the same slot.
unsafe impl Send for Slot {}

impl Slot {
    /// Makes the entry in the submission queue, which refers to the iovec, a transfer of no bytes.
    fn clear(&mut self) {
        if let Some(iovec) = &mut self.iovec {
            iovec.iov_len = 0;
        }
        self.data = Vec::new();
    }

    /// Prepares the next transfer of `request`.
    fn fill(&mut self, request: &PendingRequest, memory: &GuestMemory) {
        self.data = request
            .next_piece()
            .map_or_else(Vec::new, |piece| request.buffer(piece, memory));
        self.iovec = Some(Box::new(iovec {
            iov_base: self.data.as_mut_ptr().cast(),
            iov_len: self.data.len(),
        }));
    }

    /// Returns the entry for the current transfer.
    fn entry(&self, disk: &Disk) -> Option<Entry> {
        let (request, iovec) = (self.request.as_ref()?, self.iovec.as_ref()?);
        let file = types::Fixed(0);
        let offset = request.next_piece()?.offset;
        let entry = match request.kind {
            RequestKind::Read(_) => opcode::Readv::new(file, &raw const **iovec, 1)
                .offset(offset)
                .build(),
            _ => opcode::Writev::new(file, &raw const **iovec, 1)
                .offset(offset)
                .rw_flags(if request.write_through { libc::RWF_DSYNC } else { 0 })
                .build(),
        };
        // The first attempt of the kernel, at the submission, waits for some servers, for example those of FUSE, and on XFS for the
        // flush of a write-through write.
        let is_write = !matches!(request.kind, RequestKind::Read(_));
        let flags = if disk.is_remote() || is_write && request.write_through {
            FIXED_FILE | Flags::ASYNC
        } else {
            FIXED_FILE
        };
        Some(entry.flags(flags))
    }

    /// Records the time of a completed write on `disk`. Write-through writes have no other path, and their time includes a flush.
    fn note_write(&self, disk: &Disk) {
        let request = self.request.as_ref();
        if request
            .is_some_and(|request| matches!(request.kind, RequestKind::Write(_)) && !request.write_through)
        {
            disk.note_write(coarse_time().saturating_sub(self.begin));
        }
    }

    /// Applies the `result` of the kernel. Returns the final status, or `None` if a part of the request remains.
    fn advance(&mut self, result: i32, memory: &GuestMemory) -> Option<Status> {
        let Some(mut request) = self.request.take() else {
            // Abandoned: without effect.
            return Some(Status::IoError);
        };
        let status = match usize::try_from(result) {
            Err(_) if self.retries < MAX_RETRIES && is_transient(&io::Error::from_raw_os_error(-result)) => {
                self.retries += 1;
                None
            }
            // Zero: the file has been truncated since the last size update.
            Err(_) | Ok(0) => Some(Status::IoError),
            Ok(count) => {
                self.retries = 0;
                request.advance(&self.data[..count.min(self.data.len())], memory);
                self.fill(&request, memory);
                request.next_piece().is_none().then_some(Status::Ok)
            }
        };
        self.request = Some(request);
        status
    }
}

/// Returns true if the same call may succeed later.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use io_uring::squeue::Entry;
    use io_uring::{opcode, types};
    use scratch::{Requirement, require};
    use vmm_sys_util::eventfd::EventFd;

    use super::{FIXED_FILE, UringEngine};

    /// Returns the result of `entry`.
    fn execute(engine: &mut UringEngine, entry: &Entry) -> i32 {
        // SAFETY: the kernel executes no entry that refers to memory.
        unsafe { engine.ring.submission().push(entry) }.unwrap();
        engine.ring.submit_and_wait(1).unwrap();
        engine.ring.completion().next().unwrap().result()
    }

    #[test]
    fn other_operations_are_refused() {
        if !require(Requirement::IoUring) {
            return;
        }
        let (file, eventfd) = (File::open("/dev/null").unwrap(), EventFd::new(0).unwrap());
        let mut engine = UringEngine::new(eventfd.as_raw_fd(), file.as_raw_fd()).unwrap();
        let directory = types::Fd(libc::AT_FDCWD);
        let entries = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(directory, c"/etc/passwd".as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::UnlinkAt::new(directory, c"/nonexistent".as_ptr()).build(),
            opcode::Fsync::new(types::Fixed(0)).build(),
            opcode::Close::new(types::Fd(file.as_raw_fd())).build(),
        ];
        for entry in entries.map(|entry| entry.flags(FIXED_FILE)) {
            assert_eq!(execute(&mut engine, &entry), -libc::EACCES, "{entry:?}");
        }
        // Of any other file.
        let read = opcode::Readv::new(types::Fd(file.as_raw_fd()), std::ptr::null(), 0).build();
        assert_eq!(execute(&mut engine, &read), -libc::EACCES);
        let read = opcode::Readv::new(types::Fixed(0), std::ptr::null(), 0)
            .build()
            .flags(FIXED_FILE);
        assert_eq!(execute(&mut engine, &read), 0);
        let submitter = engine.ring.submitter();
        assert_eq!(
            submitter.unregister_files().unwrap_err().raw_os_error(),
            Some(libc::EACCES)
        );
        assert_eq!(
            submitter.unregister_eventfd().unwrap_err().raw_os_error(),
            Some(libc::EACCES)
        );
        engine.replace_file(file.as_raw_fd()).unwrap();
    }
}
