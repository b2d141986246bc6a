//! A VM: a machine that runs or is paused, its console, and the recording of its working set.

mod console;
mod recording;

use std::any::Any;
use std::sync::Arc;

use devices::lock;
use devices::serial::output;
use snapshot::file::FileIdentity;

use crate::machine::{self, Machine};
use crate::memory::dump::PageOrigin;
use crate::memory::{MemoryFile, Prefetch, uffd};

pub use console::{Console, ConsoleError, ConsoleInput, InputAction, InputFilter};
pub(crate) use recording::Recording;

/// Chunks of a working set that are prefetched before the guest runs, about 100 us each. More would delay a guest that does not
/// touch them at once; the event loop prefetches the rest.
const CHUNKS_BEFORE_RESUME: u32 = 8;

/// Source of the pages that the guest of a restored VM has not written.
pub(crate) enum MemoryBacking {
    /// Memory file of a snapshot.
    File(MemoryFile),
    /// Fault handler, which the machine releases when it is dropped.
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

/// A machine that runs or is paused. Dropping it stops the vCPUs.
pub struct Vm {
    machine: Machine,
    paused: bool,
    /// `None` for a VM that was booted.
    backing: Option<MemoryBacking>,
    prefetch: Option<Prefetch>,
    recording: Option<Recording>,
    input: Option<ConsoleInput>,
    guard: Option<Box<dyn Any>>,
    boot_files: BootFiles,
}

impl Vm {
    pub(crate) fn new(machine: Machine, input: Option<ConsoleInput>, guard: Option<Box<dyn Any>>) -> Self {
        Self {
            machine,
            paused: false,
            backing: None,
            prefetch: None,
            recording: None,
            input,
            guard,
            boot_files: BootFiles::default(),
        }
    }

    /// Sets the files from which the guest was booted.
    pub(crate) fn set_boot_files(&mut self, files: BootFiles) {
        self.boot_files = files;
    }

    /// Returns the files from which the guest was booted; none after a load.
    pub(crate) fn boot_files(&self) -> BootFiles {
        self.boot_files
    }

    /// Returns a paused VM whose untouched memory comes from `backing`.
    pub(crate) fn restored(
        machine: Machine,
        backing: MemoryBacking,
        input: Option<ConsoleInput>,
        guard: Option<Box<dyn Any>>,
    ) -> Self {
        let mut vm = Self::new(machine, input, guard);
        vm.paused = true;
        vm.backing = Some(backing);
        vm
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
        let more = prefetch.populate_chunk(self.machine.memory());
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
            recording.end(self.machine.memory());
        }
    }

    /// Returns the origin of untouched pages.
    pub(crate) fn page_origin(&self) -> PageOrigin<'_> {
        match &self.backing {
            None => PageOrigin::Fresh,
            Some(MemoryBacking::File(file)) => PageOrigin::Mapped(file.file()),
            Some(MemoryBacking::Uffd(_)) => PageOrigin::Served,
        }
    }

    /// Returns the memory file from which guest memory is mapped.
    pub(crate) fn memory_file(&self) -> Option<&MemoryFile> {
        match &self.backing {
            Some(MemoryBacking::File(file)) => Some(file),
            Some(MemoryBacking::Uffd(_)) | None => None,
        }
    }

    /// Returns true if the fault handler has ended. Pages that the guest has not touched are lost then.
    pub(crate) fn is_fault_handler_gone(&self) -> bool {
        matches!(&self.backing, Some(MemoryBacking::Uffd(handler)) if handler.is_disconnected())
    }

    /// Pauses the guest, with every instruction completed. Has no effect on a paused guest.
    ///
    /// # Errors
    /// [`machine::Error::Pause`] if a thread waits for a page of a fault handler; the guest runs on then.
    pub fn pause(&mut self) -> Result<(), machine::Error> {
        if !self.paused {
            match self.backing {
                Some(MemoryBacking::Uffd(_)) => self.machine.pause_served()?,
                _ => self.machine.pause(),
            }
            self.paused = true;
            if let Some(recording) = &mut self.recording {
                recording.pause();
            }
        }
        Ok(())
    }

    /// Resumes the guest. Has no effect on a running guest.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.machine.resume();
            if let Some(prefetch) = &mut self.prefetch {
                prefetch.drop_single();
            }
            if let Some(recording) = &mut self.recording {
                recording.resume();
            }
        }
    }

    /// Requests the work of [`resume`](Self::resume) that is possible while the VM stays paused, and returns without waiting.
    pub(crate) fn prepare_resume(&self) {
        // KVM may touch guest memory; a fault handler must get no request before the guest runs.
        if matches!(self.backing, Some(MemoryBacking::File(_))) {
            self.machine.prepare_resume();
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
        self.machine.mark_first_output();
        self.machine.discard_output();
        self.guard = None;
        lock(self.machine.serial()).output_mut().report()
    }

    /// Returns the machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}
