//! Boot protocols and their support by images.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::elf::{Elf, Note};
use super::initrd::Placement;
use super::multiboot::{Error as MultibootError, Header};
use super::segment::{Segment, physical_entry};

/// Boot protocol: state of the boot vCPU at its entry, and its boot parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// 64-bit Linux protocol. x86_64: long mode, `boot_params` in RSI. aarch64: MMU off, device tree in x0.
    Linux,
    /// PVH: 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// Multiboot 1: 32-bit protected mode, magic in EAX, information in EBX.
    Multiboot,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Linux, Self::Pvh, Self::Multiboot];

    /// Returns the place of the initrd: that of QEMU.
    pub fn initrd_placement(self) -> Placement {
        match self {
            Self::Linux | Self::Pvh => Placement::Highest,
            Self::Multiboot => Placement::Lowest,
        }
    }
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

/// Error of the name of a protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is unknown.
    #[error("{0:?} is no boot protocol; use linux, pvh or multiboot")]
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

/// Loaded image, the input for boot data.
#[derive(Clone, Debug)]
pub struct LoadedImage {
    /// Boot protocol.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// End of the highest segment, BSS included.
    pub end: u64,
    /// Upper limit of the end of an initrd.
    pub initrd_limit: u64,
    /// Setup header of a bzImage: bytes of the file from 0x1f1 to the end of the header.
    pub setup_header: Option<Vec<u8>>,
    /// Guest-physical addresses of the initrd.
    pub initrd: Option<Range<u64>>,
}

/// Support of a protocol by an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolSupport {
    /// Boot protocol.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction, or `None` without support.
    pub entry: Option<u64>,
    /// Reason for or against support.
    pub reason: String,
}

impl ProtocolSupport {
    /// Creates a supported protocol with its entry.
    pub fn supported(protocol: Protocol, entry: u64, reason: impl Into<String>) -> Self {
        Self {
            protocol,
            entry: Some(entry),
            reason: reason.into(),
        }
    }

    /// Creates an unsupported protocol.
    pub fn unsupported(protocol: Protocol, reason: impl Into<String>) -> Self {
        Self {
            protocol,
            entry: None,
            reason: reason.into(),
        }
    }
}

/// Returns the names of the supported protocols as text for a message.
pub fn supported_names(support: &[ProtocolSupport]) -> String {
    let names: Vec<_> = support
        .iter()
        .filter(|each| each.entry.is_some())
        .map(|each| each.protocol.to_string())
        .collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(" and ")
}

/// Returns the unsupported protocols with their reasons as text for a message.
pub fn unsupported_reasons(support: &[ProtocolSupport]) -> String {
    let reasons: Vec<_> = support
        .iter()
        .filter(|each| each.entry.is_none())
        .map(|each| format!("{}: {}", each.protocol, each.reason))
        .collect();
    reasons.join("; ")
}

/// Returns the support of the 64-bit Linux protocol, which requires nothing but a 64-bit ELF image.
pub fn linux_support(elf: &Elf) -> ProtocolSupport {
    // The page tables at the entry map at most the first 4 GiB.
    linux_support_at(elf, reachable_entry(&elf.segments, elf.entry), || {
        unreachable_reason("entry", elf.entry)
    })
}

/// Returns the support of the Linux protocol of arm64, which requires nothing but a 64-bit ELF image: the device tree in x0.
pub fn arm64_support(elf: &Elf) -> ProtocolSupport {
    linux_support_at(elf, physical_entry(&elf.segments, elf.entry), || {
        format!("entry {:#x} is outside all segments", elf.entry)
    })
}

fn linux_support_at(elf: &Elf, entry: Option<u64>, unreachable: impl FnOnce() -> String) -> ProtocolSupport {
    if !elf.is_64_bit {
        return ProtocolSupport::unsupported(
            Protocol::Linux,
            "the entry is in 64-bit mode, and the image is 32-bit",
        );
    }
    match entry {
        Some(entry) => ProtocolSupport::supported(Protocol::Linux, entry, "64-bit image"),
        None => ProtocolSupport::unsupported(Protocol::Linux, unreachable()),
    }
}

/// Returns the support of PVH, which requires a note in the image.
pub fn pvh_support(elf: &Elf) -> ProtocolSupport {
    let Some(entry) = elf.notes.iter().find_map(Note::pvh_entry) else {
        return ProtocolSupport::unsupported(
            Protocol::Pvh,
            "no note of a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY)",
        );
    };
    match reachable_entry(&elf.segments, entry) {
        Some(entry) => ProtocolSupport::supported(Protocol::Pvh, entry, "note of a PVH entry"),
        None => ProtocolSupport::unsupported(Protocol::Pvh, unreachable_reason("PVH entry", entry)),
    }
}

/// Returns the support of multiboot 1 by an ELF image. `found` is its multiboot header, with the segment that the header
/// defines.
pub fn multiboot_support(
    elf: &Elf,
    found: &Result<(Header, Option<Segment>), MultibootError>,
) -> ProtocolSupport {
    match found {
        Err(error) => ProtocolSupport::unsupported(Protocol::Multiboot, error.to_string()),
        Ok((header, Some(segment))) => {
            let entry = header.addresses.map_or(0, |addresses| addresses.entry.into());
            multiboot_support_at(entry, std::slice::from_ref(segment), header)
        }
        Ok((header, None)) => multiboot_support_at(elf.entry, &elf.segments, header),
    }
}

/// Returns the support of multiboot 1 by an image with these segments and this entry.
pub fn multiboot_support_at(entry: u64, segments: &[Segment], header: &Header) -> ProtocolSupport {
    match reachable_entry(segments, entry) {
        Some(entry) => {
            let reason = format!("multiboot header at byte {:#x}", header.offset);
            ProtocolSupport::supported(Protocol::Multiboot, entry, reason)
        }
        None => ProtocolSupport::unsupported(Protocol::Multiboot, unreachable_reason("entry", entry)),
    }
}

/// Returns the physical entry if it lies within the 4 GiB of 32-bit code and of the largest page tables at the entry.
fn reachable_entry(segments: &[Segment], entry: u64) -> Option<u64> {
    physical_entry(segments, entry).filter(|entry| u32::try_from(*entry).is_ok())
}

fn unreachable_reason(name: &str, entry: u64) -> String {
    format!("{name} {entry:#x} is outside all segments or above 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::{Error, Protocol};

    #[test]
    fn name_round_trip() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        assert_eq!("PVH".parse::<Protocol>(), Err(Error::Unknown("PVH".into())));
        assert_eq!(format!("{:>5}", Protocol::Pvh), "  pvh");
    }
}
