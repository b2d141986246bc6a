//! Regular files: open without blocking, bounded reads, and fields of headers.

use std::borrow::Cow;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use snapshot::file::FileIdentity;

/// Error of opening or reading a file. The caller adds the path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not exist.
    #[error("no such file; a relative path starts at the working directory")]
    Missing,
    /// The file is not readable.
    #[error(
        "permission denied; read permission on the file and search permission on its parent directories are required"
    )]
    Denied,
    /// `open` failed for another reason.
    #[error("open failed")]
    Open(#[source] io::Error),
    /// `fstat` failed.
    #[error("cannot read the file type")]
    Metadata(#[source] io::Error),
    /// The path is a directory.
    #[error("the path is a directory; use a file in it")]
    Directory,
    /// The path is neither a file nor a directory.
    #[error("the path is a {0}; a regular file is required")]
    Special(&'static str),
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// A read failed.
    #[error("cannot read the {object} at byte {offset:#x}")]
    Read {
        /// Object to read.
        object: &'static str,
        /// First byte.
        offset: u64,
        /// Error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The file ends too early.
    #[error("cannot read the {object} up to byte {end:#x}: the file is truncated at {size:#x}")]
    Truncated {
        /// Incomplete object.
        object: &'static str,
        /// Required end.
        end: u64,
        /// Size of the file.
        size: u64,
    },
}

/// Open regular file with its first bytes.
#[derive(Debug)]
pub struct RegularFile {
    file: File,
    identity: Option<FileIdentity>,
    size: u64,
    head: Vec<u8>,
}

impl RegularFile {
    /// Opens the file at `path` and reads its first `head` bytes, or all of a shorter file.
    ///
    /// # Errors
    /// All except [`Error::Truncated`]: the path is no regular file, or the file is empty or not readable.
    pub fn open(path: &Path, head: usize) -> Result<Self, Error> {
        // O_NONBLOCK: `open` of a FIFO otherwise waits for a writer (POSIX). The flag has no effect on regular files.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(open_error)?;
        Self::from_file(file, head)
    }

    /// Reads the first `head` bytes of `file`, or all of a shorter file.
    ///
    /// # Errors
    /// As [`RegularFile::open`].
    pub fn from_file(file: File, head: usize) -> Result<Self, Error> {
        // `fstat`, not `stat`: the path can refer to another file by now.
        let metadata = file.metadata().map_err(Error::Metadata)?;
        check_file_type(metadata.file_type())?;
        let size = metadata.len();
        if size == 0 {
            return Err(Error::Empty);
        }
        let mut opened = Self {
            file,
            identity: FileIdentity::of(&metadata),
            size,
            head: Vec::new(),
        };
        let length = usize::try_from(size).map_or(head, |size| size.min(head));
        opened.head = opened.read("beginning", 0, length)?;
        Ok(opened)
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the open file, without its first bytes.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Returns the identity of the file.
    pub fn identity(&self) -> Option<FileIdentity> {
        self.identity
    }

    /// Returns the size in bytes at the open.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the first bytes.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Returns the `length` bytes at `offset`, which errors call `object`. The caller bounds the length.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::Read`].
    pub fn bytes(&self, object: &'static str, offset: u64, length: usize) -> Result<Cow<'_, [u8]>, Error> {
        self.check_range(object, offset, length as u64)?;
        match self.head_bytes(offset, length) {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => self.read(object, offset, length).map(Cow::Owned),
        }
    }

    /// Returns the `length` bytes at `offset` if they are among the first bytes.
    pub fn head_bytes(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.head.get(start..start.checked_add(length)?)
    }

    /// Checks that the file has `length` bytes at `offset`, which errors call `object`.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn check_range(&self, object: &'static str, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.saturating_add(length);
        if end > self.size {
            return Err(Error::Truncated {
                object,
                end,
                size: self.size,
            });
        }
        Ok(())
    }

    fn read(&self, object: &'static str, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let read = || {
            let mut bytes = snapshot::zeroed(length)?;
            self.file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        };
        read().map_err(|source| Error::Read {
            object,
            offset,
            source,
        })
    }
}

fn open_error(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing,
        io::ErrorKind::PermissionDenied => Error::Denied,
        // POSIX, open: ENXIO for a socket and for a device without a driver.
        _ if source.raw_os_error() == Some(libc::ENXIO) => {
            Error::Special("socket, or a device without a driver")
        }
        _ => Error::Open(source),
    }
}

fn check_file_type(kind: FileType) -> Result<(), Error> {
    if kind.is_file() {
        Ok(())
    } else if kind.is_dir() {
        Err(Error::Directory)
    } else if kind.is_fifo() {
        Err(Error::Special("FIFO"))
    } else if kind.is_block_device() {
        Err(Error::Special("block device"))
    } else {
        Err(Error::Special("character device"))
    }
}

/// Bytes of a header with little-endian fields. A field beyond the end reads as zero, which suits headers that grew over time;
/// the length of all other headers is checked before.
#[derive(Clone, Copy, Debug)]
pub struct HeaderFields<'a>(pub &'a [u8]);

impl HeaderFields<'_> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    /// Returns the byte at offset `at`.
    pub fn u8(self, at: usize) -> u8 {
        u8::from_le_bytes(self.array(at))
    }

    /// Returns the 2 bytes at offset `at`.
    pub fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    /// Returns the 4 bytes at offset `at`.
    pub fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// Returns the 8 bytes at offset `at`.
    pub fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::{Error, RegularFile, open_error};
    use crate::boot::testing::Temporary;

    #[test]
    fn head_and_rest_are_readable() {
        let content: Vec<u8> = (0..100).collect();
        let file = Temporary::with(&content);
        let opened = RegularFile::open(file.path(), 10).unwrap();
        assert_eq!(opened.head(), &content[..10]);
        assert_eq!(opened.size(), 100);
        assert_eq!(*opened.bytes("part", 5, 5).unwrap(), content[5..10]);
        assert_eq!(*opened.bytes("part", 5, 95).unwrap(), content[5..]);
        assert_eq!(RegularFile::open(file.path(), 1000).unwrap().head(), content);
        let error = opened.bytes("part", 5, 96).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the part up to byte 0x65: the file is truncated at 0x64"
        );
        assert!(matches!(
            opened.bytes("part", u64::MAX, 1),
            Err(Error::Truncated { .. })
        ));
    }

    #[test]
    fn special_files_are_rejected() {
        let open = |path: &Path| RegularFile::open(path, 1).unwrap_err();
        assert!(matches!(open(Path::new("/nowhere/at/all")), Error::Missing));
        assert!(matches!(open(Path::new("/")), Error::Directory));
        assert!(matches!(
            open(Path::new("/dev/null")),
            Error::Special("character device")
        ));
        assert!(matches!(open(Temporary::with(&[]).path()), Error::Empty));
        assert!(matches!(open(Path::new("/dev/null/file")), Error::Open(_)));
    }

    #[test]
    fn fifo_without_writer_is_rejected_without_blocking() {
        let path = Temporary::missing();
        let name = CString::new(path.path().to_str().unwrap()).unwrap();
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = RegularFile::open(path.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Special("FIFO")));
    }

    #[test]
    fn socket_is_rejected() {
        let path = Temporary::missing();
        let _listener = UnixListener::bind(path.path()).unwrap();
        let error = RegularFile::open(path.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Special(_)), "{error}");
    }

    #[test]
    fn permission_errors_are_distinguished() {
        // Without a file: root is never denied a read.
        assert!(matches!(
            open_error(io::Error::from_raw_os_error(libc::EACCES)),
            Error::Denied
        ));
        assert!(matches!(
            open_error(io::Error::from_raw_os_error(libc::EPERM)),
            Error::Denied
        ));
        assert!(matches!(
            open_error(io::Error::from_raw_os_error(libc::ELOOP)),
            Error::Open(_)
        ));
    }
}
