//! Output to a file or FIFO that never blocks, and the metrics file.
//!
//! The process must ignore SIGPIPE and SIGXFSZ; otherwise a disconnected reader, or the size limit of a file, ends it.

use std::error::Error as _;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vmm::control::{FileRole, OpenFile, VmMetrics};

use super::counters::ProcessMetrics;
use super::groups::FileMetrics;
use super::json::{self, LineLabels, Written};

/// Maximum length of an atomic write to a FIFO in bytes: PIPE_BUF, pipe(7).
pub const ATOMIC: usize = 4096;

/// Failure of an output.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {path:?}; name a writable file or FIFO")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The file is a block device, directory or socket.
    #[error("{0:?} is neither a file nor a FIFO nor a terminal; name one of these")]
    Kind(PathBuf),
    /// The file cannot be written.
    #[error("cannot write to {path:?}")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns the message and its cause in one line.
    pub fn one_line(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// File or FIFO, written at its end.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    file: File,
}

impl OutputFile {
    /// Opens `path`, and creates a file if it does not exist. A FIFO needs no reader; up to its size, it holds data for a
    /// later reader.
    ///
    /// # Errors
    /// [`Error::Open`] and [`Error::Kind`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        let file = match open(&path) {
            Ok(file) => file,
            Err(source) => return Err(Error::Open { path, source }),
        };
        match file.metadata() {
            Ok(metadata) if is_line_output(metadata.file_type()) => Ok(Self { path, file }),
            Ok(_) => Err(Error::Kind(path)),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    /// Opens the same path again.
    ///
    /// # Errors
    /// As [`OutputFile::open`].
    pub fn reopen(&self) -> Result<Self, Error> {
        Self::open(&self.path)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file with its use, or `None` if it is no regular file.
    pub fn open_file(&self, role: FileRole) -> Option<OpenFile> {
        OpenFile::new(role, &self.file)
    }

    /// Returns true if `other` has the same device and inode.
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |output: &Self| {
            let metadata = output.file.metadata().ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        identity(self).is_some_and(|this| identity(other) == Some(this))
    }

    /// Writes the start of `bytes` and returns the number of written bytes, 0 for a full FIFO. At most [`ATOMIC`] bytes
    /// are written completely or not at all.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        loop {
            match (&self.file).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // BrokenPipe: the FIFO is open for writing only, and its reader is disconnected.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe
                    ) =>
                {
                    return Ok(0);
                }
                Ok(count) => return Ok(count),
                Err(source) => {
                    let path = self.path.clone();
                    return Err(Error::Write { path, source });
                }
            }
        }
    }
}

fn is_line_output(kind: FileType) -> bool {
    kind.is_file() || kind.is_fifo() || kind.is_char_device()
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    // O_NOCTTY: a terminal must not become the controlling terminal, whose hang-up would end the process.
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let opened = options.open(path);
    let is_fifo = match &opened {
        Ok(file) => file.metadata()?.file_type().is_fifo(),
        // ENXIO: a FIFO without a reader.
        Err(error) => error.raw_os_error() == Some(libc::ENXIO),
    };
    if !is_fifo {
        return opened;
    }
    // With a reader in this process, other readers of the FIFO can come and go without an error. Without the permission
    // to read, it is opened for writing only.
    let both = options.read(true).create(false).open(path);
    both.or_else(|error| opened.map_err(|_| error))
}

/// File or FIFO for the metrics, one line of JSON each time.
#[derive(Debug)]
pub struct MetricsFile {
    output: OutputFile,
    /// Unwritten end of a line, at most one line long.
    rest: Vec<u8>,
    /// Lines that were not written.
    metrics: FileMetrics,
    written: Written,
    labels: LineLabels,
}

impl MetricsFile {
    /// Opens `path`, and creates a file if it does not exist. A FIFO needs no reader.
    ///
    /// # Errors
    /// A text for the client if `path` cannot be opened.
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            output: OutputFile::open(path).map_err(|error| error.one_line())?,
            rest: Vec::new(),
            metrics: FileMetrics::default(),
            written: Written::default(),
            labels: LineLabels::default(),
        })
    }

    /// Adds `labels` to each line.
    pub fn with_labels(self, labels: LineLabels) -> Self {
        Self { labels, ..self }
    }

    /// Writes one line without blocking. A line that a full FIFO does not take is dropped, and counted in the next one, which also has
    /// its numbers of events.
    ///
    /// # Errors
    /// A text for the client if the file cannot be written.
    pub fn write(&mut self, metrics: &VmMetrics, process: &ProcessMetrics) -> Result<(), String> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let rendered = json::render(time, &self.labels, metrics, process, self.metrics, &self.written);
        let (mut text, written) = rendered.map_err(|error| format!("cannot write the metrics: {error}"))?;
        text.push(b'\n');
        match self.write_line(text) {
            Ok(true) => self.written = written,
            Ok(false) => self.metrics.dropped += 1,
            Err(error) => {
                self.metrics.failures += 1;
                return Err(error.one_line());
            }
        }
        Ok(())
    }

    /// Opens the path again after rotation. After an error, the present file stays in use.
    ///
    /// # Errors
    /// A text for the log if the path cannot be opened.
    pub fn reopen(&mut self) -> Result<(), String> {
        let output = self.output.reopen().map_err(|error| error.one_line())?;
        if !self.rest.is_empty() && !self.output.is_same(&output) {
            // The new file must start with a complete line.
            self.rest.clear();
            self.metrics.dropped += 1;
        }
        self.output = output;
        Ok(())
    }

    /// Returns the file with its use, or `None` if it is no regular file.
    pub fn open_file(&self) -> Option<OpenFile> {
        self.output.open_file(FileRole::Metrics)
    }

    /// Writes the rest of the last line, then `line`. Returns false if nothing of `line` was written.
    fn write_line(&mut self, line: Vec<u8>) -> Result<bool, Error> {
        // A FIFO takes a long line in parts; no other line may come between them.
        if !self.write_rest()? {
            return Ok(false);
        }
        let length = line.len();
        self.rest = line;
        let finished = self.write_rest();
        if self.rest.len() == length {
            self.rest.clear();
            return finished.map(|_| false);
        }
        // The next call writes the rest, and returns its error.
        Ok(true)
    }

    /// Writes the rest of the last line. Returns true if it is complete.
    fn write_rest(&mut self) -> Result<bool, Error> {
        while !self.rest.is_empty() {
            match self.output.write(&self.rest)? {
                0 => return Ok(false),
                count => drop(self.rest.drain(..count)),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
