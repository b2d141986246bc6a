//! A VM: a machine that runs or is paused, its console, and the recording of its working set.
//!
//! The main thread owns the VM. An operation on another thread shares its `VmCore`.

mod console;
mod recording;

use std::any::Any;
use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::lock;
use devices::serial::output;
use snapshot::file::{Contents, FileIdentity};

use crate::config::VmConfig;
use crate::machine::{self, Machine};
use crate::memory::dump::PageOrigin;
use crate::memory::{FileStamp, MemoryFile, Prefetch, uffd};

pub use console::{Console, ConsoleError, ConsoleInput, InputAction, InputFilter};
pub(crate) use recording::Recording;

/// Chunks of a working set that are prefetched before the guest runs, about 100 us each. More would delay a guest that does not
/// touch them at once; the event loop prefetches the rest.
const CHUNKS_BEFORE_RESUME: u32 = 8;

/// Source of the pages that the guest of a restored VM has not written.
pub(crate) enum MemoryBacking {
    /// Memory file of a snapshot.
    File(MemoryFile),
    /// Fault handler, which stays connected until the process ends.
    Uffd(Arc<uffd::FaultHandler>),
}

/// Files from which a guest was booted. Parts of them may be mapped as guest memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BootFiles {
    /// Image.
    pub image: Option<FileIdentity>,
    /// Initrd.
    pub initrd: Option<FileIdentity>,
}

/// Image of the guest, for the symbols in the report of a crash.
#[derive(Debug)]
pub enum GuestImage {
    /// The file of the boot.
    Open(File),
    /// A file may be opened by the name in the configuration. It may have changed since the boot.
    Named,
    /// The name comes from an untrusted state file.
    Untrusted,
}

/// Snapshot from which the dirty pages of a VM differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiffBase {
    /// Memory file; `None` if it is not known.
    pub memory: Option<FileStamp>,
    /// Content of the memory file.
    pub contents: Contents,
}

/// Machine of a VM and the origin of its memory.
pub(crate) struct VmCore {
    machine: Machine,
    /// `None` for a VM that was booted.
    backing: Option<MemoryBacking>,
    boot_files: BootFiles,
    /// `None` before the first snapshot.
    diff_base: Mutex<Option<DiffBase>>,
}

impl VmCore {
    /// Returns the machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Returns the files from which the guest was booted; none after a load.
    pub fn boot_files(&self) -> BootFiles {
        self.boot_files
    }

    /// Returns the snapshot from which the dirty pages differ. `None` without dirty page tracking, or if there is none.
    pub fn diff_base(&self) -> Option<DiffBase> {
        self.machine.dirty_tracker().and(*lock(&self.diff_base))
    }

    /// Sets the snapshot from which the dirty pages differ.
    pub fn set_diff_base(&self, base: DiffBase) {
        *lock(&self.diff_base) = Some(base);
    }

    /// Returns the origin of untouched pages.
    pub fn page_origin(&self) -> PageOrigin<'_> {
        match &self.backing {
            None => PageOrigin::Fresh,
            Some(MemoryBacking::File(file)) => PageOrigin::Mapped(file.file()),
            Some(MemoryBacking::Uffd(_)) => PageOrigin::Served,
        }
    }

    /// Returns true if the VM comes from a snapshot.
    pub fn is_restored(&self) -> bool {
        self.backing.is_some()
    }

    /// Returns the memory file from which guest memory is mapped.
    pub fn memory_file(&self) -> Option<&MemoryFile> {
        match &self.backing {
            Some(MemoryBacking::File(file)) => Some(file),
            Some(MemoryBacking::Uffd(_)) | None => None,
        }
    }

    /// Returns true if a fault handler serves the memory.
    pub fn is_served(&self) -> bool {
        matches!(&self.backing, Some(MemoryBacking::Uffd(_)))
    }

    /// Returns true if the fault handler has ended. Pages that the guest has not touched are lost then.
    pub fn is_fault_handler_gone(&self) -> bool {
        matches!(&self.backing, Some(MemoryBacking::Uffd(handler)) if handler.is_disconnected())
    }

    /// Pauses the guest, with every instruction completed.
    ///
    /// # Errors
    /// [`machine::Error::Pause`] if a thread waits for a page of a fault handler, or for a disk; the guest runs on then.
    pub fn pause(&self) -> Result<(), machine::Error> {
        self.machine.pause(self.machine.thread_timeout())
    }

    /// As [`pause`](Self::pause), but fails after [`QUICK_PAUSE`].
    pub fn pause_quickly(&self) -> Result<(), machine::Error> {
        self.machine.pause(QUICK_PAUSE)
    }
}

/// Maximum time of a pause on the event loop. A thread that waits for no disk stops at once.
const QUICK_PAUSE: Duration = Duration::from_millis(20);

/// A machine that runs or is paused. Dropping it stops the vCPUs, unless an operation shares the machine.
pub struct Vm {
    core: Arc<VmCore>,
    /// Configuration with the changes since the start; `None` before the first change.
    changed_config: Option<Box<VmConfig>>,
    paused: bool,
    prefetch: Option<Prefetch>,
    recording: Option<Recording>,
    image: GuestImage,
    input: Option<ConsoleInput>,
    guard: Option<Box<dyn Any + Send>>,
}

impl Vm {
    /// Returns a running VM that was booted from `boot_files`.
    pub(crate) fn booted(
        machine: Machine,
        boot_files: BootFiles,
        image: GuestImage,
        input: Option<ConsoleInput>,
        guard: Option<Box<dyn Any + Send>>,
    ) -> Self {
        let core = VmCore {
            machine,
            backing: None,
            boot_files,
            diff_base: Mutex::new(None),
        };
        Self::new(core, false, image, input, guard)
    }

    /// Returns a paused VM whose untouched memory comes from `backing`.
    pub(crate) fn restored(
        machine: Machine,
        backing: MemoryBacking,
        image: GuestImage,
        input: Option<ConsoleInput>,
        guard: Option<Box<dyn Any + Send>>,
    ) -> Self {
        let memory = match &backing {
            MemoryBacking::File(file) => file.stamp(),
            MemoryBacking::Uffd(_) => None,
        };
        let loaded = DiffBase {
            memory,
            contents: Contents::Full,
        };
        let core = VmCore {
            machine,
            backing: Some(backing),
            boot_files: BootFiles::default(),
            diff_base: Mutex::new(Some(loaded)),
        };
        Self::new(core, true, image, input, guard)
    }

    fn new(
        core: VmCore,
        paused: bool,
        image: GuestImage,
        input: Option<ConsoleInput>,
        guard: Option<Box<dyn Any + Send>>,
    ) -> Self {
        Self {
            core: Arc::new(core),
            changed_config: None,
            paused,
            prefetch: None,
            recording: None,
            image,
            input,
            guard,
        }
    }

    /// Returns the part that an operation on another thread shares.
    pub(crate) fn core(&self) -> &Arc<VmCore> {
        &self.core
    }

    /// Returns the configuration, with the changes since the start.
    pub fn config(&self) -> &VmConfig {
        self.changed_config
            .as_deref()
            .unwrap_or_else(|| self.machine().spec().config())
    }

    /// Returns the image of the guest.
    pub fn image(&self) -> &GuestImage {
        &self.image
    }

    /// Changes the configuration, to record the change of an attached device.
    pub(crate) fn change_config(&mut self, change: impl FnOnce(&mut VmConfig)) {
        let config = self.core.machine.spec().config();
        change(
            self.changed_config
                .get_or_insert_with(|| Box::new(config.clone())),
        );
    }

    /// Sets the recording of the pages that the guest touches; it begins with the next resume.
    pub(crate) fn set_recording(&mut self, recording: Option<Recording>) {
        self.recording = recording;
    }

    /// Prefetches the first chunks of a working set. The event loop prefetches the rest.
    pub(crate) fn start_prefetch(&mut self, prefetch: Prefetch) {
        self.prefetch = Some(prefetch);
        for _ in 0..CHUNKS_BEFORE_RESUME {
            if self.prefetch.as_ref().is_some_and(Prefetch::has_ranges) {
                self.prefetch_chunk();
            }
        }
    }

    /// Prefetches one chunk. Returns true while chunks remain.
    pub(crate) fn prefetch_chunk(&mut self) -> bool {
        let Some(prefetch) = &mut self.prefetch else {
            return false;
        };
        let more = prefetch.populate_chunk(self.core.machine.memory());
        if !more {
            log::info!("prefetched pages of the working set: {}", prefetch.populated());
            self.prefetch = None;
        }
        more
    }

    pub(crate) fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Ends a recording if it has begun.
    pub(crate) fn end_begun_recording(&mut self) {
        if self.recording().is_some_and(Recording::has_begun) {
            self.end_recording();
        }
    }

    /// Ends a recording, begun or not.
    pub(crate) fn end_recording(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.end(self.core.machine.memory());
        }
    }

    /// Records that the guest is paused, after [`VmCore::pause`].
    pub(crate) fn set_paused(&mut self) {
        self.paused = true;
        if let Some(recording) = &mut self.recording {
            recording.pause();
        }
    }

    /// Resumes the guest. Has no effect on a running guest.
    ///
    /// # Errors
    /// [`machine::Error::Resume`]; the guest stays paused then.
    pub fn resume(&mut self) -> Result<(), machine::Error> {
        if self.paused {
            self.machine().resume()?;
            self.paused = false;
            if let Some(prefetch) = &mut self.prefetch {
                prefetch.drop_single();
            }
            if let Some(recording) = &mut self.recording {
                recording.resume();
            }
        }
        Ok(())
    }

    /// Requests the work of [`resume`](Self::resume) that is possible while the VM stays paused, and returns without waiting.
    pub(crate) fn prepare_resume(&self) {
        // KVM may touch guest memory; a fault handler must get no request before the guest runs.
        if self.core.memory_file().is_some() {
            self.machine().prepare_resume();
        }
    }

    /// Returns true while the guest is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes the input of the console. Later calls return `None`.
    pub(crate) fn take_input(&mut self) -> Option<ConsoleInput> {
        self.input.take()
    }

    /// Discards the pending output of the guest and restores the terminal. Returns the loss of output that was not reported yet.
    pub fn finish_output(&mut self) -> Option<output::Error> {
        self.machine().mark_first_output();
        self.machine().discard_output();
        // The guest may still print, and the end of the console would be an error.
        let report = lock(self.machine().serial()).output_mut().report();
        self.guard = None;
        report
    }

    /// Returns the machine.
    pub fn machine(&self) -> &Machine {
        &self.core.machine
    }
}
