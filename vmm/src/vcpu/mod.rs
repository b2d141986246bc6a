//! vCPUs. Each has a thread, which starts before the vCPU is created.
//!
//! The first thread queries the supported features from KVM. On x86_64 this takes as long as the creation of the VM and its memory slots, which
//! the main thread performs meanwhile.
//!
//! ```text
//! spawn ── profile (the first thread queries KVM, the others wait for it)
//!   │
//! prepare(VcpuFd) ── features, registers at reset
//!   │
//! restore(state), if there is one ── the saved registers, while the main thread builds the rest of the machine
//!   │
//! start(context) ── KVM_RUN until the guest ends or the thread is stopped
//! ```
//! A thread that gets a saved state queries KVM only if the processor alone does not decide that KVM supports its features; see
//! [`CpuCheck`](crate::arch::CpuCheck).

mod crash;
mod debug;
mod exit;
mod gate;
mod location;
mod monitor;
mod park;
mod pre_entry;
mod requests;
mod runner;
mod thread;
mod unclaimed;

pub use crash::CrashStates;
pub use debug::{DebugEvents, DebugStop};
pub use exit::{ExitCounters, KINDS, StopReason, TIMED_KINDS, VcpuError};
pub use gate::{PauseGate, ThreadSet};
pub use location::Location;
pub use monitor::{VcpuActivity, VcpuObservation};
pub use park::{NativeVcpuState, StateReply};
pub use runner::{Purpose, SavedVcpu, StartContext, VcpuShared};
pub use thread::VcpuThread;
pub use unclaimed::{Access, UnclaimedAccess};
