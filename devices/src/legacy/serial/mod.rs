//! The serial port, and what carries its output to the host without ever making the guest wait.
//!
//! | module | holds |
//! |---|---|
//! | [`uart`] | [`Serial`]: the registers of a 16550, and the bytes on their way to the guest |
//! | [`output`] | [`SerialOutput`]: the bounded buffer between the port and whoever reads it |

pub mod output;
pub mod uart;

#[cfg(test)]
pub(crate) mod testing;

pub use output::{NonblockingWriter, SerialOutput};
pub use uart::{Serial, SerialState};
