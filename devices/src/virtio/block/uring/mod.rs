//! Doing reads, writes and flushes by io_uring.
//!
//! Requests are put into the ring one by one and given to the kernel in one call a batch; when one is done, the kernel
//! makes an eventfd readable. A request owns the list of pieces that it names,
//! and the ring owns a share of guest memory, until the kernel is done with it; a ring is not dropped before.
//!
//! A ring of which the kernel takes nothing any more is given up: what it has not taken has failed, and the device does
//! without from there on.

mod ring;
mod slot;

pub(super) use ring::{UringEngine, probe};
#[cfg(test)]
pub(super) use slot::skip;
pub(super) use slot::{Completed, Operation, UringRequest};
