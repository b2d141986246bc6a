//! Suspend of an idle VM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm::control::{
    self, DEFAULT_COOLDOWN, DEFAULT_MAX_CPU_PERCENT, MAX_COOLDOWN_MS, ScaleToZeroConfig, ScaleToZeroStatus,
    SnapshotFiles,
};

use super::field::{Error, Rule};
use super::macros::{choice, schema};

choice! {
    /// Decision to suspend.
    IdlePolicy mirrors control::IdlePolicy {
        /// Only a request suspends the VM.
        Off = "off",
        /// An idle VM is suspended.
        Idle = "idle",
    }
}

choice! {
    /// State of the suspend.
    IdleState mirrors control::IdleState {
        /// Nothing is searched.
        Off,
        /// The guest is not ready.
        NotReady,
        /// The guest is not idle.
        Busy,
        /// The guest is idle for less than the cool-down.
        Cooldown,
        /// A snapshot is being created.
        Suspending,
        /// The process ends.
        Suspended,
    }
}

choice! {
    /// Reason for which a guest is not idle.
    BusyReason mirrors control::BusyReason {
        /// It is not ready.
        NotReady = "not_ready",
        /// Its vCPUs use a processor.
        Cpu = "cpu",
        /// A frame was transferred.
        Frame = "frame",
        /// A drive request was executed.
        Drive = "drive",
        /// Its vCPUs use a processor all the time, and it transfers nothing.
        Polling = "polling",
    }
}

choice! {
    /// Kind of an action on the suspend.
    ScaleToZeroActionType {
        /// Announce that the guest is ready.
        Ready,
        /// Suspend the VM at once.
        Suspend,
        /// Cancel the suspend in progress.
        Cancel,
    }
}

schema! {
    /// Suspend of an idle VM: a snapshot is created, and the process ends with status 123.
    #[derive(Deserialize)]
    body ScaleToZero {
        /// off: only a request suspends the VM. idle: a VM whose guest is idle for the cool-down is suspended.
        policy: IdlePolicy;
        /// Time in milliseconds for which the guest must be idle.
        cooldown_time_ms: Option<u64> = DEFAULT_COOLDOWN.as_millis() => Rule::Range(1, MAX_COOLDOWN_MS);
        /// Time of one processor that the vCPUs of an idle guest may use, in percent.
        idle_cpu_percent: Option<u8> = DEFAULT_MAX_CPU_PERCENT => Rule::Range(1, 100);
        /// The suspend creates a snapshot. Otherwise, the process ends without one.
        stateful: Option<bool> = true;
        /// State file, which must not exist at the suspend. Requires mem_file_path. Without both, the snapshot is a generation in the
        /// directory of --suspend-to.
        snapshot_path: Option<PathBuf>;
        /// Memory file, which must not exist at the suspend. Requires snapshot_path.
        mem_file_path: Option<PathBuf>;
    }
    example "{policy: 'idle', cooldown_time_ms: 1000, snapshot_path: /snapshot/state, mem_file_path: /snapshot/memory}";
}

schema! {
    /// Action on the suspend.
    #[derive(Deserialize)]
    body ScaleToZeroAction {
        /// Ready: the guest is ready, and its cool-down begins. Suspend: suspend the VM at once. Cancel: resume a VM that suspends.
        action: ScaleToZeroActionType;
    }
    example "{action: 'Suspend'}";
}

schema! {
    /// Settings and state of the suspend.
    #[derive(Serialize)]
    response ScaleToZeroInfo<'a> {
        /// Decision to suspend.
        policy: IdlePolicy;
        /// Time in milliseconds for which the guest must be idle.
        cooldown_time_ms: u64;
        /// Time of one processor that the vCPUs of an idle guest may use, in percent.
        idle_cpu_percent: u32;
        /// The suspend creates a snapshot.
        stateful: bool;
        /// State file; null if the snapshot is a generation.
        snapshot_path: Option<&'a Path>;
        /// Memory file; null if the snapshot is a generation.
        mem_file_path: Option<&'a Path>;
        /// Directory of the generations; null without one.
        snapshot_dir: Option<&'a Path>;
        /// Off: nothing is searched, because of the policy, or because the VM is not started or is paused.
        state: IdleState;
        /// Time in milliseconds since the change to this state.
        state_ms: u64;
        /// Last reason for which the guest was not idle; null before the first one.
        reason: Option<BusyReason>;
        /// Failure of the last suspend; null if it has not failed.
        error: Option<&'a str>;
    }
    example "{policy: 'idle', cooldown_time_ms: 1000, idle_cpu_percent: 5, stateful: true, snapshot_path: null, mem_file_path: null, snapshot_dir: /snapshot, state: Cooldown, state_ms: 240, reason: 'frame', error: null}";
}

impl ScaleToZero {
    /// Converts to the settings of the VMM.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of both paths is missing.
    pub fn into_config(self) -> Result<ScaleToZeroConfig, Error> {
        let Self {
            policy,
            cooldown_time_ms,
            idle_cpu_percent,
            stateful,
            snapshot_path,
            mem_file_path,
        } = self;
        let missing = |field: &str| Error::Invalid {
            field: field.to_owned(),
            reason: "it is missing; set both paths, or none".to_owned(),
        };
        let files = match (snapshot_path, mem_file_path) {
            (Some(state), Some(memory)) => Some(SnapshotFiles { state, memory }),
            (None, None) => None,
            (None, Some(_)) => return Err(missing("snapshot_path")),
            (Some(_), None) => return Err(missing("mem_file_path")),
        };
        Ok(ScaleToZeroConfig {
            policy: policy.into(),
            cooldown: cooldown_time_ms.map_or(DEFAULT_COOLDOWN, Duration::from_millis),
            max_cpu_percent: idle_cpu_percent.map_or(DEFAULT_MAX_CPU_PERCENT, u32::from),
            is_stateful: stateful.unwrap_or(true),
            files,
        })
    }
}

impl<'a> ScaleToZeroInfo<'a> {
    /// Converts from the status of the VMM.
    pub fn from_status(status: &'a ScaleToZeroStatus) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = &status.config;
        let files = config.files.as_ref();
        Self {
            policy: config.policy.into(),
            cooldown_time_ms: milliseconds(config.cooldown),
            idle_cpu_percent: config.max_cpu_percent,
            stateful: config.is_stateful,
            snapshot_path: files.map(|files| files.state.as_path()),
            mem_file_path: files.map(|files| files.memory.as_path()),
            snapshot_dir: status.directory.as_deref(),
            state: status.state.into(),
            state_ms: milliseconds(status.since),
            reason: status.reason.map(BusyReason::from),
            error: status.error.as_deref(),
        }
    }
}
