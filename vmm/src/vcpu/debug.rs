//! Stops of vCPUs for a debugger.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use devices::lock;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::DebugExit;

/// Reason of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// KVM_EXIT_DEBUG.
    Exit(DebugExit),
    /// The guest ends: it cannot handle an exception, or KVM cannot run it. With the instruction pointer, if that is known.
    Crash(Option<u64>),
}

/// Stops of the vCPUs of a machine, from their threads to the thread of the debugger.
#[derive(Debug, Default)]
pub struct DebugEvents {
    stops: Mutex<VecDeque<(u8, DebugStop)>>,
    /// Signalled with each stop. Not set before the first debugger.
    wake: OnceLock<EventFd>,
    /// A debugger is attached or can come. Relaxed: vCPUs read it under the lock of the gate.
    is_expected: AtomicBool,
}

impl DebugEvents {
    /// Sets the eventfd that is signalled with each stop.
    pub fn set_wake(&self, wake: EventFd) {
        let _ = self.wake.set(wake);
    }

    /// With true, vCPUs stop for the debugger from now on, also before a crash ends the guest. With false none stops once the gate has
    /// released all.
    pub fn expect_debugger(&self, is_expected: bool) {
        self.is_expected.store(is_expected, Ordering::Relaxed);
    }

    /// Returns true while vCPUs stop for a debugger.
    pub(super) fn is_expected(&self) -> bool {
        self.is_expected.load(Ordering::Relaxed)
    }

    /// Reports a stop of vCPU `id`, whose thread must hold all vCPUs before.
    pub(super) fn report(&self, id: u8, stop: DebugStop) {
        lock(&self.stops).push_back((id, stop));
        // Fails only if the counter is at its maximum, and then the eventfd is readable.
        let _ = self.wake.get().map(|wake| wake.write(1));
    }

    /// Returns the vCPU and the instruction pointer of the latest stop, if that is a crash.
    pub fn latest_crash(&self) -> Option<(u8, Option<u64>)> {
        match lock(&self.stops).back()? {
            (id, DebugStop::Crash(ip)) => Some((*id, *ip)),
            _ => None,
        }
    }

    /// Takes the oldest stop.
    pub fn take(&self) -> Option<(u8, DebugStop)> {
        lock(&self.stops).pop_front()
    }
}
