//! HTTP/1.1 over a Unix stream socket, as Firecracker's clients use it. Independent of virtual machines.
//!
//! The [`Server`] never blocks, and has one descriptor for the event loop of the caller. The [`Handler`] executes each
//! [`Request`] and returns the [`Response`], at once or later.

mod holder;
mod message;
mod parser;
mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub use holder::Holder;
pub use message::{Method, Request, Response};
pub use parser::HttpLimits;
pub use server::{Handler, Reply, Server};
pub(crate) use socket::MAX_SOCKET_PATH;
pub use socket::{Error, Socket};
