//! `mayfly core`: an ELF core of a snapshot or of a running VM, for gdb.
//!
//! | module | contents |
//! |---|---|
//! | `elf` | headers and notes |

mod elf;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmm::control::{GenerationError, MEMORY_NAME, STATE_NAME, resolve_generation};
use vmm::memory::Bytes;
use vmm::persistence::{MAX_MAPPINGS, Mapping, MappingError, SavedMachine, SavedMachineError, SavedRegion};
use vmm_sys_util::seek_hole::SeekHole;

use crate::logging::print_message;
use crate::output::chain;
use crate::process::HeldSignals;
use crate::vm_client::{self, VmClient};
use elf::LoadSegment;

/// Bytes of memory that are copied at once.
const CHUNK: usize = 1 << 20;
/// Unit of the search for zeros.
const PAGE: usize = 4096;

/// Source of the core.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Directory of a snapshot.
    Directory(PathBuf),
    /// API socket of a VM.
    Socket(PathBuf),
}

/// Arguments of the command.
#[derive(Debug, PartialEq, Eq)]
pub struct CoreArgs {
    /// Source.
    pub source: Source,
    /// File to create.
    pub file: PathBuf,
}

/// Usage error.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// The syntax is wrong.
    #[error("{0}; run mayfly core --help")]
    Syntax(lexopt::Error),
    /// An argument is missing or superfluous.
    #[error("{0}: usage: mayfly core DIR|--api-sock SOCKET FILE; run mayfly core --help")]
    Count(&'static str),
}

/// Failure of the command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(GenerationError),
    /// The snapshot cannot be read.
    #[error("cannot make a core of the snapshot in {}", path.display())]
    Snapshot {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<SavedMachineError>,
    },
    /// The VM cannot be saved.
    #[error(transparent)]
    Vm(vm_client::Error),
    /// The directory for the snapshot of the VM cannot be created.
    #[error("cannot create the directory {} for a snapshot of the VM", path.display())]
    Temporary {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The core cannot be written.
    #[error("cannot write the core to {}; name a file that does not exist, on a file system with enough space", path.display())]
    Write {
        /// Path of the core.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Parses the arguments of the command. Returns nothing if they request help.
///
/// # Errors
/// [`ArgsError`]
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<CoreArgs>, ArgsError> {
    let (mut socket, mut paths) = (None, Vec::new());
    while let Some(argument) = parser.next().map_err(ArgsError::Syntax)? {
        match argument {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return Ok(None),
            lexopt::Arg::Long("api-sock") if socket.is_none() => {
                socket = Some(PathBuf::from(parser.value().map_err(ArgsError::Syntax)?));
            }
            lexopt::Arg::Long("api-sock") => return Err(ArgsError::Count("--api-sock is given twice")),
            lexopt::Arg::Value(path) => paths.push(PathBuf::from(path)),
            other => return Err(ArgsError::Syntax(other.unexpected())),
        }
    }
    let file = paths.pop().ok_or(ArgsError::Count("missing FILE"))?;
    let source = match (socket, paths.pop()) {
        (Some(socket), None) => Source::Socket(socket),
        (None, Some(directory)) => Source::Directory(directory),
        (None, None) => return Err(ArgsError::Count("missing DIR or FILE")),
        (Some(_), Some(_)) => return Err(ArgsError::Count("both DIR and --api-sock are given")),
    };
    if !paths.is_empty() {
        return Err(ArgsError::Count("too many arguments"));
    }
    Ok(Some(CoreArgs { source, file }))
}

/// Writes the core.
///
/// # Errors
/// [`Error`]; the file does not exist then, unless it did before.
pub fn create(args: &CoreArgs) -> Result<(), Error> {
    match &args.source {
        Source::Directory(path) => {
            let directory = resolve_generation(path).map_err(Error::Directory)?;
            let mut signals = HeldSignals::hold();
            write(&directory, CoreFile::create(&args.file)?, &mut signals)
        }
        Source::Socket(socket) => {
            let vm = VmClient::new(socket);
            let is_running = vm.is_running().map_err(Error::Vm)?;
            // Dropped last: an interrupted command would leave the VM paused, and its memory in the directory.
            let mut signals = HeldSignals::hold();
            // Before the pause, which would be in vain.
            let core = CoreFile::create(&args.file)?;
            let directory = TemporaryDirectory::beside(&args.file)?;
            let (state, memory) = (directory.0.join(STATE_NAME), directory.0.join(MEMORY_NAME));
            let created = vm.create_snapshot(is_running, "Full", &state, &memory);
            created.map_err(Error::Vm)?;
            write(&directory.0, core, &mut signals)
        }
    }
}

/// New file for the core. Dropping it removes it, unless it is complete.
struct CoreFile<'a> {
    path: &'a Path,
    file: File,
    is_complete: bool,
}

impl<'a> CoreFile<'a> {
    fn create(path: &'a Path) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        // Guest memory is for this user alone.
        options.write(true).create_new(true).mode(0o600);
        let opened = options.open(path).map_err(|source| write_error(path, source));
        opened.map(|file| Self {
            path,
            file,
            is_complete: false,
        })
    }
}

impl Drop for CoreFile<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            // The first error is the one to report.
            let _ = fs::remove_file(self.path);
        }
    }
}

/// Returns the error of a core that cannot be written to `path`.
fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write {
        path: path.to_owned(),
        source,
    }
}

/// Directory for the snapshot of a VM. Dropping it removes it.
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    /// Creates a directory on the file system of `file`, which only this user can read.
    fn beside(file: &Path) -> Result<Self, Error> {
        let parent = file.parent().filter(|parent| *parent != Path::new(""));
        let name = format!(".mayfly-core-{}", std::process::id());
        let path = parent.unwrap_or(Path::new(".")).join(&name);
        let failed = |source| Error::Temporary {
            path: path.clone(),
            source,
        };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        // The VM may have another working directory.
        path.canonicalize().map(Self).map_err(failed)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            print_message(&format!("warning: cannot remove {}: {error}", self.0.display()));
        }
    }
}

/// Writes a core of the snapshot in `directory` to `core`, until one of `signals` arrives.
fn write(directory: &Path, mut core: CoreFile<'_>, signals: &mut HeldSignals) -> Result<(), Error> {
    let opened = SavedMachine::open(&directory.join(STATE_NAME), &directory.join(MEMORY_NAME));
    let unusable = |source| Error::Snapshot {
        path: directory.to_owned(),
        source: Box::new(source),
    };
    let machine = opened.map_err(unusable)?;
    let written = write_to(&machine, &core.file, &mut || signals.has_any());
    let data = written.map_err(|source| write_error(core.path, source))?;
    machine.check_memory_file().map_err(unusable)?;
    core.is_complete = true;
    print_message(&format!(
        "core created in {}, {} of memory on disk; run gdb IMAGE {0} to read it",
        core.path.display(),
        Bytes(data)
    ));
    Ok(())
}

/// Writes headers and memory, unless `is_cancelled`. Returns the number of bytes of memory that are not zero.
fn write_to(machine: &SavedMachine, file: &File, is_cancelled: &mut dyn FnMut() -> bool) -> io::Result<u64> {
    let regions = machine.regions();
    let mut segments = virtual_segments(machine, &regions);
    segments.extend(regions.iter().map(|region| LoadSegment {
        address: SavedMachine::PHYSICAL_WINDOW | region.physical,
        physical: region.physical,
        length: region.length,
        offset: region.offset,
    }));
    let mut writer = BufWriter::new(file);
    let front = elf::write_front(
        &mut writer,
        SavedMachine::ELF_MACHINE,
        machine.registers(),
        &segments,
    )?;
    writer.flush()?;
    let memory: u64 = regions.iter().map(|region| region.length).sum();
    file.set_len(front + memory)?;
    copy_data(machine.memory_file(), file, front, is_cancelled)
}

/// Returns the segments by the page tables of all vCPUs, at most [`MAX_MAPPINGS`]. Of several mappings of an address, that of the first
/// vCPU counts.
fn virtual_segments(machine: &SavedMachine, regions: &[SavedRegion]) -> Vec<LoadSegment> {
    let mut ranges = BTreeMap::new();
    for id in 0..machine.registers().count() {
        let added = machine.mappings(id).and_then(|mappings| {
            let mut mappings = mappings.into_iter();
            mappings.try_for_each(|mapping| add(&mut ranges, mapping, MAX_MAPPINGS))
        });
        if let Err(error) = added {
            print_message(&format!(
                "warning: the core lacks virtual addresses of vCPU {id}: {}",
                chain(&error)
            ));
        }
    }
    let segment = |(address, (physical, length)): (u64, (u64, u64))| {
        // Mappings do not leave their region.
        let region = regions
            .iter()
            .rfind(|region| region.physical <= physical)
            .copied()?;
        Some(LoadSegment {
            address,
            physical,
            length,
            offset: region.offset + (physical - region.physical),
        })
    };
    ranges.into_iter().filter_map(segment).collect()
}

/// Adds the parts of `mapping` that `ranges` do not contain. Those are physical addresses and lengths by their virtual addresses, at most
/// `limit` of them.
fn add(ranges: &mut BTreeMap<u64, (u64, u64)>, mapping: Mapping, limit: usize) -> Result<(), MappingError> {
    let (mut address, last) = (mapping.address, mapping.address + (mapping.length - 1));
    loop {
        // The range that begins at or before the address, if it ends behind it.
        let before = ranges.range(..=address).next_back();
        if let Some((start, (_, length))) = before
            && address - start < *length
        {
            let rest = length - (address - start);
            match address.checked_add(rest).filter(|next| *next <= last) {
                Some(next) => address = next,
                None => return Ok(()),
            }
            continue;
        }
        if ranges.len() >= limit {
            return Err(MappingError::TooMany);
        }
        let next = ranges.range(address..).next().map(|(start, _)| *start);
        let end = next.filter(|next| *next <= last).map_or(last, |next| next - 1);
        let physical = mapping.physical + (address - mapping.address);
        ranges.insert(address, (physical, end - address + 1));
        if end == last {
            return Ok(());
        }
        address = end + 1;
    }
}

/// Copies the pages of `memory` that are not zero to `file`, which has a hole for it from `start` on. Returns their number of bytes.
///
/// # Errors
/// Fails if a file cannot be accessed, and with [`io::ErrorKind::Interrupted`] once `is_cancelled`.
fn copy_data(
    memory: &File,
    file: &File,
    start: u64,
    is_cancelled: &mut dyn FnMut() -> bool,
) -> io::Result<u64> {
    let mut memory = memory.try_clone()?;
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut copied) = (0, 0);
    while let Some(data) = memory.seek_data(at)? {
        let end = memory.seek_hole(data)?.unwrap_or(data);
        at = data;
        while at < end {
            if is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            memory.read_exact_at(&mut buffer[..length], at)?;
            for (index, page) in buffer[..length].chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    file.write_all_at(page, start + at + (index * PAGE) as u64)?;
                    copied += page.len() as u64;
                }
            }
            at += length as u64;
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use scratch::Directory;
    use vmm::persistence::{Mapping, MappingError};

    use super::{CoreArgs, Source, add, copy_data, parse};

    fn arguments(line: &str) -> Result<Option<CoreArgs>, String> {
        let mut parser = lexopt::Parser::from_args(line.split_whitespace());
        parse(&mut parser).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_name_one_source() {
        let args = |source, file: &str| {
            Ok(Some(CoreArgs {
                source,
                file: file.into(),
            }))
        };
        assert_eq!(arguments("/s core"), args(Source::Directory("/s".into()), "core"));
        assert_eq!(
            arguments("core --api-sock /v"),
            args(Source::Socket("/v".into()), "core")
        );
        assert_eq!(arguments("/s core --help"), Ok(None));
        for (line, reason) in [
            ("", "missing FILE"),
            ("core", "missing DIR or FILE"),
            ("a b c", "too many arguments"),
            ("a b --api-sock c", "both DIR and --api-sock are given"),
            ("--api-sock", "missing argument for option '--api-sock'"),
            ("a b --fast", "invalid option '--fast'"),
        ] {
            let error = arguments(line).unwrap_err();
            assert!(error.starts_with(reason), "{line}: {error}");
            assert!(error.ends_with("run mayfly core --help"), "{error}");
        }
    }

    #[test]
    fn first_mapping_of_an_address_counts() {
        let mut ranges = BTreeMap::new();
        let mut put = |address, physical, length| {
            add(
                &mut ranges,
                Mapping {
                    address,
                    physical,
                    length,
                },
                8,
            )
            .unwrap();
        };
        put(0x3000, 0x10_3000, 0x1000);
        put(0x6000, 0x10_6000, 0x2000);
        put(0x1000, 0x20_1000, 0x6000);
        put(0x6000, 0x30_6000, 0x1000);
        put(u64::MAX - 0xfff, 0x40_0000, 0x1000);
        put(u64::MAX - 0x1fff, 0x50_0000, 0x2000);
        let list: Vec<_> = ranges.into_iter().collect();
        assert_eq!(
            list,
            [
                (0x1000, (0x20_1000, 0x2000)),
                (0x3000, (0x10_3000, 0x1000)),
                (0x4000, (0x20_4000, 0x2000)),
                (0x6000, (0x10_6000, 0x2000)),
                (u64::MAX - 0x1fff, (0x50_0000, 0x1000)),
                (u64::MAX - 0xfff, (0x40_0000, 0x1000)),
            ]
        );
    }

    #[test]
    fn ranges_of_all_vcpus_are_limited() {
        let mut ranges = BTreeMap::new();
        let mut put = |address, length| {
            let mapping = Mapping {
                address,
                physical: address,
                length,
            };
            add(&mut ranges, mapping, 3)
        };
        assert_eq!(put(0x2000, 0x1000), Ok(()));
        // Before and behind the first one.
        assert_eq!(put(0x1000, 0x3000), Ok(()));
        // A vCPU that shares its mappings needs no more ranges.
        assert_eq!(put(0x1000, 0x3000), Ok(()));
        assert_eq!(put(0x8000, 0x1000), Err(MappingError::TooMany));
        assert_eq!(ranges.len(), 3);
    }

    #[test]
    fn copy_has_data_and_holes() {
        let directory = Directory::new();
        let mut memory = File::create_new(directory.path("memory")).unwrap();
        memory.write_all(&[0; 8192]).unwrap();
        memory.write_all_at(&[7; 4096], 3 << 20).unwrap();
        memory.set_len(4 << 20).unwrap();
        let core = File::create_new(directory.path("core")).unwrap();
        core.set_len((4 << 20) + 4096).unwrap();
        let memory = File::open(directory.path("memory")).unwrap();
        let cancelled = copy_data(&memory, &core, 4096, &mut || true).unwrap_err();
        assert_eq!(cancelled.kind(), std::io::ErrorKind::Interrupted);
        assert_eq!(copy_data(&memory, &core, 4096, &mut || false).unwrap(), 4096);
        let bytes = std::fs::read(directory.path("core")).unwrap();
        let first = bytes.iter().position(|byte| *byte != 0).unwrap();
        assert_eq!(first, (3 << 20) + 4096);
        assert_eq!(bytes.iter().filter(|byte| **byte == 7).count(), 4096);
    }
}
