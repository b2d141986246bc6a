//! The virtio block device, section 5.2 of the specification.
//!
//! | module | holds |
//! |---|---|
//! | `backend` | what a device has whether it is activated or not |
//! | [`config`] | [`DiskConfig`]: what it is made from |
//! | [`device`] | [`Block`]: the device |
//! | [`mod@file`] | [`Disk`]: the file or block device behind it |
//! | [`metrics`] | [`BlockMetrics`]: what it has done, and how long it took |
//! | `queue` | the queue at work |
//! | `request` | what a chain asks for, checked |
//! | `serve` | doing that on the calling thread |
//! | `space` | features and configuration space |
//! | `state` | what is kept in a snapshot |
//! | `uring` | doing reads, writes and flushes by io_uring |
//!
//! Data moves between the file and guest memory with no copy in between. A request that fails on the host fails for the
//! guest, by its status; only a chain that is no request at all stops the queue.
//!
//! Threat model: everything in a chain is untrusted, and may change while it is looked at; header and segments are
//! read once. The file may be shortened, filled or unplugged by others at any time.

mod backend;
pub mod config;
pub mod device;
pub mod file;
pub mod metrics;
mod queue;
mod request;
mod serve;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod uring;

pub use config::{CacheType, DiskConfig, IoEngine};
pub use device::Block;
pub use file::{Disk, DiskOptions};
pub use metrics::BlockMetrics;
pub use state::BlockState;
