//! Where the log, the numbers and the guest's output go.

use std::path::PathBuf;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, de};

use super::{Field, Off, Schema};
use crate::logger::LoggerSettings;

/// The log. What is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Logger {
    /// File or FIFO that takes it; stdout when there is none.
    pub log_path: Option<PathBuf>,
    /// What is said, from nothing to everything.
    #[serde(default, deserialize_with = "level")]
    pub level: Option<LevelFilter>,
    /// Whether each line has its level.
    pub show_level: Option<bool>,
    /// Whether each line has the source line that it comes from.
    pub show_log_origin: Option<bool>,
    /// Path of the only module that says something.
    pub module: Option<String>,
}

/// The numbers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Metrics {
    /// File or FIFO that takes them, a line a minute.
    pub metrics_path: PathBuf,
}

/// The guest's output on its serial port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Serial {
    /// File or FIFO that takes it; stdout when there is none.
    pub serial_out_path: Option<PathBuf>,
}

impl Schema for Logger {
    const NAME: &'static str = "Logger";
    const FIELDS: &'static [Field] = &[
        Field::any("log_path"),
        Field::choice("level", &["Off", "Error", "Warning", "Info", "Debug", "Trace"]),
        Field::any("show_level"),
        Field::any("show_log_origin"),
        Field::any("module"),
    ];
}

impl Schema for Metrics {
    const NAME: &'static str = "Metrics";
    const FIELDS: &'static [Field] = &[
        Field::any("metrics_path"),
        Field::unsupported(
            "emit_id",
            Off::False,
            "the metrics of mayfly do not have the id; have a file for each VM",
        ),
        Field::unsupported(
            "properties",
            Off::Empty,
            "the metrics of mayfly have no properties of the client's",
        ),
    ];
}

impl Schema for Serial {
    const NAME: &'static str = "Serial";
    const FIELDS: &'static [Field] = &[
        Field::any("serial_out_path"),
        Field::unsupported(
            "rate_limiter",
            Off::Empty,
            "mayfly drops what the file does not take, and does not limit it before",
        ),
    ];
}

impl Logger {
    /// What the log is asked for.
    pub fn settings(self) -> LoggerSettings {
        LoggerSettings {
            path: self.log_path,
            level: self.level,
            show_level: self.show_level,
            show_origin: self.show_log_origin,
            module: self.module,
        }
    }
}

/// Firecracker reads levels in any case, and takes the short name of one.
fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LevelFilter>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(Some(LevelFilter::Off)),
        "error" => Ok(Some(LevelFilter::Error)),
        "warning" | "warn" => Ok(Some(LevelFilter::Warn)),
        "info" => Ok(Some(LevelFilter::Info)),
        "debug" => Ok(Some(LevelFilter::Debug)),
        "trace" => Ok(Some(LevelFilter::Trace)),
        _ => Err(de::Error::unknown_variant(
            &text,
            &["Off", "Error", "Warning", "Info", "Debug", "Trace"],
        )),
    }
}
