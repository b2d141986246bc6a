//! The state file: a header that says what the sections are for and how long they are, and a checksum over all of it.
//!
//! All integers are little-endian:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 8 | `mayflyst` |
//! | 8 | 4 | version of this format: 1 |
//! | 12 | 4 | architecture: 1 for x86_64, 2 for aarch64 |
//! | 16 | 4 | page size of the host in bytes |
//! | 20 | 2 | length of the processor's identity in bytes |
//! | 22 | 2 | what the memory file holds: 0 for all pages, 1 for those that differ from a base |
//! | 24 | 8 | size of guest memory in bytes, which is also the length of the memory file |
//! | 32 | 8 | length of the sections in bytes |
//! | 40 | 8 | CRC-64/XZ of all bytes but these |
//! | 48 | | the processor's identity in UTF-8, then the sections |
//!
//! The file is exactly that long. Magic, version, lengths and checksum are compared, in this order, before anything behind
//! them is looked at; nothing longer than 16 MiB of sections is read. A changed byte is always found: the CRC finds every
//! change within any 64 bits in a row.

pub mod atomic;
mod error;
mod header;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use error::Error;
pub use header::{Architecture, Contents, FormatError, Header, HostIdentity, MAX_CPU, MAX_SECTIONS, VERSION};

use crate::section::{self, ArchiveReader, ArchiveWriter};
use atomic::AtomicFile;
use header::{FIXED, Lengths};

/// The content of a state file, whole and with the right checksum.
#[derive(Debug)]
pub struct StateFile {
    header: Header,
    checksum: u64,
    bytes: Vec<u8>,
    sections: usize,
}

impl StateFile {
    /// What the sections are for.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The checksum of the file, by which what belongs to it can name it.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// The sections, as [`ArchiveWriter::into_bytes`] gave them.
    pub fn sections(&self) -> &[u8] {
        self.bytes.get(self.sections..).unwrap_or_default()
    }

    /// Finds the sections.
    ///
    /// # Errors
    /// As [`ArchiveReader::parse`].
    pub fn reader(&self) -> Result<ArchiveReader<'_>, section::Error> {
        ArchiveReader::parse(self.sections())
    }
}

/// A state file that does not have its name yet. Dropped, it is gone.
#[derive(Debug)]
#[must_use = "the file gets its name by commit()"]
pub struct PendingStateFile {
    path: PathBuf,
    replacement: AtomicFile,
}

impl PendingStateFile {
    /// Begins a state file that will replace what is at `path`.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn create(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        match AtomicFile::create(&path) {
            Ok(replacement) => Ok(Self { path, replacement }),
            Err(source) => Err(Error::Replace { path, source }),
        }
    }

    /// Where it will be; a link has been followed.
    pub fn path(&self) -> &Path {
        self.replacement.path()
    }

    /// Writes all of it, once.
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Write`].
    pub fn fill(&mut self, header: &Header, sections: &[u8]) -> Result<(), Error> {
        let front = header.encode(sections).ok_or_else(|| Error::TooLong {
            path: self.path.clone(),
            sections: sections.len(),
            cpu: header.host.cpu.len(),
        })?;
        let mut file = self.replacement.file();
        [front.as_slice(), sections]
            .iter()
            .try_for_each(|part| file.write_all(part))
            .map_err(|source| Error::Write {
                path: self.path.clone(),
                source,
            })
    }

    /// Brings the file to the disk.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn sync(&mut self) -> Result<(), Error> {
        let path = &self.path;
        self.replacement.sync().map_err(|source| Error::Replace {
            path: path.clone(),
            source,
        })
    }

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn commit(self) -> Result<(), Error> {
        let path = self.path;
        let done = self.replacement.commit();
        done.map_err(|source| Error::Replace { path, source })
    }

    /// As [`commit`](Self::commit), but does not wait for the disk: for what can be made anew.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn commit_unsynced(self) -> Result<(), Error> {
        let path = self.path;
        let done = self.replacement.commit_unsynced();
        done.map_err(|source| Error::Replace { path, source })
    }
}

/// Writes a state file at `path` in place of what is there. Until the new one is whole and on the disk, the old one stays.
///
/// Who replaces a snapshot's memory file as well [fills](PendingStateFile::fill) the new state file first, then [removes](remove()) the
/// old one, and gives the new one its name last, so that a state file never stands beside the memory of another time.
///
/// # Errors
/// [`Error::TooLong`], [`Error::Write`] or [`Error::Replace`]; nothing is left behind then.
pub fn write(path: &Path, header: &Header, sections: ArchiveWriter) -> Result<(), Error> {
    write_bytes(path, header, &sections.into_bytes())
}

/// As [`write()`], with sections that were [read](StateFile::sections).
///
/// # Errors
/// As [`write()`].
pub fn write_bytes(path: &Path, header: &Header, sections: &[u8]) -> Result<(), Error> {
    let mut file = PendingStateFile::create(path)?;
    file.fill(header, sections)?;
    file.commit()
}

/// Reads the state file at `path`, which must fit `host` when that is given.
///
/// # Errors
/// [`Error::Read`] when the file cannot be read, [`Error::Refused`] when it is no state file that can be loaded.
pub fn read(path: &Path, host: Option<&HostIdentity>) -> Result<StateFile, Error> {
    let (mut file, length, fixed) = open(path)?;
    let refused = |source| refused(path, source);
    let lengths = Lengths::decode(&fixed, length).map_err(refused)?;
    let mut bytes = vec![0; lengths.rest];
    file.read_exact(&mut bytes)
        .map_err(|source| failed(path, source))?;
    let header = Header::decode(&fixed, &bytes, &lengths).map_err(refused)?;
    let checksum = header::checksum_of(&fixed);
    if let Some(host) = host {
        header.host.check(host).map_err(refused)?;
    }
    Ok(StateFile {
        header,
        checksum,
        bytes,
        sections: lengths.cpu,
    })
}

/// The version of the format of the state file at `path`, which may be one that cannot be read here. Of the rest of the file
/// nothing is checked.
///
/// # Errors
/// [`Error::Read`], and [`Error::Refused`] when it is no state file.
pub fn version(path: &Path) -> Result<u32, Error> {
    let (_, _, fixed) = open(path)?;
    header::version(&fixed).map_err(|source| refused(path, source))
}

/// The file, its length in bytes and its fixed part.
fn open(path: &Path) -> Result<(File, u64, [u8; FIXED]), Error> {
    let failed = |source| failed(path, source);
    // O_NONBLOCK: opening a FIFO would wait for a writer. Regular files do not know it.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let mut file = opened.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused(path, FormatError::Irregular));
    }
    let length = metadata.len();
    let mut fixed = [0; FIXED];
    if length < fixed.len() as u64 {
        return Err(refused(path, FormatError::Short { length }));
    }
    file.read_exact(&mut fixed).map_err(failed)?;
    Ok((file, length, fixed))
}

fn refused(path: &Path, source: FormatError) -> Error {
    let path = path.to_owned();
    Error::Refused { path, source }
}

fn failed(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Read { path, source }
}

/// Removes the state file at `path`, if there is one, before the memory that belongs to it is changed. That it is gone is on
/// the disk then: a loss of power must not bring it back beside the memory of another time.
///
/// # Errors
/// [`Error::Remove`], and [`Error::Replace`] when only the disk does not know.
pub fn remove(path: &Path) -> Result<(), Error> {
    let owned = || path.to_owned();
    match fs::remove_file(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove {
            path: owned(),
            source,
        }),
        Ok(()) => atomic::sync_names(path).map_err(|source| Error::Replace {
            path: owned(),
            source,
        }),
    }
}
