//! Whether a protocol leads into an image, and why.

use super::elf::Elf;
use super::multiboot::{Error as MultibootError, Header};
use super::notes::Note;
use super::protocol::Protocol;
use super::segment::{Segment, physical_entry};

/// A protocol as an image offers it, or why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolSupport {
    /// The protocol.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction, if the protocol leads into the image.
    pub entry: Option<u64>,
    /// Why it does, or does not.
    pub reason: String,
}

impl ProtocolSupport {
    /// An offer.
    pub fn supported(protocol: Protocol, entry: u64, reason: impl Into<String>) -> Self {
        Self {
            protocol,
            entry: Some(entry),
            reason: reason.into(),
        }
    }

    /// No offer.
    pub fn unsupported(protocol: Protocol, reason: impl Into<String>) -> Self {
        Self {
            protocol,
            entry: None,
            reason: reason.into(),
        }
    }
}

/// The protocols that are offered, as part of a sentence.
pub fn names(offers: &[ProtocolSupport]) -> String {
    let names: Vec<_> = offers
        .iter()
        .filter(|offer| offer.entry.is_some())
        .map(|offer| offer.protocol.to_string())
        .collect();
    if names.is_empty() {
        return "no other".to_owned();
    }
    names.join(" and ")
}

/// What each protocol lacks, as part of a sentence.
pub fn reasons(offers: &[ProtocolSupport]) -> String {
    let reasons: Vec<_> = offers
        .iter()
        .filter(|offer| offer.entry.is_none())
        .map(|offer| format!("{}: {}", offer.protocol, offer.reason))
        .collect();
    reasons.join("; ")
}

/// The 64-bit Linux protocol, for which an ELF image needs no mark.
pub fn linux(elf: &Elf) -> ProtocolSupport {
    if !elf.is_64_bit {
        return ProtocolSupport::unsupported(
            Protocol::Linux,
            "it enters in 64-bit mode, and the image is 32 bits wide",
        );
    }
    // The page tables that it is entered with map the first 4 GiB.
    match reachable(&elf.segments, elf.entry) {
        Some(entry) => ProtocolSupport::supported(Protocol::Linux, entry, "a 64-bit image"),
        None => ProtocolSupport::unsupported(Protocol::Linux, outside("entry", elf.entry)),
    }
}

/// PVH, which takes a note in the image.
pub fn pvh(elf: &Elf) -> ProtocolSupport {
    let Some(entry) = elf.notes.iter().find_map(Note::pvh_entry) else {
        return ProtocolSupport::unsupported(
            Protocol::Pvh,
            "there is no note of a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY)",
        );
    };
    match reachable(&elf.segments, entry) {
        Some(entry) => ProtocolSupport::supported(Protocol::Pvh, entry, "a note of a PVH entry"),
        None => ProtocolSupport::unsupported(Protocol::Pvh, outside("PVH entry", entry)),
    }
}

/// Multiboot 1 for an ELF image with what has been found out of its multiboot header.
pub fn multiboot(elf: &Elf, found: &Result<(Header, Option<Segment>), MultibootError>) -> ProtocolSupport {
    match found {
        Err(error) => ProtocolSupport::unsupported(Protocol::Multiboot, error.to_string()),
        Ok((header, Some(segment))) => {
            let entry = header.addresses.map_or(0, |addresses| addresses.entry.into());
            multiboot_at(entry, std::slice::from_ref(segment), header)
        }
        Ok((header, None)) => multiboot_at(elf.entry, &elf.segments, header),
    }
}

/// Multiboot 1 for an image of these segments.
pub fn multiboot_at(entry: u64, segments: &[Segment], header: &Header) -> ProtocolSupport {
    match reachable(segments, entry) {
        Some(entry) => {
            let reason = format!("a multiboot header at byte {:#x}", header.offset);
            ProtocolSupport::supported(Protocol::Multiboot, entry, reason)
        }
        None => ProtocolSupport::unsupported(Protocol::Multiboot, outside("entry", entry)),
    }
}

/// The physical entry, if it is within the 4 GiB that 32-bit code and the first page tables reach.
fn reachable(segments: &[Segment], entry: u64) -> Option<u64> {
    physical_entry(segments, entry).filter(|entry| u32::try_from(*entry).is_ok())
}

fn outside(what: &str, entry: u64) -> String {
    format!("the {what} {entry:#x} is in none of its segments, or beyond what can be entered")
}
