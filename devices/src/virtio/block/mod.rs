//! The virtio block device, section 5.2 of the specification.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`Block`]: the device; [`Config`], what it is made from; [`Metrics`] |
//! | [`mod@file`] | [`Disk`]: the file or block device behind it |
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

pub mod device;
pub mod file;
mod queue;
mod request;
mod serve;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod uring;

pub use device::{Block, CacheType, Config, IoEngine, Metrics};
pub use file::Disk;
pub use state::BlockState;
