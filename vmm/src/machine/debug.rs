//! Operations of a debugger on vCPUs and memory of a machine.
//!
//! The debugger holds vCPUs at the gate, which stays closed by a pause beside it: a snapshot of a held VM is like any other. A paused
//! machine has no breakpoint instruction in its memory.

use std::sync::{Arc, Mutex};

use devices::lock;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::Machine;
use crate::channel::channel;
use crate::vcpu::{DebugStop, StopReason, ThreadSet, VcpuThread};

impl Machine {
    /// Keeps a crash of a machine that has not run yet for the debugger. Unless `is_running`, holds its vCPUs until
    /// [`release_vcpus`](Self::release_vcpus).
    pub(crate) fn await_debugger(&self, is_running: bool) {
        self.expect_debugger(true);
        if !is_running {
            self.shared.gate.hold(ThreadSet::ALL_VCPUS);
        }
    }

    /// Returns true while a debugger holds vCPUs.
    pub(crate) fn is_held(&self) -> bool {
        self.shared.gate.is_held()
    }

    /// Reports stops of vCPUs by `wake`.
    pub(crate) fn set_debugger_wake(&self, wake: EventFd) {
        self.shared.debug.set_wake(wake);
    }

    /// Keeps guests that crash for the debugger, or not. Without a debugger, [`release_vcpus`](Self::release_vcpus) must follow.
    pub(crate) fn expect_debugger(&self, is_expected: bool) {
        self.shared.debug.expect_debugger(is_expected);
    }

    /// Takes the oldest stop of a vCPU.
    pub(crate) fn take_debug_stop(&self) -> Option<(u8, DebugStop)> {
        self.shared.debug.take()
    }

    /// Returns the vCPU and the instruction pointer of a crash that waits for the debugger.
    pub(crate) fn waiting_crash(&self) -> Option<(u8, Option<u64>)> {
        self.shared.debug.latest_crash()
    }

    /// Stops all vCPUs, and waits until they are outside the guest. Returns the threads that do not stop.
    pub(crate) fn hold_vcpus(&self) -> ThreadSet {
        self.shared.gate.hold(ThreadSet::ALL_VCPUS);
        self.vcpus.iter().for_each(VcpuThread::kick);
        let vcpus = ThreadSet::vcpus(self.vcpus.len());
        self.shared.gate.wait_outside(vcpus, self.thread_timeout())
    }

    /// Releases all vCPUs except `held`.
    pub(crate) fn release_vcpus(&self, held: ThreadSet) {
        self.shared.gate.hold(held);
    }

    /// Calls `call` on the thread of the held vCPU `id`. `None` if the vCPU has ended, or its thread does not answer.
    pub(crate) fn call_vcpu<T: Send + 'static>(
        &self,
        id: usize,
        call: impl FnOnce(&VcpuFd) -> T + Send + 'static,
    ) -> Option<T> {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let is_done = self.request_call(id, Box::new(move |vcpu| *lock(&place) = Some(call(vcpu))));
        is_done.then(|| lock(&result).take()).flatten()
    }

    /// As [`call_vcpu`](Self::call_vcpu), without a result: compiled once for all. Returns false if the call was not made.
    #[inline(never)]
    fn request_call(&self, id: usize, call: Box<dyn FnOnce(&VcpuFd) + Send>) -> bool {
        let Some(vcpu) = self.vcpus.get(id) else {
            return false;
        };
        let (done, receiver) = channel();
        vcpu.request_call(Box::new(move |vcpu| {
            call(vcpu);
            // Fails if the debugger does not wait any longer.
            let _ = done.send(());
        }));
        self.shared.gate.notify_waiters();
        receiver.receive_within(self.thread_timeout()).is_ok()
    }

    /// Ends the VM at the request of the debugger.
    pub(crate) fn kill(&self) {
        self.shared.report(StopReason::Killed);
    }

    /// Writes a breakpoint instruction to `address`. Returns false if there is no memory.
    pub(crate) fn add_breakpoint(&self, address: u64) -> bool {
        self.breakpoints.add(&self.memory, GuestAddress(address))
    }

    /// Writes `bytes` of the guest to `address`, below breakpoint instructions. Returns false if there is no memory.
    pub(crate) fn write_for_debugger(&self, address: u64, bytes: &[u8]) -> bool {
        self.breakpoints
            .write_below(&self.memory, GuestAddress(address), bytes)
    }

    /// Replaces breakpoint instructions among `bytes` of the memory at `address` by the bytes of the guest.
    pub(crate) fn hide_breakpoints(&self, address: u64, bytes: &mut [u8]) {
        self.breakpoints.hide(GuestAddress(address), bytes);
    }

    /// Returns true if there is a breakpoint instruction at `address`.
    pub(crate) fn has_breakpoint(&self, address: u64) -> bool {
        self.breakpoints.has(GuestAddress(address))
    }

    /// Removes a breakpoint instruction.
    pub(crate) fn remove_breakpoint(&self, address: u64) {
        self.breakpoints.remove(&self.memory, GuestAddress(address));
    }
}
