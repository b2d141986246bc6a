//! The file that takes the log.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api::metrics::OutputFile;
use api::metrics::file::Error;

use super::line::Line;

/// A file or FIFO with a line for each thing that is said. Lines of several threads do not mix, as each goes in one write
/// at the file's end.
#[derive(Debug)]
pub struct LogFile {
    output: OutputFile,
    /// Lines that did not get into the file since the last that did.
    lost: AtomicU64,
    /// Whether the file ends within a line, because the disk was full.
    torn: AtomicBool,
}

impl LogFile {
    /// Opens `path`, and makes a file if there is nothing.
    ///
    /// # Errors
    /// Those of [`OutputFile::open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        OutputFile::open(path).map(Self::around)
    }

    /// Opens the same path again, with what was lost so far.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn reopen(&self) -> Result<Self, Error> {
        let new = Self::around(self.output.reopen()?);
        new.lost
            .store(self.lost.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(new)
    }

    /// Writes `line`, with a note on lines that were lost before it. It is lost itself if nobody reads, or the disk is full.
    pub fn write(&self, line: &Line<'_>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let noted;
        let text = if lost > 0 {
            noted = format!("{} ({lost} lines before this one were lost)", line.note);
            Line {
                note: &noted,
                ..line.clone()
            }
            .render()
        } else {
            line.render()
        };
        if self.torn.swap(false, Ordering::Relaxed) {
            // A FIFO never is, so that this does not make the line too long for it.
            let _ = self.output.write(b"\n");
        }
        // An error is not told: there is no other place for it than this.
        let written = self.output.write(text.as_bytes()).unwrap_or(0);
        if written < text.len() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
            self.torn.fetch_or(written > 0, Ordering::Relaxed);
        }
    }

    fn around(output: OutputFile) -> Self {
        Self {
            output,
            lost: AtomicU64::new(0),
            torn: AtomicBool::new(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use scratch::{Directory, Reader};

    use super::{Line, LogFile};

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

    fn said(bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "half a line");
        let head = "1970-01-01T00:00:00.000000000 [x:main] ";
        let lines = text.lines();
        lines
            .map(|line| line.strip_prefix(head).expect(line).to_owned())
            .collect()
    }

    #[test]
    fn a_fifo_that_nobody_reads_costs_lines_but_no_time() {
        let folder = Directory::new();
        let path = folder.fifo("log");
        let mut reader = Reader::open(&path);
        let size = reader.shrink();
        let file = LogFile::open(&path).unwrap();
        (0..size).for_each(|_| file.write(&line("again")));
        let kept = said(&reader.read());
        assert!(!kept.is_empty() && kept.iter().all(|text| text == "again"));
        file.write(&line("last"));
        let lost = size - kept.len();
        let expected = format!("last ({lost} lines before this one were lost)");
        assert_eq!(said(&reader.read()), [expected]);
        file.write(&line("next"));
        assert_eq!(said(&reader.read()), ["next"]);
    }

    #[test]
    fn what_is_lost_is_known_to_the_file_that_is_opened_again() {
        let folder = Directory::new();
        let path = folder.path("log");
        let file = LogFile::open("/dev/full".as_ref()).unwrap();
        file.write(&line("one"));
        let again = file.reopen().unwrap();
        again.write(&line("two"));
        assert_eq!(again.lost.load(std::sync::atomic::Ordering::Relaxed), 2);
        let file = LogFile::open(&path).unwrap();
        fs::rename(&path, folder.path("log.1")).unwrap();
        file.reopen().unwrap().write(&line("three"));
        assert_eq!(said(&fs::read(&path).unwrap()), ["three"]);
        assert!(fs::read(folder.path("log.1")).unwrap().is_empty());
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let folder = Directory::new();
        let path = folder.path("log");
        fs::write(&path, "to").unwrap();
        let file = LogFile::open(&path).unwrap();
        file.torn.store(true, std::sync::atomic::Ordering::Relaxed);
        file.write(&line("whole"));
        let bytes = fs::read(&path).unwrap();
        assert_eq!(said(bytes.strip_prefix(b"to\n").unwrap()), ["whole"]);
    }

    #[test]
    fn lines_of_several_threads_do_not_mix() {
        let folder = Directory::new();
        let path = folder.path("log");
        let file = LogFile::open(&path).unwrap();
        thread::scope(|scope| {
            for letter in ["a", "b", "c", "d"] {
                let file = &file;
                scope.spawn(move || {
                    let text = letter.repeat(1000);
                    (0..100).for_each(|_| file.write(&line(&text)));
                });
            }
        });
        let lines = said(&fs::read(&path).unwrap());
        assert_eq!(lines.len(), 400);
        assert!(lines.iter().all(|one| *one == one[..1].repeat(1000)));
    }
}
