//! Root file system of an image: finds files in its layers, from the top layer down, and keeps the content of wanted ones. It builds no
//! directory tree.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmm::memory::Bytes;

use super::error::{Error, FileError, LayerError};
use super::layer::{Layer, Member, Node};
use super::limits::{MAX_ENTRIES, MAX_LINKS, MAX_NAMES};
use super::path;
use super::progress::Progress;
use super::store::Store;
use crate::sys;

/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;
/// Prefixes of whiteouts, OCI image specification, section "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Place for the content of a file.
#[derive(Clone, Debug)]
pub enum Place {
    /// Sealed memfd of this name.
    Memory(CString),
    /// File without a name on a disk.
    Disk,
    /// None: only the size is of interest.
    Nowhere,
}

/// File that is wanted from the image.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Role of the file, for messages.
    pub role: &'static str,
    /// Normalized path.
    pub path: Vec<u8>,
    /// Index of the layer at which the search begins; `None` for the top layer.
    pub layer: Option<usize>,
    /// Maximum size in bytes.
    pub limit: u64,
    /// Place for the content.
    pub place: Place,
}

/// Content of a file.
#[derive(Debug)]
pub struct Content {
    /// Open file, unless only the size is of interest.
    pub file: Option<File>,
    /// Size in bytes.
    pub size: u64,
}

/// Entries of a layer.
#[derive(Default)]
struct Table {
    nodes: HashMap<Vec<u8>, Node>,
    whiteouts: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
}

impl Table {
    /// Returns true if a whiteout of the layer removes `path` from the layers below.
    fn hides(&self, path: &[u8]) -> bool {
        let above = || path::ancestors(path).map(|(directory, _)| directory);
        self.whiteouts.contains(path)
            || above().any(|directory| self.whiteouts.contains(directory) || self.opaque.contains(directory))
            || self.opaque.contains(&b""[..])
    }
}

/// End of a search.
enum Stop {
    File(FileError),
    Image(Error),
}

impl From<FileError> for Stop {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

/// Root file system of an image.
pub struct RootFs<'a> {
    store: &'a Store,
    layers: Vec<Layer>,
    /// Entries of the layers that are read already.
    tables: Vec<Option<Table>>,
    wanted: Vec<Wanted>,
    contents: HashMap<(usize, Vec<u8>), Content>,
    /// Number of the entries, and bytes of their paths and targets.
    entries: usize,
    names: usize,
    progress: Progress,
}

impl<'a> RootFs<'a> {
    /// Creates the root file system of `layers`, the lowest first. Reads none of them.
    pub fn new(store: &'a Store, layers: Vec<Layer>, progress: Progress) -> Self {
        Self {
            store,
            tables: layers.iter().map(|_| None).collect(),
            layers,
            wanted: Vec::new(),
            contents: HashMap::new(),
            entries: 0,
            names: 0,
            progress,
        }
    }

    /// Announces a file that [`find`](Self::find) will return: its content is kept when its layer is read first.
    pub fn want(&mut self, wanted: Wanted) {
        self.wanted.push(wanted);
    }

    /// Returns the content of the file `wanted`.
    ///
    /// # Errors
    /// [`Error::File`] if the image has no such regular file, [`Error::Layer`] if a layer cannot be used.
    pub fn find(&mut self, wanted: &Wanted) -> Result<Content, Error> {
        let (layer, path) = self.locate(wanted).map_err(|stop| match stop {
            Stop::File(source) => file_error(wanted, source),
            Stop::Image(error) => error,
        })?;
        let content = match self.contents.remove(&(layer, path.clone())) {
            Some(content) => content,
            None => self.extract(layer, path, wanted)?,
        };
        match content.size {
            0 => Err(file_error(wanted, FileError::Empty)),
            _ => Ok(content),
        }
    }

    /// Returns the content of the file `wanted`, or none if no layer has it.
    ///
    /// # Errors
    /// As of [`find`](Self::find).
    pub fn find_optional(&mut self, wanted: &Wanted) -> Result<Option<Content>, Error> {
        match self.find(wanted) {
            Ok(content) => Ok(Some(content)),
            Err(Error::File {
                source: FileError::NotFound | FileError::Whiteout { .. },
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns true if a layer has the file `wanted`.
    ///
    /// # Errors
    /// As of [`find`](Self::find), but for a missing file.
    pub fn has(&mut self, wanted: &Wanted) -> Result<bool, Error> {
        match self.locate(wanted) {
            Ok(_) => Ok(true),
            Err(Stop::File(FileError::NotFound | FileError::Whiteout { .. })) => Ok(false),
            Err(Stop::File(source)) => Err(file_error(wanted, source)),
            Err(Stop::Image(error)) => Err(error),
        }
    }

    /// Returns the layer of a file, and its path there, with links resolved.
    fn locate(&mut self, wanted: &Wanted) -> Result<(usize, Vec<u8>), Stop> {
        let mut path = wanted.path.clone();
        let mut top = wanted.layer;
        for _ in 0..=MAX_LINKS {
            match self.step(&path, top)? {
                Step::Found(layer) => return Ok((layer, path)),
                Step::Link(next) => (path, top) = (next, None),
                // The target of a hard link is in this layer or a lower one.
                Step::Hardlink(next, layer) => (path, top) = (next, Some(layer)),
            }
        }
        Err(FileError::TooManyLinks(MAX_LINKS).into())
    }

    /// Searches `path` from the layer `top` down, up to the first link.
    fn step(&mut self, path: &[u8], top: Option<usize>) -> Result<Step, Stop> {
        let count = top.map_or(self.layers.len(), |top| top + 1);
        for index in (0..count).rev() {
            let table = self.table(index)?;
            for (directory, rest) in path::ancestors(path) {
                match table.nodes.get(directory) {
                    Some(Node::Symlink(target)) => return Ok(Step::Link(follow(directory, target, rest)?)),
                    None | Some(Node::Directory) => {}
                    Some(_) => return Err(FileError::NotFound.into()),
                }
            }
            match table.nodes.get(path) {
                Some(Node::File) => return Ok(Step::Found(index)),
                Some(Node::Symlink(target)) => return Ok(Step::Link(follow(path, target, b"")?)),
                Some(Node::Hardlink(target)) => return Ok(Step::Hardlink(target.clone(), index)),
                Some(Node::Directory) => return Err(not_regular(path, "directory")),
                Some(Node::Other(kind)) => return Err(not_regular(path, kind)),
                None if table.hides(path) => {
                    return Err(Stop::File(FileError::Whiteout {
                        number: index + 1,
                        digest: self.layers[index].descriptor.digest().to_string(),
                    }));
                }
                None => {}
            }
        }
        Err(FileError::NotFound.into())
    }

    /// Returns the entries of a layer, which it reads at the first call. Keeps the content of wanted files.
    fn table(&mut self, index: usize) -> Result<&Table, Error> {
        if self.tables[index].is_none() {
            let (mut table, mut contents) = (Table::default(), HashMap::new());
            let (mut entries, mut names, wanted) = (self.entries, self.names, &self.wanted);
            let mut visit = |member: Member, reader: &mut dyn Read| {
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(LayerError::TooManyEntries(MAX_ENTRIES));
                }
                names += member.path.len() + member.node.target().map_or(0, <[u8]>::len);
                if names > MAX_NAMES {
                    return Err(LayerError::TooLongNames(Bytes(MAX_NAMES as u64)));
                }
                let kept = wanted.iter().find(|wanted| wanted.path == member.path);
                if let (Some(wanted), Node::File) = (kept, &member.node) {
                    contents.insert((index, member.path.clone()), keep(wanted, &member, reader)?);
                }
                add(&mut table, member);
                Ok(())
            };
            let layer = &self.layers[index];
            let walked = layer.walk(self.store, &mut self.progress, &mut visit);
            walked.map_err(|source| self.layer_error(index, source))?;
            // The digests match from here on.
            (self.entries, self.names) = (entries, names);
            self.contents.extend(contents);
            self.tables[index] = Some(table);
        }
        Ok(self.tables[index].get_or_insert_default())
    }

    /// Reads a layer again for the content of its file `path`.
    fn extract(&mut self, index: usize, path: Vec<u8>, wanted: &Wanted) -> Result<Content, Error> {
        let mut content = None;
        let mut visit = |member: Member, reader: &mut dyn Read| {
            if member.path == path && member.node == Node::File {
                content = Some(keep(wanted, &member, reader)?);
            }
            Ok(())
        };
        let walked = self.layers[index].walk(self.store, &mut self.progress, &mut visit);
        walked.map_err(|source| self.layer_error(index, source))?;
        content.ok_or_else(|| file_error(wanted, FileError::NotFound))
    }

    fn layer_error(&self, index: usize, source: LayerError) -> Error {
        Error::Layer {
            number: index + 1,
            total: self.layers.len(),
            digest: self.layers[index].descriptor.digest().to_string(),
            source,
        }
    }
}

fn file_error(wanted: &Wanted, source: FileError) -> Error {
    Error::File {
        role: wanted.role,
        path: path::display(&wanted.path),
        source,
    }
}

/// Step of a search.
enum Step {
    /// The layer has the file.
    Found(usize),
    /// A symbolic link leads to this path.
    Link(Vec<u8>),
    /// A hard link of the layer leads to this path.
    Hardlink(Vec<u8>, usize),
}

fn follow(link: &[u8], target: &[u8], rest: &[u8]) -> Result<Vec<u8>, Stop> {
    let text = || String::from_utf8_lossy(target).into_owned();
    path::follow(link, target, rest).ok_or_else(|| FileError::OutsideRoot(text()).into())
}

fn not_regular(path: &[u8], kind: &'static str) -> Stop {
    Stop::File(FileError::NotRegular {
        path: path::display(path),
        kind,
    })
}

/// Adds an entry to the table of its layer.
fn add(table: &mut Table, member: Member) {
    let name = path::file_name(&member.path);
    let parent = path::parent(&member.path);
    if name == OPAQUE {
        table.opaque.insert(parent.to_vec());
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        let mut path = parent.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(hidden);
        table.whiteouts.insert(path);
    } else {
        table.nodes.insert(member.path, member.node);
    }
}

/// Copies the content of a wanted file to its place.
fn keep(wanted: &Wanted, member: &Member, reader: &mut dyn Read) -> Result<Content, LayerError> {
    let text = || path::display(&member.path);
    if member.size > wanted.limit {
        return Err(LayerError::FileTooLarge {
            path: text(),
            size: Bytes(member.size),
            limit: Bytes(wanted.limit),
        });
    }
    let write_error = |error| LayerError::Write(text(), error);
    let file = match &wanted.place {
        Place::Memory(name) => Some(sys::memfd(name).map_err(write_error)?),
        Place::Disk => Some(temporary_file()?),
        Place::Nowhere => None,
    };
    let (mut buffer, mut offset) = (vec![0; CHUNK], 0);
    while offset < member.size {
        let rest = usize::try_from(member.size - offset).unwrap_or(CHUNK);
        let chunk = &mut buffer[..rest.min(CHUNK)];
        reader.read_exact(chunk).map_err(unpack_error)?;
        // A file of zeros stays a hole.
        if let Some(file) = file.as_ref().filter(|_| chunk.iter().any(|&byte| byte != 0)) {
            file.write_all_at(chunk, offset).map_err(write_error)?;
        }
        offset += chunk.len() as u64;
    }
    if let Some(file) = &file {
        file.set_len(member.size).map_err(write_error)?;
        if matches!(wanted.place, Place::Memory(_)) {
            sys::seal(file).map_err(write_error)?;
        }
    }
    Ok(Content {
        file,
        size: member.size,
    })
}

/// Restores an error of the reader of the layer.
fn unpack_error(error: io::Error) -> LayerError {
    error.downcast::<LayerError>().unwrap_or_else(LayerError::Unpack)
}

/// Creates a file without a name in TMPDIR, or else in `/var/tmp`, or in `/tmp` of a root without it.
fn temporary_file() -> Result<File, LayerError> {
    let named = std::env::var_os("TMPDIR").filter(|path| !path.is_empty());
    let directory = named.map(PathBuf::from).unwrap_or_else(|| {
        let default = Path::new("/var/tmp");
        if default.exists() {
            default.into()
        } else {
            "/tmp".into()
        }
    });
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let file = match options.custom_flags(libc::O_TMPFILE).open(&directory) {
        // The file system has no files without a name, open(2).
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => named_file(&directory),
        opened => opened,
    };
    file.map_err(|source| LayerError::Temporary { directory, source })
}

/// Creates a file in `directory`, and removes its name.
fn named_file(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!("mayfly-{}.image", std::process::id()));
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}
