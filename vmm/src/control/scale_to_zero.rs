//! Suspend of a VM, by request or when its guest is idle: a snapshot is created, and the process ends.
//!
//! ```text
//! awake ── idle, or a request ──> paused ──> snapshot (operation thread) ──> suspended: the process ends
//!   ^                                │ a frame, a request, an error
//!   └──────── resumed ───────────────┘
//! ```
//! The snapshot is complete before anything of the last one is removed; see [`SuspendDirectory`].

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::idle::{BusyReason, IdleDetector, Sample};
use super::{Control, InstanceState, OperationError, OperationResult, OperationTimes, Progress};
use crate::cancellation::{BeginError, Cancellation};
use crate::config::{DeviceKind, VmConfig};
use crate::error_chain::ErrorChain;
use crate::machine::{self, Machine, state};
use crate::persistence::{
    CreateSnapshotError, CreateSnapshotParams, GenerationError, SnapshotKind, SuspendDirectory,
};
use crate::vm::VmCore;

/// Default of [`ScaleToZeroConfig::cooldown`].
pub const DEFAULT_COOLDOWN: Duration = Duration::from_secs(1);
/// Maximum of [`ScaleToZeroConfig::cooldown`] in milliseconds: a day.
pub const MAX_COOLDOWN_MS: u64 = 86_400_000;
/// Default of [`ScaleToZeroConfig::max_cpu_percent`].
pub const DEFAULT_MAX_CPU_PERCENT: u32 = 5;

/// Minimum time between a failed suspend of an idle VM and the next one: its cause, such as a full disk, may last.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Decision to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Only a request suspends the VM.
    #[default]
    Off,
    /// The VM is suspended when its guest is idle.
    Idle,
}

/// Files of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// State file.
    pub state: PathBuf,
    /// Memory file.
    pub memory: PathBuf,
}

/// Settings of the suspend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleToZeroConfig {
    /// Decision to suspend.
    pub policy: IdlePolicy,
    /// Time for which the guest must be idle, 1 ms to [`MAX_COOLDOWN_MS`].
    pub cooldown: Duration,
    /// Processor time that an idle guest may use, in percent of one processor, 1 to 100.
    pub max_cpu_percent: u32,
    /// A suspend creates a snapshot. Otherwise, the process ends without one.
    pub is_stateful: bool,
    /// Files of the snapshot, which must not exist at the suspend: a kill between the renames of both must not cost an older pair. Without
    /// them, the snapshot is a generation in the directory of [`Control::set_suspend_directory`].
    pub files: Option<SnapshotFiles>,
}

impl Default for ScaleToZeroConfig {
    fn default() -> Self {
        Self {
            policy: IdlePolicy::Off,
            cooldown: DEFAULT_COOLDOWN,
            max_cpu_percent: DEFAULT_MAX_CPU_PERCENT,
            is_stateful: true,
            files: None,
        }
    }
}

/// Failure of a suspend or of its settings. The VM is unchanged, and runs if it did before.
#[derive(Debug, thiserror::Error)]
pub enum ScaleToZeroError {
    /// The VM is not started.
    #[error("cannot suspend the VM: it is not started; start it first")]
    BeforeStart,
    /// There is no place for the snapshot.
    #[error("cannot suspend the VM: no place for its snapshot is set; set one")]
    NoTarget,
    /// The cool-down is out of range.
    #[error("cannot set a cool-down of {0} ms; choose 1 to {MAX_COOLDOWN_MS}")]
    Cooldown(u128),
    /// The limit of processor time is out of range.
    #[error("cannot permit an idle guest {0} % of a processor; choose 1 to 100")]
    CpuPercent(u32),
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(GenerationError),
    /// A file of the snapshot exists.
    #[error("cannot suspend the VM to {0:?}: the file exists; move it away")]
    Exists(PathBuf),
    /// The guest cannot be paused.
    #[error(transparent)]
    Pause(machine::Error),
    /// The suspend cannot run on another thread.
    #[error("cannot begin the suspend")]
    Thread(#[source] BeginError),
    /// The guest has ended.
    #[error("cannot suspend the VM: its guest has ended")]
    Ended,
    /// The requests in flight cannot be completed.
    #[error("cannot complete the drive requests in flight")]
    Drain(#[source] state::Error),
    /// A disk cannot be synced.
    #[error("cannot sync disk {path:?}")]
    Disk {
        /// Path of the disk.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot cannot be created.
    #[error(transparent)]
    Create(CreateSnapshotError),
    /// The suspend was cancelled.
    #[error("cannot complete the suspend: {0} cancelled it")]
    Cancelled(CancelReason),
    /// There is no suspend to cancel.
    #[error("cannot cancel the suspend: the VM does not suspend")]
    NotSuspending,
    /// The suspend is complete.
    #[error("cannot cancel the suspend: its snapshot is complete, and the process ends")]
    TooLate,
}

/// Origin of the cancellation of a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// A frame has arrived for the guest.
    Frame,
    /// A request.
    Request,
    /// The client that has requested the suspend has disconnected, or the process ends.
    Client,
}

impl std::fmt::Display for CancelReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Frame => "a frame",
            Self::Request => "a request",
            Self::Client => "the end of its client",
        })
    }
}

/// State of the search for an idle guest, and of the suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing is searched: the policy is off, or the VM is not started or paused.
    #[default]
    Off,
    /// The guest is not ready.
    NotReady,
    /// The guest is not idle.
    Busy,
    /// The guest has been idle for less than the cool-down.
    Cooldown,
    /// A snapshot is being created.
    Suspending,
    /// The snapshot is complete, and the process ends.
    Suspended,
}

/// Status of the suspend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleToZeroStatus {
    /// Settings.
    pub config: ScaleToZeroConfig,
    /// Directory of the generations, if there is one.
    pub directory: Option<PathBuf>,
    /// State.
    pub state: IdleState,
    /// Time since the change to this state.
    pub since: Duration,
    /// Last reason for which the guest was not idle.
    pub reason: Option<BusyReason>,
    /// Failure of the last suspend, if it has failed.
    pub error: Option<String>,
    /// Counters.
    pub metrics: ScaleToZeroMetrics,
}

/// Counters of suspends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScaleToZeroMetrics {
    /// Begun suspends.
    pub suspends: u64,
    /// Cancelled suspends.
    pub cancels: u64,
    /// Failed suspends.
    pub failures: u64,
    /// Number of times that the guest was found to poll.
    pub polling: u64,
    /// Duration of the complete suspend in microseconds, at least 1; 0 before it.
    pub suspend_us: u64,
}

/// Phase of the suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Awake,
    /// The VM was paused before if `was_paused`.
    Suspending {
        was_paused: bool,
    },
    Suspended,
}

/// Suspend of a VM: settings and progress.
#[derive(Debug, Default)]
pub(super) struct ScaleToZero {
    config: ScaleToZeroConfig,
    directory: Option<Arc<SuspendDirectory>>,
    /// `None` while nothing is searched.
    detector: Option<IdleDetector>,
    phase: Phase,
    cancel: Option<CancelReason>,
    /// A client has announced that the guest is ready.
    is_ready: bool,
    is_polling_reported: bool,
    error: Option<String>,
    /// Earliest time of the next suspend of an idle VM.
    retry_at: Option<Instant>,
    metrics: ScaleToZeroMetrics,
    /// Last reported state and the time of its begin.
    state: Option<(IdleState, Instant)>,
}

/// Place of the snapshot.
enum Target {
    Generation(Arc<SuspendDirectory>),
    Files(SnapshotFiles),
}

impl ScaleToZero {
    /// Returns the counters.
    pub fn metrics(&self) -> ScaleToZeroMetrics {
        self.metrics
    }

    fn target(&self) -> Option<Target> {
        match (&self.config.files, &self.directory) {
            (Some(files), _) => Some(Target::Files(files.clone())),
            (None, Some(directory)) => Some(Target::Generation(directory.clone())),
            (None, None) => None,
        }
    }

    fn check(&self, config: &ScaleToZeroConfig) -> Result<(), ScaleToZeroError> {
        let milliseconds = config.cooldown.as_millis();
        if !(1..=u128::from(MAX_COOLDOWN_MS)).contains(&milliseconds) {
            return Err(ScaleToZeroError::Cooldown(milliseconds));
        }
        if !(1..=100).contains(&config.max_cpu_percent) {
            return Err(ScaleToZeroError::CpuPercent(config.max_cpu_percent));
        }
        let has_target = config.files.is_some() || self.directory.is_some() || !config.is_stateful;
        if config.policy == IdlePolicy::Idle && !has_target {
            return Err(ScaleToZeroError::NoTarget);
        }
        Ok(())
    }

    /// Returns the present state, given that a search is possible if `is_running`.
    fn present_state(&self, is_running: bool) -> IdleState {
        match (self.phase, &self.detector) {
            (Phase::Suspended, _) => IdleState::Suspended,
            (Phase::Suspending { .. }, _) => IdleState::Suspending,
            (Phase::Awake, Some(detector)) if is_running => match detector.busy() {
                Some(BusyReason::NotReady) => IdleState::NotReady,
                Some(_) => IdleState::Busy,
                None => IdleState::Cooldown,
            },
            (Phase::Awake, _) => IdleState::Off,
        }
    }

    /// Updates the state. Returns it with the time of its begin.
    fn update_state(&mut self, is_running: bool, now: Instant) -> (IdleState, Instant) {
        let state = self.present_state(is_running);
        let known = self.state.filter(|(known, _)| *known == state);
        *self.state.insert(known.unwrap_or((state, now)))
    }

    /// Reports a guest that polls, once.
    fn report_polling(&mut self) {
        let is_polling = self.detector.as_ref().is_some_and(IdleDetector::is_polling);
        if is_polling && !std::mem::replace(&mut self.is_polling_reported, true) {
            self.metrics.polling += 1;
            log::warn!(
                "the guest is never idle: its vCPUs use a processor all the time, although it transfers nothing; use an image that halts \
                 when it waits"
            );
        }
    }
}

impl Target {
    /// Creates the snapshot of the paused VM.
    fn write(
        &self,
        vm: &VmCore,
        config: &VmConfig,
        cancellation: &Cancellation,
    ) -> Result<(), ScaleToZeroError> {
        sync_disks(vm.machine())?;
        match self {
            Self::Generation(directory) => {
                let generation = directory.begin().map_err(ScaleToZeroError::Directory)?;
                let (state, memory) = generation.files();
                create(state, memory, vm, config, cancellation)?;
                generation.commit().map_err(ScaleToZeroError::Directory)
            }
            Self::Files(SnapshotFiles { state, memory }) => {
                if let Some(path) = [state, memory].into_iter().find(|path| exists(path)) {
                    return Err(ScaleToZeroError::Exists(path.clone()));
                }
                create(state.clone(), memory.clone(), vm, config, cancellation)
            }
        }
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn create(
    state: PathBuf,
    memory: PathBuf,
    vm: &VmCore,
    config: &VmConfig,
    cancellation: &Cancellation,
) -> Result<(), ScaleToZeroError> {
    let params = CreateSnapshotParams {
        kind: SnapshotKind::Full,
        state,
        memory,
    };
    // A new file is none of the open files of this process.
    let created = params.create(vm, config, &[], cancellation);
    created.map(drop).map_err(ScaleToZeroError::Create)
}

/// Syncs the writable disks, whose writes in flight complete first: the memory of the guest takes them for written, and no guest repeats
/// them after a power loss.
fn sync_disks(machine: &Machine) -> Result<(), ScaleToZeroError> {
    machine.drain_devices().map_err(ScaleToZeroError::Drain)?;
    for disk in machine.disks().filter(|disk| !disk.is_read_only()) {
        disk.sync().map_err(|source| ScaleToZeroError::Disk {
            path: disk.path().to_owned(),
            source,
        })?;
    }
    Ok(())
}

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
            self.finish_pause(Ok(()), start)
                .map_err(|_| ScaleToZeroError::BeforeStart)?;
            return self.save_suspended(target, start);
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
        let super::Instance::Started(vm) = &self.instance else {
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
