//! Rewriting of addresses: the guest has one address, the network another, and the device translates.
//!
//! Clones of one snapshot all have the address of its guest. With a rewriter, the network sees each clone at an address of its own,
//! without a network namespace, NAT rules or eBPF on the host.
//!
//! | module | contents |
//! |---|---|
//! | this one | Ethernet header, ARP, policy |
//! | [`checksum`] | incremental change of checksums |
//! | [`internet`] | IPv4, TCP, UDP, UDP-Lite, DCCP, and the headers inside ICMP errors |
//! | [`neighbor`] | link-layer addresses in the neighbor discovery of IPv6 |
//! | [`translation`] | addresses of one direction, fields of headers, reasons to drop a frame |
//!
//! The rewriter works on a copy of the first [`MAX_HEADERS`] bytes of a frame, which hold all headers that it reads or changes. The
//! device sends this copy and not the original, which the guest may change at any time. Payloads stay unchanged.
//!
//! | frame | from the guest | to the guest |
//! |---|---|---|
//! | ARP, IPv4 | from the guest's address or 0.0.0.0 | to the clone's address, or to a group |
//! | IPv6 | only with `pass_ipv6` | only with `pass_ipv6` |
//! | VLAN, other types | dropped | dropped |

mod checksum;
mod internet;
mod neighbor;
#[cfg(test)]
mod tests;
mod translation;

use std::net::Ipv4Addr;

use self::translation::{ETHERNET, PartialChecksum, Translation, field, set_field};
use super::features::{HEADER, partial_checksum};

pub(super) use self::translation::DropReason;

/// Bytes at the start of a frame that the rewriter reads and changes. The longest headers are those of an ICMP error about a TCP
/// segment, with all options of IPv4, up to the checksum of the segment.
pub(super) const MAX_HEADERS: usize = ETHERNET + 60 + 8 + 60 + 18;
/// Bytes at the start of a packet that the rewriter reads and changes.
pub(super) const MAX_START: usize = HEADER + MAX_HEADERS;

/// Offset of the source address in an Ethernet header; the destination address is at 0.
const SOURCE: usize = 6;
/// Offset of the type in an Ethernet header.
const TYPE: usize = 12;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// Types of VLAN tags: IEEE 802.1Q, 802.1ad, and the type before that standard.
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// Start of an ARP message about IPv4 on Ethernet (RFC 826): types and lengths of the addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Offset of the sender's addresses in an ARP message: MAC address, then IPv4 address.
const ARP_SENDER: usize = 8;
/// Offset of the target's addresses in an ARP message.
const ARP_TARGET: usize = 18;
/// Bytes of a MAC address, after which the IPv4 address follows in an ARP message.
const MAC: usize = 6;

/// Addresses of a guest, and those that the network sees in their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressMap {
    /// IPv4 address that the guest uses.
    pub guest_ip: Ipv4Addr,
    /// IPv4 address that the network sees.
    pub ip: Ipv4Addr,
    /// MAC address that the guest uses. Not checked if it equals `mac`.
    pub guest_mac: [u8; 6],
    /// MAC address that the network sees.
    pub mac: [u8; 6],
    /// Passes IPv6. Its IP addresses stay unchanged.
    pub pass_ipv6: bool,
}

/// Rewriter of the addresses in the frames of one device.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressRewriter {
    outbound: Translation,
    inbound: Translation,
    pass_ipv6: bool,
}

impl AddressRewriter {
    /// Creates a rewriter.
    pub(super) fn new(map: &AddressMap) -> Self {
        let (guest, network) = ((map.guest_ip, map.guest_mac), (map.ip, map.mac));
        Self {
            outbound: Translation::new(guest, network),
            inbound: Translation::new(network, guest),
            pass_ipv6: map.pass_ipv6,
        }
    }

    /// Rewrites a packet from the guest. `start` is a copy of its first [`MAX_START`] bytes, or of all if it has fewer; the packet
    /// has `length` bytes.
    ///
    /// # Errors
    /// The reason to drop the packet. The copy is then unspecified.
    pub(super) fn rewrite_outbound(&self, start: &mut [u8], length: usize) -> Result<(), DropReason> {
        let partial = partial_checksum(start).map(|(start, field)| PartialChecksum { start, field });
        let map = &self.outbound;
        let (frame, length) = frame(start, length)?;
        if map.changes_mac() {
            if field(frame, SOURCE)? != map.from_mac {
                return Err(DropReason::Source);
            }
            set_field(frame, SOURCE, map.to_mac);
        }
        let ethernet_type = self.pass(frame)?;
        let body = frame.get_mut(ETHERNET..).ok_or(DropReason::Malformed)?;
        match (ethernet_type, partial) {
            (IPV4, _) => internet::rewrite_outbound(body, length - ETHERNET, map, partial),
            (IPV6, _) => neighbor::rewrite(body, map, partial),
            (_, Some(_)) => Err(DropReason::Malformed),
            (_, None) => rewrite_arp_outbound(body, map),
        }
    }

    /// Rewrites a packet to the guest, as [`rewrite_outbound`](Self::rewrite_outbound). Returns the MAC address of another host
    /// that claims the address of this clone, if the packet shows one.
    ///
    /// # Errors
    /// The reason to drop the packet. The copy is then unspecified.
    pub(super) fn rewrite_inbound(
        &self,
        start: &mut [u8],
        length: usize,
    ) -> Result<Option<[u8; 6]>, DropReason> {
        let partial = partial_checksum(start).map(|(start, field)| PartialChecksum { start, field });
        let map = &self.inbound;
        let (frame, length) = frame(start, length)?;
        let destination: [u8; 6] = field(frame, 0)?;
        let is_group = destination[0] & 1 != 0;
        if map.changes_mac() && !is_group {
            if destination != map.from_mac {
                return Err(DropReason::Destination);
            }
            set_field(frame, 0, map.to_mac);
        }
        let ethernet_type = self.pass(frame)?;
        let body = frame.get_mut(ETHERNET..).ok_or(DropReason::Malformed)?;
        match (ethernet_type, partial) {
            (IPV4, _) => {
                let rest = length - ETHERNET;
                internet::rewrite_inbound(body, rest, map, partial, is_group).map(|()| None)
            }
            (IPV6, _) => neighbor::rewrite(body, map, partial).map(|()| None),
            (_, Some(_)) => Err(DropReason::Malformed),
            (_, None) => rewrite_arp_inbound(body, map),
        }
    }

    /// Returns the type of a frame that passes: ARP, IPv4, or IPv6 if it is passed.
    fn pass(&self, frame: &[u8]) -> Result<u16, DropReason> {
        match u16::from_be_bytes(field(frame, TYPE)?) {
            passed @ (IPV4 | ARP) => Ok(passed),
            IPV6 if self.pass_ipv6 => Ok(IPV6),
            IPV6 => Err(DropReason::Ipv6),
            other if VLAN.contains(&other) => Err(DropReason::Vlan),
            _ => Err(DropReason::Protocol),
        }
    }
}

/// Returns the frame of a packet, and its length in bytes, at least that of an Ethernet header.
fn frame(start: &mut [u8], length: usize) -> Result<(&mut [u8], usize), DropReason> {
    let frame = start.get_mut(HEADER..).ok_or(DropReason::Malformed)?;
    let length = length.checked_sub(HEADER).filter(|length| *length >= ETHERNET);
    length.map(|length| (frame, length)).ok_or(DropReason::Malformed)
}

/// Checks that `message` is an ARP message about IPv4 on Ethernet, and returns the IPv4 addresses of sender and target.
fn parse_arp(message: &[u8]) -> Result<([u8; 4], [u8; 4]), DropReason> {
    match field(message, 0)? == ARP_START {
        true => Ok((
            field(message, ARP_SENDER + MAC)?,
            field(message, ARP_TARGET + MAC)?,
        )),
        false => Err(DropReason::Malformed),
    }
}

fn rewrite_arp_outbound(message: &mut [u8], map: &Translation) -> Result<(), DropReason> {
    let (sender, target) = parse_arp(message)?;
    if sender != map.from && sender != [0; 4] {
        return Err(DropReason::Source);
    }
    if map.changes_mac() && field(message, ARP_SENDER)? != map.from_mac {
        return Err(DropReason::Source);
    }
    map.replace_mac(message, ARP_SENDER)?;
    // An announcement has the sender as its target.
    map.replace_mac(message, ARP_TARGET)?;
    if sender == map.from {
        set_field(message, ARP_SENDER + MAC, map.to);
    }
    if target == map.from {
        set_field(message, ARP_TARGET + MAC, map.to);
    }
    Ok(())
}

fn rewrite_arp_inbound(message: &mut [u8], map: &Translation) -> Result<Option<[u8; 6]>, DropReason> {
    let (sender, target) = parse_arp(message)?;
    map.replace_mac(message, ARP_TARGET)?;
    // Another host has the address of the guest. The guest must neither detect a conflict with it, nor answer for it.
    if sender == map.to && sender != map.from {
        return Err(DropReason::Source);
    }
    if target == map.to && target != map.from {
        return Err(DropReason::Destination);
    }
    if target == map.from {
        set_field(message, ARP_TARGET + MAC, map.to);
    }
    if sender != map.from {
        return Ok(None);
    }
    // The guest may defend its address (RFC 5227).
    set_field(message, ARP_SENDER + MAC, map.to);
    field(message, ARP_SENDER).map(Some)
}
