//! HTTP/1.1 over a unix stream socket, as Firecracker's clients speak it; nothing in here knows of virtual machines.
//!
//! The [`Server`] never blocks and has one descriptor, for an event loop of the caller's to watch. The [`Handler`] says
//! what a [`Request`] is answered with.

mod body;
mod connection;
mod error;
mod head;
mod limits;
mod line;
mod parser;
mod refusal;
mod request;
mod response;
mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub use error::Error;
pub use limits::HttpLimits;
pub use request::{Method, Request};
pub use response::Response;
pub use server::Server;

/// Answers requests, one at a time, in the order in which each client sent its own.
pub trait Handler {
    /// Returns the answer to `request`. The caller's event loop stands still meanwhile.
    fn answer(&mut self, request: &Request) -> Response;
}
