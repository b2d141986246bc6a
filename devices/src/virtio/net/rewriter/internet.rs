//! IPv4 (RFC 791), the protocols above it whose checksum covers its addresses, and the headers inside ICMP errors.

use super::checksum::Delta;
use super::translation::{DropReason, PartialChecksum, Translation, field, set_field};

/// Bytes of a header without options.
const MIN_HEADER: usize = 20;
/// Offsets of fields in a header.
const TOTAL_LENGTH: usize = 2;
const FRAGMENT: usize = 6;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
/// Bits of the fragment offset; the others are flags.
const OFFSET_MASK: u16 = 0x1fff;

const ICMP: u8 = 1;
/// Offset of the checksum in an ICMP message.
const ICMP_CHECKSUM: usize = 2;
/// Bytes of an ICMP error before the quoted header.
const ICMP_HEADER: usize = 8;
/// Types of ICMP errors, which quote the start of a packet: destination unreachable, source quench, redirect, time exceeded,
/// parameter problem.
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

const BROADCAST: [u8; 4] = [255; 4];

/// Checksum of a protocol that covers the addresses of IPv4.
#[derive(Clone, Copy)]
struct TransportChecksum {
    /// Offset of the field in the header of the protocol.
    offset: usize,
    /// Minimum bytes of the header of the protocol.
    header: usize,
    /// Zero stands for no checksum, and a checksum of zero is sent as 0xffff.
    has_no_zero: bool,
}

impl TransportChecksum {
    /// Returns the checksum of `protocol`: TCP (RFC 9293), UDP (RFC 768), DCCP (RFC 4340), UDP-Lite (RFC 3828). Those of other
    /// protocols do not cover the addresses.
    fn of(protocol: u8) -> Option<Self> {
        let (offset, header, has_no_zero) = match protocol {
            6 => (16, 20, false),
            17 | 136 => (6, 8, true),
            33 => (6, 12, false),
            _ => return None,
        };
        Some(Self {
            offset,
            header,
            has_no_zero,
        })
    }

    /// Returns the value that replaces the full checksum `old`.
    fn update(self, old: [u8; 2], delta: Delta) -> [u8; 2] {
        if self.has_no_zero && old == [0; 2] {
            return old;
        }
        match delta.update(old) {
            [0, 0] if self.has_no_zero => [0xff; 2],
            new => new,
        }
    }
}

/// Fields of a header.
struct Header {
    /// Bytes of the header.
    length: usize,
    /// Bytes of header and payload.
    total_length: usize,
    protocol: u8,
    /// The packet is no fragment, or the first one: it starts with the header of its protocol.
    is_first: bool,
}

impl Header {
    /// Parses the header at the start of `bytes`, without a check of its total length.
    fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let [first] = field(bytes, 0)?;
        let length = usize::from(first & 0xf) * 4;
        if first >> 4 != 4 || length < MIN_HEADER || bytes.len() < length {
            return Err(DropReason::Malformed);
        }
        let [protocol] = field(bytes, PROTOCOL)?;
        Ok(Self {
            length,
            total_length: u16::from_be_bytes(field(bytes, TOTAL_LENGTH)?).into(),
            protocol,
            is_first: u16::from_be_bytes(field(bytes, FRAGMENT)?) & OFFSET_MASK == 0,
        })
    }

    /// Parses the header of a packet in a frame with `room` bytes for it.
    fn parse_outer(bytes: &[u8], room: usize) -> Result<Self, DropReason> {
        let mut header = Self::parse(bytes)?;
        if header.total_length == 0 {
            // Some drivers leave the length of a segment to segment further to the device.
            header.total_length = room;
        }
        match (header.length..=room).contains(&header.total_length) {
            true => Ok(header),
            false => Err(DropReason::Malformed),
        }
    }
}

/// Rewrites the source address of `packet`, the copied start of a packet in a frame with `room` bytes for it.
pub(super) fn rewrite_outbound(
    packet: &mut [u8],
    room: usize,
    map: &Translation,
    partial: Option<PartialChecksum>,
) -> Result<(), DropReason> {
    let header = Header::parse_outer(packet, room)?;
    // The receiver would write the checksum into the header, after the check of the source.
    let partial = behind_header(partial, &header)?;
    let source = field(packet, SOURCE)?;
    if source == map.from {
        replace_address(packet, &header, SOURCE, map, partial)?;
    } else if source != [0; 4] {
        return Err(DropReason::Source);
    }
    rewrite_icmp_error(packet, &header, map, partial)
}

/// Rewrites the destination address of `packet`, as [`rewrite_outbound`]. `is_group` is true in a frame to a group.
pub(super) fn rewrite_inbound(
    packet: &mut [u8],
    room: usize,
    map: &Translation,
    partial: Option<PartialChecksum>,
    is_group: bool,
) -> Result<(), DropReason> {
    let header = Header::parse_outer(packet, room)?;
    let partial = behind_header(partial, &header)?;
    if field(packet, SOURCE)? == map.to {
        return Err(DropReason::Source);
    }
    let destination: [u8; 4] = field(packet, DESTINATION)?;
    let is_multicast = destination[0] & 0xf0 == 0xe0;
    if destination == map.from {
        replace_address(packet, &header, DESTINATION, map, partial)?;
    } else if destination == map.to || !(is_group || is_multicast || destination == BROADCAST) {
        return Err(DropReason::Destination);
    }
    rewrite_icmp_error(packet, &header, map, partial)
}

fn behind_header(
    partial: Option<PartialChecksum>,
    header: &Header,
) -> Result<Option<PartialChecksum>, DropReason> {
    let behind = partial.map(|partial| partial.behind_ethernet(header.length));
    behind.transpose()
}

/// Replaces the address at offset `at`, and updates the checksums that cover it.
// Inlined for both directions: the call costs as much as the check of an address.
#[inline(always)]
fn replace_address(
    packet: &mut [u8],
    header: &Header,
    at: usize,
    map: &Translation,
    partial: Option<PartialChecksum>,
) -> Result<(), DropReason> {
    set_field(packet, at, map.to);
    let checksum = field(packet, CHECKSUM)?;
    set_field(packet, CHECKSUM, map.delta.update(checksum));
    let Some(transport) = TransportChecksum::of(header.protocol).filter(|_| header.is_first) else {
        return Ok(());
    };
    // A first fragment without the checksum (RFC 1858) cannot be rewritten: a later one has it.
    if header.total_length < header.length + transport.header {
        return Err(DropReason::Malformed);
    }
    let at = header.length + transport.offset;
    let old = field(packet, at)?;
    let new = match partial {
        Some(partial) if partial.field == at => map.delta.update_sum(old),
        _ => transport.update(old, map.delta),
    };
    set_field(packet, at, new);
    Ok(())
}

/// Rewrites the addresses in the packet that an ICMP error quotes; other packets stay unchanged.
///
/// The quoted packet has the opposite direction: an error to the guest quotes a packet from the clone's address.
fn rewrite_icmp_error(
    packet: &mut [u8],
    header: &Header,
    map: &Translation,
    partial: Option<PartialChecksum>,
) -> Result<(), DropReason> {
    if header.protocol != ICMP || !header.is_first {
        return Ok(());
    }
    let end = packet.len().min(header.total_length);
    let message = packet.get_mut(header.length..end).ok_or(DropReason::Malformed)?;
    let [kind] = field(message, 0)?;
    if !ICMP_ERRORS.contains(&kind) {
        return Ok(());
    }
    let checksum = field(message, ICMP_CHECKSUM)?;
    let quoted = message.get_mut(ICMP_HEADER..).ok_or(DropReason::Malformed)?;
    let delta = rewrite_quoted(quoted, map)?;
    // The receiver sums the rewritten bytes if the checksum is partial.
    let is_partial = partial.is_some_and(|partial| partial.field == header.length + ICMP_CHECKSUM);
    if !is_partial {
        set_field(message, ICMP_CHECKSUM, delta.update(checksum));
    }
    Ok(())
}

/// Rewrites the addresses in a quoted packet. Returns the change of the sum of its bytes.
fn rewrite_quoted(packet: &mut [u8], map: &Translation) -> Result<Delta, DropReason> {
    let header = Header::parse(packet)?;
    let mut addresses = Delta::default();
    for at in [SOURCE, DESTINATION] {
        if field(packet, at)? == map.from {
            set_field(packet, at, map.to);
            addresses = addresses.plus(map.delta);
        }
    }
    if addresses == Delta::default() {
        return Ok(addresses);
    }
    let checksum = field(packet, CHECKSUM)?;
    let new = addresses.update(checksum);
    set_field(packet, CHECKSUM, new);
    let delta = addresses.plus(Delta::between(checksum, new));
    let Some(transport) = TransportChecksum::of(header.protocol).filter(|_| header.is_first) else {
        return Ok(delta);
    };
    let at = header.length + transport.offset;
    // The quote may end before the checksum: RFC 792 requires only 8 bytes of the payload.
    let Ok(checksum) = field(packet, at) else {
        return Ok(delta);
    };
    let new = transport.update(checksum, addresses);
    set_field(packet, at, new);
    Ok(delta.plus(Delta::between(checksum, new)))
}
