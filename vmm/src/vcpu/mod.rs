//! vCPUs: each has a thread, which is there before the vCPU is.
//!
//! The first thread asks KVM what the processor can be, which takes as long as making the VM and its memory slots; the
//! main thread does that meanwhile. See [`thread`].

mod exit;
pub mod exits;
mod gate;
mod pass;
pub mod thread;

use std::io;

use devices::PowerEvent;

pub use exits::ExitCounters;
pub use gate::PauseGate;
pub use thread::{NativeVcpuState, Start, StateReply, VcpuInit, VcpuThread};

use crate::kvm;

/// Why a vCPU has left the guest for good.
#[derive(Debug)]
pub enum StopReason {
    /// The guest asked for it.
    Power(PowerEvent),
    /// The guest faulted while a double fault was being delivered, and the processor shut down.
    TripleFault {
        /// Instruction pointer.
        ip: u64,
    },
    /// The guest cannot be run any further.
    Fault(VcpuError),
}

/// What makes it impossible to run a guest.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The vCPU could not be prepared.
    #[error("cannot prepare vCPU {id}")]
    Prepare {
        /// Which one.
        id: u8,
        /// The call that failed.
        #[source]
        source: kvm::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the thread of vCPU {id}")]
    Thread {
        /// Which one.
        id: u8,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM gave up.
    #[error("KVM cannot go on: internal error {suberror} at {at}{hint}")]
    Internal {
        /// `KVM_INTERNAL_ERROR_*`
        suberror: u32,
        /// Where.
        at: Location,
        /// What to try.
        hint: &'static str,
    },
    /// The processor refused to enter the guest.
    #[error(
        "the processor refused to enter the guest at {at}, reason {reason:#x}: the image set up a state that this \
         processor does not run; try another --protocol"
    )]
    Entry {
        /// Where.
        at: Location,
        /// The processor's reason.
        reason: u64,
    },
    /// Guest memory could not be reached.
    #[error(
        "KVM could not reach the guest's memory at {at}: was the image file changed or truncated while it ran?"
    )]
    Memory {
        /// Where.
        at: Location,
    },
    /// `KVM_RUN` failed.
    #[error("KVM_RUN failed at {at}")]
    Run {
        /// Where.
        at: Location,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An exit for which there is nothing to do.
    #[error("KVM left the guest at {at} for a reason that mayfly does not know: {exit}")]
    Exit {
        /// Where.
        at: Location,
        /// The exit.
        exit: String,
    },
}

/// The instruction that a guest was at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Which vCPU.
    pub vcpu: u8,
    /// Instruction pointer.
    pub ip: u64,
    /// The bytes there, as many as could be read.
    pub bytes: Vec<u8>,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "address {:#x} of vCPU {}", self.ip, self.vcpu)?;
        if !self.bytes.is_empty() {
            f.write_str(", instruction bytes")?;
        }
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
