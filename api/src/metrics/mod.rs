//! Metrics of the VM and the API: formats and file.
//!
//! | module | contents |
//! |---|---|
//! | `prometheus` | [`prometheus()`]: all metrics in the text format of Prometheus |
//! | `json` | all metrics in one line of JSON |
//! | `groups` | groups of a line with Firecracker's names |
//! | [`mod@file`] | [`MetricsFile`], and [`OutputFile`], which the log uses too |

mod counters;
pub mod file;
mod groups;
mod json;
mod prometheus;
#[cfg(test)]
mod testing;

pub use counters::{Counters, ProcessMetrics, RequestCount, RequestCounts};
pub use file::{MetricsFile, OutputFile};
pub use json::LineLabels;
pub use prometheus::prometheus;
