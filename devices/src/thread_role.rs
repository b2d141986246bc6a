//! Roles of threads, by which the program restricts their system calls and rights.
//!
//! The restrictions are those of the program, which sets them by [`set_restriction`]. Without it, a role has no effect, for example in
//! tests of this crate.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Role of a thread. A thread that starts another one passes its own role on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadRole {
    /// Waits for the configuration of a VM or a snapshot, opens files and devices, and starts the VM.
    Start,
    /// Event loop, operations and I/O thread of a VM.
    Vmm,
    /// Runs a vCPU, and the devices that the guest notifies.
    Vcpu,
    /// Executes slow calls on open files.
    Worker,
    /// Connects the serial port with the clients of its console.
    Console,
}

/// Function that restricts the calling thread to a role for good.
pub type Restrict = fn(ThreadRole) -> io::Result<()>;

static RESTRICT: OnceLock<Restrict> = OnceLock::new();

/// Sets the function that restricts threads. Call it once, before a thread enters its role; only the function of the first call is
/// used.
pub fn set_restriction(restrict: Restrict) {
    let _ = RESTRICT.set(restrict);
}

/// Programs that this process starts would have its restrictions, and fail.
static FORBIDS_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// Declares that programs of this process would fail from now on.
pub fn forbid_programs() {
    FORBIDS_PROGRAMS.store(true, Ordering::Relaxed);
}

/// Returns true if this process can start programs.
pub fn can_start_programs() -> bool {
    !FORBIDS_PROGRAMS.load(Ordering::Relaxed)
}

/// Way out of a denied access.
static DENIAL_HINT: OnceLock<&str> = OnceLock::new();

/// Sets the way out of an access that the kernel denies because this process has given up rights.
pub fn set_denial_hint(hint: &'static str) {
    let _ = DENIAL_HINT.set(hint);
}

/// Returns the hint of [`set_denial_hint`], if this process has given up rights.
pub fn denial_hint() -> Option<&'static str> {
    DENIAL_HINT.get().copied()
}

impl ThreadRole {
    /// Restricts the calling thread to this role for good.
    ///
    /// # Errors
    /// Those of the function of [`set_restriction`].
    pub fn enter(self) -> io::Result<()> {
        RESTRICT.get().map_or(Ok(()), |restrict| restrict(self))
    }

    /// As [`enter`](Self::enter) for a thread that has the restrictions of its creator already, and therefore goes on after an error.
    pub fn enter_or_log(self) {
        if let Err(error) = self.enter() {
            log::warn!("cannot restrict a thread to its role {self:?}: {error}");
        }
    }
}
