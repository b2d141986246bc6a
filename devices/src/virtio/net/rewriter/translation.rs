//! Addresses of one direction, fields of headers, and reasons to drop a frame.

use std::net::Ipv4Addr;

use super::checksum::Delta;

/// Bytes of an Ethernet header without a VLAN tag.
pub(super) const ETHERNET: usize = 14;

/// Reason to drop a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The frame is IPv6.
    Ipv6,
    /// The frame has a VLAN tag.
    Vlan,
    /// The frame is neither ARP, IPv4 nor IPv6.
    Protocol,
    /// From the guest: the source is not the guest's address. To the guest: the source is the guest's address.
    Source,
    /// The frame is for another host.
    Destination,
    /// A header is truncated or contradicts another one.
    Malformed,
}

/// Translation in one direction: `from` becomes `to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Translation {
    pub(super) from: [u8; 4],
    pub(super) to: [u8; 4],
    /// Change of the sum of a header in which `to` replaces `from`.
    pub(super) delta: Delta,
    pub(super) from_mac: [u8; 6],
    pub(super) to_mac: [u8; 6],
}

impl Translation {
    pub(super) fn new(from: (Ipv4Addr, [u8; 6]), to: (Ipv4Addr, [u8; 6])) -> Self {
        Self {
            from: from.0.octets(),
            to: to.0.octets(),
            delta: Delta::between(from.0.octets(), to.0.octets()),
            from_mac: from.1,
            to_mac: to.1,
        }
    }

    pub(super) fn changes_mac(&self) -> bool {
        self.from_mac != self.to_mac
    }

    /// Replaces the MAC address at offset `at` if it is `from_mac`.
    pub(super) fn replace_mac(&self, bytes: &mut [u8], at: usize) -> Result<(), DropReason> {
        if field(bytes, at)? == self.from_mac {
            set_field(bytes, at, self.to_mac);
        }
        Ok(())
    }
}

/// Checksum that the receiver of a packet completes, from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialChecksum {
    /// Offset of the first summed byte.
    pub(super) start: usize,
    /// Offset of the field of the checksum.
    pub(super) field: usize,
}

impl PartialChecksum {
    /// Returns the offsets from the end of the Ethernet header, or fails if the receiver would write before byte `end` from there.
    pub(super) fn behind_ethernet(self, end: usize) -> Result<Self, DropReason> {
        let start = self.start.checked_sub(ETHERNET).filter(|start| *start >= end);
        start.map_or(Err(DropReason::Malformed), |start| {
            Ok(Self {
                start,
                field: self.field - ETHERNET,
            })
        })
    }
}

/// Returns `N` bytes at offset `at`, or fails if `bytes` are too short.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], DropReason> {
    let rest = bytes.get(at..).and_then(<[u8]>::first_chunk);
    rest.copied().ok_or(DropReason::Malformed)
}

/// Replaces the bytes at offset `at`, which [`field`] has read.
pub(super) fn set_field<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = value;
    }
}
