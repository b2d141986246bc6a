//! A VM out of the files of a snapshot.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot::file;
pub use snapshot::file::{Contents, VERSION};
use snapshot::{GuestMemory, section};

use super::first_touch::{self, WorkingSetOptions};
use super::freeze::{MACHINE, host};
use crate::arch::{Native, Platform};
use crate::config::{self, HostMemory, NetBackend, VmConfig, VmSpec};
use crate::machine::{self, Devices, Machine, state};
use crate::memory::{self, Prefetch, uffd};
use crate::timeline::{Lane, Timeline};
use crate::vm::{Console, Input, MemoryBacking, Vm};

/// Why no VM came out of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is a VM, or something is known of it that the snapshot would say otherwise.
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    /// The state file cannot be used.
    #[error("cannot use the state file")]
    State(#[source] file::Error),
    /// The memory file holds a difference.
    #[error(
        "{0:?} belongs to a difference: merge it into the snapshot that it differs from, by mayfly snapshot-merge"
    )]
    Difference(PathBuf),
    /// The configuration is missing or damaged.
    #[error("the state file does not say what the machine is made of")]
    Sections(#[source] section::Error),
    /// The memory sizes do not agree.
    #[error("the state file is damaged: it is for {header} bytes of memory, and for a machine with {config}")]
    Size {
        /// What the header says.
        header: u64,
        /// What the configuration says.
        config: u64,
    },
    /// The configuration makes no machine here.
    #[error("this host cannot have the machine of the snapshot")]
    Config(#[source] config::Error),
    /// What is to be replaced is not there.
    #[error("the snapshot has no {kind} {id:?} to be replaced: there are {known}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        id: String,
        /// The names that there are.
        known: String,
    },
    /// The memory file cannot be opened.
    #[error("cannot open the memory file {}", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The memory file cannot be mapped.
    #[error("cannot use the memory file {}", path.display())]
    Memory {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: memory::Error,
    },
    /// The memory's handler cannot be had.
    #[error("cannot have the memory served at {}", path.display())]
    Uffd {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: uffd::Error,
    },
    /// The working set cannot be used or recorded.
    #[error(transparent)]
    FirstTouch(first_touch::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(machine::DeviceError),
    /// There is no console for the guest.
    #[error(transparent)]
    Console(super::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(machine::Error),
    /// The machine did not take its state.
    #[error("cannot restore the state of the machine")]
    Restore(#[source] state::Error),
}

/// Where the guest's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// The memory file. Nobody may change it as long as the VM lives.
    File(PathBuf),
    /// Whoever listens on this unix socket, and is handed a userfaultfd.
    Uffd(PathBuf),
}

/// What is to be made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSnapshotParams {
    /// The state file.
    pub state: PathBuf,
    /// Its memory.
    pub memory: MemorySource,
    /// Interfaces that are to be on other taps: names and taps.
    pub taps: Vec<(String, NetBackend)>,
    /// Drives that are to be on other files: names and paths.
    pub disks: Vec<(String, PathBuf)>,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: bool,
    /// Whether the guest goes on at once, or stays paused.
    pub resume: bool,
    /// Whether the guest's clock jumps to where it would stand had it never stopped.
    pub realtime: bool,
    /// Pages to be made ready, or to be recorded.
    pub first_touch: WorkingSetOptions,
}

impl LoadSnapshotParams {
    /// The snapshot in these files, as it was, and paused.
    pub fn new(state: PathBuf, memory: PathBuf) -> Self {
        Self {
            state,
            memory: MemorySource::File(memory),
            taps: Vec::new(),
            disks: Vec::new(),
            track_dirty_pages: false,
            resume: false,
            realtime: false,
            first_touch: WorkingSetOptions::default(),
        }
    }

    /// Makes the VM, which is paused.
    pub(super) fn load(
        &self,
        host_memory: &HostMemory,
        open_console: impl FnOnce() -> Result<Console, super::Error>,
        timeline: &Arc<Timeline>,
    ) -> Result<Vm, Error> {
        let read = timeline.measure(Lane::Main, "read state", || {
            file::read(&self.state, Some(&host()))
        });
        let state = read.map_err(Error::State)?;
        if state.header().contents == Contents::Difference {
            return Err(Error::Difference(self.state.clone()));
        }
        let mut sections = state.reader().map_err(Error::Sections)?;
        let config: VmConfig = sections.read(MACHINE).map_err(Error::Sections)?;
        let spec = self.apply_overrides(config, state.header().memory, host_memory)?;
        let opened = self.first_touch.open(&state, &self.memory);
        let (set, recording) = opened.map_err(Error::FirstTouch)?;
        let (memory, base) = self.map(&spec, timeline)?;
        let preparation = match (set, &base) {
            (Some(set), MemoryBacking::File(file)) => Some(Prefetch::new(set, file)),
            _ => None,
        };
        let devices = Devices::open(&spec).map_err(Error::Device)?;
        let Console {
            output,
            input,
            filter,
            guard,
        } = open_console().map_err(Error::Console)?;
        let machine = Machine::build_with_memory(spec, memory, devices, output, timeline.clone())
            .map_err(Error::Machine)?;
        let restored = timeline.measure(Lane::Main, "restore state", || {
            machine.restore(sections, self.realtime)
        });
        let machine = restored.map_err(Error::Restore)?;
        let input = input.map(|file| Input::new(file, filter));
        let mut vm = Vm::restored(machine, base, input, guard);
        vm.record_with(recording);
        if let Some(preparation) = preparation {
            timeline.measure(Lane::Main, "make pages ready", || vm.start_prefetch(preparation));
        }
        Ok(vm)
    }

    /// Maps the guest's memory; nothing of it is read.
    fn map(&self, spec: &VmSpec, timeline: &Timeline) -> Result<(GuestMemory, MemoryBacking), Error> {
        let regions = Native::memory_regions(spec.config().memory);
        timeline.measure(Lane::Main, "map memory file", || match self.memory.clone() {
            MemorySource::File(path) => {
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(source) => return Err(Error::Open { path, source }),
                };
                match memory::map_snapshot(&regions, &file) {
                    Ok(memory) => Ok((memory, MemoryBacking::File(file))),
                    Err(source) => Err(Error::Memory { path, source }),
                }
            }
            MemorySource::Uffd(path) => match memory::map_uffd(&regions, &path) {
                Ok((memory, handler)) => Ok((memory, MemoryBacking::Served(handler))),
                Err(source) => Err(Error::Uffd { path, source }),
            },
        })
    }

    fn apply_overrides(&self, mut config: VmConfig, memory: u64, host: &HostMemory) -> Result<VmSpec, Error> {
        if config.memory.bytes() != memory {
            return Err(Error::Size {
                header: memory,
                config: config.memory.bytes(),
            });
        }
        for (id, backend) in &self.taps {
            let mut nets = config.nets.iter_mut();
            match nets.find(|net| net.id == *id) {
                Some(net) => net.backend = backend.clone(),
                None => {
                    let known = config.nets.iter().map(|net| net.id.as_str());
                    return Err(unknown("network interface", id, known));
                }
            }
        }
        for (id, path) in &self.disks {
            let mut drives = config.drives.iter_mut();
            match drives.find(|drive| drive.disk.id == *id) {
                Some(drive) => drive.disk.path.clone_from(path),
                None => {
                    let known = config.drives.iter().map(|drive| drive.disk.id.as_str());
                    return Err(unknown("drive", id, known));
                }
            }
        }
        config.track_dirty_pages = self.track_dirty_pages;
        config.check(host).map_err(Error::Config)
    }
}

/// What a state file says, for people: nothing of it is used.
///
/// # Errors
/// [`Error::State`] and [`Error::Sections`].
pub fn describe(path: &Path) -> Result<(file::Header, VmConfig), Error> {
    let state = file::read(path, None).map_err(Error::State)?;
    let mut sections = state.reader().map_err(Error::Sections)?;
    let config = sections.read(MACHINE).map_err(Error::Sections)?;
    Ok((state.header().clone(), config))
}

/// The version of the format of a state file, which may be one that cannot be loaded here. That which is written is [`VERSION`].
///
/// # Errors
/// [`Error::State`]
pub fn version(path: &Path) -> Result<u32, Error> {
    file::version(path).map_err(Error::State)
}

fn unknown<'a>(kind: &'static str, id: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::Unknown {
        kind,
        id: id.to_owned(),
        known: super::error::list(known),
    }
}
