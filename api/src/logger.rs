//! What a client may say of the log. Writing it is the business of whoever owns the process.

use std::path::PathBuf;

use log::LevelFilter;

/// Settings of the log; what is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggerSettings {
    /// File or FIFO that takes the log from now on; it is opened at once.
    pub path: Option<PathBuf>,
    /// What is said.
    pub level: Option<LevelFilter>,
    /// Whether each line has its level.
    pub show_level: Option<bool>,
    /// Whether each line has the source line that it comes from.
    pub show_origin: Option<bool>,
    /// Only what comes from the module with this path, and from those below it, is said.
    pub module: Option<String>,
}

/// The log of the process.
pub trait LogControl {
    /// Changes the log as `settings` have it, all or nothing.
    ///
    /// # Errors
    /// What a client is told: which value is wrong, and why.
    fn configure(&mut self, settings: &LoggerSettings) -> Result<(), String>;

    /// Opens the log's file again, because it may have been moved away. Returns whether there is one.
    fn reopen(&mut self) -> bool;
}
