//! Root file system of an image: finds files in its layers, from the top layer down, and keeps the content of wanted ones. It builds no
//! directory tree.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmm::memory::Bytes;

use super::error::{Error, FileError, LayerError, ProcError};
use super::layer::{Layer, Member, Node};
use super::limits::{MAX_ENTRIES, MAX_LINKS, MAX_NAMES};
use super::path;
use super::progress::Progress;
use super::store::Store;
use crate::sys;

/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;
/// Maximum number of left files of one name.
const MAX_LEFT: u32 = 100;
/// Prefixes of whiteouts, OCI image specification, section "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Place for the content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Sealed memfd of this name.
    Memory(CString),
    /// File without a name on a disk, open for reads.
    Disk,
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

impl Wanted {
    /// Returns true if the content of the file `path` with `size` bytes in `layer` may be that of this file.
    fn keeps(&self, layer: usize, path: &[u8], size: u64) -> bool {
        self.path == path && self.layer.is_none_or(|top| layer <= top) && size <= self.limit
    }
}

/// Content of a file.
#[derive(Debug)]
pub struct Content {
    /// Open file.
    pub file: File,
    /// Size in bytes.
    pub size: u64,
}

/// Content that was kept when its layer was read first, and its place.
struct Kept {
    content: Content,
    place: Place,
}

/// File in a layer, with links resolved.
struct Located {
    layer: usize,
    path: Vec<u8>,
    size: u64,
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
    contents: HashMap<(usize, Vec<u8>), Kept>,
    /// Number of the entries, and bytes of their paths and targets.
    entries: usize,
    names: usize,
    /// Unpacked bytes of the layers that are read.
    unpacked: u64,
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
            unpacked: 0,
            progress,
        }
    }

    /// Announces a file that [`find`](Self::find) may return: its content is kept when its layer is read first.
    pub fn want(&mut self, wanted: Wanted) {
        self.wanted.push(wanted);
    }

    /// Returns the content of the file `wanted`.
    ///
    /// # Errors
    /// [`Error::File`] if the image has no such regular file, or it is empty or too large; [`Error::Layer`] if a layer cannot be used.
    pub fn find(&mut self, wanted: &Wanted) -> Result<Content, Error> {
        let located = self.locate_file(wanted)?;
        let key = (located.layer, located.path.clone());
        match self.contents.remove(&key) {
            Some(kept) if kept.place == wanted.place => return Ok(kept.content),
            // It is kept for another role.
            Some(kept) => drop(self.contents.insert(key, kept)),
            None => {}
        }
        self.extract(&located, wanted)
    }

    /// Returns the sizes of the kept contents.
    #[cfg(test)]
    pub fn kept_sizes(&self) -> Vec<u64> {
        self.contents.values().map(|kept| kept.content.size).collect()
    }

    /// Returns the size of the file `wanted`.
    ///
    /// # Errors
    /// As of [`find`](Self::find).
    pub fn size(&mut self, wanted: &Wanted) -> Result<u64, Error> {
        self.locate_file(wanted).map(|located| located.size)
    }

    /// Returns the place of a file that is not empty, within its limit.
    fn locate_file(&mut self, wanted: &Wanted) -> Result<Located, Error> {
        let located = self.locate(wanted).map_err(|stop| match stop {
            Stop::File(source) => file_error(wanted, source),
            Stop::Image(error) => error,
        })?;
        match located.size {
            0 => Err(file_error(wanted, FileError::Empty)),
            size if size > wanted.limit => {
                let (size, limit) = (Bytes(size), Bytes(wanted.limit));
                Err(file_error(wanted, FileError::TooLarge { size, limit }))
            }
            _ => Ok(located),
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

    /// Returns the place of a file.
    fn locate(&mut self, wanted: &Wanted) -> Result<Located, Stop> {
        let mut path = wanted.path.clone();
        let mut top = wanted.layer;
        for _ in 0..=MAX_LINKS {
            match self.step(&path, top)? {
                Step::Found(layer, size) => return Ok(Located { layer, path, size }),
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
        // Directories above the path in the layers so far. They replace links and files of the layers below.
        let mut directories = HashSet::new();
        for index in (0..count).rev() {
            let table = self.table(index)?;
            for (directory, rest) in path::ancestors(path) {
                match table.nodes.get(directory) {
                    None => {}
                    Some(Node::Directory) => {
                        directories.insert(directory);
                    }
                    Some(Node::Symlink(target)) if !directories.contains(directory) => {
                        return Ok(Step::Link(follow(directory, target, rest)?));
                    }
                    Some(_) => return Err(FileError::NotFound.into()),
                }
            }
            match table.nodes.get(path) {
                Some(Node::File(size)) => return Ok(Step::Found(index, *size)),
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
            let (mut entries, mut names) = (self.entries, self.names);
            let (wanted, known) = (&self.wanted, &self.contents);
            let mut visit = |member: Member, reader: &mut dyn Read| {
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(LayerError::TooManyEntries(MAX_ENTRIES));
                }
                names += member.path.len() + member.node.target().map_or(0, <[u8]>::len);
                if names > MAX_NAMES {
                    return Err(LayerError::TooLongNames(Bytes(MAX_NAMES as u64)));
                }
                let key = (index, member.path.clone());
                // The last entry with a path is valid.
                contents.remove(&key);
                if let Node::File(size) = member.node
                    && let Some(wanted) = wanted.iter().find(|wanted| wanted.keeps(index, &member.path, size))
                    // The content of an upper layer precedes.
                    && !known.keys().any(|(_, path)| *path == member.path)
                {
                    let (content, place) = (keep(wanted, size, reader)?, wanted.place.clone());
                    contents.insert(key, Kept { content, place });
                }
                add(&mut table, member);
                Ok(())
            };
            let layer = &self.layers[index];
            let walked = layer.walk(self.store, &mut self.progress, self.unpacked, &mut visit);
            self.unpacked += walked.map_err(|source| self.layer_error(index, source))?;
            // The digests match from here on.
            (self.entries, self.names) = (entries, names);
            self.contents.extend(contents);
            self.tables[index] = Some(table);
        }
        Ok(self.tables[index].get_or_insert_default())
    }

    /// Reads a layer again for the content of a file.
    fn extract(&mut self, located: &Located, wanted: &Wanted) -> Result<Content, Error> {
        let Located { layer, path, size } = located;
        let mut content = None;
        let mut visit = |member: Member, reader: &mut dyn Read| {
            if member.path == *path && member.node == Node::File(*size) {
                content = Some(keep(wanted, *size, reader)?);
            }
            Ok(())
        };
        let walked = self.layers[*layer].walk(self.store, &mut self.progress, 0, &mut visit);
        walked.map_err(|source| self.layer_error(*layer, source))?;
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
    /// The layer has the file, of this size.
    Found(usize, u64),
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
fn keep(wanted: &Wanted, size: u64, reader: &mut dyn Read) -> Result<Content, LayerError> {
    let path = path::display(&wanted.path);
    let write_error = |error| match wanted.place {
        Place::Memory(_) => LayerError::Memory(path.clone(), error),
        Place::Disk => LayerError::Write(path.clone(), error),
    };
    let file = match &wanted.place {
        Place::Memory(name) => sys::memfd(name).map_err(write_error)?,
        Place::Disk => temporary_file()?,
    };
    let (mut buffer, mut offset) = (vec![0; CHUNK], 0);
    while offset < size {
        let rest = usize::try_from(size - offset).unwrap_or(CHUNK);
        let chunk = &mut buffer[..rest.min(CHUNK)];
        reader.read_exact(chunk).map_err(unpack_error)?;
        // A file of zeros stays a hole.
        if chunk.iter().any(|&byte| byte != 0) {
            file.write_all_at(chunk, offset).map_err(write_error)?;
        }
        offset += chunk.len() as u64;
    }
    file.set_len(size).map_err(write_error)?;
    let file = match wanted.place {
        Place::Memory(_) => {
            sys::seal(&file).map_err(write_error)?;
            file
        }
        // The VMM must not get a descriptor for writes.
        Place::Disk => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            File::open(&path).map_err(|source| LayerError::Proc(ProcError { path, source }))?
        }
    };
    Ok(Content { file, size })
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

/// Creates a file in `directory`, and removes its name. A killed process may have left a file of the same name.
fn named_file(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let mut number = 0;
    loop {
        let path = directory.join(format!("mayfly-{}-{number}.image", std::process::id()));
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MAX_LEFT => number += 1,
            Err(error) => return Err(error),
            Ok(file) => return fs::remove_file(&path).map(|()| file),
        }
    }
}

#[cfg(test)]
mod tests {
    use scratch::Directory;

    use super::named_file;

    #[test]
    fn files_of_killed_processes_are_passed_over() {
        let directory = Directory::new();
        for number in 0..3 {
            let name = format!("mayfly-{}-{number}.image", std::process::id());
            directory.write(&name, "left");
        }
        assert_eq!(named_file(directory.root()).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::read_dir(directory.root()).unwrap().count(), 3);
    }
}
