//! Layers: tar archives, plain or compressed. A layer is read once, from its start to its end. The reader compares the digests of
//! the blob and of the archive at the end; nothing that it has read is used before.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use oci_spec::image::{Descriptor, MediaType};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, PaxExtensions};
use vmm::memory::Bytes;

use super::error::{BlobError, LayerError};
use super::limits::{FREE_UNPACKED, MAX_EXTENSION, MAX_PATH, MAX_RATIO, MAX_UNPACKED, MAX_UNPACKED_TOTAL};
use super::path;
use super::progress::Progress;
use super::store::{Blob, Store, hex};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
/// Size of a block of a tar archive.
const BLOCK: u64 = 512;

/// Compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Returns the compression of a layer by its media type.
fn compression(media_type: &MediaType) -> Result<Compression, LayerError> {
    let unsupported = |way_out| Err(LayerError::MediaType(media_type.to_string(), way_out));
    match media_type {
        MediaType::ImageLayer => Ok(Compression::None),
        MediaType::ImageLayerGzip => Ok(Compression::Gzip),
        MediaType::ImageLayerZstd => Ok(Compression::Zstd),
        other => match other.as_ref() {
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.unikraft.kernel.v1"
            | "application/vnd.unikraft.initrd.v1" => Ok(Compression::None),
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
            text if text.contains("nondistributable") || text.contains("foreign") => {
                unsupported("it is a foreign layer; use an image without foreign layers")
            }
            text if text.ends_with("+encrypted") => unsupported("the layer is encrypted; decrypt the image"),
            _ => unsupported("use a tar archive, plain or compressed by gzip or zstd"),
        },
    }
}

/// Entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Regular file with its size in bytes.
    File(u64),
    /// Directory.
    Directory,
    /// Symbolic link with its target.
    Symlink(Vec<u8>),
    /// Hard link with its target, a path from the root.
    Hardlink(Vec<u8>),
    /// Entry that is neither, by its kind.
    Other(&'static str),
}

impl Node {
    /// Returns the target of a link.
    pub fn target(&self) -> Option<&[u8]> {
        match self {
            Self::Symlink(target) | Self::Hardlink(target) => Some(target),
            Self::File(_) | Self::Directory | Self::Other(_) => None,
        }
    }
}

/// Entry of a layer with its path, which is normalized.
#[derive(Debug)]
pub struct Member {
    /// Path from the root.
    pub path: Vec<u8>,
    /// Kind.
    pub node: Node,
}

/// Layer of an image.
pub struct Layer {
    /// Descriptor in the manifest.
    pub descriptor: Descriptor,
    /// Digest of the unpacked archive, with its algorithm.
    pub diff_id: String,
}

impl Layer {
    /// Reads the layer from `store`, calls `visit` with each entry and its content, and compares the digests. `before` is the number of
    /// unpacked bytes of other layers, which count for the limit of an image. Returns that of this layer.
    ///
    /// # Errors
    /// [`LayerError`] if the layer cannot be read, exceeds a limit, or has another digest; and errors of `visit`.
    pub fn walk(
        &self,
        store: &Store,
        progress: &mut Progress,
        before: u64,
        visit: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), LayerError>,
    ) -> Result<u64, LayerError> {
        let compression = compression(self.descriptor.media_type())?;
        let blob = store.blob(&self.descriptor).map_err(LayerError::Blob)?;
        if blob.size() > MAX_UNPACKED {
            return Err(LayerError::Blob(BlobError::TooLarge {
                size: Bytes(blob.size()),
                limit: Bytes(MAX_UNPACKED),
            }));
        }
        progress.begin(blob.size());
        let compressed = Hashed::new(blob);
        let buffered = BufReader::with_capacity(CHUNK, compressed);
        let decoder = Decoder::new(buffered, compression);
        let mut unpacked = Unpacked {
            decoder,
            hash: Sha256::new(),
            before,
            count: 0,
            padding: 0,
            progress,
        };
        read_entries(&mut unpacked, visit)?;
        // The digests cover the bytes behind the end of the archive too.
        io::copy(&mut unpacked, &mut io::sink()).map_err(unpack_error)?;
        let Unpacked {
            decoder, hash, count, ..
        } = unpacked;
        let mut compressed = decoder.into_source().into_inner();
        io::copy(&mut compressed, &mut io::sink())
            .map_err(|error| LayerError::Blob(BlobError::Read(error)))?;
        let found = hex(&compressed.hash.finalize());
        if found != self.descriptor.digest().digest() {
            return Err(LayerError::Blob(BlobError::Digest(found)));
        }
        let found = hex(&hash.finalize());
        match self.diff_id.strip_prefix("sha256:") == Some(&found) {
            true => Ok(count),
            false => Err(LayerError::DiffId {
                expected: self.diff_id.clone(),
                found,
            }),
        }
    }
}

/// Restores an error of [`Unpacked`], which has passed through the reader of the archive.
fn unpack_error(error: io::Error) -> LayerError {
    error.downcast::<LayerError>().unwrap_or_else(LayerError::Unpack)
}

/// Blob whose bytes are hashed as they are read.
struct Hashed {
    blob: Blob,
    hash: Sha256,
    count: u64,
}

impl Hashed {
    fn new(blob: Blob) -> Self {
        Self {
            blob,
            hash: Sha256::new(),
            count: 0,
        }
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

type Source = BufReader<Hashed>;

/// Decompressor of a layer.
enum Decoder {
    None(Source),
    Gzip(Box<MultiGzDecoder<Source>>),
    Zstd(Box<ZstdFrames>),
}

impl Decoder {
    fn new(source: Source, compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None(source),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Self::Zstd(Box::new(ZstdFrames {
                source,
                decoder: FrameDecoder::new(),
                is_open: false,
            })),
        }
    }

    fn source(&self) -> &Source {
        match self {
            Self::None(source) => source,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(frames) => &frames.source,
        }
    }

    fn into_source(self) -> Source {
        match self {
            Self::None(source) => source,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(frames) => frames.source,
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// Zstandard frames, RFC 8878 section 3.1. Skippable frames have no content.
struct ZstdFrames {
    source: Source,
    decoder: FrameDecoder,
    /// The decoder is within a frame.
    is_open: bool,
}

impl ZstdFrames {
    /// Opens the next frame. Returns false at the end of the source.
    fn open(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(skipped), &mut io::sink())? < skipped {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl Read for ZstdFrames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_open && !self.open()? {
                return Ok(0);
            }
            self.is_open = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            self.is_open = false;
        }
    }
}

/// Unpacked archive, hashed and limited as it is read. Zeros complete its last block, which umoci 0.4 leaves incomplete.
struct Unpacked<'a> {
    decoder: Decoder,
    hash: Sha256,
    /// Unpacked bytes of other layers.
    before: u64,
    /// Bytes of the archive.
    count: u64,
    /// Zeros behind it.
    padding: u64,
    progress: &'a mut Progress,
}

impl Read for Unpacked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        if read == 0 {
            return Ok(self.pad(buffer));
        }
        self.hash.update(&buffer[..read]);
        self.count += read as u64;
        let consumed = self.decoder.source().get_ref().count;
        self.progress.report(consumed);
        if self.count > MAX_UNPACKED {
            return Err(io::Error::other(LayerError::TooLarge(Bytes(MAX_UNPACKED))));
        }
        if self.before.saturating_add(self.count) > MAX_UNPACKED_TOTAL {
            let limit = Bytes(MAX_UNPACKED_TOTAL);
            return Err(io::Error::other(LayerError::TotalTooLarge(limit)));
        }
        if self.count > FREE_UNPACKED && self.count / MAX_RATIO > consumed {
            return Err(io::Error::other(LayerError::Ratio(MAX_RATIO)));
        }
        Ok(read)
    }
}

impl Unpacked<'_> {
    /// Fills `buffer` with the zeros that the last block lacks. Returns their number.
    fn pad(&mut self, buffer: &mut [u8]) -> usize {
        let end = self.count + self.padding;
        let missing = usize::try_from(end.next_multiple_of(BLOCK) - end).unwrap_or(0);
        let length = missing.min(buffer.len());
        buffer[..length].fill(0);
        self.padding += length as u64;
        length
    }
}

/// Values of extension headers for the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    is_sparse: bool,
}

/// Calls `visit` with the entries of `archive`.
fn read_entries(
    archive: &mut Unpacked<'_>,
    visit: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    let mut archive = tar::Archive::new(archive);
    let mut extension = Extension::default();
    // Raw entries: the reader of the crate would read extension headers of any size into memory.
    for entry in archive.entries().map_err(unpack_error)?.raw(true) {
        let mut entry = entry.map_err(unpack_error)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => extension.path = Some(read_name(&mut entry)?),
            EntryType::GNULongLink => extension.link = Some(read_name(&mut entry)?),
            EntryType::XHeader => read_pax(&read_extension(&mut entry)?, &mut extension)?,
            EntryType::XGlobalHeader => {
                let mut global = Extension::default();
                read_pax(&read_extension(&mut entry)?, &mut global)?;
                if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                    return Err(LayerError::Path(
                        "pax_global_header".into(),
                        "it names all entries alike; make the layer again",
                    ));
                }
            }
            _ => {
                let member = member(&entry, std::mem::take(&mut extension))?;
                visit(member, &mut entry)?;
            }
        }
    }
    Ok(())
}

type TarEntry<'a, 'b, 'c> = tar::Entry<'a, &'b mut Unpacked<'c>>;

/// Returns the entry with the values of its extension headers.
fn member(entry: &TarEntry<'_, '_, '_>, extension: Extension) -> Result<Member, LayerError> {
    let header = entry.header();
    let raw = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let refuse = |reason| LayerError::Path(String::from_utf8_lossy(&raw).into_owned(), reason);
    let size = entry.size();
    if extension.size.is_some_and(|extended| extended != size) {
        return Err(refuse("its headers state different sizes; make the layer again"));
    }
    let path = path::normalize(&raw).map_err(refuse)?;
    let target = || {
        let header = || header.link_name_bytes().map(|name| name.into_owned());
        let target = extension.link.clone().or_else(header).unwrap_or_default();
        match target.len() <= MAX_PATH && !target.contains(&0) {
            true => Ok(target),
            false => Err(refuse(
                "the target of the link is no valid path; make the layer again",
            )),
        }
    };
    let node = match header.entry_type() {
        _ if extension.is_sparse => Node::Other("sparse file"),
        EntryType::Regular | EntryType::Continuous if raw.ends_with(b"/") => Node::Directory,
        EntryType::Regular | EntryType::Continuous => Node::File(size),
        EntryType::Link => Node::Hardlink(path::normalize(&target()?).map_err(refuse)?),
        EntryType::Symlink => Node::Symlink(target()?),
        EntryType::Directory => Node::Directory,
        EntryType::Char => Node::Other("character device"),
        EntryType::Block => Node::Other("block device"),
        EntryType::Fifo => Node::Other("FIFO"),
        EntryType::GNUSparse => Node::Other("sparse file"),
        _ => Node::Other("file of an unknown type"),
    };
    // Readers of archives disagree about the content of such an entry: some read the next header there.
    if size > 0
        && !matches!(
            node,
            Node::File(_) | Node::Other("sparse file" | "file of an unknown type")
        )
    {
        return Err(refuse("it has content and is no file; make the layer again"));
    }
    Ok(Member { path, node })
}

/// Reads an extension header.
fn read_extension(entry: &mut TarEntry<'_, '_, '_>) -> Result<Vec<u8>, LayerError> {
    let size = entry.size();
    if size > MAX_EXTENSION {
        return Err(LayerError::Extension {
            size: Bytes(size),
            limit: Bytes(MAX_EXTENSION),
        });
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(unpack_error)?;
    Ok(bytes)
}

/// Reads a name, which ends with a NUL.
fn read_name(entry: &mut TarEntry<'_, '_, '_>) -> Result<Vec<u8>, LayerError> {
    let mut name = read_extension(entry)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// Parses a pax extended header, POSIX.1-2017 section "pax Header Block".
fn read_pax(bytes: &[u8], extension: &mut Extension) -> Result<(), LayerError> {
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(LayerError::Unpack)?;
        let value = record.value_bytes();
        match record.key_bytes() {
            b"path" => extension.path = Some(value.to_vec()),
            b"linkpath" => extension.link = Some(value.to_vec()),
            b"size" => {
                // A value that is no number differs from each size.
                let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                extension.size = Some(size.unwrap_or(u64::MAX));
            }
            key if key.starts_with(b"GNU.sparse.") => extension.is_sparse = true,
            _ => {}
        }
    }
    Ok(())
}
