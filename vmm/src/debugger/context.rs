//! Data of the thread, and messages between it and the main thread.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vmm_sys_util::eventfd::EventFd;

use crate::arch::DebugAbilities;
use crate::channel::{Receiver, Sender};
use crate::vm::VmCore;

/// Order to the thread.
pub enum Order {
    /// Serve gdb on this connection.
    Attach(UnixStream, DebugAbilities),
    /// End, because the VM has ended with this exit status.
    End(u8),
}

/// Data that the thread shares with the main thread.
pub struct Shared {
    /// The VM.
    pub core: Arc<VmCore>,
    /// Signalled with each order and each stop of a vCPU.
    pub wake: EventFd,
    /// A debugger is attached. Relaxed: the flag passes no data.
    pub is_attached: AtomicBool,
}

/// Data of the thread.
pub struct Context {
    pub shared: Arc<Shared>,
    pub orders: Receiver<Order>,
    pub snapshots: Sender<SnapshotRequest>,
    /// Signalled with each request for a snapshot.
    pub snapshot_event: Arc<EventFd>,
}

/// Request for a snapshot in a directory, from the thread of the debugger to the main thread.
pub struct SnapshotRequest {
    /// Directory.
    pub directory: PathBuf,
    /// Channel for the result: an error as text. Shared by the operation and its start, which can fail.
    pub result: Arc<Sender<Result<(), String>>>,
}
