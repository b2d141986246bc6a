//! Suspend of a VM, by request or when its guest is idle: a snapshot is created, and the process ends.
//!
//! ```text
//! awake ── idle, or a request ──> paused ──> snapshot (operation thread) ──> suspended: the process ends
//!   ^                                │ a frame, a request, an error
//!   └──────── resumed ───────────────┘
//! ```
//! The snapshot is complete before anything of the last one is removed; see [`SuspendDirectory`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::idle::{BusyReason, IdleDetector};
use crate::cancellation::{BeginError, Cancellation};
use crate::config::VmConfig;
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
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(10);

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
    /// them, the snapshot is a generation in the directory of [`Control::set_suspend_directory`](super::Control::set_suspend_directory).
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
pub(super) enum Phase {
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
    pub config: ScaleToZeroConfig,
    pub directory: Option<Arc<SuspendDirectory>>,
    /// `None` while nothing is searched.
    pub detector: Option<IdleDetector>,
    pub phase: Phase,
    pub cancel: Option<CancelReason>,
    /// A client has announced that the guest is ready.
    pub is_ready: bool,
    pub is_polling_reported: bool,
    pub error: Option<String>,
    /// Earliest time of the next suspend of an idle VM.
    pub retry_at: Option<Instant>,
    pub metrics: ScaleToZeroMetrics,
    /// Last reported state and the time of its begin.
    pub state: Option<(IdleState, Instant)>,
}

/// Place of the snapshot.
pub(super) enum Target {
    Generation(Arc<SuspendDirectory>),
    Files(SnapshotFiles),
}

impl ScaleToZero {
    pub fn target(&self) -> Option<Target> {
        match (&self.config.files, &self.directory) {
            (Some(files), _) => Some(Target::Files(files.clone())),
            (None, Some(directory)) => Some(Target::Generation(directory.clone())),
            (None, None) => None,
        }
    }

    pub fn check(&self, config: &ScaleToZeroConfig) -> Result<(), ScaleToZeroError> {
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
    pub fn update_state(&mut self, is_running: bool, now: Instant) -> (IdleState, Instant) {
        let state = self.present_state(is_running);
        let known = self.state.filter(|(known, _)| *known == state);
        *self.state.insert(known.unwrap_or((state, now)))
    }

    /// Reports a guest that polls, once.
    pub fn report_polling(&mut self) {
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
    pub fn write(
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
