//! Source of a snapshot's memory, and identity of the host.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot::GuestMemory;
use snapshot::file::{HostIdentity, Links};
use vm_memory::GuestAddress;

use crate::arch::{Native, Platform};
use crate::config::VmConfig;
use crate::machine::PassedFiles;
use crate::memory::{self, MemoryFile, bus_error, page_size, uffd};
use crate::vm::MemoryBacking;

/// Section of the configuration in state files.
pub(super) const MACHINE: &str = "machine";

/// Reason why the memory of a snapshot cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory file cannot be opened.
    #[error("cannot open the memory file {}", path.display())]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The memory file cannot be mapped.
    #[error("cannot use the memory file {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: memory::Error,
    },
    /// The fault handler cannot be used.
    #[error("cannot use the fault handler at {}", path.display())]
    Uffd {
        /// Path of its socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: uffd::Error,
    },
}

type Regions = [(GuestAddress, usize)];
type MapSnapshot = fn(&Regions, &File) -> Result<GuestMemory, memory::Error>;
type MapUffd = fn(&Regions, &Path) -> Result<(GuestMemory, uffd::FaultHandler), uffd::Error>;

/// Properties of the mapping of guest memory.
pub(super) struct MapTarget {
    /// Memory that has its slots already, for a memory file; otherwise new memory is mapped.
    pub slots: Option<GuestMemory>,
    /// New memory gets a log of the writes of this process.
    pub is_logged: bool,
    /// Treatment of a link at the path of the memory file.
    pub links: Links,
}

/// Source of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// Memory file. It must not change while the VM exists.
    File(PathBuf),
    /// Unix socket of a fault handler, which gets a userfaultfd.
    Uffd(PathBuf),
}

impl MemorySource {
    /// Returns true if a fault handler serves the memory.
    pub(super) fn is_served(&self) -> bool {
        matches!(self, Self::Uffd(_))
    }

    /// Maps the guest memory of `config` without reading it. A memory file in `passed` is not opened again.
    pub(super) fn map(
        &self,
        config: &VmConfig,
        target: MapTarget,
        passed: &mut PassedFiles,
    ) -> Result<(GuestMemory, MemoryBacking), Error> {
        let MapTarget {
            slots,
            is_logged,
            links,
        } = target;
        let (map_snapshot, map_uffd): (MapSnapshot, MapUffd) = match is_logged {
            true => (memory::map_snapshot_logged, memory::map_uffd_logged),
            false => (memory::map_snapshot, memory::map_uffd),
        };
        let regions = Native::memory_regions(config.memory, config.layout);
        match self.clone() {
            Self::File(path) => {
                let file = match passed.take(&path) {
                    Some(file) => MemoryFile::new(file, path).map_err(open_error),
                    None => open_memory_file(path, links),
                }?;
                bus_error::set_files(format_args!("the memory file {:?}", file.path()));
                let mapped = match slots {
                    Some(memory) => memory::remap_snapshot(&memory, file.file()).map(|()| memory),
                    None => map_snapshot(&regions, file.file()),
                };
                match mapped {
                    Ok(memory) => Ok((memory, MemoryBacking::File(file))),
                    Err(source) => Err(Error::File {
                        path: file.path().to_owned(),
                        source,
                    }),
                }
            }
            Self::Uffd(path) => match map_uffd(&regions, &path) {
                Ok((memory, handler)) => Ok((memory, MemoryBacking::Uffd(Arc::new(handler)))),
                Err(source) => Err(Error::Uffd { path, source }),
            },
        }
    }
}

/// Opens the memory file at `path`.
pub(super) fn open_memory_file(path: PathBuf, links: Links) -> Result<MemoryFile, Error> {
    MemoryFile::open(path, links).map_err(open_error)
}

fn open_error((path, source): (PathBuf, io::Error)) -> Error {
    Error::Open { path, source }
}

/// Returns the identity of this host for state files.
pub(super) fn host_identity() -> HostIdentity {
    HostIdentity {
        architecture: Native::ARCHITECTURE,
        page_size: u32::try_from(page_size()).unwrap_or(u32::MAX),
        cpu: Native::cpu_identity(),
    }
}
