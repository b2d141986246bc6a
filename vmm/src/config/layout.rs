//! Version of the guest-physical address space.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Addresses of guest memory and of the virtio devices, and their interrupt lines. The platform defines the values.
///
/// A guest keeps these addresses, so that a restored VM has the layout of its snapshot. State files hold the position of the
/// variant: append a variant for each change of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressLayout {
    /// Layout of state files that hold none.
    V1,
    /// First device at the address of Firecracker's.
    V2,
    /// As V2, with an [identity record](crate::identity).
    #[default]
    V3,
}

impl fmt::Display for AddressLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "1",
            Self::V2 => "2",
            Self::V3 => "3",
        })
    }
}
