//! Blobs of a layout: files of a directory, or ranges of an archive. The caller compares the digest of each blob with its content.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, MediaType};
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use vmm::boot::file::RegularFile;
use vmm::memory::Bytes;

use super::error::{BlobError, Error};
use super::limits::{MAX_JSON, MAX_JSON_TOTAL, MAX_MEMBERS};
use super::reference::{Container, Reference};

/// Bytes at the start of an archive that show its format.
const HEAD_SIZE: usize = 512;

/// Formats that users often take for an archive of a layout, by the magic bytes, with the way out.
const FOREIGN_FORMATS: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "it is gzip-compressed; unpack it with gunzip"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is zstd-compressed; unpack it with unzstd",
    ),
    (b"\xfd7zXZ\0", "it is xz-compressed; unpack it with unxz"),
    (b"\x7fELF", "it is an ELF file; omit oci-archive:"),
];

/// Type of a JSON blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Index.
    Index,
    /// Manifest.
    Manifest,
    /// Configuration.
    Configuration,
}

impl Type {
    /// Returns the name of the type, for messages.
    fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Configuration => "configuration",
        }
    }

    /// Returns the keys of other types, which a parser of this type would ignore (CVE-2021-41190).
    fn foreign_keys(self) -> &'static [&'static str] {
        match self {
            Self::Index => &["layers", "config"],
            Self::Manifest => &["manifests"],
            Self::Configuration => &[],
        }
    }
}

/// Keys of a JSON blob that show its type.
#[derive(Debug, serde::Deserialize)]
struct Keys {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// Open layout.
pub struct Store {
    files: Files,
    /// Bytes of the JSON blobs that are read.
    json_bytes: Cell<u64>,
}

/// Files of a layout.
enum Files {
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
        let files = match reference.container {
            Container::Layout if reference.path.is_file() => {
                return Err(Error::Scheme("file", "oci-archive:"));
            }
            Container::Archive if reference.path.is_dir() => return Err(Error::Scheme("directory", "oci:")),
            Container::Layout => Files::Directory(reference.path.clone()),
            Container::Archive => open_archive(&reference.path)?,
        };
        let store = Self {
            files,
            json_bytes: Cell::new(0),
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
            let from = match (&self.files, has_manifest) {
                (Files::Archive { .. }, true) => "docker-archive:FILE",
                (Files::Directory(_), true) => "dir:DIRECTORY",
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

    /// Reads the index of the layout, which no digest covers, and parses it by `parse`.
    ///
    /// # Errors
    /// [`Error::NotLayout`] or [`Error::Blob`].
    pub fn index<T>(&self, parse: fn(&[u8]) -> serde_json::Result<T>) -> Result<T, Error> {
        let name = "index.json";
        let wrap = |source| blob_error("file", name, source);
        let Some(blob) = self.find(name.as_bytes()).map_err(wrap)? else {
            return Err(Error::NotLayout {
                name,
                from: "docker-daemon:NAME",
            });
        };
        let read = || {
            let bytes = self.read_json(blob)?;
            check_type(&bytes, Type::Index, &MediaType::ImageIndex)?;
            parse(&bytes).map_err(BlobError::Json)
        };
        read().map_err(wrap)
    }

    /// Reads the JSON blob of `descriptor`, compares its digest and its type, and parses it by `parse`.
    ///
    /// # Errors
    /// [`Error::Blob`]
    pub fn json<T>(
        &self,
        descriptor: &Descriptor,
        kind: Type,
        parse: fn(&[u8]) -> serde_json::Result<T>,
    ) -> Result<T, Error> {
        let read = || {
            let bytes = self.read_json(self.blob(descriptor)?)?;
            let found = hex(&Sha256::digest(&bytes));
            if found != descriptor.digest().digest() {
                return Err(BlobError::Digest(found));
            }
            check_type(&bytes, kind, descriptor.media_type())?;
            parse(&bytes).map_err(BlobError::Json)
        };
        read().map_err(|source| blob_error(kind.name(), descriptor.digest().as_ref(), source))
    }

    /// Reads all of a JSON blob, within the limit for all of them.
    fn read_json(&self, blob: Blob) -> Result<Vec<u8>, BlobError> {
        let total = self.json_bytes.get().saturating_add(blob.size());
        if blob.size() <= MAX_JSON && total > MAX_JSON_TOTAL {
            return Err(BlobError::Total(Bytes(MAX_JSON_TOTAL)));
        }
        self.json_bytes.set(total);
        read_all(blob)
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
        match &self.files {
            Files::Directory(directory) => {
                let path = directory.join(String::from_utf8_lossy(name).as_ref());
                // O_NONBLOCK: an open of a FIFO otherwise waits for a writer.
                let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
                let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                    Ok(file) => file,
                    Err(error) if is_absent(&error) => return Ok(None),
                    Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(BlobError::Link),
                    Err(error) => return Err(BlobError::Read(error)),
                };
                let file = RegularFile::from_file(file, 1)
                    .map_err(|error| BlobError::Read(io::Error::other(error)))?;
                Ok(Some(Blob {
                    position: 0,
                    end: file.size(),
                    file: Rc::new(file.into_file()),
                }))
            }
            Files::Archive { file, members } => Ok(members.get(name).map(|&(offset, length)| Blob {
                file: file.clone(),
                position: offset,
                end: offset.saturating_add(length),
            })),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Checks that a JSON blob is of the type `kind`, and states the same media type as its descriptor, if it states any.
fn check_type(bytes: &[u8], kind: Type, expected: &MediaType) -> Result<(), BlobError> {
    if kind == Type::Configuration {
        return Ok(());
    }
    let keys: Keys = serde_json::from_slice(bytes).map_err(BlobError::Json)?;
    if let Some(found) = keys.media_type
        && found != expected.as_ref()
    {
        let expected = expected.to_string();
        return Err(BlobError::MediaType { expected, found });
    }
    let present = [
        ("layers", keys.layers),
        ("config", keys.config),
        ("manifests", keys.manifests),
    ];
    let foreign = present
        .into_iter()
        .find(|(name, value)| value.is_some() && kind.foreign_keys().contains(name));
    match foreign {
        Some((key, _)) => Err(BlobError::ForeignKey(key)),
        None => Ok(()),
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
fn open_archive(path: &Path) -> Result<Files, Error> {
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
    Ok(Files::Archive { file, members })
}
