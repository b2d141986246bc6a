//! What is offered, and what a packet's header may ask for.

use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring as ring;

use super::HEADER;

/// The device computes checksums for the driver.
pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
/// The driver takes packets without a checksum.
pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
/// The configuration space has the MTU.
pub const MTU: u64 = 1 << net::VIRTIO_NET_F_MTU;
/// The configuration space has the address.
pub const MAC: u64 = 1 << net::VIRTIO_NET_F_MAC;
/// The driver takes large TCP segments over IPv4.
pub const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
/// The driver takes large TCP segments over IPv6.
pub const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
/// The driver takes UDP datagrams that are to be fragmented.
pub const GUEST_UFO: u64 = 1 << net::VIRTIO_NET_F_GUEST_UFO;
/// The device segments TCP over IPv4.
pub const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
/// The device segments TCP over IPv6.
pub const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
/// The device fragments UDP datagrams.
pub const HOST_UFO: u64 = 1 << net::VIRTIO_NET_F_HOST_UFO;
/// A packet may take several receive buffers.
pub const MRG_RXBUF: u64 = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration space has the link status.
pub const STATUS: u64 = 1 << net::VIRTIO_NET_F_STATUS;
/// The driver takes batches of UDP datagrams over IPv4.
pub const GUEST_USO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO4;
/// The driver takes batches of UDP datagrams over IPv6.
pub const GUEST_USO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_USO6;
/// The device splits batches of UDP datagrams.
pub const HOST_USO: u64 = 1 << net::VIRTIO_NET_F_HOST_USO;
/// Both sides say at which index they want to be told.
pub const EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
/// Descriptor tables may be indirect.
pub const INDIRECT_DESC: u64 = 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;

/// What every device offers.
pub(super) const BASE: u64 = MAC | STATUS | MRG_RXBUF | EVENT_IDX | INDIRECT_DESC;
/// What depends on the back end.
pub(super) const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_LARGE | HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO;
/// With any of these the driver gets packets longer than the MTU.
pub(super) const GUEST_LARGE: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// Flag of a header: the checksum is to be computed.
const NEEDS_CSUM: u8 = 1;
/// Flag of a header: the checksum has been verified.
const DATA_VALID: u8 = 2;
const _: () = assert!(NEEDS_CSUM as u32 == net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const _: () = assert!(DATA_VALID as u32 == net::VIRTIO_NET_HDR_F_DATA_VALID);
/// Type of a packet that is not to be cut up.
const WHOLE: u8 = 0;
const _: () = assert!(WHOLE as u32 == net::VIRTIO_NET_HDR_GSO_NONE);

/// The header for a frame of `length` bytes that a driver has sent with `header`; none if it may not, having accepted
/// `features`. Section 5.1.6.2.1.
///
/// Flags other than NEEDS_CSUM are the device's to set, and ignored. Fields that mean nothing are zeros in the answer, and
/// the length of the headers, which section 5.1.6.2.2 takes for a hint, is no longer than the frame: the kernel refuses
/// packets for that.
pub(super) fn sent_header(header: &[u8; HEADER], length: usize, features: u64) -> Option<[u8; HEADER]> {
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
    if kind != WHOLE {
        let hint = usize::from(u16::from_le_bytes([header[2], header[3]])).min(length);
        clean[2..4].copy_from_slice(&u16::try_from(hint).unwrap_or(u16::MAX).to_le_bytes());
        clean[4..6].copy_from_slice(&header[4..6]);
    }
    if checksum != 0 {
        clean[6..10].copy_from_slice(&header[6..10]);
    }
    Some(clean)
}

/// The flags for a packet that starts with the `flags` and the type `kind`, for a driver that has accepted `features`; none
/// if it must not get the packet. Section 5.1.6.4.1.
///
/// Such packets are those that waited in the back end while another driver, or the same one in another life, had accepted
/// more.
pub(super) fn received_flags([flags, kind]: [u8; 2], features: u64) -> Option<u8> {
    let needed = match u32::from(kind) {
        net::VIRTIO_NET_HDR_GSO_NONE => 0,
        net::VIRTIO_NET_HDR_GSO_TCPV4 => GUEST_TSO4,
        net::VIRTIO_NET_HDR_GSO_TCPV6 => GUEST_TSO6,
        net::VIRTIO_NET_HDR_GSO_UDP => GUEST_UFO,
        // It does not say of which protocol.
        net::VIRTIO_NET_HDR_GSO_UDP_L4 => GUEST_USO4 | GUEST_USO6,
        _ => return None,
    } | if flags & NEEDS_CSUM == 0 { 0 } else { GUEST_CSUM };
    let known = match features & GUEST_CSUM {
        0 => 0,
        _ => NEEDS_CSUM | DATA_VALID,
    };
    (features & needed == needed).then_some(flags & known)
}

/// Whether a packet of the type `kind` is not to be cut up.
pub(super) fn is_whole([_, kind]: [u8; 2]) -> bool {
    kind == WHOLE
}
