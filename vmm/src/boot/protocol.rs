//! How a guest is entered, and what that takes.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a guest is entered, and what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// 64-bit Linux protocol: long mode, `boot_params` in RSI.
    Linux,
    /// PVH: 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// Multiboot 1: 32-bit protected mode, magic in EAX, information in EBX.
    Multiboot,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Linux, Self::Pvh, Self::Multiboot];
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Linux => "linux",
            Self::Pvh => "pvh",
            Self::Multiboot => "multiboot",
        })
    }
}

/// Why a text names no protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no protocol of that name.
    #[error("there is no boot protocol {0:?}; use linux, pvh or multiboot")]
    Unknown(String),
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "linux" => Ok(Self::Linux),
            "pvh" => Ok(Self::Pvh),
            "multiboot" => Ok(Self::Multiboot),
            _ => Err(Error::Unknown(name.to_owned())),
        }
    }
}

/// An image that has been loaded, as the architecture needs it to prepare the guest's entry.
#[derive(Clone, Debug)]
pub struct LoadedImage {
    /// How the guest is entered.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// End of the highest segment, BSS included.
    pub end: u64,
    /// Address below which an initrd must end for the guest to find it.
    pub initrd_limit: u64,
    /// A bzImage's setup header: the bytes of the file from 0x1f1 to the end of the header.
    pub setup_header: Option<Vec<u8>>,
    /// Where the initrd is.
    pub initrd: Option<Range<u64>>,
}

#[cfg(test)]
mod tests {
    use super::{Error, Protocol};

    #[test]
    fn a_protocol_reads_as_it_is_written() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        assert_eq!("PVH".parse::<Protocol>(), Err(Error::Unknown("PVH".into())));
        assert_eq!(format!("{:>5}", Protocol::Pvh), "  pvh");
    }
}
