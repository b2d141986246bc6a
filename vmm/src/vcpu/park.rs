//! Requests to a vCPU thread that waits at the gate.

use kvm_ioctls::VcpuFd;
use snapshot::persist::Error as StateError;

use crate::arch::{Cpu, CpuStatus, Native, Platform};
use crate::channel::{Receiver, Sender, channel};

pub(super) type NativeCpu = <Native as Platform>::Cpu;
/// Saved state of a vCPU.
pub type NativeVcpuState = <NativeCpu as Cpu>::State;

/// Request to a vCPU thread that waits at the gate. An inspection also reaches a thread that runs the guest.
pub(super) enum ParkRequest {
    /// Send the state of the vCPU.
    State {
        flushed: Sender<()>,
        state: Sender<Result<NativeVcpuState, StateError>>,
    },
    /// Flush KVM's pending work.
    Flush,
    /// Send the registers that describe the present execution.
    Inspect(Sender<CpuStatus>),
    /// Call a function of the debugger.
    Call(Box<dyn FnOnce(&VcpuFd) + Send>),
}

impl ParkRequest {
    /// Answers a request for the state, in place of a thread that has ended.
    pub fn answer(self, saved: NativeVcpuState) {
        if let Self::State { flushed, state } = self {
            // The caller has the receivers.
            let _ = flushed.send(());
            let _ = state.send(Ok(saved));
        }
    }
}

/// Reply to a request for the state of a vCPU. Both channels disconnect when the vCPU has stopped.
pub struct StateReply {
    /// Receives a message when KVM's pending work is flushed, which may write guest memory. Receives another one for each further
    /// flush before the read of the state, and none after the state.
    pub flushed: Receiver<()>,
    /// Receives the state.
    pub state: Receiver<Result<NativeVcpuState, StateError>>,
}

impl StateReply {
    /// Returns a request and its reply, connected by channels.
    pub(super) fn channels() -> (ParkRequest, Self) {
        let (send_flushed, flushed) = channel();
        let (send_state, state) = channel();
        let request = ParkRequest::State {
            flushed: send_flushed,
            state: send_state,
        };
        (request, Self { flushed, state })
    }
}
