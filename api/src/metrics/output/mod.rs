//! A file or FIFO that is written to, a piece at a time, without ever waiting for whoever reads it.
//!
//! SIGPIPE and SIGXFSZ must be ignored by the process, so that a reader that has gone and a file that has reached its
//! limit do not end it.

use std::error::Error as _;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that a FIFO takes as a whole or not at all: PIPE_BUF, pipe(7).
pub const ATOMIC: usize = 4096;

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("cannot open {path:?}; name a file or a FIFO that may be written to")]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is a block device, or what else takes no lines.
    #[error("{0:?} is neither a file nor a FIFO nor a terminal; name one of these")]
    Kind(PathBuf),
    /// It cannot be written to.
    #[error("cannot write to {path:?}")]
    Write {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error and its cause in one line.
    pub fn one_line(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// A file or FIFO, written to at its end.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    file: File,
}

impl OutputFile {
    /// Opens `path`, and makes a file if there is nothing. A FIFO need not have a reader; what is written before one comes,
    /// up to the FIFO's size, waits for it.
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
            Ok(metadata) if takes_lines(metadata.file_type()) => Ok(Self { path, file }),
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `other` is the same file, not only at the same path.
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |output: &Self| {
            let metadata = output.file.metadata().ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        identity(self).is_some_and(|this| identity(other) == Some(this))
    }

    /// Writes the start of `bytes` and returns how many it took: none when nobody has read what is in the FIFO. Of a
    /// piece of at most [`ATOMIC`] bytes a FIFO takes all or none.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        loop {
            match (&self.file).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A FIFO that could be opened for writing only, and has no reader now.
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

fn takes_lines(kind: FileType) -> bool {
    kind.is_file() || kind.is_fifo() || kind.is_char_device()
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    // A terminal must not become that of this process, which a client's word would then end.
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let opened = options.open(path);
    let both_ways = match &opened {
        Ok(file) => file.metadata()?.file_type().is_fifo(),
        // A FIFO without a reader.
        Err(error) => error.raw_os_error() == Some(libc::ENXIO),
    };
    if !both_ways {
        return opened;
    }
    // With a reader in this process there always is one, so that another may come, go and come back. Who may not read
    // it makes do with writing.
    let both = options.read(true).create(false).open(path);
    both.or_else(|error| opened.map_err(|_| error))
}

#[cfg(test)]
mod tests;
