//! A file that takes the guest's serial output instead of stdout.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use devices::serial::SerialOutput;

use super::Error;
use crate::vm::Console;

/// The file, which is made if it is not there, and written at its end.
pub struct SerialFile {
    path: PathBuf,
    file: File,
}

impl SerialFile {
    pub fn open(path: &Path) -> Result<Self, Error> {
        // A FIFO that nobody reads is opened for both directions: writing alone would wait for its reader.
        let open = |read| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).read(read);
            options
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(path)
        };
        let opened = match open(false) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => open(true),
            other => other,
        };
        let path = path.to_owned();
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Serial { path, source }),
        }
    }

    /// A console that prints there and receives nothing.
    pub fn console(&self) -> Result<Console, Error> {
        let output = self
            .file
            .try_clone()
            .and_then(|file| SerialOutput::new(file.into()).map_err(io::Error::other));
        let output = output.map_err(|source| Error::Serial {
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
