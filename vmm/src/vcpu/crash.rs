//! States of crashed vCPUs, whose threads have ended, for a snapshot of the crash.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::lock;

use super::park::NativeVcpuState;

/// States of crashed vCPUs by their numbers.
#[derive(Debug, Default)]
pub struct CrashStates {
    states: Mutex<Vec<(u8, NativeVcpuState)>>,
    is_requested: AtomicBool,
}

impl CrashStates {
    /// Adds the state of vCPU `id`, before the report of its crash.
    pub(super) fn add(&self, id: u8, state: NativeVcpuState) {
        lock(&self.states).push((id, state));
    }

    /// Makes the states available. Without this call, a snapshot of a VM that crashes meanwhile fails.
    pub fn request(&self) {
        // Relaxed: the caller saves the states on its own thread.
        self.is_requested.store(true, Ordering::Relaxed);
    }

    /// Returns the state of vCPU `id`, if it has crashed and the states are available.
    pub(super) fn get(&self, id: u8) -> Option<NativeVcpuState> {
        if !self.is_requested.load(Ordering::Relaxed) {
            return None;
        }
        let states = lock(&self.states);
        let found = states.iter().find(|(crashed, _)| *crashed == id);
        found.map(|(_, state)| state.clone())
    }
}
