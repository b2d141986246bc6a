//! Handle of a vCPU thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;

use super::exit::{ExitCounters, VcpuError};
use super::park::{ParkRequest, StateReply};
use super::runner::{Start, VcpuRunner, VcpuShared};
use crate::kvm::Kick;

/// Stack of a vCPU thread in bytes: little more than the frames of one exit.
const STACK_SIZE: usize = 128 << 10;

/// Handle of a vCPU thread. Dropping it stops and joins the thread.
pub struct VcpuThread {
    prepare: SyncSender<VcpuFd>,
    start: SyncSender<Start>,
    requests: Sender<ParkRequest>,
    kick: Kick,
    exits: Arc<ExitCounters>,
    shared: Arc<VcpuShared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread of vCPU `id`.
    ///
    /// # Errors
    /// [`VcpuError::Thread`]
    pub fn spawn(id: u8, kick: Kick, shared: Arc<VcpuShared>) -> Result<Self, VcpuError> {
        // Used once each. An unbounded channel would allocate room for some thirty messages.
        let (prepare, wait_prepare) = mpsc::sync_channel(1);
        let (start, wait_start) = mpsc::sync_channel(1);
        let (requests, wait_requests) = mpsc::channel();
        let exits = Arc::new(ExitCounters::default());
        let runner = VcpuRunner {
            id,
            kick: kick.clone(),
            exits: exits.clone(),
            shared: shared.clone(),
            requests: wait_requests,
        };
        let thread = Builder::new()
            // Orchestrators find vCPU threads by this name of Firecracker's, to put them into control groups.
            .name(format!("fc_vcpu {id}"))
            .stack_size(STACK_SIZE)
            .spawn(move || runner.run(&wait_prepare, &wait_start))
            .map_err(|source| VcpuError::Thread { id, source })?;
        Ok(Self {
            prepare,
            start,
            requests,
            kick,
            exits,
            shared,
            thread: Some(thread),
        })
    }

    /// Passes the vCPU to the thread, which prepares it at once.
    pub fn prepare(&self, vcpu: VcpuFd) {
        // A thread that has ended has reported its stop reason.
        let _ = self.prepare.send(vcpu);
    }

    /// Stops all vCPUs of the machine, this one at once, without waiting for them.
    pub fn stop(&self) {
        self.shared.gate.stop();
        self.kick.kick();
    }

    /// Interrupts the vCPU, so that its thread checks the gate.
    pub fn kick(&self) {
        self.kick.kick();
    }

    /// Returns the counters of exits.
    pub fn exits(&self) -> &ExitCounters {
        &self.exits
    }

    /// Requests the state of the vCPU. The thread replies from the gate, after [`notify_waiters`](super::PauseGate::notify_waiters).
    pub fn request_state(&self) -> StateReply {
        let (request, reply) = StateReply::channels();
        let _ = self.requests.send(request);
        reply
    }

    /// Requests a flush of KVM's pending work; otherwise as [`request_state`](Self::request_state).
    pub fn request_flush(&self) {
        let _ = self.requests.send(ParkRequest::Flush);
    }

    /// Starts the vCPU. It enters the guest while the gate is open.
    pub fn start(&self, start: Start) {
        let _ = self.start.send(start);
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.stop();
        // A thread that still waits for its vCPU ends when the senders are dropped.
        (self.prepare, self.start) = (mpsc::sync_channel(0).0, mpsc::sync_channel(0).0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
