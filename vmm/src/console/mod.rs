//! Serial consoles other than stdin and stdout.
//!
//! Clients attach to a Unix socket or a pseudoterminal while the guest runs, and detach. The relay, a thread of its own, connects
//! them with the serial port: neither a vCPU nor the event loop waits for a client.
//!
//! | module | content |
//! |---|---|
//! | `end` | [`SerialEnd`]: the open end of a serial port, for any start |
//! | `file` | file or FIFO for the output alone |
//! | `history` | last output of the guest |
//! | `client` | a client: its place in the output, its input |
//! | `pty` | pseudoterminal |
//! | `relay` | thread between the serial port and the clients |

mod client;
mod end;
mod error;
mod file;
mod history;
mod pty;
mod relay;
#[cfg(test)]
mod tests;

pub use end::SerialEnd;
pub use error::Error;
