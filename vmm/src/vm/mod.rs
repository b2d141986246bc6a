//! A machine that runs, and the event loop of the one thread that owns it.

mod console;
mod events;
mod input;
mod leftover;
mod recording;
mod signals;

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use devices::lock;
use devices::serial::{SerialOutput, output};

use crate::machine::{self, Machine};
use crate::memory::dump::PageOrigin;
use crate::memory::{Prefetch, uffd};
use crate::vcpu::StopReason;

pub use events::run;
pub use input::{Input, InputAction, InputFilter};
pub(crate) use recording::Recording;
pub use signals::{
    block as block_signals, ignore_output_signals, not_ignored as heeded_signals, unblock as unblock_signal,
};

/// How long a reader of the guest's output may make no progress before the end of the VM no longer waits for it.
pub const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a vCPU that waits for a page of a handler keeps the guest from being paused, and everybody else waiting.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pieces of a working set, some 100 us each, that are made ready before the guest runs. It need not have asked for them, so that
/// it waits no longer than that; the event loop goes on while it runs.
const CHUNKS_BEFORE_RESUME: u32 = 8;

/// Where the guest's serial port is connected to the process around the VM.
pub struct Console {
    /// What the guest prints goes here.
    pub output: SerialOutput,
    /// What the guest's serial port receives; nothing when there is none.
    pub input: Option<OwnedFd>,
    /// Sees the input before the guest does.
    pub filter: Option<Box<dyn InputFilter>>,
    /// Dropped when the VM is over: gives the user's terminal back.
    pub guard: Option<Box<dyn Any>>,
}

/// What the memory of a restored VM is, where the guest has not written.
pub(crate) enum MemoryBacking {
    /// A snapshot's memory file.
    File(File),
    /// Served by another process, as long as this is there.
    Served(uffd::FaultHandler),
}

/// Why a VM is over.
#[derive(Debug)]
pub enum ExitReason {
    /// A vCPU has left the guest for good.
    Guest(StopReason),
    /// The user has asked for it at the console.
    User,
    /// A signal has asked for it.
    Signal(libc::c_int),
    /// There never was one: the snapshot that it was to come from is of no use.
    Failed,
}

/// Why the event loop could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor of the event loop could not be had.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The event loop failed.
    #[error("cannot wait for events")]
    Events(#[source] event_manager::Error),
}

/// A machine whose vCPUs run, or wait while it is paused. Dropping it stops them.
pub struct Vm {
    machine: Machine,
    paused: bool,
    /// What the VM was restored from.
    base: Option<MemoryBacking>,
    /// Pages that are being made ready.
    preparation: Option<Prefetch>,
    recording: Option<Recording>,
    input: Option<Input>,
    guard: Option<Box<dyn Any>>,
}

impl Vm {
    pub(crate) fn new(machine: Machine, input: Option<Input>, guard: Option<Box<dyn Any>>) -> Self {
        Self {
            machine,
            paused: false,
            base: None,
            preparation: None,
            recording: None,
            input,
            guard,
        }
    }

    /// A VM that is paused, whose memory is what `base` holds.
    pub(crate) fn restored(
        machine: Machine,
        base: MemoryBacking,
        input: Option<Input>,
        guard: Option<Box<dyn Any>>,
    ) -> Self {
        let mut vm = Self::new(machine, input, guard);
        vm.paused = true;
        vm.base = Some(base);
        vm
    }

    /// Has what the guest touches recorded, if that is wanted.
    pub(crate) fn record_with(&mut self, recording: Option<Recording>) {
        self.recording = recording;
    }

    /// Has pages made ready: some now, and the rest by the event loop.
    pub(crate) fn start_prefetch(&mut self, preparation: Prefetch) {
        self.preparation = Some(preparation);
        for _ in 0..CHUNKS_BEFORE_RESUME {
            if self.preparation.as_ref().is_some_and(Prefetch::has_runs) {
                self.prefetch_chunk();
            }
        }
    }

    /// Makes some more pages ready; whether there are more.
    fn prefetch_chunk(&mut self) -> bool {
        let Some(preparation) = &mut self.preparation else {
            return false;
        };
        let more = preparation.populate_chunk(self.machine.memory());
        if !more {
            log::info!("pages of the working set that are ready: {}", preparation.ready());
            self.preparation = None;
        }
        more
    }

    fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Ends the recording of what the guest touches, if there is one that has begun.
    pub(crate) fn stop_recording(&mut self) {
        if self.recording().is_some_and(Recording::has_begun) {
            self.end_recording();
        }
    }

    fn end_recording(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.end(self.machine.memory());
        }
    }

    /// Where the guest's memory came from.
    pub(crate) fn page_origin(&self) -> PageOrigin<'_> {
        match &self.base {
            None => PageOrigin::Fresh,
            Some(MemoryBacking::File(file)) => PageOrigin::Mapped(file),
            Some(MemoryBacking::Served(_)) => PageOrigin::Served,
        }
    }

    /// Whether pages that the guest has not touched are lost, because the handler that has them has ended.
    pub(crate) fn is_fault_handler_gone(&self) -> bool {
        matches!(&self.base, Some(MemoryBacking::Served(handler)) if handler.is_disconnected())
    }

    /// Keeps the guest from running, with every instruction that it was in completed. Nothing happens if it is paused.
    ///
    /// # Errors
    /// [`machine::Error::Pause`]; the guest then runs as before.
    pub fn pause(&mut self) -> Result<(), machine::Error> {
        if !self.paused {
            match self.base {
                Some(MemoryBacking::Served(_)) => self.machine.pause_timeout(PAGE_TIMEOUT)?,
                _ => self.machine.pause(),
            }
            self.paused = true;
            if let Some(recording) = &mut self.recording {
                recording.pause();
            }
        }
        Ok(())
    }

    /// Lets the guest run again.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.machine.resume();
            if let Some(preparation) = &mut self.preparation {
                preparation.leave_single();
            }
            if let Some(recording) = &mut self.recording {
                recording.resume();
            }
        }
    }

    /// Does ahead what can be done of [`resume`](Self::resume) while the VM stays paused, and does not wait for it.
    pub(crate) fn prepare_resume(&self) {
        // KVM may touch guest memory, which a page fault handler is not asked for before the guest runs.
        if matches!(self.base, Some(MemoryBacking::File(_))) {
            self.machine.prepare_resume();
        }
    }

    /// Whether the guest is kept from running.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What the event loop reads for the guest; once.
    fn take_input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// Counts what nobody has taken of the guest's output as lost, gives the terminal back, and says what was lost, if
    /// something was and it was not said yet.
    pub fn finish_output(&mut self) -> Option<output::Error> {
        self.machine.mark_first_output();
        self.machine.discard_output();
        self.guard = None;
        lock(self.machine.serial()).output_mut().report()
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The threads are waited for, and one of them may itself wait for a page that nobody gives it.
        if let Some(MemoryBacking::Served(handler)) = &self.base {
            self.machine.stop();
            handler.release();
        }
    }
}
