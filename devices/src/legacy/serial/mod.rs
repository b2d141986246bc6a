//! The serial port, and its output to the host, which never blocks the guest.
//!
//! | module | contents |
//! |---|---|
//! | [`uart`] | [`Serial`]: registers of a 16550 and the queue of received bytes |
//! | [`output`] | [`SerialOutput`]: bounded buffer between the port and its reader; [`NonblockingWriter`] |

pub mod output;
pub mod uart;

#[cfg(test)]
pub(crate) mod testing;

pub use output::{NonblockingWriter, SerialOutput};
pub use uart::{Serial, SerialMetrics, SerialRecorder, SerialState};
