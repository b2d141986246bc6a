//! A request on its way through the kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use libc::iovec;

use crate::virtio::block::file::Disk;
use crate::virtio::block::request::{Extent, Status};
use crate::virtio::block::serve::used_length;

/// How often in a row the kernel may put off the same requests while it has none to finish, and one request that it has
/// not begun; then they have failed. It puts off for want of memory.
pub(super) const MAX_RETRIES: u8 = 16;

/// What the kernel does for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Operation {
    Read(Extent),
    /// With whether it is to be on the medium afterwards.
    Write(Extent, bool),
    Flush,
}

/// A request that the kernel is done with, its status written.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Completed {
    pub(in super::super) head: u16,
    pub(in super::super) operation: Operation,
    pub(in super::super) status: Status,
    /// For the used ring.
    pub(in super::super) length: u32,
    /// When it began, if it is timed.
    pub(in super::super) start: Option<Duration>,
}

/// What goes into the ring.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct UringRequest {
    pub(in super::super) operation: Operation,
    /// Bytes of it that are done.
    pub(in super::super) done: u64,
    /// When it began, if it is timed.
    pub(in super::super) start: Option<Duration>,
}

/// A request in flight, or what is left of one.
pub(super) struct Slot {
    pub(super) head: u16,
    pub(super) todo: UringRequest,
    /// What is still to be moved; the list is the kernel's while the request is in flight.
    pub(super) pieces: Vec<iovec>,
    /// How often in a row the kernel has put it off.
    pub(super) refusals: u8,
    /// Bytes for data in what the device may write.
    pub(super) place: u64,
    pub(super) status: *mut u8,
}

// SAFETY: the pointers name guest memory, of which the ring has a share, and which is nobody's thread's.
unsafe impl Send for Slot {}

impl Slot {
    pub(super) fn new(todo: UringRequest) -> Self {
        Self {
            head: 0,
            todo,
            pieces: Vec::new(),
            refusals: 0,
            place: 0,
            status: std::ptr::null_mut(),
        }
    }

    pub(super) fn entry(&self, disk: &Disk) -> Entry {
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
    pub(super) fn advance(&mut self, result: i32) -> Option<Status> {
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

    pub(super) fn complete(&self, status: Status) -> Completed {
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
pub(in super::super) fn skip(pieces: &mut Vec<iovec>, count: u64) {
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
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
