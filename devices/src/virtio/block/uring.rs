//! Doing reads, writes and flushes by io_uring.
//!
//! Requests are put into the ring one by one and given to the kernel in one call a batch; when one is done, the kernel
//! makes an eventfd readable. A request owns the list of pieces that it names,
//! and the ring owns a share of guest memory, until the kernel is done with it; a ring is not dropped before.
//!
//! A ring of which the kernel takes nothing any more is given up: what it has not taken has failed, and the device does
//! without from there on.

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
use super::request::{HEADER, QUEUE_SIZE, Status};
use crate::virtio::queue::chain::Chain;

/// `IORING_ENTER_GETEVENTS` of linux/io_uring.h: wait for what is done.
const GETEVENTS: u32 = 1;

/// Whether this kernel lets this process have a ring; costs one system call that makes nothing.
///
/// # Errors
/// What is in the way.
pub(super) fn probe() -> io::Result<()> {
    // SAFETY: the kernel reads its parameters from address 0, where nothing is, and makes no ring.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
    let error = io::Error::last_os_error();
    // A ring that is allowed fails only at the address.
    if error.raw_os_error() == Some(libc::EFAULT) {
        Ok(())
    } else {
        Err(error)
    }
}

/// An io_uring, which goes from one activation of a device to the next.
pub(super) struct UringEngine {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots that were put in and that the kernel has not taken, in their order.
    waiting: VecDeque<usize>,
    /// Slots that the kernel will not take.
    refused: Vec<usize>,
    /// How often in a row the kernel has taken nothing.
    refusals: u8,
    /// Whether nothing is to be given to the kernel any more; what is in its queue stays there for good.
    failed: bool,
    memory: Option<GuestMemory>,
}

impl UringEngine {
    /// A ring that makes `eventfd` readable when requests are done.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn new(eventfd: RawFd) -> io::Result<Self> {
        let ring = IoUring::new(QUEUE_SIZE.into())?;
        ring.submitter().register_eventfd(eventfd)?;
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            refused: Vec::new(),
            refusals: 0,
            failed: false,
            memory: None,
        })
    }

    /// Takes a share of `memory`, in which the requests from now on are, if it has none.
    pub(super) fn attach(&mut self, memory: &GuestMemory) {
        self.memory.get_or_insert_with(|| memory.clone());
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that the kernel has taken and not done.
    pub(super) fn with_kernel(&self) -> usize {
        self.in_flight() - self.waiting.len() - self.refused.len()
    }

    /// Whether no further request has room.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() == usize::from(QUEUE_SIZE)
    }

    /// Puts in what is left of `todo`, which was parsed from `chain`. There must be room, the ring must not have failed, and
    /// `chain` must lie in the memory of this ring. [`Self::submit`] gives it to the kernel.
    pub(super) fn push(&mut self, todo: UringRequest, chain: &Chain<'_>, disk: &Disk) {
        let place = chain.writable.len().saturating_sub(1);
        let Some(status) = chain.writable.iovec(place..place + 1).next() else {
            // Without a byte for the status, a chain is no request.
            return;
        };
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::new(todo));
        }
        let slot = &mut self.slots[index];
        slot.head = chain.head;
        slot.todo = todo;
        slot.refusals = 0;
        slot.place = place;
        slot.status = status.iov_base.cast();
        slot.pieces.clear();
        let done = todo.done;
        match todo.operation {
            Operation::Read(extent) => slot.pieces.extend(chain.writable.iovec(done..extent.length)),
            Operation::Write(extent, _) => {
                slot.pieces
                    .extend(chain.readable.iovec(HEADER + done..HEADER + extent.length));
            }
            Operation::Flush => {}
        }
        self.enter(index, disk);
    }

    /// Gives what was put in to the kernel. What it does not take now stays in.
    ///
    /// # Errors
    /// The kernel's answer when it will not take anything any more; what it has not taken comes out by [`Self::reap`].
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let result = self.ring.submit();
            let left = self.ring.submission().len();
            let taken = self.waiting.len().saturating_sub(left);
            self.waiting.drain(..taken);
            if taken > 0 {
                self.refusals = 0;
                continue;
            }
            let error = match result {
                Ok(_) => io::Error::from_raw_os_error(libc::EAGAIN),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if self.is_final(&error) {
                self.failed = true;
                self.refused.extend(self.waiting.drain(..));
                return Err(error);
            }
            return Ok(());
        }
        Ok(())
    }

    /// Whether the kernel, which has said `error`, is not to be asked again.
    fn is_final(&mut self, error: &io::Error) -> bool {
        if !is_transient(error) {
            return true;
        }
        // When it is done with what it has, it may have room again.
        if self.with_kernel() == 0 {
            self.refusals += 1;
        }
        self.refusals >= MAX_RETRIES
    }

    /// Whether the kernel has been given everything that it is to have.
    pub(super) fn is_submitted(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next request that is done. One of which the kernel did only a part goes in again.
    pub(super) fn reap(&mut self, disk: &Disk) -> Option<Completed> {
        if let Some(index) = self.refused.pop() {
            self.free.push(index);
            return Some(self.slots[index].complete(Status::IoError));
        }
        loop {
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).ok()?;
            let status = match self.slots.get_mut(index)?.advance(entry.result()) {
                None if self.failed => Status::IoError,
                None => {
                    self.enter(index, disk);
                    continue;
                }
                Some(status) => status,
            };
            self.free.push(index);
            return Some(self.slots[index].complete(status));
        }
    }

    /// Waits until one of the requests that the kernel has is done; returns at once when it has none.
    ///
    /// # Errors
    /// The kernel's answer when waiting is of no use.
    pub(super) fn wait(&self) -> io::Result<()> {
        if self.with_kernel() == 0 {
            return Ok(());
        }
        // SAFETY: nothing is submitted, and the call is given no memory.
        match unsafe { self.ring.submitter().enter::<()>(0, 1, GETEVENTS, None) } {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for everything in flight, forgets it, and lets the memory go.
    ///
    /// # Errors
    /// The kernel's answer when the ring is of no use any more.
    pub(super) fn release(&mut self) -> io::Result<()> {
        self.settle()?;
        self.memory = None;
        match self.failed {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn enter(&mut self, index: usize, disk: &Disk) {
        let entry = self.slots[index].entry(disk).user_data(index as u64);
        // SAFETY: what the entry names is the slot's, which is not touched before the kernel is done, and guest memory.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as there can be slots, and each is in once at most.
        debug_assert!(pushed.is_ok(), "more entries than slots");
        self.waiting.push_back(index);
    }

    /// Waits for everything that the kernel has, and forgets what is in flight.
    fn settle(&mut self) -> io::Result<()> {
        // What the kernel has not taken yet it must not take later, when its slot is somebody else's.
        self.failed |= !self.waiting.is_empty();
        self.free.extend(self.waiting.drain(..));
        self.free.append(&mut self.refused);
        while self.in_flight() > 0 {
            self.wait()?;
            while let Some(entry) = self.ring.completion().next() {
                self.free.extend(usize::try_from(entry.user_data()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl AsRawFd for UringEngine {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        if self.settle().is_err() {
            // The kernel may still write to what the requests name, so that it is kept for good.
            mem::forget(mem::take(&mut self.slots));
            mem::forget(self.memory.take());
        }
    }
}

/// How often in a row the kernel may put off the same requests while it has none to finish, and one request that it has
/// not begun; then they have failed. It puts off for want of memory.
const MAX_RETRIES: u8 = 16;

/// What the kernel does for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read(Extent),
    /// With whether it is to be on the medium afterwards.
    Write(Extent, bool),
    Flush,
}

/// A request that the kernel is done with, its status written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completed {
    pub(super) head: u16,
    pub(super) operation: Operation,
    pub(super) status: Status,
    /// For the used ring.
    pub(super) length: u32,
    /// When it began, if it is timed.
    pub(super) start: Option<Duration>,
}

/// What goes into the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct UringRequest {
    pub(super) operation: Operation,
    /// Bytes of it that are done.
    pub(super) done: u64,
    /// When it began, if it is timed.
    pub(super) start: Option<Duration>,
}

/// A request in flight, or what is left of one.
struct Slot {
    head: u16,
    todo: UringRequest,
    /// What is still to be moved; the list is the kernel's while the request is in flight.
    pieces: Vec<iovec>,
    /// How often in a row the kernel has put it off.
    refusals: u8,
    /// Bytes for data in what the device may write.
    place: u64,
    status: *mut u8,
}

// SAFETY: the pointers name guest memory, of which the ring has a share, and which is nobody's thread's.
unsafe impl Send for Slot {}

impl Slot {
    fn new(todo: UringRequest) -> Self {
        Self {
            head: 0,
            todo,
            pieces: Vec::new(),
            refusals: 0,
            place: 0,
            status: std::ptr::null_mut(),
        }
    }

    fn entry(&self, disk: &Disk) -> Entry {
        let file = types::Fd(disk.as_raw_fd());
        // A chain has no more than 1024 pieces.
        let count = u32::try_from(self.pieces.len()).unwrap_or_default();
        let pieces = self.pieces.as_ptr();
        match self.todo.operation {
            Operation::Read(extent) => opcode::Readv::new(file, pieces, count)
                .offset(extent.offset + self.todo.done)
                .build(),
            Operation::Write(extent, through) => opcode::Writev::new(file, pieces, count)
                .offset(extent.offset + self.todo.done)
                .rw_flags(if through { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
    }

    /// Takes the kernel's `result`. Returns how the request ended, or nothing when it is to go on.
    fn advance(&mut self, result: i32) -> Option<Status> {
        let length = match self.todo.operation {
            Operation::Read(extent) | Operation::Write(extent, _) => extent.length,
            Operation::Flush => 0,
        };
        let done = &mut self.todo.done;
        match u64::try_from(result) {
            Err(_) if self.refusals < MAX_RETRIES && is_transient(&io::Error::from_raw_os_error(-result)) => {
                self.refusals += 1;
                None
            }
            Err(_) => Some(Status::IoError),
            Ok(_) if *done == length => Some(Status::Ok),
            // The file has been truncated underneath.
            Ok(0) => Some(Status::IoError),
            Ok(count) => {
                *done += count;
                self.refusals = 0;
                skip(&mut self.pieces, count);
                (*done >= length).then_some(Status::Ok)
            }
        }
    }

    fn complete(&self, status: Status) -> Completed {
        let UringRequest {
            operation,
            done,
            start,
        } = self.todo;
        let given = if matches!(operation, Operation::Read(_)) {
            done
        } else {
            0
        };
        // SAFETY: the byte is in guest memory, which the ring keeps; the driver leaves it alone until it is told.
        unsafe { self.status.write_volatile(status.byte()) };
        // The status is there before the used ring says so.
        fence(Ordering::Release);
        Completed {
            head: self.head,
            operation,
            status,
            length: used_length(self.place, given),
            start,
        }
    }
}

/// Takes `count` bytes off the front of `pieces`.
pub(super) fn skip(pieces: &mut Vec<iovec>, count: u64) {
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    let whole = pieces
        .iter()
        .take_while(|piece| {
            let passed = piece.iov_len <= left;
            left -= if passed { piece.iov_len } else { 0 };
            passed
        })
        .count();
    pieces.drain(..whole);
    if let Some(piece) = pieces.first_mut() {
        piece.iov_base = piece.iov_base.wrapping_byte_add(left);
        piece.iov_len -= left;
    }
}

/// Whether the same call may do better at another time.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
