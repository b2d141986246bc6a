//! The serial port, and its output to the host, which never blocks the guest.
//!
//! | module | contents |
//! |---|---|
//! | [`uart`] | [`Serial`]: registers of a 16550 and the queue of received bytes |
//! | [`pl011`] | registers of a PL011, in their place |
//! | [`output`] | [`SerialOutput`]: bounded buffer between the port and its reader; [`NonblockingWriter`] |

pub mod output;
pub mod pl011;
pub mod uart;

#[cfg(test)]
pub(crate) mod testing;

pub use output::{NonblockingWriter, SerialOutput};
pub use pl011::Pl011State;
pub use uart::{Pl011Registers, Serial, SerialMetrics, SerialModel, SerialRecorder, SerialState};
