//! The log file, its lines and their timestamps.
//!
//! A line is `2026-11-22T01:02:03.123456789 [id:thread[:LEVEL][:file:line]] text`.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use api::metrics::OutputFile;
use api::metrics::file::{ATOMIC, Error};
use devices::civil_time::CivilTime;
use log::Level;
use vmm::control::{FileRole, OpenFile};

use crate::printable::printable;

/// A file or FIFO of log lines. One write at the end of the file per line keeps lines of several threads apart.
#[derive(Debug)]
pub struct LogFile {
    output: OutputFile,
    /// Lines dropped since the last written one.
    dropped: AtomicU64,
    /// The file ends in an incomplete line, after the disk was full.
    torn: AtomicBool,
}

impl LogFile {
    /// Opens `path`, and creates a file there if necessary.
    ///
    /// # Errors
    /// As [`OutputFile::open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        OutputFile::open(path).map(Self::from_output)
    }

    /// Opens the same path again, and keeps the number of dropped lines.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn reopen(&self) -> Result<Self, Error> {
        let new = Self::from_output(self.output.reopen()?);
        new.dropped
            .store(self.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(new)
    }

    /// Returns the file with its use, or `None` if it is no regular file.
    pub fn open_file(&self) -> Option<OpenFile> {
        self.output.open_file(FileRole::Log)
    }

    /// Writes `line`, with the number of lines dropped before it. Drops it if the FIFO has no reader or the disk is full,
    /// and returns false then.
    pub fn write(&self, line: &Line<'_>) -> bool {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let note;
        let text = if dropped > 0 {
            note = format!("{} ({dropped} lines before this one were dropped)", line.note);
            Line {
                note: &note,
                ..line.clone()
            }
            .render()
        } else {
            line.render()
        };
        if self.torn.swap(false, Ordering::Relaxed) {
            // Not part of the line, which must stay within the atomic size of a FIFO. A FIFO is never torn.
            let _ = self.output.write(b"\n");
        }
        // The error is dropped: this file is the place to report it.
        let written = self.output.write(text.as_bytes()).unwrap_or(0);
        if written < text.len() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            self.torn.fetch_or(written > 0, Ordering::Relaxed);
        }
        written == text.len()
    }

    fn from_output(output: OutputFile) -> Self {
        Self {
            output,
            dropped: AtomicU64::new(0),
            torn: AtomicBool::new(false),
        }
    }
}

/// A line of the log file.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Time since 1970-01-01 in UTC.
    pub time: Duration,
    /// Name of the VM.
    pub id: &'a str,
    /// Name of the thread.
    pub thread: &'a str,
    /// Level, if shown.
    pub level: Option<Level>,
    /// Source file and line, if shown.
    pub origin: Option<(&'a str, u32)>,
    /// The message; truncated if the line is too long.
    pub text: &'a str,
    /// A note after the message, which is not truncated with it.
    pub note: &'a str,
}

impl Line<'_> {
    /// Returns the line with its line feed, at most as long as an atomic write to a FIFO.
    pub fn render(&self) -> String {
        let mut line = format!("{} [{}:{}", Timestamp(self.time), self.id, self.thread);
        // Writing to a String cannot fail.
        if let Some(level) = self.level {
            let _ = write!(line, ":{level}");
        }
        if let Some((file, number)) = self.origin {
            let _ = write!(line, ":{file}:{number}");
        }
        line.push_str("] ");
        truncate(&mut line, ATOMIC - 1);
        // A guest or a client may have chosen a part of the text.
        line.push_str(&printable(self.text));
        truncate(&mut line, (ATOMIC - 1).saturating_sub(self.note.len()));
        line.push_str(self.note);
        truncate(&mut line, ATOMIC - 1);
        line.push('\n');
        line
    }
}

/// Truncates `line` to at most `length` bytes, at a character boundary.
fn truncate(line: &mut String, mut length: usize) {
    while !line.is_char_boundary(length.min(line.len())) {
        length -= 1;
    }
    line.truncate(length);
}

/// Displays a time since 1970-01-01 as `2026-11-22T01:02:03.123456789` in UTC. Times after the year 9999 display as its end.
#[derive(Clone, Copy, Debug)]
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CivilTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = CivilTime::from_unix(i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX));
        let nanosecond = self.0.subsec_nanos();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::Ordering;
    use std::thread;
    use std::time::Duration;

    use api::metrics::file::ATOMIC;
    use log::Level;
    use scratch::{Directory, Reader};

    use super::{Line, LogFile, Timestamp};

    fn line(text: &str) -> Line<'_> {
        Line {
            time: Duration::ZERO,
            id: "x",
            thread: "main",
            level: None,
            origin: None,
            text,
            note: "",
        }
    }

    /// Returns the messages of complete lines from [`line`].
    fn messages(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "incomplete line");
        let head = "1970-01-01T00:00:00.000000000 [x:main] ";
        let lines = text.lines();
        lines
            .map(|line| line.strip_prefix(head).expect(line).to_owned())
            .collect()
    }

    #[test]
    fn unread_fifo_drops_lines_without_blocking() {
        let directory = Directory::new();
        let path = directory.fifo("log");
        let mut reader = Reader::open(&path);
        let size = reader.shrink();
        let file = LogFile::open(&path).unwrap();
        (0..size).for_each(|_| _ = file.write(&line("again")));
        let kept = messages(&reader.read());
        assert!(!kept.is_empty() && kept.iter().all(|text| text == "again"));
        file.write(&line("last"));
        let dropped = size - kept.len();
        let expected = format!("last ({dropped} lines before this one were dropped)");
        assert_eq!(messages(&reader.read()), [expected]);
        file.write(&line("next"));
        assert_eq!(messages(&reader.read()), ["next"]);
    }

    #[test]
    fn reopen_keeps_number_of_dropped_lines() {
        let directory = Directory::new();
        let path = directory.path("log");
        let file = LogFile::open("/dev/full".as_ref()).unwrap();
        file.write(&line("one"));
        let again = file.reopen().unwrap();
        again.write(&line("two"));
        assert_eq!(again.dropped.load(Ordering::Relaxed), 2);
        let file = LogFile::open(&path).unwrap();
        fs::rename(&path, directory.path("log.1")).unwrap();
        file.reopen().unwrap().write(&line("three"));
        assert_eq!(messages(&fs::read(&path).unwrap()), ["three"]);
        assert!(fs::read(directory.path("log.1")).unwrap().is_empty());
    }

    #[test]
    fn torn_line_ends_before_next_line() {
        let directory = Directory::new();
        let path = directory.path("log");
        fs::write(&path, "to").unwrap();
        let file = LogFile::open(&path).unwrap();
        file.torn.store(true, Ordering::Relaxed);
        file.write(&line("complete"));
        let bytes = fs::read(&path).unwrap();
        assert_eq!(messages(bytes.strip_prefix(b"to\n").unwrap()), ["complete"]);
    }

    #[test]
    fn lines_of_threads_are_not_mixed() {
        let directory = Directory::new();
        let path = directory.path("log");
        let file = LogFile::open(&path).unwrap();
        thread::scope(|scope| {
            for letter in ["a", "b", "c", "d"] {
                let file = &file;
                scope.spawn(move || {
                    let text = letter.repeat(1000);
                    (0..100).for_each(|_| _ = file.write(&line(&text)));
                });
            }
        });
        let lines = messages(&fs::read(&path).unwrap());
        assert_eq!(lines.len(), 400);
        assert!(lines.iter().all(|line| *line == line[..1].repeat(1000)));
    }

    #[test]
    fn level_and_origin_are_optional() {
        let plain = Line {
            time: Duration::new(1_795_309_323, 123_456_789),
            id: "vm-1",
            ..line("hello")
        };
        let level = Line {
            level: Some(Level::Warn),
            ..plain.clone()
        };
        let both = Line {
            origin: Some(("src/run.rs", 7)),
            ..level.clone()
        };
        for (line, expected) in [
            (plain, "vm-1:main"),
            (level, "vm-1:main:WARN"),
            (both, "vm-1:main:WARN:src/run.rs:7"),
        ] {
            assert_eq!(
                line.render(),
                format!("2026-11-22T01:02:03.123456789 [{expected}] hello\n")
            );
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = line("a\nb\r\x1b[2J\u{85}\"é").render();
        assert!(text.ends_with("] a\\nb\\r\\u{1b}[2J\\u{85}\"é\n"), "{text}");
    }

    #[test]
    fn long_message_is_truncated_before_its_note() {
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"€".repeat(ATOMIC);
            let long = Line {
                note: " (3 dropped)",
                ..line(&text)
            };
            let rendered = long.render();
            assert!(
                rendered.ends_with("€ (3 dropped)\n") && rendered.len() <= ATOMIC,
                "{}",
                rendered.len()
            );
            assert!(rendered.len() > ATOMIC - 4, "{}", rendered.len());
        }
    }

    #[test]
    fn long_fields_are_truncated() {
        let long = "y".repeat(2 * ATOMIC);
        let truncated = Line {
            id: &long,
            note: &long,
            ..line(&long)
        };
        assert_eq!(truncated.render().len(), ATOMIC);
    }

    #[test]
    fn timestamp_follows_the_gregorian_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000007"),
            (951_782_399, "2000-02-28T23:59:59.000000007"),
            (951_782_400, "2000-02-29T00:00:00.000000007"),
            (951_868_800, "2000-03-01T00:00:00.000000007"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007"),
            (1_767_225_599, "2025-12-31T23:59:59.000000007"),
            (4_107_542_399, "2100-02-28T23:59:59.000000007"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007"),
            (253_402_300_799, "9999-12-31T23:59:59.000000007"),
        ] {
            assert_eq!(Timestamp(Duration::new(seconds, 7)).to_string(), expected);
        }
    }

    #[test]
    fn timestamp_is_limited_to_year_9999() {
        assert!(Timestamp(Duration::MAX).to_string().ends_with(".999999999"));
    }
}
