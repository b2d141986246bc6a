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

/// Whether a driver that has accepted `features` may send a packet with this header. Section 5.1.6.2.1.
///
/// Flags other than NEEDS_CSUM are the device's to set, and ignored.
pub(super) fn header_agrees(header: &[u8; HEADER], features: u64) -> bool {
    let [flags, kind, ..] = *header;
    let checksum = match u32::from(flags) & net::VIRTIO_NET_HDR_F_NEEDS_CSUM {
        0 => 0,
        _ => CSUM,
    };
    let segmentation = match u32::from(kind) {
        net::VIRTIO_NET_HDR_GSO_NONE => 0,
        net::VIRTIO_NET_HDR_GSO_TCPV4 => HOST_TSO4,
        net::VIRTIO_NET_HDR_GSO_TCPV6 => HOST_TSO6,
        net::VIRTIO_NET_HDR_GSO_UDP => HOST_UFO,
        net::VIRTIO_NET_HDR_GSO_UDP_L4 => HOST_USO,
        _ => return false,
    };
    let needed = checksum | segmentation;
    features & needed == needed
}
