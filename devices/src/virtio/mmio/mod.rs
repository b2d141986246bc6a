//! The memory-mapped transport, version 2. Section 4.2 of the specification.
//!
//! | module | holds |
//! |---|---|
//! | [`registers`] | offsets and values of the registers |
//! | `ring` | what a driver says of one queue |
//! | [`state`] | [`TransportState`]: what is kept in a snapshot |
//! | [`transport`] | [`Transport`]: the register window and the life of the device behind it |

mod queue;
pub mod registers;
pub mod state;
#[cfg(test)]
mod tests;
pub mod transport;

pub use state::TransportState;
pub use transport::Transport;
