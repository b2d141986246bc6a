//! Source of a snapshot's memory, and identity of the host.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use snapshot::GuestMemory;
use snapshot::file::{HostIdentity, Links};

use crate::arch::{Native, Platform};
use crate::config::VmConfig;
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

/// Source of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// Memory file. It must not change while the VM exists.
    File(PathBuf),
    /// Unix socket of a fault handler, which gets a userfaultfd.
    Uffd(PathBuf),
}

impl MemorySource {
    /// Maps the guest memory of `config` without reading it.
    pub(super) fn map(&self, config: &VmConfig, links: Links) -> Result<(GuestMemory, MemoryBacking), Error> {
        let regions = Native::memory_regions(config.memory, config.layout);
        match self.clone() {
            Self::File(path) => {
                let opened = MemoryFile::open(path, links);
                let file = opened.map_err(|(path, source)| Error::Open { path, source })?;
                bus_error::set_files(format_args!("the memory file {:?}", file.path()));
                match memory::map_snapshot(&regions, file.file()) {
                    Ok(memory) => Ok((memory, MemoryBacking::File(file))),
                    Err(source) => Err(Error::File {
                        path: file.path().to_owned(),
                        source,
                    }),
                }
            }
            Self::Uffd(path) => match memory::map_uffd(&regions, &path) {
                Ok((memory, handler)) => Ok((memory, MemoryBacking::Uffd(Arc::new(handler)))),
                Err(source) => Err(Error::Uffd { path, source }),
            },
        }
    }
}

/// Returns the identity of this host for state files.
pub(super) fn host_identity() -> HostIdentity {
    HostIdentity {
        architecture: Native::ARCHITECTURE,
        page_size: u32::try_from(page_size()).unwrap_or(u32::MAX),
        cpu: Native::cpu_identity(),
    }
}
