//! Blobs of a layout: files of a directory, or ranges of an archive. The caller compares the digest of each blob with its content.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256};
use vmm::boot::file::{Error as FileError, RegularFile};
use vmm::memory::Bytes;

use super::error::{BlobError, Error};
use super::limits::{MAX_JSON, MAX_MEMBERS};
use super::reference::{Container, Reference};

/// Bytes at the start of an archive that show its format.
const HEAD_SIZE: usize = 512;

/// Formats that are often taken for an archive of a layout, by the magic bytes, with the way out.
const FOREIGN_FORMATS: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "it is gzip-compressed; unpack it with gunzip"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is zstd-compressed; unpack it with unzstd",
    ),
    (b"\xfd7zXZ\0", "it is xz-compressed; unpack it with unxz"),
    (b"\x7fELF", "it is an ELF file; omit oci-archive:"),
];

/// Open layout.
pub enum Store {
    /// Directory.
    Directory(PathBuf),
    /// Archive, and the ranges of its members.
    Archive {
        /// The archive.
        file: Rc<File>,
        /// Offset and length of each member.
        members: HashMap<Vec<u8>, (u64, u64)>,
    },
}

impl Store {
    /// Opens the container of `reference`, and checks that it is a layout.
    ///
    /// # Errors
    /// [`Error`] if it is none, or cannot be read.
    pub fn open(reference: &Reference) -> Result<Self, Error> {
        let store = match reference.container {
            Container::Layout => Self::Directory(reference.path.clone()),
            Container::Archive => open_archive(&reference.path)?,
        };
        store.check_version()?;
        Ok(store)
    }

    /// Checks the file `oci-layout`.
    fn check_version(&self) -> Result<(), Error> {
        let name = "oci-layout";
        let Some(blob) = self
            .find(name.as_bytes())
            .map_err(|source| blob_error("file", name, source))?
        else {
            let has_manifest = matches!(self.find(b"manifest.json"), Ok(Some(_)));
            let from = match (self, has_manifest) {
                (Self::Archive { .. }, true) => "docker-archive:FILE",
                (Self::Directory(_), true) => "dir:DIRECTORY",
                _ => "docker-daemon:NAME",
            };
            return Err(Error::NotLayout { name, from });
        };
        let bytes = read_all(blob).map_err(|source| blob_error("file", name, source))?;
        let layout: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|source| blob_error("file", name, BlobError::Json(source)))?;
        match layout
            .get("imageLayoutVersion")
            .and_then(|version| version.as_str())
        {
            Some("1.0.0") => Ok(()),
            version => Err(Error::Version(version.unwrap_or_default().to_owned())),
        }
    }

    /// Reads the index of the layout, which no digest covers.
    ///
    /// # Errors
    /// [`Error::NotLayout`] or [`Error::Blob`].
    pub fn index(&self) -> Result<Vec<u8>, Error> {
        let name = "index.json";
        let wrap = |source| blob_error("file", name, source);
        match self.find(name.as_bytes()).map_err(wrap)? {
            Some(blob) => read_all(blob).map_err(wrap),
            None => Err(Error::NotLayout {
                name,
                from: "docker-daemon:NAME",
            }),
        }
    }

    /// Reads the JSON blob of `descriptor`, which errors call `object`, compares its digest, and parses it by `parse`.
    ///
    /// # Errors
    /// [`Error::Blob`]
    pub fn json<T>(
        &self,
        descriptor: &Descriptor,
        object: &'static str,
        parse: fn(&[u8]) -> serde_json::Result<T>,
    ) -> Result<T, Error> {
        let read = || {
            let bytes = read_all(self.blob(descriptor)?)?;
            let found = hex(&Sha256::digest(&bytes));
            if found != descriptor.digest().digest() {
                return Err(BlobError::Digest(found));
            }
            parse(&bytes).map_err(BlobError::Json)
        };
        read().map_err(|source| blob_error(object, descriptor.digest().as_ref(), source))
    }

    /// Opens the blob of `descriptor`. Its content is not compared with the digest.
    ///
    /// # Errors
    /// [`BlobError`] if the layout lacks it, or its size differs.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Blob, BlobError> {
        let digest = sha256(descriptor.digest())?;
        let blob = self.find(format!("blobs/sha256/{digest}").as_bytes())?;
        let blob = blob.ok_or(BlobError::Missing)?;
        let (expected, found) = (descriptor.size(), blob.size());
        match expected == found {
            true => Ok(blob),
            false => Err(BlobError::Size { expected, found }),
        }
    }

    /// Opens the file `name` of the layout, if it exists.
    fn find(&self, name: &[u8]) -> Result<Option<Blob>, BlobError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(String::from_utf8_lossy(name).as_ref());
                match RegularFile::open(&path, 1) {
                    Ok(file) => Ok(Some(Blob {
                        position: 0,
                        end: file.size(),
                        file: Rc::new(file.into_file()),
                    })),
                    Err(FileError::Missing) => Ok(None),
                    Err(error) => Err(BlobError::Read(io::Error::other(error))),
                }
            }
            Self::Archive { file, members } => Ok(members.get(name).map(|&(offset, length)| Blob {
                file: file.clone(),
                position: offset,
                end: offset.saturating_add(length),
            })),
        }
    }
}

/// Open blob, read from its start to its end.
pub struct Blob {
    file: Rc<File>,
    position: u64,
    end: u64,
}

impl Blob {
    /// Returns the number of bytes that are not read yet.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.size()).map_or(buffer.len(), |size| size.min(buffer.len()));
        let read = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// Returns the hexadecimal digits of a digest.
fn sha256(digest: &Digest) -> Result<&str, BlobError> {
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest.digest()),
        other => Err(BlobError::Algorithm(other.to_string())),
    }
}

/// Returns `bytes` as hexadecimal digits in lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob_error(object: &'static str, name: &str, source: BlobError) -> Error {
    Error::Blob {
        object,
        name: name.to_owned(),
        source,
    }
}

/// Reads all of a small blob.
fn read_all(mut blob: Blob) -> Result<Vec<u8>, BlobError> {
    let size = blob.size();
    if size > MAX_JSON {
        return Err(BlobError::TooLarge {
            size: Bytes(size),
            limit: Bytes(MAX_JSON),
        });
    }
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes).map_err(BlobError::Read)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(BlobError::Size {
            expected: size,
            found: bytes.len() as u64,
        }),
    }
}

/// Opens an archive and finds its members, of which it reads the headers alone.
fn open_archive(path: &Path) -> Result<Store, Error> {
    let file = RegularFile::open(path, HEAD_SIZE).map_err(|source| Error::Open {
        path: path.to_owned(),
        source: io::Error::other(source),
    })?;
    let foreign = FOREIGN_FORMATS
        .iter()
        .find(|(magic, _)| file.head().starts_with(magic));
    if let Some((_, way_out)) = foreign {
        return Err(Error::NotArchive(way_out));
    }
    let size = file.size();
    let file = Rc::new(file.into_file());
    let mut archive = tar::Archive::new(&*file);
    let mut members = HashMap::new();
    for (number, entry) in archive
        .entries_with_seek()
        .map_err(Error::Archive)?
        .raw(true)
        .enumerate()
    {
        let entry = entry.map_err(Error::Archive)?;
        if number >= MAX_MEMBERS {
            return Err(Error::TooMany {
                objects: "members",
                limit: MAX_MEMBERS,
            });
        }
        let (start, length) = (entry.raw_file_position(), entry.size());
        if start.checked_add(length).is_none_or(|end| end > size) {
            let truncated = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(Error::Archive(truncated));
        }
        if entry.header().entry_type().is_file() {
            let name = entry.path_bytes();
            let name = name.strip_prefix(b"./").unwrap_or(&name);
            members.insert(name.to_vec(), (start, length));
        }
    }
    Ok(Store::Archive { file, members })
}
