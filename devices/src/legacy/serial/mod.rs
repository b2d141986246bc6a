//! The serial port, and what carries its output to the host without ever making the guest wait.
//!
//! | module | holds |
//! |---|---|
//! | [`uart`] | [`Serial`]: the registers of a 16550, and the bytes on their way to the guest |
//! | [`output`] | [`SerialOutput`]: the bounded buffer between the port and whoever reads it |
//! | [`sink`] | [`NonblockingWriter`]: writes to any file descriptor that never block |
//! | [`state`] | [`SerialState`]: what is kept of the port in a snapshot |

pub mod output;
pub mod sink;
pub mod state;
pub mod uart;

#[cfg(test)]
pub(crate) mod testing;

pub use output::SerialOutput;
pub use sink::NonblockingWriter;
pub use state::SerialState;
pub use uart::Serial;
