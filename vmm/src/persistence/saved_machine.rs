//! Registers and memory of a snapshot, for a reader that creates no VM.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use snapshot::GuestMemory;
use snapshot::file::{self, Architecture, Contents, Links};
use snapshot::section;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::load::read_config;
use crate::arch::{CoreState, Cpu, Mapping, MappingError, Mappings, Native, Platform};
use crate::config::MAX_VCPUS;
use crate::machine::state::{self, read_vcpu};
use crate::memory::{self, ChangeError, MemoryFile};
use crate::vcpu::NativeVcpuState;

/// Reason why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file cannot be read.
    #[error("cannot read the state file")]
    State(#[source] file::Error),
    /// The sections of the state file are invalid.
    #[error("cannot read the sections of the state file")]
    Sections(#[source] section::Error),
    /// A vCPU of the state file is invalid.
    #[error("cannot read the vCPUs of the state file")]
    Vcpu(#[source] state::Error),
    /// The number of vCPUs is 0 or above [`MAX_VCPUS`].
    #[error("cannot read {0} vCPUs of the state file: a VM has 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// The memory file holds only a part of memory.
    #[error("cannot read memory from a Diff snapshot; merge it into its base by mayfly snapshot-merge")]
    Diff,
    /// The snapshot belongs to another architecture.
    #[error(
        "cannot read a snapshot of {found} on {}; read it on a host of its architecture",
        Native::ARCHITECTURE
    )]
    Architecture {
        /// Architecture of the snapshot.
        found: Architecture,
    },
    /// The memory file cannot be opened.
    #[error("cannot open the memory file {}", path.display())]
    OpenMemory {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The memory file cannot be mapped.
    #[error("cannot use the memory file {}", path.display())]
    Memory {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: memory::Error,
    },
    /// The memory file has changed since it was opened.
    #[error("cannot use the copy of the memory file")]
    Changed(#[source] ChangeError),
}

/// Region of guest memory in the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRegion {
    /// First guest-physical address.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// Offset in the memory file.
    pub offset: u64,
}

/// Registers of a vCPU, in the form of Linux's `elf_gregset_t` and `elf_fpregset_t`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRegisters {
    /// General registers.
    pub general: Vec<u8>,
    /// Floating-point registers; `None` if the state holds them in another form.
    pub float: Option<Vec<u8>>,
}

/// Snapshot that is open for reading.
pub struct SavedMachine {
    file: MemoryFile,
    memory: GuestMemory,
    vcpus: Vec<NativeVcpuState>,
}

impl SavedMachine {
    /// Machine in the header of an ELF file.
    pub const ELF_MACHINE: u16 = <<Native as Platform>::Cpu as Cpu>::State::MACHINE;

    /// Virtual address that no guest can use, at which a core shows guest-physical memory.
    pub const PHYSICAL_WINDOW: u64 = <<Native as Platform>::Cpu as Cpu>::State::PHYSICAL_WINDOW;

    /// Opens the snapshot of a state file and a memory file, which must not change meanwhile. Maps memory without reading it.
    ///
    /// # Errors
    /// [`Error`]
    pub fn open(state: &Path, memory: &Path) -> Result<Self, Error> {
        let state = file::read(state, None).map_err(Error::State)?;
        let header = state.header();
        if header.host.architecture != Native::ARCHITECTURE {
            let found = header.host.architecture;
            return Err(Error::Architecture { found });
        }
        if header.contents == Contents::Diff {
            return Err(Error::Diff);
        }
        let mut sections = state.reader().map_err(Error::Sections)?;
        let config = read_config(&mut sections).map_err(Error::Sections)?;
        let count = u8::try_from(config.vcpus)
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count));
        let vcpus: Result<_, _> = (0..count.ok_or(Error::Vcpus(config.vcpus))?)
            .map(|id| read_vcpu(id, &mut sections).map(|state| *state))
            .collect();
        let vcpus = vcpus.map_err(Error::Vcpu)?;
        let path = || memory.to_owned();
        let file = MemoryFile::open(path(), Links::Follow);
        let file = file.map_err(|(path, source)| Error::OpenMemory { path, source })?;
        let regions = Native::memory_regions(config.memory, config.layout);
        let mapped = memory::map_snapshot(&regions, file.file());
        let memory = mapped.map_err(|source| Error::Memory { path: path(), source })?;
        Ok(Self { file, memory, vcpus })
    }

    /// Returns the memory file.
    pub fn memory_file(&self) -> &File {
        self.file.file()
    }

    /// Checks that the memory file has not changed since it was opened. Check it after its content has been copied.
    ///
    /// # Errors
    /// [`Error::Changed`]
    pub fn check_memory_file(&self) -> Result<(), Error> {
        self.file.check().map_err(Error::Changed)
    }

    /// Returns the regions of guest memory, lowest first.
    pub fn regions(&self) -> Vec<SavedRegion> {
        let mut offset = 0;
        let regions = self.memory.iter().map(|region| {
            let saved = SavedRegion {
                physical: region.start_addr().raw_value(),
                length: region.len(),
                offset,
            };
            offset += saved.length;
            saved
        });
        regions.collect()
    }

    /// Returns the registers of each vCPU.
    pub fn registers(&self) -> impl Iterator<Item = SavedRegisters> {
        self.vcpus.iter().map(|vcpu| SavedRegisters {
            general: vcpu.general_registers(),
            float: vcpu.float_registers(),
        })
    }

    /// Returns the mappings of the page tables of vCPU `id`, in the order of the tables, at most
    /// [`MAX_MAPPINGS`](crate::arch::MAX_MAPPINGS). None if the guest has not started the vCPU, or if a vCPU before it has the same page
    /// tables.
    ///
    /// # Errors
    /// [`MappingError`]
    pub fn mappings(&self, id: usize) -> Result<Vec<Mapping>, MappingError> {
        let mut mappings = Mappings::new(&self.memory);
        let started = |id: usize| self.vcpus.get(id).filter(|vcpu| vcpu.is_started());
        if let Some(vcpu) = started(id)
            && !(0..id)
                .filter_map(started)
                .any(|other| other.paging() == vcpu.paging())
        {
            vcpu.add_mappings(&mut mappings)?;
        }
        Ok(mappings.into_ranges())
    }
}
