//! Version of the guest-physical address space.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Addresses of guest memory and of the virtio devices, and their interrupt lines. The platform defines the values.
///
/// A guest keeps these addresses, so that a restored VM has the layout of its snapshot. State files hold the position of the
/// variant: append a variant for each change of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressLayout {
    /// x86_64: layout of state files that hold none.
    V1,
    /// x86_64: first device at the address of Firecracker's.
    V2,
    /// x86_64: as V2, with an [identity record](crate::identity).
    #[default]
    V3,
    /// aarch64, memory map [`Fc`](super::MemoryMap::Fc), without an identity record.
    ArmFc,
    /// aarch64, memory map [`Virt`](super::MemoryMap::Virt), without an identity record.
    ArmVirt,
    /// aarch64: as `ArmFc`, with an identity record.
    ArmFc2,
    /// aarch64: as `ArmVirt`, with an identity record.
    ArmVirt2,
}

impl AddressLayout {
    /// Returns true for a layout of aarch64.
    pub fn is_arm(self) -> bool {
        match self {
            Self::V1 | Self::V2 | Self::V3 => false,
            Self::ArmFc | Self::ArmVirt | Self::ArmFc2 | Self::ArmVirt2 => true,
        }
    }
}

impl fmt::Display for AddressLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "1",
            Self::V2 => "2",
            Self::V3 => "3",
            Self::ArmFc => "fc",
            Self::ArmVirt => "virt",
            Self::ArmFc2 => "fc 2",
            Self::ArmVirt2 => "virt 2",
        })
    }
}
