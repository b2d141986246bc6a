//! Destinations of the log, the metrics and the serial output.

use std::collections::BTreeMap;
use std::path::PathBuf;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, de};

use super::field::{FieldType, Rule};
use super::limiter::TokenBucket;
use super::macros::schema;
use crate::process::LoggerSettings;

/// Levels of the log with Firecracker's words for them.
const LEVELS: [(&str, LevelFilter); 6] = [
    ("Off", LevelFilter::Off),
    ("Error", LevelFilter::Error),
    ("Warning", LevelFilter::Warn),
    ("Info", LevelFilter::Info),
    ("Debug", LevelFilter::Debug),
    ("Trace", LevelFilter::Trace),
];

/// Words of [`LEVELS`].
const LEVEL_WORDS: &[&str] = &{
    let mut words = [""; LEVELS.len()];
    let mut index = 0;
    while index < words.len() {
        words[index] = LEVELS[index].0;
        index += 1;
    }
    words
};

impl FieldType for LevelFilter {
    const RULE: Rule = Rule::Choice(LEVEL_WORDS);
}

#[cfg(test)]
impl super::openapi::ValueType for LevelFilter {
    const SHAPE: super::openapi::Shape = super::openapi::Shape::Words(LEVEL_WORDS);
}

schema! {
    /// Change of the log. A field without a value keeps the present setting.
    #[derive(Default, Deserialize)]
    body Logger {
        /// File or FIFO for log messages, opened at once; stderr before it is set.
        log_path: Option<PathBuf>;
        /// Most verbose level to log, in any case. Warn is Warning.
        #[serde(default, deserialize_with = "read_level")]
        level: Option<LevelFilter>;
        /// Adds the level to each message.
        show_level: Option<bool>;
        /// Adds the source file and line to each message.
        show_log_origin: Option<bool>;
        /// Module path; only messages of this module and its submodules are logged.
        module: Option<String>;
    }
    example "{level: 'Info', show_level: true, show_log_origin: false}";
}

schema! {
    /// Destination of the metrics.
    #[derive(Deserialize)]
    body Metrics {
        /// File or FIFO for the metrics, one line of JSON each minute.
        metrics_path: PathBuf;
        /// Adds the key id to each line: the identifier of the VM.
        emit_id: Option<bool> = false;
        /// Adds the key properties with these texts to each line.
        properties: Option<BTreeMap<String, String>>;
    }
    example "{metrics_path: /tmp/metrics, emit_id: true, properties: {tenant: a}}";
}

schema! {
    /// Other end of the guest's serial port.
    #[derive(Deserialize)]
    body Serial {
        /// File or FIFO for the output, created if absent; stdout by default.
        serial_out_path: Option<PathBuf>;
        /// Other end: stdio, unix:PATH (a socket for clients), pty (GET /vm/status names it) or file:PATH. Not together with
        /// serial_out_path.
        console: Option<String>;
        /// Limit of the output in bytes. Output beyond it is dropped, and counted in uart.rate_limiter_dropped_bytes.
        rate_limiter: Option<TokenBucket>;
    }
    example "{serial_out_path: /tmp/serial, rate_limiter: {size: 65536, refill_time: 1000, one_time_burst: 1048576}}";
}

impl Logger {
    /// Converts to the settings of the process.
    pub fn into_settings(self) -> LoggerSettings {
        let Self {
            log_path,
            level,
            show_level,
            show_log_origin,
            module,
        } = self;
        LoggerSettings {
            path: log_path,
            level,
            show_level,
            show_origin: show_log_origin,
            module,
        }
    }
}

/// Reads a level as Firecracker does: in any case, and `warn` for `Warning`.
fn read_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LevelFilter>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    if text.eq_ignore_ascii_case("warn") {
        return Ok(Some(LevelFilter::Warn));
    }
    let mut levels = LEVELS.iter();
    match levels.find(|(word, _)| text.eq_ignore_ascii_case(word)) {
        Some((_, level)) => Ok(Some(*level)),
        None => Err(de::Error::unknown_variant(&text, LEVEL_WORDS)),
    }
}
