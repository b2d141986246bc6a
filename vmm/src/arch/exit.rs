//! Accesses and exits of guests, in terms that all architectures have.

use kvm_ioctls::VcpuExit;

#[cfg(doc)]
use super::AddressSpace;

/// Kind of an exit, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// Read of [`AddressSpace::Io`].
    IoRead,
    /// Write to [`AddressSpace::Io`].
    IoWrite,
    /// Read of [`AddressSpace::Memory`].
    MemoryRead,
    /// Write to [`AddressSpace::Memory`].
    MemoryWrite,
    /// Wait of the guest for an interrupt, which KVM leaves to this process.
    Halt,
    /// Kick, or the possibility to inject an interrupt.
    Interrupt,
    /// Any other.
    Other,
}

/// Result of an exit that the architecture handles.
#[derive(Debug)]
pub enum NativeExit<'a> {
    /// The guest is entered again.
    Handled,
    /// Access to [`AddressSpace::Io`], which devices have handled.
    Io(IoAccess),
    /// The processor has shut down: the guest cannot handle an exception.
    CpuShutdown,
    /// The architecture does not enable the exit.
    Unknown(VcpuExit<'a>),
}

/// Access to [`AddressSpace::Io`], of one or more units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// Address of each unit.
    pub address: u64,
    /// Width of each unit in bytes.
    pub width: usize,
    /// A write, not a read.
    pub is_write: bool,
    /// Number of units that no device claims.
    pub unclaimed: u64,
}
