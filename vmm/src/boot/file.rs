//! Files that are opened without hanging and read without trust.

use std::borrow::Cow;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Why a file could not be opened or read. The path is for the caller to name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing at the path.
    #[error("there is no such file; a relative path starts at the working directory")]
    Missing,
    /// The file may not be read.
    #[error(
        "permission denied; read permission on the file and search permission on the folders above it are needed"
    )]
    Denied,
    /// The kernel refused to open the file for another reason.
    #[error("the kernel refused to open it")]
    Open(#[source] io::Error),
    /// The kernel did not say what was opened.
    #[error("cannot find out what it is")]
    Metadata(#[source] io::Error),
    /// It is a folder.
    #[error("it is a folder; name the file in it")]
    Folder,
    /// It is neither a file nor a folder.
    #[error("it is a {0}; only a regular file can be loaded")]
    Special(&'static str),
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// The kernel did not hand out content.
    #[error("cannot read the {what} at byte {offset:#x}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file ends too early.
    #[error("the {what} ends at byte {end:#x}, but the file at {size:#x}: it has been cut short")]
    Truncated {
        /// What is not all there.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Size of the file.
        size: u64,
    },
}

/// A regular file with its first bytes.
#[derive(Debug)]
pub struct RegularFile {
    file: File,
    size: u64,
    head: Vec<u8>,
}

impl RegularFile {
    /// Opens the file at `path` and reads the first `head` bytes of it, or all if there are fewer.
    ///
    /// # Errors
    /// All but [`Error::Truncated`]: what was opened is no regular file, is empty, or could not be read.
    pub fn open(path: &Path, head: usize) -> Result<Self, Error> {
        // O_NONBLOCK: opening a FIFO would wait for a writer. Regular files do not know it.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(refused)?;
        Self::from_file(file, head)
    }

    /// Reads the first `head` bytes of `file`, or all if there are fewer.
    ///
    /// # Errors
    /// As [`RegularFile::open`].
    pub fn from_file(file: File, head: usize) -> Result<Self, Error> {
        // What was opened counts, not what is at the path by now.
        let metadata = file.metadata().map_err(Error::Metadata)?;
        check(metadata.file_type())?;
        let size = metadata.len();
        if size == 0 {
            return Err(Error::Empty);
        }
        let mut opened = Self {
            file,
            size,
            head: Vec::new(),
        };
        let length = usize::try_from(size).map_or(head, |size| size.min(head));
        opened.head = opened.read("beginning", 0, length)?;
        Ok(opened)
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first bytes.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The `length` bytes at `offset`, which are `what` in errors. The caller bounds the length.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::Read`].
    pub fn bytes(&self, what: &'static str, offset: u64, length: usize) -> Result<Cow<'_, [u8]>, Error> {
        self.check_range(what, offset, length as u64)?;
        match self.head_part(offset, length) {
            Some(part) => Ok(Cow::Borrowed(part)),
            None => self.read(what, offset, length).map(Cow::Owned),
        }
    }

    /// The `length` bytes at `offset`, if they are among the first bytes.
    pub fn head_part(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.head.get(start..start.checked_add(length)?)
    }

    /// Checks that the file has `length` bytes at `offset`, which are `what` in errors.
    ///
    /// # Errors
    /// [`Error::Truncated`].
    pub fn check_range(&self, what: &'static str, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.saturating_add(length);
        if end > self.size {
            return Err(Error::Truncated {
                what,
                end,
                size: self.size,
            });
        }
        Ok(())
    }

    fn read(&self, what: &'static str, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| Error::Read { what, offset, source })?;
        Ok(bytes)
    }
}

fn refused(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing,
        io::ErrorKind::PermissionDenied => Error::Denied,
        // The kernel's answer for a socket and for a device without a driver.
        _ if source.raw_os_error() == Some(libc::ENXIO) => {
            Error::Special("socket, or a device that is not there")
        }
        _ => Error::Open(source),
    }
}

fn check(kind: FileType) -> Result<(), Error> {
    if kind.is_file() {
        Ok(())
    } else if kind.is_dir() {
        Err(Error::Folder)
    } else if kind.is_fifo() {
        Err(Error::Special("FIFO"))
    } else if kind.is_block_device() {
        Err(Error::Special("block device"))
    } else {
        Err(Error::Special("character device"))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::{Error, RegularFile, refused};
    use crate::boot::testing::Temporary;

    #[test]
    fn the_head_and_all_else_can_be_read() {
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
            "the part ends at byte 0x65, but the file at 0x64: it has been cut short"
        );
        assert!(matches!(
            opened.bytes("part", u64::MAX, 1),
            Err(Error::Truncated { .. })
        ));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let open = |path: &Path| RegularFile::open(path, 1).unwrap_err();
        assert!(matches!(open(Path::new("/nowhere/at/all")), Error::Missing));
        assert!(matches!(open(Path::new("/")), Error::Folder));
        assert!(matches!(
            open(Path::new("/dev/null")),
            Error::Special("character device")
        ));
        assert!(matches!(open(Temporary::with(&[]).path()), Error::Empty));
        assert!(matches!(open(Path::new("/dev/null/file")), Error::Open(_)));
    }

    #[test]
    fn a_fifo_without_a_writer_is_refused_at_once() {
        let path = Temporary::missing();
        let name = CString::new(path.path().to_str().unwrap()).unwrap();
        // SAFETY: `name` is a NUL-terminated text that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = RegularFile::open(path.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Special("FIFO")));
    }

    #[test]
    fn a_socket_is_refused() {
        let path = Temporary::missing();
        let _listener = UnixListener::bind(path.path()).unwrap();
        let error = RegularFile::open(path.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Special(_)), "{error}");
    }

    #[test]
    fn a_file_that_may_not_be_read_says_so() {
        // By the answer alone: who may read every file cannot be denied one.
        assert!(matches!(
            refused(io::Error::from_raw_os_error(libc::EACCES)),
            Error::Denied
        ));
        assert!(matches!(
            refused(io::Error::from_raw_os_error(libc::EPERM)),
            Error::Denied
        ));
        assert!(matches!(
            refused(io::Error::from_raw_os_error(libc::ELOOP)),
            Error::Open(_)
        ));
    }
}
