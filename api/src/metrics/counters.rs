//! Counters of the API.

use serde::Serialize;

/// Counters of the API since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Number of responses with the status 200 or 204.
    pub accepted: u64,
    /// Number of other responses.
    pub refused: u64,
}
