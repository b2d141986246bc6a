//! Feature bits, packet header and sizes.

use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring as ring;

/// Bytes of `struct virtio_net_hdr_v1`, the header of a packet when VERSION_1 is negotiated.
pub const HEADER: usize = 12;
/// Bytes of a frame beyond the MTU: an Ethernet header and one VLAN tag.
pub(super) const ETHERNET: usize = 14 + 4;
/// Maximum frame length in bytes: 64 KiB, an Ethernet header and one VLAN tag.
pub const MAX_FRAME: usize = 65_536 + ETHERNET;
/// Maximum packet length in bytes: a frame with its header.
pub const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// Minimum frame length in bytes: an Ethernet header.
pub(super) const MIN_FRAME: usize = 14;

/// Feature: the device computes checksums for the driver.
pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
/// Feature: the driver accepts packets without a checksum.
pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
/// Feature: the configuration space contains the MTU.
pub const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
/// Feature: the configuration space contains the MAC address.
pub const MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
/// Feature: the driver accepts large TCP segments over IPv4.
pub const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
/// Feature: the driver accepts large TCP segments over IPv6.
pub const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
/// Feature: the driver accepts UDP datagrams that need fragmentation.
pub const GUEST_UFO: u64 = 1 << net::VIRTIO_NET_F_GUEST_UFO;
/// Feature: the device segments TCP over IPv4.
pub const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
/// Feature: the device segments TCP over IPv6.
pub const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
/// Feature: the device fragments UDP datagrams.
pub const HOST_UFO: u64 = 1 << net::VIRTIO_NET_F_HOST_UFO;
/// Feature: a packet may span several receive buffers.
pub const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
/// Feature: the configuration space contains the link status.
pub const STATUS: u64 = 1 << net::VIRTIO_NET_F_STATUS;
/// Feature: the driver accepts batches of UDP datagrams over IPv4.
pub const GUEST_USO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO4;
/// Feature: the driver accepts batches of UDP datagrams over IPv6.
pub const GUEST_USO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO6;
/// Feature: the device splits batches of UDP datagrams.
pub const HOST_USO: u64 = 1 << net::VIRTIO_NET_F_HOST_USO;
/// Feature: both sides suppress notifications by ring index.
pub const EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
/// Feature: descriptor tables may be indirect.
pub const INDIRECT_DESC: u64 = 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;

/// Features that every device offers.
pub(super) const BASE: u64 = MAC | STATUS | MRG_RXBUF | EVENT_IDX | INDIRECT_DESC;
/// Features that depend on the backend.
pub(super) const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_LARGE | HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO;
/// Features that allow packets to the driver longer than the MTU.
pub(super) const GUEST_LARGE: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// Header flag: the receiver of the packet must compute the checksum.
pub(super) const NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum is verified.
pub(super) const DATA_VALID: u8 = 2;
const _: () = assert!(NEEDS_CSUM as u32 == net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const _: () = assert!(DATA_VALID as u32 == net::VIRTIO_NET_HDR_F_DATA_VALID);
/// Type of a packet that needs no segmentation.
pub(super) const GSO_NONE: u8 = 0;
const _: () = assert!(GSO_NONE as u32 == net::VIRTIO_NET_HDR_GSO_NONE);

/// Returns the header to send for a frame of `length` bytes with the driver's `header`. Returns `None` if
/// the header requests an offload that is not in the negotiated `features`. Virtio 1.2 §5.1.6.2.1.
///
/// The device ignores flags other than NEEDS_CSUM. Fields without a meaning become zero. The header length, a
/// hint by virtio 1.2 §5.1.6.2.2, is limited to the frame length: the kernel rejects longer ones.
pub(super) fn tx_header(header: &[u8; HEADER], length: usize, features: u64) -> Option<[u8; HEADER]> {
    let [flags, kind, ..] = *header;
    let checksum = flags & NEEDS_CSUM;
    let needed = match u32::from(kind) {
        net::VIRTIO_NET_HDR_GSO_NONE => 0,
        net::VIRTIO_NET_HDR_GSO_TCPV4 => HOST_TSO4,
        net::VIRTIO_NET_HDR_GSO_TCPV6 => HOST_TSO6,
        net::VIRTIO_NET_HDR_GSO_UDP => HOST_UFO,
        net::VIRTIO_NET_HDR_GSO_UDP_L4 => HOST_USO,
        _ => return None,
    } | if checksum == 0 { 0 } else { CSUM };
    if features & needed != needed {
        return None;
    }
    let mut clean = [0; HEADER];
    clean[..2].copy_from_slice(&[checksum, kind]);
    if kind != GSO_NONE {
        let hint = usize::from(u16::from_le_bytes([header[2], header[3]])).min(length);
        clean[2..4].copy_from_slice(&u16::try_from(hint).unwrap_or(u16::MAX).to_le_bytes());
        clean[4..6].copy_from_slice(&header[4..6]);
    }
    if checksum != 0 {
        clean[6..10].copy_from_slice(&header[6..10]);
    }
    Some(clean)
}

/// Returns the offsets of the first summed byte and of the checksum in the frame of a packet that starts with `header`, or `None` if
/// its checksum is complete.
pub(super) fn partial_checksum(header: &[u8]) -> Option<(usize, usize)> {
    let [
        flags,
        _,
        _,
        _,
        _,
        _,
        start_low,
        start_high,
        offset_low,
        offset_high,
        ..,
    ] = *header
    else {
        return None;
    };
    let start = usize::from(u16::from_le_bytes([start_low, start_high]));
    let offset = usize::from(u16::from_le_bytes([offset_low, offset_high]));
    (flags & NEEDS_CSUM != 0).then_some((start, start + offset))
}

/// Returns the flags of a received packet for a driver with the negotiated `features`; `None` if the driver
/// must not receive the packet. Virtio 1.2 §5.1.6.4.1.
///
/// A backend can hold such packets from before a reset, when the driver had negotiated more.
pub(super) fn rx_flags([flags, kind]: [u8; 2], features: u64) -> Option<u8> {
    let needed = match u32::from(kind) {
        net::VIRTIO_NET_HDR_GSO_NONE => 0,
        net::VIRTIO_NET_HDR_GSO_TCPV4 => GUEST_TSO4,
        net::VIRTIO_NET_HDR_GSO_TCPV6 => GUEST_TSO6,
        net::VIRTIO_NET_HDR_GSO_UDP => GUEST_UFO,
        // The type covers both IP versions.
        net::VIRTIO_NET_HDR_GSO_UDP_L4 => GUEST_USO4 | GUEST_USO6,
        _ => return None,
    } | if flags & NEEDS_CSUM == 0 { 0 } else { GUEST_CSUM };
    let known = match features & GUEST_CSUM {
        0 => 0,
        _ => NEEDS_CSUM | DATA_VALID,
    };
    (features & needed == needed).then_some(flags & known)
}

/// Returns true if `kind` is a type of packets in a header of virtio 1.2, or that of batches of UDP datagrams.
pub(super) fn is_known_type(kind: u8) -> bool {
    matches!(
        u32::from(kind),
        net::VIRTIO_NET_HDR_GSO_NONE
            | net::VIRTIO_NET_HDR_GSO_TCPV4
            | net::VIRTIO_NET_HDR_GSO_TCPV6
            | net::VIRTIO_NET_HDR_GSO_UDP
            | net::VIRTIO_NET_HDR_GSO_UDP_L4
    )
}

/// Returns true if a packet with these first header bytes needs no segmentation.
pub(super) fn is_unsegmented([_, kind]: [u8; 2]) -> bool {
    kind == GSO_NONE
}
