//! Metrics of the VM and the API: formats and file.
//!
//! | module | contents |
//! |---|---|
//! | `prometheus` | [`prometheus()`]: all metrics in the text format of Prometheus |
//! | `json` | all metrics in one line of JSON |
//! | [`mod@file`] | [`MetricsFile`], and [`OutputFile`], which the log uses too |

mod counters;
pub mod file;
mod json;
mod prometheus;
#[cfg(test)]
mod testing;

pub use counters::Counters;
pub use file::{MetricsFile, OutputFile};
pub use prometheus::prometheus;
