//! Errors of the event loop.

use std::io;

/// Reason why the event loop cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor cannot be created.
    #[error("cannot {operation}")]
    System {
        /// Failed operation.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// epoll fails.
    #[error("cannot wait for events")]
    Events(#[source] event_manager::Error),
}
