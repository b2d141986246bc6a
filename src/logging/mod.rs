//! The log of this process, and how it is changed.

mod budget;
mod file;
mod line;
mod stamp;
mod stderr;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::process::{LogControl, LoggerSettings};
use devices::lock;
use log::{Level, LevelFilter, Log, Metadata, Record};

use budget::Budget;
use file::LogFile;
use line::{Line, printable};
pub use stderr::print;
use stderr::print_unless_blocked;

/// What is said as long as nobody asks for something else.
const LEVEL: LevelFilter = LevelFilter::Warn;

static LOG: SharedLog = SharedLog::new();

/// Starts the log: warnings and errors, to stderr.
pub fn start() {
    // It fails only when there is a log already, and then that one serves.
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LEVEL);
    }
}

/// Says `text` on stderr, in one write, and in the log's file if there is one, unless the log is off.
pub fn print_message(text: &str) {
    LOG.print_message(text);
}

/// The log of this process, in the hands of whoever may change it.
pub struct ProcessLog {
    id: String,
    shared: &'static SharedLog,
}

impl ProcessLog {
    /// The log of the VM `id`, whose name is in each line of the file.
    pub fn new(id: &str) -> Self {
        Self::of(id, &LOG)
    }

    fn of(id: &str, shared: &'static SharedLog) -> Self {
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
                Some(Arc::new(
                    opened.map_err(|error| format!("the log: {}", error.one_line()))?,
                ))
            }
            None => None,
        };
        let level = self.shared.change(|rules| {
            rules.id.clone_from(&self.id);
            rules.file = file.or(rules.file.take());
            rules.level = settings.level.unwrap_or(rules.level);
            rules.show_level = settings.show_level.unwrap_or(rules.show_level);
            rules.show_origin = settings.show_origin.unwrap_or(rules.show_origin);
            if let Some(module) = &settings.module {
                rules.module = Some(module.clone()).filter(|module| !module.is_empty());
            }
        });
        log::set_max_level(level);
        Ok(())
    }

    fn reopen(&mut self) -> bool {
        let Some(old) = self.shared.rules().and_then(|rules| rules.file.clone()) else {
            return false;
        };
        match old.reopen() {
            Ok(new) => {
                self.shared.change(|rules| rules.file = Some(Arc::new(new)));
            }
            Err(error) => self.shared.print_message(&format!(
                "warning: the log goes on where it was: {}",
                error.one_line()
            )),
        }
        true
    }
}

/// What is said, and how.
#[derive(Clone, Debug)]
struct Rules {
    id: String,
    /// What takes the log instead of stderr.
    file: Option<Arc<LogFile>>,
    level: LevelFilter,
    /// In the file; stderr always has it.
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

impl Rules {
    fn new() -> Self {
        Self {
            id: String::new(),
            file: None,
            level: LEVEL,
            show_level: false,
            show_origin: false,
            module: None,
        }
    }

    fn allow(&self, metadata: &Metadata<'_>, module: Option<&str>) -> bool {
        let from = module.unwrap_or(metadata.target());
        let within = |module: &String| {
            let rest = from.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        metadata.level() <= self.level && self.module.as_ref().is_none_or(within)
    }

    /// Source file and line of `record`, if they are to be shown.
    fn origin<'a>(&self, record: &Record<'a>) -> Option<(&'a str, u32)> {
        let origin = record.file().zip(record.line());
        origin.filter(|_| self.show_origin)
    }

    /// A line for `file`, from the thread that asks.
    fn write(
        &self,
        file: &LogFile,
        text: &str,
        note: &str,
        level: Option<Level>,
        origin: Option<(&str, u32)>,
    ) {
        file.write(&Line {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            id: &self.id,
            thread: thread::current().name().unwrap_or("-"),
            level: level.filter(|_| self.show_level),
            origin,
            text,
            note,
        });
    }

    /// What stderr gets of `record`.
    fn for_stderr(&self, record: &Record<'_>, note: &str) -> String {
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

/// The log as all threads see it. Its locks are held for no longer than it takes to look: what may block is written without.
#[derive(Debug)]
struct SharedLog {
    /// None as long as nobody has changed them.
    rules: Mutex<Option<Arc<Rules>>>,
    budget: Mutex<Option<Budget>>,
}

impl SharedLog {
    const fn new() -> Self {
        Self {
            rules: Mutex::new(None),
            budget: Mutex::new(None),
        }
    }

    fn rules(&self) -> Option<Arc<Rules>> {
        lock(&self.rules).clone()
    }

    /// Has `change` done and returns the level that then is in force.
    fn change(&self, change: impl FnOnce(&mut Rules)) -> LevelFilter {
        let mut rules = lock(&self.rules);
        let mut new = rules.as_deref().map_or_else(Rules::new, Clone::clone);
        change(&mut new);
        let level = new.level;
        let old = rules.replace(Arc::new(new));
        drop(rules);
        // It may hold the file that was, and closing one may take its time.
        drop(old);
        level
    }

    /// Says what the process itself has to say, which may be several lines.
    fn print_message(&self, text: &str) {
        print(&format!("mayfly: {text}\n"));
        self.write_to_file(text);
    }

    fn write_to_file(&self, text: &str) {
        let Some(rules) = self.rules() else { return };
        let Some(file) = &rules.file else { return };
        if rules.level == LevelFilter::Off {
            return;
        }
        for line in text.lines() {
            rules.write(file, line, "", None, None);
        }
    }

    /// Says `record`, if it may be said, to the file or else by `stderr`.
    fn take(&self, record: &Record<'_>, now: Instant, stderr: impl FnOnce(&str)) {
        let rules = self.rules().unwrap_or_else(|| Arc::new(Rules::new()));
        if !rules.allow(record.metadata(), record.module_path()) {
            return;
        }
        let allowed = lock(&self.budget)
            .get_or_insert_with(|| Budget::new(now))
            .spend(now);
        let Some(withheld) = allowed else { return };
        let note = match withheld {
            0 => String::new(),
            withheld => format!(" ({withheld} lines before this one were withheld)"),
        };
        match &rules.file {
            Some(file) => {
                let text = record.args().to_string();
                rules.write(file, &text, &note, Some(record.level()), rules.origin(record));
            }
            None => stderr(&rules.for_stderr(record, &note)),
        }
    }
}

impl Log for SharedLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.rules()
            .map_or(metadata.level() <= LEVEL, |rules| rules.allow(metadata, None))
    }

    fn log(&self, record: &Record<'_>) {
        self.take(record, Instant::now(), print_unless_blocked);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests;
