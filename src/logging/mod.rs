//! Messages of mayfly and the log of the libraries, to stderr or to a file. Neither blocks for long.
//!
//! | module | contents |
//! |---|---|
//! | `file` | the log file, its lines and their timestamps |
//! | `stderr` | writes to stderr, and the limit of log messages |

mod file;
mod stderr;

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::process::{LogControl, LoggerSettings};
use api::request_log;
use devices::lock;
use log::{Level, LevelFilter, Log, Metadata, Record};
use vmm::control::{FileRole, OpenFile};

use crate::printable::{printable, printable_lines};
use file::{Line, LogFile};
pub use stderr::print;
use stderr::{Budget, print_unless_blocked};

/// Default level on stderr.
const LEVEL: LevelFilter = LevelFilter::Warn;
/// Default level in a file, as Firecracker's.
const FILE_LEVEL: LevelFilter = LevelFilter::Info;

static LOG: SharedLog = SharedLog::new();

/// Starts the log: warnings and errors, to stderr.
pub fn start() {
    // Fails only if a log is set already.
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LEVEL);
    }
}

/// Prints a message of mayfly on stderr in one write. Also writes it to the log file, if there is one and the log is not off.
pub fn print_message(text: &str) {
    LOG.print_message(text);
}

/// Control of the log of this process, for the API.
pub struct ProcessLog {
    id: String,
    shared: &'static SharedLog,
}

impl ProcessLog {
    /// Returns the control of the log. Each line of the log file shows `id`.
    pub fn new(id: &str) -> Self {
        Self::with_log(id, &LOG)
    }

    fn with_log(id: &str, shared: &'static SharedLog) -> Self {
        Self {
            id: id.to_owned(),
            shared,
        }
    }
}

impl LogControl for ProcessLog {
    fn configure(&mut self, settings: &LoggerSettings) -> Result<(), String> {
        let file = match &settings.path {
            Some(path) => {
                let opened = LogFile::open(path);
                Some(Arc::new(opened.map_err(|error| error.one_line())?))
            }
            None => None,
        };
        let level = self.shared.update(|rules| {
            rules.id.clone_from(&self.id);
            rules.file = file.or(rules.file.take());
            rules.level = settings.level.or(rules.level);
            rules.show_level = settings.show_level.unwrap_or(rules.show_level);
            rules.show_origin = settings.show_origin.unwrap_or(rules.show_origin);
            if let Some(module) = &settings.module {
                rules.module = Some(module.clone()).filter(|module| !module.is_empty());
            }
        });
        log::set_max_level(level);
        Ok(())
    }

    fn open_files(&self) -> Vec<OpenFile> {
        let rules = self.shared.rules();
        let file = rules.and_then(|rules| rules.file.as_ref()?.open_file());
        // Messages about the end of the process go to stderr too, which stays the same file.
        static STDERR: LazyLock<Option<OpenFile>> =
            LazyLock::new(|| OpenFile::of_descriptor(FileRole::Log, io::stderr().as_fd()));
        file.into_iter().chain(STDERR.clone()).collect()
    }

    fn missed_messages(&self) -> u64 {
        let budget = lock(&self.shared.budget).as_ref().map_or(0, Budget::total);
        budget.saturating_add(self.shared.missed.load(Ordering::Relaxed))
    }

    fn reopen(&mut self) -> bool {
        let Some(old) = self.shared.rules().and_then(|rules| rules.file.clone()) else {
            return false;
        };
        match old.reopen() {
            Ok(new) => {
                self.shared.update(|rules| rules.file = Some(Arc::new(new)));
            }
            Err(error) => self.shared.print_message(&format!(
                "warning: cannot reopen the log, which stays in the old file: {}",
                error.one_line()
            )),
        }
        true
    }
}

/// Settings in force.
#[derive(Clone, Debug)]
struct Rules {
    id: String,
    /// Destination instead of stderr.
    file: Option<Arc<LogFile>>,
    /// Level that the user has chosen.
    level: Option<LevelFilter>,
    /// Applies to the file; stderr always shows the level.
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

impl Rules {
    fn new() -> Self {
        Self {
            id: String::new(),
            file: None,
            level: None,
            show_level: false,
            show_origin: false,
            module: None,
        }
    }

    /// Returns the most verbose level that is logged.
    fn level(&self) -> LevelFilter {
        let default = if self.file.is_some() { FILE_LEVEL } else { LEVEL };
        self.level.unwrap_or(default)
    }

    /// Returns true if messages of this level and module are logged. Messages in Firecracker's words go to stderr only at a chosen
    /// level: a client that gets an error knows it already.
    fn allows(&self, metadata: &Metadata<'_>, module: Option<&str>) -> bool {
        let from = module.unwrap_or(metadata.target());
        let within = |module: &String| {
            let rest = from.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let is_chosen = self.level.is_some() || self.file.is_some();
        let is_shown = is_chosen || metadata.target() != request_log::TARGET;
        is_shown && metadata.level() <= self.level() && self.module.as_ref().is_none_or(within)
    }

    /// Returns source file and line of `record`, if they are shown.
    fn origin<'a>(&self, record: &Record<'a>) -> Option<(&'a str, u32)> {
        let origin = record.file().zip(record.line());
        origin.filter(|_| self.show_origin)
    }

    /// Writes a line of this thread to `file`. Returns false if it was dropped.
    fn write(
        &self,
        file: &LogFile,
        text: &str,
        note: &str,
        level: Option<Level>,
        origin: Option<(&str, u32)>,
    ) -> bool {
        file.write(&Line {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            id: &self.id,
            thread: thread::current().name().unwrap_or("-"),
            level: level.filter(|_| self.show_level),
            origin,
            text,
            note,
        })
    }

    /// Formats `record` for stderr.
    fn format_for_stderr(&self, record: &Record<'_>, note: &str) -> String {
        let mut text = format!("mayfly: {}: ", record.level().as_str().to_ascii_lowercase());
        if let Some((file, line)) = self.origin(record) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{file}:{line}: ");
        }
        text.push_str(&printable(&record.args().to_string()));
        text.push_str(note);
        text.push('\n');
        text
    }
}

/// The log of all threads. No lock is held during a write, which may block.
#[derive(Debug)]
struct SharedLog {
    /// None until the first change.
    rules: Mutex<Option<Arc<Rules>>>,
    budget: Mutex<Option<Budget>>,
    /// Messages that a full FIFO or disk did not take.
    missed: AtomicU64,
}

impl SharedLog {
    const fn new() -> Self {
        Self {
            rules: Mutex::new(None),
            budget: Mutex::new(None),
            missed: AtomicU64::new(0),
        }
    }

    fn rules(&self) -> Option<Arc<Rules>> {
        lock(&self.rules).clone()
    }

    /// Updates the rules and returns the new level.
    fn update(&self, update: impl FnOnce(&mut Rules)) -> LevelFilter {
        let mut rules = lock(&self.rules);
        let mut new = rules.as_deref().map_or_else(Rules::new, Clone::clone);
        update(&mut new);
        let level = new.level();
        let old = rules.replace(Arc::new(new));
        drop(rules);
        // Without the lock: it may close the old file, which may block.
        drop(old);
        level
    }

    /// Prints a message of mayfly, which may have several lines.
    fn print_message(&self, text: &str) {
        print(&format!("mayfly: {}\n", printable_lines(text.as_bytes())));
        self.write_to_file(text);
    }

    fn count_missed(&self, is_written: bool) {
        self.missed.fetch_add(u64::from(!is_written), Ordering::Relaxed);
    }

    fn write_to_file(&self, text: &str) {
        let Some(rules) = self.rules() else { return };
        let Some(file) = &rules.file else { return };
        if rules.level() == LevelFilter::Off {
            return;
        }
        for line in text.lines() {
            self.count_missed(rules.write(file, line, "", None, None));
        }
    }

    /// Writes `record` to the file or else by `stderr`, unless the rules exclude it or the budget is spent.
    fn write_record(&self, record: &Record<'_>, now: Instant, stderr: impl FnOnce(&str)) {
        let rules = self.rules().unwrap_or_else(|| Arc::new(Rules::new()));
        if !rules.allows(record.metadata(), record.module_path()) {
            return;
        }
        // Each request has its messages in the file: a client can limit its own requests.
        let is_unlimited = rules.file.is_some() && record.target() == request_log::TARGET;
        let allowed = is_unlimited.then_some(0);
        let allowed = allowed.or_else(|| {
            lock(&self.budget)
                .get_or_insert_with(|| Budget::new(now))
                .spend(now)
        });
        let Some(dropped) = allowed else { return };
        let note = match dropped {
            0 => String::new(),
            dropped => format!(" ({dropped} lines before this one were dropped)"),
        };
        match &rules.file {
            Some(file) => {
                let text = record.args().to_string();
                let origin = rules.origin(record);
                self.count_missed(rules.write(file, &text, &note, Some(record.level()), origin));
            }
            None => stderr(&rules.format_for_stderr(record, &note)),
        }
    }
}

impl Log for SharedLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.rules()
            .map_or(metadata.level() <= LEVEL, |rules| rules.allows(metadata, None))
    }

    fn log(&self, record: &Record<'_>) {
        self.write_record(record, Instant::now(), print_unless_blocked);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests;
