//! Creation of a snapshot from a paused VM.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use snapshot::file::{self, Contents, FileIdentity, Header};
use snapshot::{ArchiveWriter, section};

use super::disks;
use super::generations::{MEMORY_NAME, STATE_NAME};
use super::open_files::{FileRole, OpenFile, OpenFiles};
use super::source::{MACHINE, host_identity};
use crate::cancellation::{BeginError, Cancellation, Cancelled};
use crate::config::VmConfig;
use crate::error_chain::ErrorChain;
use crate::machine::{Machine, ThreadWait, state};
use crate::memory::{ChangeError, DirtyTracker, FileStamp, MemoryFile, Pagemap, dump, is_in_memory};
use crate::vm::{DiffBase, VmCore};

/// Reason why a snapshot cannot be created. The VM can be resumed. An older snapshot at the same paths stays, but may have lost its
/// state file if a diff was to be merged into it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest runs, or has not been started.
    #[error("cannot create a snapshot: the VM is not paused; pause it first")]
    Running,
    /// Another thread has cancelled the creation.
    #[error("cannot create the snapshot")]
    Cancelled(#[source] Cancelled),
    /// The creation cannot run on another thread.
    #[error("cannot begin the snapshot")]
    Thread(#[source] BeginError),
    /// State and memory have the same path.
    #[error("cannot write both state and memory to {0:?}: name two files")]
    SamePath(PathBuf),
    /// A path leads to a file that the VM or its process has open.
    #[error("cannot write a snapshot to {path:?}: the file is in use as {role}; name another file")]
    InUse {
        /// Path of the file.
        path: PathBuf,
        /// Use of the file.
        role: FileRole,
    },
    /// The pages that the guest has not touched are lost.
    #[error(
        "cannot create a Full snapshot: the fault handler has ended, and with it the pages that the guest has not touched; create \
         a Diff snapshot, and merge it into the snapshot that was loaded"
    )]
    HandlerGone,
    /// The memory file from which guest memory is mapped has changed, and may lack pages of the guest.
    #[error("cannot create a snapshot: the memory file that was loaded has changed")]
    Changed(#[source] ChangeError),
    /// The state of the machine cannot be saved.
    #[error("cannot save the state of the machine")]
    Machine(#[source] state::Error),
    /// A page that the guest has not touched does not arrive.
    #[error("cannot read guest memory")]
    Pages(#[source] ThreadWait),
    /// The configuration cannot be saved.
    #[error("cannot save the configuration of the machine")]
    Config(#[source] section::Error),
    /// The memory file cannot be written.
    #[error("cannot write the memory file")]
    Memory(#[source] dump::Error),
    /// The state file cannot be written.
    #[error("cannot write the state file")]
    State(#[source] file::Error),
}

/// Maximum memory in bytes of a snapshot that is created quickly. Writing it to memory takes some 10 ms.
const MAX_QUICK_BYTES: u64 = 32 << 20;

/// Kind of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All pages that were ever touched.
    #[default]
    Full,
    /// With dirty page tracking, the pages that were written since the snapshot before. Otherwise, those that differ from the
    /// snapshot that was loaded. If there is none, all pages that were ever touched.
    Diff,
}

/// Parameters of the creation of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSnapshotParams {
    /// Kind of the snapshot.
    pub kind: SnapshotKind,
    /// State file, which is replaced.
    pub state: PathBuf,
    /// Memory file, which is replaced. A Diff that finds a file of the size of guest memory here is merged into it, unless this is the
    /// file of another Diff.
    pub memory: PathBuf,
}

/// Returns an archive that begins with the configuration and the disks.
fn begin_archive(machine: &Machine, config: &VmConfig) -> Result<ArchiveWriter, Error> {
    let mut archive = ArchiveWriter::new();
    archive.write(MACHINE, config).map_err(Error::Config)?;
    machine.save_settings(&mut archive).map_err(Error::Config)?;
    disks::save(machine, &mut archive).map_err(Error::Config)?;
    Ok(archive)
}

/// File at a path before the creation.
struct Existing {
    is_link: bool,
    /// Stamp of the file to which the path leads.
    stamp: Option<FileStamp>,
}

impl Existing {
    fn at(path: &Path) -> Self {
        let found = fs::symlink_metadata(path).ok();
        let is_link = found.as_ref().is_some_and(Metadata::is_symlink);
        let stamp = match is_link {
            true => FileStamp::at(path),
            false => found.as_ref().and_then(FileStamp::of),
        };
        Self { is_link, stamp }
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.stamp.map(|stamp| stamp.identity())
    }
}

/// Both files before the creation, which looks at each path once: a Diff of few pages takes little longer than its system calls.
struct ExistingFiles {
    state: Existing,
    memory: Existing,
}

impl ExistingFiles {
    fn has_link(&self) -> bool {
        self.state.is_link || self.memory.is_link
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

/// Returns the canonical path of the file that a write to `path` replaces; the file need not exist.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(file) = fs::canonicalize(path) {
        return file;
    }
    match (fs::canonicalize(directory(path)), path.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

impl CreateSnapshotParams {
    /// Returns the parameters of a Full snapshot under the usual names in `directory`.
    pub(crate) fn full_in(directory: &Path) -> Self {
        Self {
            kind: SnapshotKind::Full,
            state: directory.join(STATE_NAME),
            memory: directory.join(MEMORY_NAME),
        }
    }

    /// As [`create`](Self::create), unless that may take long. Returns `None`, without an effect, in this case: if the creation waits
    /// for a disk or server, or writes more than [`MAX_QUICK_BYTES`].
    pub(crate) fn create_quickly(
        &self,
        vm: &VmCore,
        config: &VmConfig,
        process: &[OpenFile],
    ) -> Option<Result<dump::DumpStats, Error>> {
        let (state, memory) = (directory(&self.state), directory(&self.memory));
        let is_quick = self.kind == SnapshotKind::Diff
            && !vm.is_served()
            // The write-protection of large memory takes longer.
            && vm.machine().dirty_tracker().is_none()
            && !vm.machine().has_requests_in_flight()
            // The call that inspects it would wait.
            && !vm.machine().disks().any(|disk| disk.is_remote())
            && !vm.memory_file().is_some_and(MemoryFile::is_remote)
            && is_in_memory(state)
            && (state == memory || is_in_memory(memory));
        if !is_quick {
            return None;
        }
        let existing = self.find_existing();
        // A link may lead to a disk.
        if existing.has_link() {
            return None;
        }
        let budget = Cancellation::with_budget(MAX_QUICK_BYTES);
        let created = self.create_over(&existing, vm, config, process, &budget);
        (!budget.is_cancelled()).then_some(created)
    }

    /// Writes both files of the paused `vm` with its present `config`. Has no effect if it is cancelled.
    ///
    /// Memory is written after all requests in flight have completed and KVM has flushed its pending work, because both write guest
    /// memory. Meanwhile the vCPU threads read their state. If KVM defers more work in between, state and memory are written once
    /// more, one after the other. The state file is renamed last, so that it never belongs to the memory of another time. The old
    /// snapshot is removed after everything that can fail.
    ///
    /// `process` are the open files of the process around the VM.
    pub(crate) fn create(
        &self,
        vm: &VmCore,
        config: &VmConfig,
        process: &[OpenFile],
        cancellation: &Cancellation,
    ) -> Result<dump::DumpStats, Error> {
        self.create_over(&self.find_existing(), vm, config, process, cancellation)
    }

    fn find_existing(&self) -> ExistingFiles {
        ExistingFiles {
            state: Existing::at(&self.state),
            memory: Existing::at(&self.memory),
        }
    }

    fn create_over(
        &self,
        existing: &ExistingFiles,
        vm: &VmCore,
        config: &VmConfig,
        process: &[OpenFile],
        cancellation: &Cancellation,
    ) -> Result<dump::DumpStats, Error> {
        // Different names that are no links are different files. Resolving the directories takes time, and is skipped for them.
        let may_be_same = self.state.file_name() == self.memory.file_name() || existing.has_link();
        if may_be_same && resolve(&self.state) == resolve(&self.memory) {
            return Err(Error::SamePath(self.state.clone()));
        }
        if self.kind == SnapshotKind::Full && vm.is_fault_handler_gone() {
            // Reading an absent page would wait for a handler that has ended.
            return Err(Error::HandlerGone);
        }
        // The pages of a diff are then written to the memory file from which guest memory is mapped.
        let is_merged_into = |loaded: &&MemoryFile| {
            let target = existing.memory.identity();
            self.kind == SnapshotKind::Diff && target.is_some() && target == loaded.identity()
        };
        let creation = Creation {
            params: self,
            existing,
            vm,
            config,
            process,
            cancellation,
            merged: vm.memory_file().filter(is_merged_into),
        };
        creation.check_memory_file()?;
        creation.write()
    }
}

/// Creation of a snapshot in progress.
struct Creation<'a> {
    params: &'a CreateSnapshotParams,
    existing: &'a ExistingFiles,
    vm: &'a VmCore,
    config: &'a VmConfig,
    process: &'a [OpenFile],
    cancellation: &'a Cancellation,
    /// The memory file that was loaded, if the pages are merged into it.
    merged: Option<&'a MemoryFile>,
}

impl Creation<'_> {
    /// Fails if another process has changed the memory file that was loaded: its change may have spoiled the dump.
    fn check_memory_file(&self) -> Result<(), Error> {
        let loaded = self.vm.memory_file();
        loaded.map_or(Ok(()), MemoryFile::check).map_err(Error::Changed)
    }

    /// Checks that neither path leads to an open file of the VM or its process. The memory file that was loaded may be replaced by
    /// memory.
    fn check_open_files(&self) -> Result<(), Error> {
        let files = OpenFiles::list(self.vm, self.process);
        let Self { params, existing, .. } = self;
        for (path, identity, allowed) in [
            (&params.state, existing.state.identity(), None),
            (
                &params.memory,
                existing.memory.identity(),
                Some(&FileRole::Memory),
            ),
        ] {
            if let Some(role) = identity.and_then(|identity| files.role_of(identity, allowed)) {
                let path = path.clone();
                return Err(Error::InUse { path, role });
            }
        }
        Ok(())
    }

    /// Accepts the present time of the memory file that was loaded, directly after a write of this process.
    fn accept_write(&self) -> Result<(), Error> {
        let merged = self.merged;
        merged
            .map_or(Ok(()), MemoryFile::accept_write)
            .map_err(Error::Changed)
    }

    /// Writes both files.
    fn write(&self) -> Result<dump::DumpStats, Error> {
        let Self { params, config, .. } = self;
        let machine = self.vm.machine();
        let save = machine.begin_save().map_err(Error::Machine)?;
        // The vCPU threads read their state meanwhile. No device has a request in flight any more, so that no thread which waits for a
        // fault handler holds the lock of a device.
        self.check_open_files()?;
        // A wait for the devices is over; the vCPU threads and the dump react to a cancellation.
        self.cancellation.set_must_clean_up();
        self.cancellation.spend(0).map_err(Error::Cancelled)?;
        let mut state = file::PendingStateFile::create(&params.state).map_err(Error::State)?;
        let pagemap = Pagemap::open().inspect_err(|error| {
            log::info!("the snapshot reads all pages of the guest: {}", ErrorChain(error));
        });
        let pagemap = pagemap.ok();
        let source = dump::DumpSource {
            memory: machine.memory(),
            origin: self.vm.page_origin(),
            pagemap: pagemap.as_ref(),
            cancellation: self.cancellation,
        };
        let target = self.target(&source)?;
        if params.kind == SnapshotKind::Full {
            let fetched = machine.fetch_pages(self.cancellation);
            self.cancellation.spend(0).map_err(Error::Cancelled)?;
            fetched.map_err(Error::Pages)?;
        }
        let (host, mut archive) = (host_identity(), begin_archive(machine, config)?);
        save.save_devices(&mut archive).map_err(Error::Machine)?;
        let mut memory = self.dump(&source, target)?;
        if save.finish(&mut archive).map_err(Error::Machine)? {
            // KVM wrote guest memory after it was dumped.
            drop(memory);
            archive = begin_archive(machine, config)?;
            machine.save(&mut archive).map_err(Error::Machine)?;
            memory = self.dump(&source, self.target(&source)?)?;
        }
        let contents = memory.contents();
        let header = Header {
            host,
            memory: config.memory.bytes(),
            contents,
        };
        state.fill(&header, archive).map_err(Error::State)?;
        memory.sync()?;
        state.sync().map_err(Error::State)?;
        self.cancellation.commit().map_err(Error::Cancelled)?;
        // The file may have changed while its pages were listed and copied. The old snapshot is intact so far.
        self.check_memory_file()?;
        let written = memory.replace(&source, state.path());
        // After a failure too: a repeated merge completes it.
        self.accept_write()?;
        let written = written?;
        state.commit().map_err(Error::State)?;
        self.begin_diff(contents);
        Ok(written)
    }

    /// Makes the complete snapshot the base of the next diff.
    fn begin_diff(&self, contents: Contents) {
        let machine = self.vm.machine();
        if machine.dirty_tracker().is_none() {
            return;
        }
        if let Err(error) = machine.clear_dirty_pages() {
            log::warn!(
                "the next diff holds more pages than were written: {}",
                ErrorChain(&error)
            );
        }
        let memory = FileStamp::at(&self.params.memory);
        self.vm.set_diff_base(DiffBase { memory, contents });
    }

    fn target(&self, source: &dump::DumpSource<'_>) -> Result<dump::DumpTarget, Error> {
        let path = &self.params.memory;
        let target = match self.params.kind {
            SnapshotKind::Full => dump::DumpTarget::new(source, path),
            SnapshotKind::Diff => dump::DumpTarget::base_or_new(source, path),
        };
        target.map_err(Error::Memory)
    }

    /// Writes the memory, except for pages to merge into a file of the old snapshot, which must stay intact so far.
    fn dump(&self, source: &dump::DumpSource<'_>, target: dump::DumpTarget) -> Result<MemoryDump<'_>, Error> {
        if self.merged.is_some() {
            // Directly before the reservation, whose change of the time is accepted.
            self.check_memory_file()?;
        }
        let prepared = match self.params.kind {
            SnapshotKind::Full => dump::dump_full(source, target).map(MemoryDump::Full),
            SnapshotKind::Diff => self.dump_diff(source, target),
        };
        // A reservation changes the time of the file, a failed one too.
        self.accept_write()?;
        prepared.map_err(Error::Memory)
    }

    fn dump_diff(
        &self,
        source: &dump::DumpSource<'_>,
        target: dump::DumpTarget,
    ) -> Result<MemoryDump<'_>, dump::Error> {
        let dirty = self.dirty_pages(&target);
        let (target, contents) = match dirty {
            Some((_, base)) if target.is_base() => (target, base.contents),
            Some(_) => (target, Contents::Diff),
            None => self.target_of_all_changed(source, target)?,
        };
        let diff = dump::DiffDump::prepare(source, dirty.map(|(tracker, _)| tracker), target)?;
        if diff.is_merged() {
            return Ok(MemoryDump::Merge(diff, contents));
        }
        Ok(MemoryDump::Diff(diff.write(source)?, contents))
    }

    /// Returns the source of the dirty pages, and the snapshot from which they differ. `None` if all changed pages are required, because
    /// there is no such snapshot, or `target` holds another.
    fn dirty_pages(&self, target: &dump::DumpTarget) -> Option<(&DirtyTracker, DiffBase)> {
        let base = self.vm.diff_base()?;
        // A reservation by this creation changes the time of the file, but not this stamp. After a failed creation it differs.
        let is_base = base.memory.is_some() && base.memory == self.existing.memory.stamp;
        if target.is_base() && !is_base {
            return None;
        }
        match self.vm.machine().collect_dirty_pages() {
            Ok(tracker) => Some((tracker?, base)),
            Err(error) => {
                log::warn!("the diff holds all changed pages: {}", ErrorChain(&error));
                None
            }
        }
    }

    /// Returns the file for all changed pages, and its contents afterwards. A base that lacks pages of the loaded snapshot is an older
    /// diff, or the rest of an interrupted one. A new file replaces it: it may hold pages of another VM that loaded the same snapshot.
    fn target_of_all_changed(
        &self,
        source: &dump::DumpSource<'_>,
        target: dump::DumpTarget,
    ) -> Result<(dump::DumpTarget, Contents), dump::Error> {
        if matches!(source.origin, dump::PageOrigin::Fresh) {
            // Without a loaded snapshot, all touched pages are complete.
            return Ok((target, Contents::Full));
        }
        if !target.is_base() {
            return Ok((target, Contents::Diff));
        }
        let is_complete = match file::contents(&self.params.state) {
            _ if self.merged.is_some() => true,
            Some(contents) => contents == Contents::Full,
            None => target.has_all_pages(source)?,
        };
        if is_complete {
            return Ok((target, Contents::Full));
        }
        let target = dump::DumpTarget::new(source, &self.params.memory)?;
        Ok((target, Contents::Diff))
    }
}

/// Memory file before the old snapshot is removed.
enum MemoryDump<'a> {
    /// New file with all pages.
    Full(dump::PendingDump),
    /// New file with the changed pages.
    Diff(dump::PendingDump, Contents),
    /// Unchanged old file, the pages to merge into it, and its contents afterwards.
    Merge(dump::DiffDump<'a>, Contents),
}

impl MemoryDump<'_> {
    fn contents(&self) -> Contents {
        match self {
            Self::Full(_) => Contents::Full,
            Self::Diff(_, contents) | Self::Merge(_, contents) => *contents,
        }
    }

    /// Syncs a new file to disk.
    fn sync(&mut self) -> Result<(), Error> {
        match self {
            Self::Full(dump) | Self::Diff(dump, _) => dump.sync().map_err(Error::Memory),
            Self::Merge(..) => Ok(()),
        }
    }

    /// Replaces the memory file, after a removal of the old state file at `state`: an interruption must not leave that file with the
    /// memory of another snapshot.
    fn replace(self, source: &dump::DumpSource<'_>, state: &Path) -> Result<dump::DumpStats, Error> {
        file::remove(state).map_err(Error::State)?;
        let dump = match self {
            Self::Full(dump) | Self::Diff(dump, _) => dump,
            Self::Merge(diff, _) => diff.write(source).map_err(Error::Memory)?,
        };
        dump.commit().map_err(Error::Memory)
    }
}
