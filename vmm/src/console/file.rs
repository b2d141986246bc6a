//! File or FIFO for the output of the guest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{self, Path, PathBuf};

use devices::serial::SerialOutput;

use super::error::Error;
use crate::vm::Console;

/// File or FIFO that receives the guest's serial output. A missing file is created; an existing one is appended to.
pub(super) struct SerialFile {
    path: PathBuf,
    file: File,
}

impl SerialFile {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        // Opening a FIFO only for writing fails with ENXIO while it has no reader; opening it for both directions succeeds.
        let open = |read| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).read(read);
            options
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
                .open(path)
        };
        let opened = match open(false) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => open(true),
            other => other,
        };
        // The working directory may change.
        let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a console that prints to the file and has no input.
    pub(super) fn console(&self) -> Result<Console, Error> {
        let output = self
            .file
            .try_clone()
            .and_then(|file| SerialOutput::new(file.into()).map_err(io::Error::other));
        let output = output.map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })?;
        Ok(Console {
            output,
            input: None,
            filter: None,
            guard: None,
        })
    }
}
