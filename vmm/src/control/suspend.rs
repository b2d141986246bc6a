//! Suspend of a VM: its steps on the main thread, and the search for an idle guest.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::idle::{BusyReason, IdleDetector, Sample};
use super::scale_to_zero::{
    CancelReason, IdlePolicy, Phase, RETRY_INTERVAL, ScaleToZeroConfig, ScaleToZeroError, ScaleToZeroStatus,
    Target,
};
use super::{Control, Instance, InstanceState, OperationError, OperationResult, OperationTimes, Progress};
use crate::config::DeviceKind;
use crate::error_chain::ErrorChain;
use crate::machine::{self, Machine};
use crate::persistence::SuspendDirectory;

/// Interval of the search for a debugger that has detached.
const DEBUGGER_INTERVAL: Duration = Duration::from_secs(1);

impl Control {
    /// Sets the directory of the generations, and opens it.
    ///
    /// # Errors
    /// [`ScaleToZeroError::Directory`]
    pub fn set_suspend_directory(&mut self, path: &Path) -> Result<(), ScaleToZeroError> {
        let directory = SuspendDirectory::open(path).map_err(ScaleToZeroError::Directory)?;
        self.scale_to_zero.directory = Some(Arc::new(directory));
        Ok(())
    }

    /// Changes the settings of the suspend, before or after the start. A cool-down begins again. Does not access the file system.
    ///
    /// # Errors
    /// [`ScaleToZeroError::Cooldown`], [`ScaleToZeroError::CpuPercent`] and [`ScaleToZeroError::NoTarget`]; nothing is changed then.
    pub fn set_scale_to_zero(&mut self, config: ScaleToZeroConfig) -> Result<(), ScaleToZeroError> {
        self.scale_to_zero.check(&config)?;
        self.scale_to_zero.config = config;
        self.scale_to_zero.retry_at = None;
        self.stop_idle_search();
        Ok(())
    }

    /// Returns settings and state of the suspend.
    pub fn scale_to_zero(&mut self) -> ScaleToZeroStatus {
        let now = Instant::now();
        let is_running = self.state() == InstanceState::Running;
        let suspend = &mut self.scale_to_zero;
        let (state, since) = suspend.update_state(is_running, now);
        ScaleToZeroStatus {
            config: suspend.config.clone(),
            directory: suspend
                .directory
                .as_ref()
                .map(|directory| directory.path().to_owned()),
            state,
            since: now.saturating_duration_since(since),
            reason: suspend.detector.as_ref().and_then(IdleDetector::last_reason),
            error: suspend.error.clone(),
            metrics: suspend.metrics,
        }
    }

    /// Announces that the guest is ready: the cool-down begins.
    ///
    /// # Errors
    /// [`ScaleToZeroError::BeforeStart`]
    pub fn set_ready(&mut self) -> Result<(), ScaleToZeroError> {
        self.vm().ok_or(ScaleToZeroError::BeforeStart)?;
        self.scale_to_zero.is_ready = true;
        Ok(())
    }

    /// Suspends the VM at once. The event loop ends the process when the snapshot is complete. Has no effect on a VM that suspends
    /// already.
    ///
    /// # Errors
    /// [`ScaleToZeroError`]; the VM runs on, if it ran before.
    pub fn suspend(&mut self) -> Result<Progress, ScaleToZeroError> {
        let vm = self.vm().ok_or(ScaleToZeroError::BeforeStart)?;
        let was_paused = vm.is_paused();
        let suspend = &mut self.scale_to_zero;
        if suspend.phase != Phase::Awake {
            return Ok(Progress::Done);
        }
        if !suspend.config.is_stateful {
            suspend.metrics.suspends += 1;
            suspend.phase = Phase::Suspended;
            return Ok(Progress::Done);
        }
        let target = suspend.target().ok_or(ScaleToZeroError::NoTarget)?;
        suspend.metrics.suspends += 1;
        suspend.phase = Phase::Suspending { was_paused };
        (suspend.cancel, suspend.error) = (None, None);
        let begun = self.pause_and_save(target, Instant::now());
        begun.map_err(|error| self.fail_suspend(error))
    }

    /// Pauses the guest, then saves it on another thread. The pause runs there too if it may take long.
    fn pause_and_save(&mut self, target: Target, start: Instant) -> Result<Progress, ScaleToZeroError> {
        let vm = self.vm_mut().ok_or(ScaleToZeroError::BeforeStart)?;
        if vm.is_paused() {
            return self.save_suspended(target, start);
        }
        let core = vm.core().clone();
        if !core.machine().has_io_thread() && core.pause_quickly().is_ok() {
            return self.continue_suspend(Ok(()), target, start);
        }
        let begun = self.begin(move |_| {
            let paused = core.pause();
            move |control: &mut Self| {
                let saved = control.continue_suspend(paused, target, start);
                saved
                    .map(drop)
                    .map_err(|error| OperationError::Suspend(control.fail_suspend(error)))
            }
        });
        begun.map_err(ScaleToZeroError::Thread)
    }

    fn continue_suspend(
        &mut self,
        paused: Result<(), machine::Error>,
        target: Target,
        start: Instant,
    ) -> Result<Progress, ScaleToZeroError> {
        paused.map_err(ScaleToZeroError::Pause)?;
        if let Some(vm) = self.vm_mut() {
            vm.set_paused();
        }
        if let Some(reason) = self.scale_to_zero.cancel {
            return Err(ScaleToZeroError::Cancelled(reason));
        }
        self.save_suspended(target, start)
    }

    /// Begins to create the snapshot of the paused VM.
    fn save_suspended(&mut self, target: Target, start: Instant) -> Result<Progress, ScaleToZeroError> {
        let vm = self.vm_mut().ok_or(ScaleToZeroError::BeforeStart)?;
        // The event loop has its stop reason next.
        if vm.machine().has_ended() {
            return Err(ScaleToZeroError::Ended);
        }
        // A VM that is resumed after this touches pages for other reasons than its load.
        vm.end_begun_recording();
        let (core, config) = (vm.core().clone(), vm.config().clone());
        let begun = self.begin(move |cancellation| {
            let written = target.write(&core, &config, cancellation);
            move |control: &mut Self| control.finish_suspend(written, start)
        });
        begun.map_err(ScaleToZeroError::Thread)
    }

    fn finish_suspend(&mut self, written: Result<(), ScaleToZeroError>, start: Instant) -> OperationResult {
        written.map_err(|error| OperationError::Suspend(self.fail_suspend(error)))?;
        let us = OperationTimes::elapsed_us(start);
        self.scale_to_zero.metrics.suspend_us = us;
        self.scale_to_zero.phase = Phase::Suspended;
        log::info!("the VM is suspended after {us} us");
        Ok(())
    }

    /// Continues the VM after a suspend that has failed by `error`, or was cancelled. Returns the error.
    fn fail_suspend(&mut self, error: ScaleToZeroError) -> ScaleToZeroError {
        let suspend = &mut self.scale_to_zero;
        let phase = std::mem::take(&mut suspend.phase);
        let error = match suspend.cancel {
            Some(reason) => {
                suspend.metrics.cancels += 1;
                ScaleToZeroError::Cancelled(reason)
            }
            // The guest ends mayfly.
            None if matches!(error, ScaleToZeroError::Ended) => error,
            None => {
                let text = ErrorChain(&error).to_string();
                log::warn!("the VM runs on: {text}");
                suspend.metrics.failures += 1;
                suspend.retry_at = Some(Instant::now() + suspend.config.cooldown.max(RETRY_INTERVAL));
                suspend.error = Some(text);
                error
            }
        };
        if phase == (Phase::Suspending { was_paused: false })
            && let Some(vm) = self.vm_mut()
            && let Err(error) = vm.resume()
        {
            log::error!("the VM stays paused: {}", ErrorChain(&error));
        }
        error
    }

    /// Cancels a suspend in progress. The VM continues when its thread has ended.
    ///
    /// # Errors
    /// [`ScaleToZeroError::NotSuspending`], and [`ScaleToZeroError::TooLate`] when the snapshot is complete.
    pub fn cancel_suspend(&mut self, reason: CancelReason) -> Result<(), ScaleToZeroError> {
        match self.scale_to_zero.phase {
            Phase::Awake => return Err(ScaleToZeroError::NotSuspending),
            Phase::Suspended => return Err(ScaleToZeroError::TooLate),
            Phase::Suspending { .. } => {}
        }
        let operation = self.operation.as_ref().ok_or(ScaleToZeroError::NotSuspending)?;
        if !operation.cancel() {
            return Err(ScaleToZeroError::TooLate);
        }
        self.scale_to_zero.cancel.get_or_insert(reason);
        Ok(())
    }

    /// Returns true while the VM suspends. A client may cancel it.
    pub fn is_suspending(&self) -> bool {
        matches!(self.scale_to_zero.phase, Phase::Suspending { .. })
    }

    /// Returns true if the VM is suspended. The event loop then ends the process, and a service must execute no further request.
    pub fn is_suspended(&self) -> bool {
        self.scale_to_zero.phase == Phase::Suspended
    }

    /// Returns the descriptors that become readable with a frame for the guest, which cancels the suspend in progress. None before the
    /// guest is paused.
    pub(crate) fn suspend_wake_descriptors(&self) -> Vec<RawFd> {
        let vm = self.vm().filter(|vm| vm.is_paused() && self.is_suspending());
        vm.map(|vm| vm.machine().wake_descriptors()).unwrap_or_default()
    }

    fn stop_idle_search(&mut self) {
        if self.scale_to_zero.detector.take().is_some()
            && let Some(vm) = self.vm()
        {
            vm.machine().ignore_activity();
        }
    }

    /// Searches for an idle guest, and suspends it. Returns the time until the next call; `None` while nothing is searched.
    pub(crate) fn check_idle(&mut self) -> Option<Duration> {
        let is_searching = self.scale_to_zero.config.policy == IdlePolicy::Idle
            && self.scale_to_zero.phase == Phase::Awake
            && self.operation.is_none()
            && self.state() == InstanceState::Running;
        let now = Instant::now();
        if !is_searching {
            // A cool-down begins again after a pause or another operation.
            self.stop_idle_search();
            self.scale_to_zero.update_state(false, now);
            return None;
        }
        if self.has_debugger() {
            // A guest that its debugger has stopped is not idle.
            self.stop_idle_search();
            self.scale_to_zero.update_state(false, now);
            return Some(DEBUGGER_INTERVAL);
        }
        let is_idle = self.update_detector(now)?;
        let next = self.scale_to_zero.detector.as_ref()?.next_sample(now);
        let is_due = self.scale_to_zero.retry_at.is_none_or(|at| at <= now);
        if is_idle && is_due {
            // The failure is in log and status.
            if let Ok(Progress::Pending) = self.suspend() {
                return None;
            }
        }
        Some(next)
    }

    /// Adds a sample to the detector. Returns true if the guest is idle.
    fn update_detector(&mut self, now: Instant) -> Option<bool> {
        let is_ready = self.scale_to_zero.is_ready;
        let Instance::Started(vm) = &self.instance else {
            return None;
        };
        let (machine, suspend) = (vm.machine(), &mut self.scale_to_zero);
        let config = &suspend.config;
        let detector = suspend.detector.get_or_insert_with(|| {
            machine.observe_activity();
            IdleDetector::new(config.cooldown, config.max_cpu_percent, now)
        });
        let activity = machine.activity();
        let sample = Sample {
            cpu: activity.cpu,
            frames: activity.frames,
            requests: activity.requests,
            // A restored guest was ready when it was saved.
            is_ready: is_ready || activity.is_ready || vm.core().is_restored(),
        };
        let mut is_idle = detector.update(now, sample);
        if is_idle && let Some(reason) = busy_reason(machine) {
            detector.postpone(now, reason);
            is_idle = false;
        }
        suspend.report_polling();
        suspend.update_state(true, now);
        Some(is_idle)
    }
}

/// Returns the reason for which a guest, idle by its counters, is busy now.
fn busy_reason(machine: &Machine) -> Option<BusyReason> {
    if !machine.are_vcpus_halted() {
        return Some(BusyReason::Cpu);
    }
    if machine.has_work(|device| device.kind() == DeviceKind::Drive) {
        return Some(BusyReason::Drive);
    }
    let has_frame =
        machine.has_work(|device| device.kind() == DeviceKind::Interface) || machine.has_frame_in_backend();
    has_frame.then_some(BusyReason::Frame)
}
