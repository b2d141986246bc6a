//! Errors of images.

use std::io;
use std::path::PathBuf;

use vmm::memory::Bytes;

/// Failure to use an image.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the OCI image {image}")]
pub struct ImageError {
    /// The image, as the user names it.
    pub image: String,
    /// Cause.
    #[source]
    pub source: Error,
}

/// Cause of an [`ImageError`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is malformed.
    #[error("{0}")]
    Reference(&'static str),
    /// No file has the path.
    #[error("{path} does not exist; name the directory of an OCI layout, or a file after oci-archive:")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The container is of the other kind.
    #[error("the path names a {0}; begin the name with {1} instead")]
    Scheme(&'static str, &'static str),
    /// A file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The file is no archive of a layout.
    #[error("cannot read the file as a tar archive: {0}")]
    NotArchive(&'static str),
    /// The archive is damaged.
    #[error("cannot read the tar archive; copy it again")]
    Archive(#[source] io::Error),
    /// The directory or archive is of another format.
    #[error("it has no {name}; make an OCI layout of it, for example by skopeo copy {from} oci:DIRECTORY")]
    NotLayout {
        /// The missing file.
        name: &'static str,
        /// Transport of skopeo that reads it.
        from: &'static str,
    },
    /// The layout is of another version.
    #[error("version {0:?} of the OCI layout is not supported; use version 1.0.0")]
    Version(String),
    /// A blob cannot be used.
    #[error("cannot read the {object} {name}")]
    Blob {
        /// Kind of the blob.
        object: &'static str,
        /// Digest or name of the blob.
        name: String,
        /// Cause.
        #[source]
        source: BlobError,
    },
    /// There are too many objects.
    #[error("it has more than {limit} {objects}; use a smaller image")]
    TooMany {
        /// Kind of the objects.
        objects: &'static str,
        /// Limit.
        limit: usize,
    },
    /// No image has the tag or digest.
    #[error("no image in it has the {selector}; it has {available}")]
    Unknown {
        /// Tag or digest.
        selector: String,
        /// Available tags and digests.
        available: String,
    },
    /// No image is for the architecture of this host.
    #[error(
        "no image in it is for {architecture}, the architecture of this host; use another image; it has {available}"
    )]
    Architecture {
        /// Architecture of this host.
        architecture: String,
        /// Available platforms.
        available: String,
    },
    /// Several images match.
    #[error("several images match; append the tag or the digest of one: {0}")]
    Ambiguous(String),
    /// The blob has another type.
    #[error("the {object} has the media type {found:?}, which is not supported; {way_out}")]
    MediaType {
        /// Kind of the blob.
        object: &'static str,
        /// Media type.
        found: String,
        /// The way out.
        way_out: &'static str,
    },
    /// The configuration does not match the manifest.
    #[error("the configuration lists {found} layers, and the manifest {expected}; make the image again")]
    DiffIds {
        /// Number in the manifest.
        expected: usize,
        /// Number in the configuration.
        found: usize,
    },
    /// A layer cannot be used.
    #[error("cannot read layer {number} of {total} ({digest})")]
    Layer {
        /// Number of the layer from the lowest, 1.
        number: usize,
        /// Number of layers.
        total: usize,
        /// Digest of the layer.
        digest: String,
        /// Cause.
        #[source]
        source: LayerError,
    },
    /// A file of the image cannot be used.
    #[error("cannot use the {role} {path}")]
    File {
        /// Role of the file.
        role: &'static str,
        /// Path in the image.
        path: String,
        /// Cause.
        #[source]
        source: FileError,
    },
    /// Nothing names a kernel.
    #[error(
        "it names no kernel: it has no annotation {key}, and none of {paths}; use an image for urunc or Kraft"
    )]
    NoKernel {
        /// Annotations that would name it.
        key: &'static str,
        /// Files that would name it, or be it.
        paths: String,
    },
    /// The image is for another monitor.
    #[error("it is built for {0}, whose guests mayfly cannot run; use an image for firecracker or qemu")]
    Hypervisor(String),
    /// The guest mounts the root file system of the image.
    #[error(
        "its guest mounts the root file system of the image ({0}), which mayfly does not build; add --initrd or --disk with a file \
         system for the guest"
    )]
    RootFileSystem(&'static str),
    /// A text of the image cannot be a command line.
    #[error("the command line ({0}) has control characters; append -- with another one")]
    CommandLine(String),
    /// The command line is too long.
    #[error(
        "the command line ({place}) has {length} bytes, and the limit is {limit}; append -- with a shorter one"
    )]
    LongCommandLine {
        /// Place in the image that states it.
        place: String,
        /// Its length.
        length: usize,
        /// Limit.
        limit: usize,
    },
    /// The file with the metadata is malformed.
    #[error("cannot parse urunc.json; make the image again")]
    Metadata(#[source] serde_json::Error),
    /// A copy in memory cannot be read.
    #[error("cannot read the copy of {0} in memory; free memory")]
    Copy(&'static str, #[source] io::Error),
    /// A link of /proc cannot be opened.
    #[error(transparent)]
    Proc(ProcError),
}

/// A link of /proc that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}; mount /proc")]
pub struct ProcError {
    /// The path.
    pub path: PathBuf,
    /// Error of the system call.
    #[source]
    pub source: io::Error,
}

/// Error of a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The digest is of an unsupported algorithm.
    #[error("the digest algorithm {0} is not supported; use sha256")]
    Algorithm(String),
    /// The layout lacks the blob.
    #[error("the layout has no such blob; copy the image completely")]
    Missing,
    /// The blob has another size.
    #[error("it has {found} bytes, and its descriptor states {expected}; copy the image again")]
    Size {
        /// Size in the descriptor.
        expected: u64,
        /// Size of the file.
        found: u64,
    },
    /// The blob is too large.
    #[error("its size of {size} exceeds the limit of {limit}; use a smaller image")]
    TooLarge {
        /// Size of the blob.
        size: Bytes,
        /// Limit.
        limit: Bytes,
    },
    /// All JSON blobs together are too large.
    #[error("the indexes, manifests and configurations exceed {0} in total; use an image with fewer")]
    Total(Bytes),
    /// The blob is a symbolic link.
    #[error("it is a symbolic link; replace it by the file")]
    Link,
    /// The blob states another media type.
    #[error("it states the media type {found:?}, and its descriptor {expected:?}; make the image again")]
    MediaType {
        /// Media type in the descriptor.
        expected: String,
        /// Media type in the blob.
        found: String,
    },
    /// The blob has a key of another type.
    #[error("it has the key {0:?} of another type of blob; make the image again")]
    ForeignKey(&'static str),
    /// The content has another digest.
    #[error("its content has the digest sha256:{0}: it is damaged or forged; copy the image again")]
    Digest(String),
    /// A system call failed.
    #[error("read failed; check the file and its file system")]
    Read(#[source] io::Error),
    /// The content is malformed.
    #[error("it is no valid JSON of its type; make the image again")]
    Json(#[source] serde_json::Error),
}

/// Error of a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob cannot be used.
    #[error(transparent)]
    Blob(BlobError),
    /// The type of the layer is not supported.
    #[error("the media type {0:?} is not supported; {1}")]
    MediaType(String, &'static str),
    /// The archive in the layer is damaged.
    #[error("cannot unpack the tar archive; make the layer again")]
    Unpack(#[source] io::Error),
    /// The unpacked archive has another digest.
    #[error(
        "unpacked, it has the digest sha256:{found}, and the configuration states {expected}; make the image again"
    )]
    DiffId {
        /// Digest in the configuration.
        expected: String,
        /// Digest of the content.
        found: String,
    },
    /// The unpacked archive is too large.
    #[error("unpacked, it exceeds the limit of {0}; use a smaller layer")]
    TooLarge(Bytes),
    /// The unpacked archives of all layers are too large.
    #[error("unpacked, the layers exceed the limit of {0} in total; use a smaller image")]
    TotalTooLarge(Bytes),
    /// The compression ratio is too high.
    #[error("unpacked, it is more than {0} times as large as compressed; use an uncompressed layer")]
    Ratio(u64),
    /// There are too many entries.
    #[error("the layers have more than {0} entries; use a smaller image")]
    TooManyEntries(usize),
    /// The paths are too long.
    #[error("the paths of the entries have more than {0} in total; use a smaller image")]
    TooLongNames(Bytes),
    /// An extension header is too large.
    #[error("an extension header has {size}, and the limit is {limit}; make the layer again")]
    Extension {
        /// Size of the header.
        size: Bytes,
        /// Limit.
        limit: Bytes,
    },
    /// The path of an entry leaves the root, or is invalid.
    #[error("the entry {0:?} is refused: {1}")]
    Path(String, &'static str),
    /// The content of a file cannot be kept in memory.
    #[error("cannot write the content of {0} to memory; free memory, or use a smaller file")]
    Memory(String, #[source] io::Error),
    /// The content of a file cannot be kept on a disk.
    #[error("cannot write the content of {0}; set TMPDIR to a directory with enough space")]
    Write(String, #[source] io::Error),
    /// A file for the content of a disk cannot be created.
    #[error("cannot create a file for the disk in {directory}; set TMPDIR to a directory with enough space")]
    Temporary {
        /// The directory.
        directory: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A link of /proc cannot be opened.
    #[error(transparent)]
    Proc(ProcError),
}

/// Error of a file in the root file system of an image.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No layer has the file.
    #[error("no layer of the image has it; correct the path in the image")]
    NotFound,
    /// A whiteout hides the file.
    #[error("layer {number} ({digest}) removes it by a whiteout; make the image again without it")]
    Whiteout {
        /// Number of the layer from the lowest, 1.
        number: usize,
        /// Digest of the layer.
        digest: String,
    },
    /// The path leaves the root.
    #[error("the path {0} leaves the root file system of the image; use a path within it")]
    OutsideRoot(String),
    /// The path has control characters.
    #[error("the path has control characters; use printable ones")]
    Control,
    /// There are too many links.
    #[error("more than {0} links lead to it; use the path of the file itself")]
    TooManyLinks(usize),
    /// The file is not regular.
    #[error("{path} is a {kind}; a regular file is required")]
    NotRegular {
        /// Path of the entry.
        path: String,
        /// Kind of the entry.
        kind: &'static str,
    },
    /// The file has no content.
    #[error("the file is empty; make the image again with its content")]
    Empty,
    /// The file is too large.
    #[error("it has {size}, and the limit is {limit}; use a smaller file")]
    TooLarge {
        /// Size of the file.
        size: Bytes,
        /// Limit.
        limit: Bytes,
    },
}
