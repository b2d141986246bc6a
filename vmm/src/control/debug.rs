//! Debugger of a VM.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Control, Progress};
use crate::cancellation::{BeginError, Cancellation};
use crate::config::VmConfig;
use crate::debugger::{AttachError, DebugAbilities, DebugSettings, Debugger, SnapshotRequest};
use crate::error_chain::ErrorChain;
use crate::machine;
use crate::persistence::CreateSnapshotParams;
use crate::vm::VmCore;

/// Text for a command while another operation runs.
const BUSY: &str =
    "cannot create the snapshot: another operation on the VM runs; repeat the command when it has ended";

impl Control {
    /// Listens for gdb from the start or load on. Unless the settings let the guest run, its vCPUs stop before their first instruction
    /// and wait for gdb.
    pub fn set_debugger(&mut self, settings: DebugSettings) {
        self.debug_settings = Some(Box::new(settings));
    }

    /// Makes 1 the status of a crash that gdb shows, as that of the process.
    pub fn set_plain_crash_status(&mut self) {
        self.has_plain_crash_status = true;
    }

    /// Returns true if a crash has status 1.
    pub(crate) fn has_plain_crash_status(&self) -> bool {
        self.has_plain_crash_status
    }

    /// Starts the debugger of the settings, if there are some, for the VM of `core`.
    pub(super) fn start_debugger(&mut self, core: &Arc<VmCore>) -> Result<(), BeginError> {
        if let Some(settings) = self.debug_settings.take() {
            let started = Debugger::start(core.clone(), Some(*settings));
            self.debugger = Some(started.map_err(BeginError::Thread)?);
        }
        Ok(())
    }

    /// Attaches gdb on `stream` to the started VM, which stops.
    ///
    /// # Errors
    /// [`AttachError`]; [`AttachError::BeforeStart`] without a VM.
    pub fn attach_debugger(
        &mut self,
        stream: UnixStream,
        abilities: DebugAbilities,
    ) -> Result<(), AttachError> {
        let core = self.vm().ok_or(AttachError::BeforeStart)?.core().clone();
        let debugger = match &mut self.debugger {
            Some(debugger) => debugger,
            none => none.insert(Debugger::start(core, None).map_err(AttachError::Thread)?),
        };
        debugger.attach(stream, abilities)
    }

    /// Checks that a debugger can attach.
    ///
    /// # Errors
    /// [`AttachError`]
    pub fn check_attach(&self) -> Result<(), AttachError> {
        self.vm().ok_or(AttachError::BeforeStart)?;
        // Held vCPUs may wait for a debugger to come.
        match self.is_debugger_attached() {
            true => Err(AttachError::Busy),
            false => Ok(()),
        }
    }

    fn is_debugger_attached(&self) -> bool {
        self.debugger.as_ref().is_some_and(Debugger::is_attached)
    }

    /// Returns true while a debugger is attached, or the vCPUs wait for one.
    pub(super) fn has_debugger(&self) -> bool {
        self.is_debugger_attached() || self.vm().is_some_and(|vm| vm.machine().is_held())
    }

    /// Returns the eventfd that is signalled with each request of the debugger, once there is one. It never changes.
    pub(crate) fn debugger_event(&self) -> Option<&EventFd> {
        self.debugger.as_ref().map(Debugger::snapshot_event)
    }

    /// Handles a request of the debugger.
    pub(crate) fn handle_debugger(&mut self) {
        let Some(request) = self.debugger.as_ref().and_then(Debugger::take_snapshot_request) else {
            return;
        };
        if self.is_busy() {
            // Fails if the debugger does not wait any longer.
            let _ = request.result.send(Err(BUSY.to_owned()));
            return;
        }
        let Some(vm) = self.vm() else { return };
        if vm.is_paused() {
            return self.create_for_debugger(request, true);
        }
        let core = vm.core().clone();
        if !core.machine().has_io_thread() {
            let paused = core.pause_quickly();
            return self.continue_snapshot(request, paused);
        }
        let reply = request.result.clone();
        let begun: Result<Progress, BeginError> = self.begin(move |_| {
            let paused = core.pause();
            move |control: &mut Self| {
                control.continue_snapshot(request, paused);
                Ok(())
            }
        });
        if let Err(error) = begun {
            let _ = reply.send(Err(ErrorChain(&error).to_string()));
        }
    }

    fn continue_snapshot(&mut self, request: SnapshotRequest, paused: Result<(), machine::Error>) {
        match paused {
            Ok(()) => self.create_for_debugger(request, false),
            Err(error) => {
                let _ = request.result.send(Err(ErrorChain(&error).to_string()));
            }
        }
    }

    /// Creates the snapshot of `request`. The vCPUs are outside the guest.
    fn create_for_debugger(&mut self, request: SnapshotRequest, was_paused: bool) {
        let Some(vm) = self.vm_mut() else { return };
        vm.set_paused();
        vm.end_begun_recording();
        let (core, config) = (vm.core().clone(), vm.config().clone());
        let SnapshotRequest { directory, result } = request;
        let reply = result.clone();
        let begun: Result<Progress, BeginError> = self.begin(move |cancellation| {
            let created = create(&core, &config, &directory, cancellation);
            move |control: &mut Self| {
                let resumed = control.resume_after_snapshot(was_paused);
                let _ = result.send(created.and(resumed));
                Ok(())
            }
        });
        if let Err(error) = begun {
            let _ = self.resume_after_snapshot(was_paused);
            let _ = reply.send(Err(ErrorChain(&error).to_string()));
        }
    }

    fn resume_after_snapshot(&mut self, was_paused: bool) -> Result<(), String> {
        match self.vm_mut() {
            Some(vm) if !was_paused => vm.resume().map_err(|error| ErrorChain(&error).to_string()),
            _ => Ok(()),
        }
    }

    /// Ends the debugger at the end of the VM, which has this exit status. Waits at most a second for gdb.
    pub(crate) fn end_debugger(&mut self, status: u8) {
        if let Some(debugger) = self.debugger.take() {
            debugger.end(status);
        }
    }
}

/// Creates a snapshot in `directory`. After a failure, a new directory is removed, without its new parents.
fn create(
    core: &VmCore,
    config: &VmConfig,
    directory: &Path,
    cancellation: &Cancellation,
) -> Result<(), String> {
    let is_new = !directory.exists();
    fs::create_dir_all(directory)
        .map_err(|error| format!("cannot create the directory {}: {error}", directory.display()))?;
    let params = CreateSnapshotParams::full_in(directory);
    let created = params.create(core, config, &[], cancellation);
    created.map(drop).map_err(|error| {
        if is_new {
            // Fails if another process has put a file into it.
            let _ = fs::remove_dir(directory);
        }
        ErrorChain(&error).to_string()
    })
}
