//! Reasons to reject a configuration.

use super::device::DeviceKind;
use super::settings::Conflict;
use super::size::MemorySize;

/// Maximum number of vCPUs of a VM.
pub const MAX_VCPUS: u8 = 32;

/// Maximum number of virtio devices of a VM: each has an interrupt line of its own.
pub const MAX_DEVICES: usize = 18;

/// Reason to reject a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of vCPUs is 0 or above [`MAX_VCPUS`].
    #[error("cannot create {0} vCPUs: a VM has 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// The number of vCPUs with two threads for each core is odd.
    #[error("cannot create {0} vCPUs with SMT: each core has two of them; configure 1 or an even number")]
    OddVcpus(u32),
    /// There are more devices than interrupt lines.
    #[error(
        "cannot attach {0} devices: a VM has at most {MAX_DEVICES} drives and network interfaces; remove some"
    )]
    Devices(usize),
    /// Two devices of one kind have the same ID.
    #[error("cannot attach two {kind}s with the ID {id:?}: change the ID of one")]
    DuplicateId {
        /// Kind of both devices.
        kind: DeviceKind,
        /// Their ID.
        id: String,
    },
    /// Two devices exclude each other.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The guest memory is below [`MemorySize::MIN`].
    #[error("cannot use {0} of guest memory: a VM has at least {min}", min = MemorySize::MIN)]
    MemoryTooSmall(MemorySize),
    /// The guest memory exceeds the memory of the host.
    #[error("cannot use {requested} of guest memory: this host has {host}, swap included; request less")]
    MemoryBeyondHost {
        /// Requested guest memory.
        requested: MemorySize,
        /// Memory and swap of the host.
        host: MemorySize,
    },
}
