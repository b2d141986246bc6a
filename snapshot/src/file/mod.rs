//! State file: a header with a checksum, and an archive of sections.
//!
//! All integers are little-endian:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 8 | `mayflyst` |
//! | 8 | 4 | version of this format: 1 |
//! | 12 | 4 | architecture: 1 for x86_64, 2 for aarch64 |
//! | 16 | 4 | page size of the host in bytes |
//! | 20 | 2 | length of the CPU identity in bytes |
//! | 22 | 2 | content of the memory file: 0 for all pages, 1 for the pages that differ from a base |
//! | 24 | 8 | size of guest memory in bytes, equal to the length of the memory file |
//! | 32 | 8 | length of the sections in bytes |
//! | 40 | 8 | CRC-64/XZ of all other bytes |
//! | 48 | | CPU identity in UTF-8, then the sections |
//!
//! The file has exactly that length. The reader checks magic, version, lengths and checksum, in this order, before
//! other fields, and rejects more than 16 MiB of sections. The CRC detects every change within 64 consecutive bits.

pub mod atomic;
mod error;
mod header;
mod identity;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use atomic::Links;
pub use error::Error;
pub use header::{Architecture, Contents, FormatError, Header, HostIdentity, MAX_CPU, MAX_SECTIONS, VERSION};
pub use identity::FileIdentity;

use crate::section::{self, ArchiveReader, ArchiveWriter};
use crate::zeroed;
use atomic::AtomicFile;
use header::{FIXED, Lengths};

/// Complete content of a state file with a valid checksum.
#[derive(Debug)]
pub struct StateFile {
    header: Header,
    checksum: u64,
    bytes: Vec<u8>,
    /// Offset of the sections in `bytes`.
    sections: usize,
}

impl StateFile {
    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the checksum, which identifies the file in a working set.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Returns the sections in the encoding of [`ArchiveWriter::into_bytes`].
    pub fn sections(&self) -> &[u8] {
        self.bytes.get(self.sections..).unwrap_or_default()
    }

    /// Parses the sections.
    ///
    /// # Errors
    /// As [`ArchiveReader::parse`].
    pub fn reader(&self) -> Result<ArchiveReader<'_>, section::Error> {
        ArchiveReader::parse(self.sections())
    }
}

/// State file under a temporary name. Dropping it removes the file.
#[derive(Debug)]
#[must_use = "commit() renames the file"]
pub struct PendingStateFile {
    path: PathBuf,
    replacement: AtomicFile,
}

impl PendingStateFile {
    /// Creates a state file that replaces the file at `path` on commit.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::create_with(path, Links::Follow)
    }

    /// As [`create`](Self::create), with a choice of the treatment of a link.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn create_with(path: &Path, links: Links) -> Result<Self, Error> {
        let path = path.to_owned();
        match AtomicFile::create_with(&path, links) {
            Ok(replacement) => Ok(Self { path, replacement }),
            Err(source) => Err(Error::Replace { path, source }),
        }
    }

    /// Returns the final path of the file, with a symbolic link resolved.
    pub fn path(&self) -> &Path {
        self.replacement.path()
    }

    /// Writes the content. Must be called once.
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Write`].
    pub fn fill(&mut self, header: &Header, sections: ArchiveWriter) -> Result<(), Error> {
        let bytes = sections.try_into_bytes().map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })?;
        self.fill_bytes(header, &bytes)
    }

    /// As [`fill`](Self::fill), with `sections` from [`ArchiveWriter::into_bytes`].
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Write`].
    pub fn fill_bytes(&mut self, header: &Header, sections: &[u8]) -> Result<(), Error> {
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

    /// Syncs the file to disk.
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

    /// Syncs the file to disk and renames it to its final path.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn commit(self) -> Result<(), Error> {
        let path = self.path;
        let result = self.replacement.commit();
        result.map_err(|source| Error::Replace { path, source })
    }

    /// Renames the file to its final path without a sync, for content that can be created again.
    ///
    /// # Errors
    /// [`Error::Replace`]
    pub fn commit_unsynced(self) -> Result<(), Error> {
        let path = self.path;
        let result = self.replacement.commit_unsynced();
        result.map_err(|source| Error::Replace { path, source })
    }
}

/// Writes a state file at `path`. An existing file stays until the new one is complete and synced.
///
/// A caller that also replaces the memory file [fills](PendingStateFile::fill) the new state file, [removes](remove())
/// the old one, replaces the memory file, and commits the new state file last: a state file then never exists with the
/// memory of another snapshot.
///
/// # Errors
/// [`Error::TooLong`], [`Error::Write`] or [`Error::Replace`]; no temporary file remains then.
pub fn write(path: &Path, header: &Header, sections: ArchiveWriter) -> Result<(), Error> {
    let mut file = PendingStateFile::create(path)?;
    file.fill(header, sections)?;
    file.commit()
}

/// Writes a state file at `path` with encoded sections, for example from [`StateFile::sections`].
///
/// # Errors
/// As [`write()`].
pub fn write_bytes(path: &Path, header: &Header, sections: &[u8]) -> Result<(), Error> {
    let mut file = PendingStateFile::create(path)?;
    file.fill_bytes(header, sections)?;
    file.commit()
}

/// Reads the state file at `path`. If `host` is given, the file must be valid for it.
///
/// # Errors
/// [`Error::Read`] if a system call fails, [`Error::Rejected`] if the file is not a valid state file or not valid for `host`.
pub fn read(path: &Path, host: Option<&HostIdentity>) -> Result<StateFile, Error> {
    read_with(path, host, Links::Follow)
}

/// As [`read`], with a choice of the treatment of a link.
///
/// # Errors
/// Those of [`read`]. [`Error::Rejected`] for a link that is not followed.
pub fn read_with(path: &Path, host: Option<&HostIdentity>, links: Links) -> Result<StateFile, Error> {
    read_open(&open(path, links)?, path, host)
}

/// As [`read`], from `file`, which is open at `path`. Its position does not matter, and does not change.
///
/// # Errors
/// Those of [`read`].
pub fn read_open(file: &File, path: &Path, host: Option<&HostIdentity>) -> Result<StateFile, Error> {
    let (length, fixed) = read_front(file, path)?;
    let rejected = |source| rejected(path, source);
    let lengths = Lengths::decode(&fixed, length).map_err(rejected)?;
    let mut bytes = zeroed(lengths.rest).map_err(|source| failed(path, source))?;
    file.read_exact_at(&mut bytes, FIXED as u64)
        .map_err(|source| failed(path, source))?;
    let header = Header::decode(&fixed, &bytes, &lengths).map_err(rejected)?;
    let checksum = header::checksum_of(&fixed);
    if let Some(host) = host {
        header.host.check(host).map_err(rejected)?;
    }
    Ok(StateFile {
        header,
        checksum,
        bytes,
        sections: lengths.cpu,
    })
}

/// Reads the format version of the state file at `path`, including versions that [`read`] does not support. Checks only
/// the magic.
///
/// # Errors
/// [`Error::Read`] if a system call fails, [`Error::Rejected`] if the file is not a state file.
pub fn version(path: &Path) -> Result<u32, Error> {
    let (_, fixed) = read_front(&open(path, Links::Follow)?, path)?;
    header::version(&fixed).map_err(|source| rejected(path, source))
}

/// Returns the contents of the memory file of the state file at `path`, or `None` if there is no state file. Checks neither lengths nor
/// checksum: a load does.
pub fn contents(path: &Path) -> Option<Contents> {
    let (_, fixed) = read_front(&open(path, Links::Follow).ok()?, path).ok()?;
    header::contents(&fixed)
}

/// Opens a state file for [`read_open`].
///
/// # Errors
/// [`Error::Read`]. [`Error::Rejected`] for a link that is not followed.
pub fn open(path: &Path, links: Links) -> Result<File, Error> {
    // O_NONBLOCK: open(2) of a FIFO would wait for a writer. The flag has no effect on regular files.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | links.flags();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::ELOOP) if links == Links::Reject => rejected(path, FormatError::NotRegular),
        _ => failed(path, source),
    })
}

/// Returns the length of a state file in bytes and the fixed part of its header.
fn read_front(file: &File, path: &Path) -> Result<(u64, [u8; FIXED]), Error> {
    let failed = |source| failed(path, source);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(rejected(path, FormatError::NotRegular));
    }
    let length = metadata.len();
    let mut fixed = [0; FIXED];
    if length < fixed.len() as u64 {
        return Err(rejected(path, FormatError::Short { length }));
    }
    file.read_exact_at(&mut fixed, 0).map_err(failed)?;
    Ok((length, fixed))
}

fn rejected(path: &Path, source: FormatError) -> Error {
    let path = path.to_owned();
    Error::Rejected { path, source }
}

fn failed(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::Read { path, source }
}

/// Removes the state file at `path`, if it exists, and syncs the directory. Must precede a change of the memory file:
/// after a power loss the state file would otherwise reappear with the memory of another snapshot.
///
/// # Errors
/// [`Error::Remove`], and [`Error::Replace`] if only the sync failed.
pub fn remove(path: &Path) -> Result<(), Error> {
    let owned = || path.to_owned();
    match fs::remove_file(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove {
            path: owned(),
            source,
        }),
        Ok(()) => atomic::sync_directory(path).map_err(|source| Error::Replace {
            path: owned(),
            source,
        }),
    }
}
