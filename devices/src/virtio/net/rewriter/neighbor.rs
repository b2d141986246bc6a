//! IPv6 (RFC 8200) with neighbor discovery (RFC 4861): its options announce the MAC address of the sender.

use super::checksum::Delta;
use super::translation::{DropReason, PartialChecksum, Translation, field, set_field};

/// Bytes of a header without extension headers.
const HEADER: usize = 40;
const NEXT_HEADER: usize = 6;
const ICMP: u8 = 58;
/// Offset of the checksum of the ICMP message in the packet.
const CHECKSUM: usize = HEADER + 2;
/// Options with the MAC address of the sender, and of the target. The address is at [`LINK_ADDRESS`].
const ADDRESS_OPTIONS: [u8; 2] = [1, 2];
const LINK_ADDRESS: usize = 2;

/// Returns the number of bytes before the options of a message of type `kind`; `None` for a message of another protocol.
fn options_offset(kind: u8) -> Option<usize> {
    match kind {
        // Router solicitation and advertisement, neighbor solicitation and advertisement, redirect.
        133 => Some(8),
        134 => Some(16),
        135 | 136 => Some(24),
        137 => Some(40),
        _ => None,
    }
}

/// Rewrites the MAC addresses in the options of `packet`, the copied start of a packet. Options beyond the copy stay unchanged:
/// those of hosts end before it.
pub(super) fn rewrite(
    packet: &mut [u8],
    map: &Translation,
    partial: Option<PartialChecksum>,
) -> Result<(), DropReason> {
    let partial = partial
        .map(|partial| partial.behind_ethernet(HEADER))
        .transpose()?;
    let [next] = field(packet, NEXT_HEADER)?;
    if next != ICMP || !map.changes_mac() {
        return Ok(());
    }
    let [kind] = field(packet, HEADER)?;
    let Some(offset) = options_offset(kind) else {
        return Ok(());
    };
    let mut delta = Delta::default();
    let mut at = HEADER + offset;
    while let Ok([kind, length]) = field(packet, at) {
        // The length counts units of 8 bytes. A length of 0 is invalid.
        let length = usize::from(length) * 8;
        if length == 0 {
            break;
        }
        if ADDRESS_OPTIONS.contains(&kind) && field(packet, at + LINK_ADDRESS) == Ok(map.from_mac) {
            set_field(packet, at + LINK_ADDRESS, map.to_mac);
            delta = delta.plus(Delta::between(map.from_mac, map.to_mac));
        }
        at += length;
    }
    let is_partial = partial.is_some_and(|partial| partial.field == CHECKSUM);
    if !is_partial {
        let checksum = field(packet, CHECKSUM)?;
        set_field(packet, CHECKSUM, delta.update(checksum));
    }
    Ok(())
}
