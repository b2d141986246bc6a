//! Doing reads, writes and flushes by io_uring.
//!
//! Requests are put into the ring one by one and given to the kernel in one call a batch; when one is done, the kernel
//! makes an eventfd readable. A request owns the list of pieces that it names,
//! and the ring owns a share of guest memory, until the kernel is done with it; a ring is not dropped before.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use libc::iovec;
use snapshot::GuestMemory;

use super::file::Disk;
use super::request::{Extent, HEADER, Status};
use super::serve::used_length;
use super::space::QUEUE_SIZE;
use crate::virtio::chain::Chain;

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
}

/// A request in flight, or what is left of one.
struct Slot {
    head: u16,
    operation: Operation,
    /// What is still to be moved; the list is the kernel's while the request is in flight.
    pieces: Vec<iovec>,
    /// Bytes done.
    done: u64,
    /// Bytes for data in what the device may write.
    place: u64,
    status: *mut u8,
}

// SAFETY: the pointers name guest memory, of which the ring has a share, and which is nobody's thread's.
unsafe impl Send for Slot {}

/// An io_uring for one activation of a device.
pub(super) struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    memory: Option<GuestMemory>,
}

impl Ring {
    /// A ring for requests in `memory` that makes `eventfd` readable when some are done.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn new(memory: GuestMemory, eventfd: RawFd) -> io::Result<Self> {
        let ring = IoUring::new(QUEUE_SIZE.into())?;
        ring.submitter().register_eventfd(eventfd)?;
        Ok(Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            memory: Some(memory),
        })
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no further request has room.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight() == usize::from(QUEUE_SIZE)
    }

    /// Puts in what is left of `operation`, which was parsed from `chain`, after its first `done` bytes. There must be
    /// room, and `chain` must lie in the memory of this ring. [`Self::submit`] gives it to the kernel.
    pub(super) fn push(&mut self, operation: Operation, chain: &Chain<'_>, done: u64, disk: &Disk) {
        let place = chain.writable.len().saturating_sub(1);
        let Some(status) = chain.writable.iovec(place..place + 1).next() else {
            // Without a byte for the status, a chain is no request.
            return;
        };
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot {
                head: 0,
                operation,
                pieces: Vec::new(),
                done: 0,
                place: 0,
                status: std::ptr::null_mut(),
            });
        }
        let slot = &mut self.slots[index];
        slot.head = chain.head;
        slot.operation = operation;
        slot.done = done;
        slot.place = place;
        slot.status = status.iov_base.cast();
        slot.pieces.clear();
        match operation {
            Operation::Read(extent) => slot.pieces.extend(chain.writable.iovec(done..extent.length)),
            Operation::Write(extent, _) => {
                slot.pieces
                    .extend(chain.readable.iovec(HEADER + done..HEADER + extent.length));
            }
            Operation::Flush => {}
        }
        self.enter(index, disk);
    }

    /// Gives what was put in to the kernel.
    ///
    /// # Errors
    /// The kernel's answer when it takes nothing now; what was put in stays in.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the kernel has been given everything.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.ring.submission().is_empty()
    }

    /// The next request that is done. One of which the kernel did only a part goes in again.
    pub(super) fn reap(&mut self, disk: &Disk) -> Option<Completed> {
        loop {
            let entry = self.ring.completion().next()?;
            let index = usize::try_from(entry.user_data()).ok()?;
            let slot = self.slots.get_mut(index)?;
            let Some(status) = slot.advance(entry.result()) else {
                self.enter(index, disk);
                continue;
            };
            self.free.push(index);
            return Some(slot.complete(status));
        }
    }

    /// Waits until at least one request in flight is done.
    ///
    /// # Errors
    /// The kernel's answer when waiting is of no use.
    pub(super) fn wait(&self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn enter(&mut self, index: usize, disk: &Disk) {
        let entry = self.slots[index].entry(disk).user_data(index as u64);
        // SAFETY: what the entry names is the slot's, which is not touched before the kernel is done, and guest memory.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as there can be slots, and each is in once at most.
        debug_assert!(pushed.is_ok(), "more entries than slots");
    }

    /// Waits for everything in flight and forgets it.
    fn settle(&mut self) -> io::Result<()> {
        while self.in_flight() > 0 {
            self.wait()?;
            while let Some(entry) = self.ring.completion().next() {
                self.free.extend(usize::try_from(entry.user_data()));
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.settle().is_err() {
            // The kernel may still write to what the requests name, so that it is kept for good.
            mem::forget(mem::take(&mut self.slots));
            mem::forget(self.memory.take());
        }
    }
}

impl Slot {
    fn entry(&self, disk: &Disk) -> Entry {
        let file = types::Fd(disk.as_raw_fd());
        // A chain has no more than 1024 pieces.
        let count = u32::try_from(self.pieces.len()).unwrap_or_default();
        let pieces = self.pieces.as_ptr();
        match self.operation {
            Operation::Read(extent) => opcode::Readv::new(file, pieces, count)
                .offset(extent.offset + self.done)
                .build(),
            Operation::Write(extent, through) => opcode::Writev::new(file, pieces, count)
                .offset(extent.offset + self.done)
                .rw_flags(if through { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Flush => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
    }

    /// Takes the kernel's `result`. Returns how the request ended, or nothing when it is to go on.
    fn advance(&mut self, result: i32) -> Option<Status> {
        let length = match self.operation {
            Operation::Read(extent) | Operation::Write(extent, _) => extent.length,
            Operation::Flush => 0,
        };
        match u64::try_from(result) {
            Err(_) if is_passing(&io::Error::from_raw_os_error(-result)) => None,
            Err(_) => Some(Status::IoError),
            Ok(_) if self.done == length => Some(Status::Ok),
            // The file has been truncated underneath.
            Ok(0) => Some(Status::IoError),
            Ok(count) => {
                self.done += count;
                skip(&mut self.pieces, count);
                (self.done >= length).then_some(Status::Ok)
            }
        }
    }

    fn complete(&self, status: Status) -> Completed {
        let given = if matches!(self.operation, Operation::Read(_)) {
            self.done
        } else {
            0
        };
        // SAFETY: the byte is in guest memory, which the ring keeps; the driver leaves it alone until it is told.
        unsafe { self.status.write_volatile(status.byte()) };
        // The status is there before the used ring says so.
        fence(Ordering::Release);
        Completed {
            head: self.head,
            operation: self.operation,
            status,
            length: used_length(self.place, given),
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

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
