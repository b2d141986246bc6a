//! Settings of aarch64 machines.

use std::fmt;
use std::str::FromStr;

/// Guest-physical address space of an aarch64 machine: images are linked for one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMap {
    /// Firecracker's: memory from 0x8000_0000, 16550 serial port.
    Fc,
    /// That of QEMU's machine `virt`: memory from 0x4000_0000, PL011 serial port.
    Virt,
}

impl fmt::Display for MemoryMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Fc => "fc",
            Self::Virt => "virt",
        })
    }
}

impl FromStr for MemoryMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fc" => Ok(Self::Fc),
            "virt" => Ok(Self::Virt),
            other => Err(format!("{other:?} is not a memory map: use fc or virt")),
        }
    }
}

/// Version of the generic interrupt controller (GIC) of an aarch64 machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicVersion {
    /// GICv2, for at most 8 vCPUs.
    V2,
    /// GICv3.
    V3,
}

impl fmt::Display for GicVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        })
    }
}

impl FromStr for GicVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "2" => Ok(Self::V2),
            "3" => Ok(Self::V3),
            other => Err(format!("{other:?} is not a GIC version: use 2 or 3")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GicVersion, MemoryMap};

    #[test]
    fn names_parse() {
        for map in [MemoryMap::Fc, MemoryMap::Virt] {
            assert_eq!(map.to_string().parse(), Ok(map));
        }
        assert_eq!("2".parse(), Ok(GicVersion::V2));
        assert_eq!("3".parse(), Ok(GicVersion::V3));
        let error = "4".parse::<GicVersion>().unwrap_err();
        assert_eq!(error, "\"4\" is not a GIC version: use 2 or 3");
        let error = "Virt".parse::<MemoryMap>().unwrap_err();
        assert_eq!(error, "\"Virt\" is not a memory map: use fc or virt");
    }
}
