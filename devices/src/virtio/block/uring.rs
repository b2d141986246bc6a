//! Reads and writes with io_uring.
//!
//! One call submits a batch of requests. The kernel makes an eventfd readable at each completion. Until the
//! completion, the slot of a request owns the iovecs, and the engine owns a reference to guest memory. Dropping the
//! engine waits for all completions.
//!
//! If the kernel permanently rejects submissions, the requests that it has not accepted fail, and the device
//! continues with synchronous I/O.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use libc::iovec;
use snapshot::GuestMemory;

use super::disk::{Disk, Extent};
use super::execute::used_length;
use super::request::{HEADER, QUEUE_SIZE, RequestKind, Status};
use crate::virtio::queue::chain::Chain;

/// `IORING_ENTER_GETEVENTS` of linux/io_uring.h: wait for a completion.
const GETEVENTS: u32 = 1;

/// Checks that this process may create an io_uring, without creating one.
///
/// # Errors
/// Fails with the error of `io_uring_setup`, for example ENOSYS or EPERM.
pub(super) fn probe() -> io::Result<()> {
    // SAFETY: the kernel fails to read its parameters from address 0, and creates nothing.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
    let error = io::Error::last_os_error();
    // The permission check precedes the read: a permitted call fails with EFAULT.
    if error.raw_os_error() == Some(libc::EFAULT) {
        Ok(())
    } else {
        Err(error)
    }
}

/// An io_uring of one device. It survives resets of the device.
pub(super) struct UringEngine {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots in the submission queue that the kernel has not accepted, in their order.
    unsubmitted: VecDeque<usize>,
    /// Slots that the kernel has permanently rejected.
    rejected: Vec<usize>,
    /// Number of submissions in a row that the kernel has rejected while it had no request.
    retries: u8,
    /// The kernel has permanently rejected submissions: entries in the submission queue are never submitted.
    has_failed: bool,
    memory: Option<GuestMemory>,
}

impl UringEngine {
    /// Creates an io_uring that makes `eventfd` readable at each completion.
    ///
    /// # Errors
    /// Fails if the kernel does not create the io_uring or does not register the eventfd.
    pub(super) fn new(eventfd: RawFd) -> io::Result<Self> {
        let ring = IoUring::new(QUEUE_SIZE.into())?;
        ring.submitter().register_eventfd(eventfd)?;
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            unsubmitted: VecDeque::new(),
            rejected: Vec::new(),
            retries: 0,
            has_failed: false,
            memory: None,
        })
    }

    /// Holds a reference to `memory` for the requests of this activation.
    pub(super) fn attach(&mut self, memory: &GuestMemory) {
        self.memory.get_or_insert_with(|| memory.clone());
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns the number of requests that the kernel has accepted and not completed.
    pub(super) fn submitted(&self) -> usize {
        self.in_flight() - self.unsubmitted.len() - self.rejected.len()
    }

    /// Returns true if no further request fits.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() == usize::from(QUEUE_SIZE)
    }

    /// Queues the rest of `request`, parsed from `chain`, for [`Self::submit`]. The engine must be neither full nor
    /// failed, and `chain` must be in its memory.
    pub(super) fn push(&mut self, request: UringRequest, chain: &Chain<'_>, disk: &Disk) {
        let data_length = chain.writable.len().saturating_sub(1);
        let Some(status) = chain.writable.iovec(data_length..data_length + 1).next() else {
            // Unreachable: a chain without a status byte is not parsed as a request.
            return;
        };
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::new(request));
        }
        let slot = &mut self.slots[index];
        slot.head = chain.head;
        slot.request = request;
        slot.retries = 0;
        slot.data_length = data_length;
        slot.status = status.iov_base.cast();
        slot.iovecs.clear();
        let done = request.done;
        match request.operation {
            Operation::Read(extent) => slot.iovecs.extend(chain.writable.iovec(done..extent.length)),
            Operation::Write(extent, _) => {
                slot.iovecs
                    .extend(chain.readable.iovec(HEADER + done..HEADER + extent.length));
            }
        }
        self.enqueue(index, disk);
    }

    /// Submits queued requests to the kernel. Requests that it rejects temporarily stay queued.
    ///
    /// # Errors
    /// Fails if the kernel rejects submissions permanently. [`Self::reap`] then returns the queued requests as
    /// failed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.unsubmitted.is_empty() {
            let result = self.ring.submit();
            let left = self.ring.submission().len();
            let accepted = self.unsubmitted.len().saturating_sub(left);
            self.unsubmitted.drain(..accepted);
            if accepted > 0 {
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

    /// Returns the next completed request. Queues the rest of a partially completed one again.
    pub(super) fn reap(&mut self, disk: &Disk) -> Option<Completed> {
        if let Some(index) = self.rejected.pop() {
            self.free.push(index);
            return Some(self.slots[index].complete(Status::IoError));
        }
        loop {
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).ok()?;
            let status = match self.slots.get_mut(index)?.advance(entry.result()) {
                None if self.has_failed => Status::IoError,
                None => {
                    self.enqueue(index, disk);
                    continue;
                }
                Some(status) => status,
            };
            self.free.push(index);
            return Some(self.slots[index].complete(status));
        }
    }

    /// Waits for the next completion, without a limit. Returns at once if the kernel has no request.
    ///
    /// # Errors
    /// Fails if waiting fails permanently.
    fn wait(&self) -> io::Result<()> {
        if self.submitted() == 0 {
            return Ok(());
        }
        // SAFETY: the call submits nothing and receives no pointer.
        match unsafe { self.ring.submitter().enter::<()>(0, 1, GETEVENTS, None) } {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for all requests in flight without completing them, and drops the reference to guest memory.
    ///
    /// # Errors
    /// Fails if the io_uring is unusable.
    pub(super) fn release(&mut self) -> io::Result<()> {
        self.drain()?;
        self.memory = None;
        match self.has_failed {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn enqueue(&mut self, index: usize, disk: &Disk) {
        let entry = self.slots[index].entry(disk).user_data(index as u64);
        // SAFETY: the entry refers to the iovecs of the slot, unchanged until the completion, and to guest memory,
        // which `self.memory` holds.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // The submission queue has an entry for each slot, and each slot is queued at most once.
        debug_assert!(pushed.is_ok(), "submission queue is full");
        self.unsubmitted.push_back(index);
    }

    /// Waits for all requests in the kernel and frees all slots.
    fn drain(&mut self) -> io::Result<()> {
        // The kernel must not accept a queued entry later, when its slot belongs to another request.
        self.has_failed |= !self.unsubmitted.is_empty();
        self.free.extend(self.unsubmitted.drain(..));
        self.free.append(&mut self.rejected);
        while self.in_flight() > 0 {
            self.wait()?;
            while let Some(entry) = self.ring.completion().next() {
                self.free.extend(usize::try_from(entry.user_data()));
            }
        }
        Ok(())
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
        if self.drain().is_err() {
            // The kernel may still access iovecs and guest memory: leak them.
            mem::forget(mem::take(&mut self.slots));
            mem::forget(self.memory.take());
        }
    }
}

/// Maximum number of temporary errors in a row: of submissions while the kernel has no request, and of one request.
/// The kernel returns them if it lacks memory.
const MAX_RETRIES: u8 = 16;

/// Operation of the kernel for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read(Extent),
    /// Extent, and true for write-through.
    Write(Extent, bool),
}

impl Operation {
    /// Returns the kind of the request, for the metrics.
    pub(super) fn kind(self) -> RequestKind {
        match self {
            Self::Read(extent) => RequestKind::Read(extent),
            Self::Write(extent, _) => RequestKind::Write(extent),
        }
    }
}

/// A completed request. Its status byte is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completed {
    pub(super) head: u16,
    pub(super) operation: Operation,
    pub(super) status: Status,
    /// Length for the used ring.
    pub(super) length: u32,
    /// Start time, if it is timed.
    pub(super) start: Option<Duration>,
}

/// A request to push.
#[derive(Clone, Copy, Debug)]
pub(super) struct UringRequest {
    pub(super) operation: Operation,
    /// Bytes that are already transferred.
    pub(super) done: u64,
    /// Start time, if it is timed.
    pub(super) start: Option<Duration>,
}

/// A request in flight.
struct Slot {
    head: u16,
    request: UringRequest,
    /// Buffers of the remaining data. The kernel reads this array while the request is in flight.
    iovecs: Vec<iovec>,
    /// Number of temporary errors in a row.
    retries: u8,
    /// Length of the device-writable buffers without the status byte.
    data_length: u64,
    status: *mut u8,
}

// SAFETY: the pointers refer to guest memory, which the engine holds and which belongs to no thread.
unsafe impl Send for Slot {}

impl Slot {
    fn new(request: UringRequest) -> Self {
        Self {
            head: 0,
            request,
            iovecs: Vec::new(),
            retries: 0,
            data_length: 0,
            status: std::ptr::null_mut(),
        }
    }

    fn entry(&self, disk: &Disk) -> Entry {
        let file = types::Fd(disk.as_raw_fd());
        // Lossless: a chain has at most MAX_IOVECS buffers.
        let count = u32::try_from(self.iovecs.len()).unwrap_or_default();
        let iovecs = self.iovecs.as_ptr();
        match self.request.operation {
            Operation::Read(extent) => opcode::Readv::new(file, iovecs, count)
                .offset(extent.offset + self.request.done)
                .build(),
            Operation::Write(extent, write_through) => opcode::Writev::new(file, iovecs, count)
                .offset(extent.offset + self.request.done)
                .rw_flags(if write_through { libc::RWF_DSYNC } else { 0 })
                .build(),
        }
    }

    /// Applies the `result` of the kernel. Returns the final status, or `None` if a part of the request remains.
    fn advance(&mut self, result: i32) -> Option<Status> {
        let (Operation::Read(Extent { length, .. }) | Operation::Write(Extent { length, .. }, _)) =
            self.request.operation;
        let done = &mut self.request.done;
        match u64::try_from(result) {
            Err(_) if self.retries < MAX_RETRIES && is_transient(&io::Error::from_raw_os_error(-result)) => {
                self.retries += 1;
                None
            }
            Err(_) => Some(Status::IoError),
            Ok(_) if *done == length => Some(Status::Ok),
            // The file has been truncated since the last size update.
            Ok(0) => Some(Status::IoError),
            Ok(count) => {
                *done += count;
                self.retries = 0;
                skip(&mut self.iovecs, count);
                (*done >= length).then_some(Status::Ok)
            }
        }
    }

    fn complete(&self, status: Status) -> Completed {
        let UringRequest {
            operation,
            done,
            start,
        } = self.request;
        let written = if matches!(operation, Operation::Read(_)) {
            done
        } else {
            0
        };
        // SAFETY: the byte is in guest memory, which the engine holds; the driver does not access it before the
        // completion.
        unsafe { self.status.write_volatile(status.byte()) };
        // The driver must see the status before the entry of the used ring.
        fence(Ordering::Release);
        Completed {
            head: self.head,
            operation,
            status,
            length: used_length(self.data_length, written),
            start,
        }
    }
}

/// Removes the first `count` bytes of `iovecs`.
pub(super) fn skip(iovecs: &mut Vec<iovec>, count: u64) {
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    let complete = iovecs
        .iter()
        .take_while(|iovec| {
            let passed = iovec.iov_len <= left;
            left -= if passed { iovec.iov_len } else { 0 };
            passed
        })
        .count();
    iovecs.drain(..complete);
    if let Some(iovec) = iovecs.first_mut() {
        iovec.iov_base = iovec.iov_base.wrapping_byte_add(left);
        iovec.iov_len -= left;
    }
}

/// Returns true if the same call may succeed later.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
