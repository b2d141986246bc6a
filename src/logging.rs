//! What the libraries have to say goes to stderr, a line each.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(&format!(
                "{}: {}",
                record.level().as_str().to_ascii_lowercase(),
                record.args()
            ));
        }
    }

    fn flush(&self) {}
}

/// Starts the log.
pub fn start() {
    // It fails only when there is a log already, and then that one serves.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Says `text` on stderr, in one write. A stderr that nobody reads is no reason to end.
pub fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("mayfly: {text}\n").as_bytes());
}
