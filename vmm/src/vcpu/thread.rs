//! Handle of a vCPU thread.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use super::ThreadSet;
use super::exit::{ExitCounters, VcpuError};
use super::monitor::{VcpuMonitor, VcpuObservation};
use super::park::{ParkRequest, StateReply};
use super::runner::{SavedVcpu, StartContext, VcpuOrder, VcpuRunner, VcpuShared};
use super::unclaimed::UnclaimedAccess;
use crate::arch::CpuStatus;
use crate::channel::{Receiver, Sender, channel};
use crate::kvm::Kick;

/// Stack of a vCPU thread in bytes: little more than the frames of one exit.
const STACK_SIZE: usize = 128 << 10;

/// Handle of a vCPU thread. Dropping it stops and joins the thread, unless it is [abandoned](Self::abandon).
pub struct VcpuThread {
    id: u8,
    prepare: Option<Sender<VcpuFd>>,
    orders: Option<Sender<VcpuOrder>>,
    requests: Sender<ParkRequest>,
    kick: Kick,
    monitor: Arc<VcpuMonitor>,
    shared: Arc<VcpuShared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread of vCPU `id`.
    ///
    /// # Errors
    /// [`VcpuError::Thread`]
    pub fn spawn(id: u8, kick: Kick, shared: Arc<VcpuShared>) -> Result<Self, VcpuError> {
        let (prepare, vcpu_receiver) = channel();
        let (orders, order_receiver) = channel();
        let (requests, request_receiver) = channel();
        let monitor = Arc::new(VcpuMonitor::default());
        let runner = VcpuRunner {
            id,
            kick: kick.clone(),
            monitor: monitor.clone(),
            shared: shared.clone(),
            requests: request_receiver,
        };
        let thread = Builder::new()
            // Firecracker's name: orchestrators find vCPU threads by it, to move them into control groups.
            .name(ThreadSet::vcpu(id).to_string())
            .stack_size(STACK_SIZE)
            .spawn(move || runner.run(&vcpu_receiver, &order_receiver))
            .map_err(|source| VcpuError::Thread { id, source })?;
        Ok(Self {
            id,
            prepare: Some(prepare),
            orders: Some(orders),
            requests,
            kick,
            monitor,
            shared,
            thread: Some(thread),
        })
    }

    /// Passes the vCPU to the thread, which prepares it at once.
    pub fn prepare(&self, vcpu: VcpuFd) {
        // A thread that has ended has reported its stop reason.
        let _ = self.prepare.as_ref().map(|prepare| prepare.send(vcpu));
    }

    /// Stops the gate of all vCPUs, and kicks this one. Does not wait for the threads.
    pub fn stop(&self) {
        self.shared.gate.stop();
        self.kick.kick();
    }

    /// As [`stop`](Self::stop), also for a thread that waits for its vCPU or its start.
    pub fn end(&mut self) {
        self.stop();
        // The thread ends when the senders are dropped.
        (self.prepare, self.orders) = (None, None);
    }

    /// Makes the drop of the handle not wait for the thread if it is in `threads`.
    pub fn abandon(&mut self, threads: ThreadSet) {
        if threads.has(ThreadSet::vcpu(self.id)) {
            self.thread = None;
        }
    }

    /// Interrupts the vCPU, so that its thread checks the gate.
    pub fn kick(&self) {
        self.kick.kick();
    }

    /// Returns the counters of exits.
    pub fn exits(&self) -> &ExitCounters {
        &self.monitor.exits
    }

    /// Returns the last unclaimed accesses, the last one first.
    pub fn unclaimed(&self) -> Vec<UnclaimedAccess> {
        self.monitor.unclaimed.list()
    }

    /// Observes the vCPU, without a kick and without a lock. The VM is paused if `is_paused`; a fault handler serves its memory if
    /// `is_served`.
    pub fn observe(&self, is_paused: bool, is_served: bool) -> VcpuObservation {
        self.monitor.observe(&self.kick, is_paused, is_served)
    }

    /// Returns the time for which a processor has executed the thread. `None` if it does not run.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.kick.cpu_time()
    }

    /// Makes later [observations](Self::observe) exact: requests the statistics, which the thread opens between two calls of KVM_RUN.
    /// Kicks a running vCPU, unless it has opened them.
    pub fn prepare_observation(&self) {
        if self.monitor.request_statistics() && self.shared.gate.is_open_to(ThreadSet::vcpu(self.id)) {
            self.kick.kick();
        }
    }

    /// Requests an inspection of the vCPU, and kicks it if it may be in the guest. At a closed gate the thread replies after
    /// [`notify_waiters`](super::PauseGate::notify_waiters). `None` while the thread has not replied to an earlier request.
    pub fn request_inspection(&self) -> Option<Receiver<CpuStatus>> {
        if !self.monitor.requests.begin_inspection() {
            return None;
        }
        let (reply, receiver) = channel();
        // Fails if the thread has ended; the reply is disconnected then.
        let _ = self.requests.send(ParkRequest::Inspect(reply));
        self.monitor.requests.request_inspection();
        if self.shared.gate.is_open_to(ThreadSet::vcpu(self.id)) {
            self.kick.kick();
        }
        Some(receiver)
    }

    /// Requests that the thread calls `call` at the gate, after [`notify_waiters`](super::PauseGate::notify_waiters). It is dropped if the
    /// thread has ended.
    pub fn request_call(&self, call: Box<dyn FnOnce(&VcpuFd) + Send>) {
        let _ = self.requests.send(ParkRequest::Call(call));
    }

    /// Requests the state of the vCPU. The thread replies from the gate, after [`notify_waiters`](super::PauseGate::notify_waiters).
    pub fn request_state(&self) -> StateReply {
        let (request, reply) = StateReply::channels();
        if let Some(state) = self.shared.crashes.get(self.id) {
            request.answer(state);
            return reply;
        }
        // Fails if the thread has ended; the reply is disconnected then.
        let _ = self.requests.send(request);
        reply
    }

    /// Requests a flush of KVM's pending work; otherwise as [`request_state`](Self::request_state).
    pub fn request_flush(&self) {
        let _ = self.requests.send(ParkRequest::Flush);
    }

    /// Wakes the thread for an order that follows soon.
    pub fn expect_order(&self) {
        self.order(VcpuOrder::Expect);
    }

    /// Restores the vCPU on its thread, before its start.
    pub fn restore(&self, saved: SavedVcpu) {
        self.order(VcpuOrder::Restore(saved));
    }

    /// Starts the vCPU, which enters the guest while the gate is open.
    pub fn start(&self, start: StartContext) {
        self.order(VcpuOrder::Start(start));
    }

    fn order(&self, order: VcpuOrder) {
        // Fails after an error of the thread, which has reported it.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for VcpuThread {
    #[allow(
        clippy::disallowed_methods,
        reason = "the kick ends KVM_RUN, and the gate is stopped"
    )]
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
