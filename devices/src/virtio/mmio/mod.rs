//! The MMIO transport, version 2, virtio 1.2 §4.2.
//!
//! | module | contents |
//! |---|---|
//! | `queue` | registers of one queue |
//! | [`registers`] | register offsets and values |
//! | [`state`] | [`TransportState`]: saved state |
//! | [`transport`] | [`Transport`]: register accesses and device lifecycle |

mod queue;
pub mod registers;
pub mod state;
#[cfg(test)]
mod tests;
pub mod transport;

pub use state::TransportState;
pub use transport::Transport;
