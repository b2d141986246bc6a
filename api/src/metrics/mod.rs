//! What the VM and its API have done, for those who collect numbers.
//!
//! | module | holds |
//! |---|---|
//! | `exposition` | [`prometheus`]: which number has which name in Prometheus |
//! | `text` | the text format of Prometheus |
//! | `file` | [`MetricsFile`]: takes all numbers at a time, a line of JSON |
//! | `line` | what is in such a line |
//! | [`output`] | [`OutputFile`]: a file or FIFO that is written to without ever waiting; the log has one too |

mod exposition;
mod file;
mod line;
pub mod output;
#[cfg(test)]
mod testing;
mod text;

use serde::Serialize;

pub use exposition::prometheus;
pub use file::MetricsFile;
pub use output::OutputFile;

/// What the API has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests answered with 200 or 204.
    pub accepted: u64,
    /// Requests answered with anything else.
    pub refused: u64,
}
