//! Headers of frames and packets. Each reader checks lengths; none allocates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the header that a tap puts before each frame, `struct virtio_net_hdr_v1`.
pub const VNET_HEADER: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Address of an Ethernet interface.
pub type Mac = [u8; 6];

/// Ethernet type of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethernet type of ARP.
pub const ARP: u16 = 0x0806;
/// Ethernet type of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Extension headers of IPv6 that a length follows (RFC 8200): hop-by-hop options, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// Fragment header of IPv6.
const FRAGMENT: u8 = 44;
/// Maximum number of extension headers that are read: a packet with more has an unknown protocol.
const MAX_EXTENSIONS: usize = 8;

const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;
const NEIGHBOR_SOLICITATION: u8 = 135;

/// ARP request about IPv4 on Ethernet (RFC 826): types, lengths and operation.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Ethernet header with the frame behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet<'a> {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// Type; that of the tag for a frame with a VLAN tag.
    pub ethernet_type: u16,
    /// Bytes behind the header.
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads the header of `frame`; none if the frame is too short.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        Some(Self {
            destination: *frame.first_chunk()?,
            source: *frame.get(6..)?.first_chunk()?,
            ethernet_type: u16::from_be_bytes(*frame.get(12..)?.first_chunk()?),
            payload: frame.get(ETHERNET..)?,
        })
    }

    /// Returns true if the destination is one host.
    pub fn is_unicast(&self) -> bool {
        self.destination[0] & 1 == 0
    }
}

/// Request for the Ethernet address of an IP address: ARP, or a neighbor solicitation (RFC 4861).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRequest {
    /// IP address in question.
    pub target: IpAddr,
    /// Address of the requesting host; unspecified for a probe.
    pub sender: IpAddr,
    /// Ethernet address of the requesting host.
    pub sender_mac: Mac,
}

impl AddressRequest {
    /// Reads the request in `frame`, if it is one.
    pub fn parse(frame: &Ethernet<'_>) -> Option<Self> {
        match frame.ethernet_type {
            ARP => Self::parse_arp(frame.payload),
            IPV6 => Self::parse_solicitation(frame),
            _ => None,
        }
    }

    fn parse_arp(message: &[u8]) -> Option<Self> {
        if !message.starts_with(&ARP_REQUEST) {
            return None;
        }
        let address = |at: usize| message.get(at..)?.first_chunk::<4>().copied();
        Some(Self {
            target: Ipv4Addr::from(address(24)?).into(),
            sender: Ipv4Addr::from(address(14)?).into(),
            sender_mac: *message.get(8..)?.first_chunk()?,
        })
    }

    fn parse_solicitation(frame: &Ethernet<'_>) -> Option<Self> {
        let packet = Packet::parse(frame.payload)?;
        let message = packet.payload;
        // RFC 4861, section 7.1.1: a hop limit below 255 comes from another network.
        let is_valid = packet.protocol == ICMPV6
            && packet.hop_limit == 255
            && message.starts_with(&[NEIGHBOR_SOLICITATION, 0])
            && message.len() >= 24
            && checksum(&packet, message) == 0;
        if !is_valid {
            return None;
        }
        Some(Self {
            target: Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?).into(),
            sender: packet.source,
            sender_mac: frame.source,
        })
    }
}

/// Transport of a packet, as far as it decides about a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP segment.
    Tcp {
        /// Destination port.
        port: u16,
        /// The segment opens a connection: SYN without ACK.
        opens: bool,
    },
    /// UDP datagram.
    Udp {
        /// Destination port.
        port: u16,
    },
    /// ICMP echo request.
    Echo,
    /// Another protocol, a later fragment, or a truncated header.
    Other,
}

/// IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL, or hop limit.
    hop_limit: u8,
    /// Protocol of `payload`.
    protocol: u8,
    /// The packet has the first bytes of its payload.
    is_first: bool,
    /// Bytes behind the headers of IP.
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the headers of `packet`; none if they are truncated or contradictory.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_ipv4(packet),
            6 => Self::parse_ipv6(packet),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let length = usize::from(header[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // Ethernet pads short frames.
        let payload = packet.get(..total)?.get(length..)?;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        (length >= 20).then_some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            hop_limit: header[8],
            protocol: header[9],
            is_first: offset == 0,
            payload,
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<40>()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut payload = packet.get(40..)?.get(..length)?;
        let (mut protocol, mut is_first) = (header[6], true);
        for _ in 0..MAX_EXTENSIONS {
            let skipped = match protocol {
                FRAGMENT => {
                    let offset = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
                    is_first &= offset & 0xfff8 == 0;
                    8
                }
                _ if EXTENSIONS.contains(&protocol) => 8 + usize::from(*payload.get(1)?) * 8,
                _ => break,
            };
            protocol = *payload.first()?;
            payload = payload.get(skipped..)?;
        }
        let address = |at: usize| header.get(at..)?.first_chunk::<16>().copied();
        Some(Self {
            source: Ipv6Addr::from(address(8)?).into(),
            destination: Ipv6Addr::from(address(24)?).into(),
            hop_limit: header[7],
            protocol,
            is_first,
            payload,
        })
    }

    /// Reads the header of the transport.
    pub fn transport(&self) -> Transport {
        if !self.is_first {
            return Transport::Other;
        }
        let port = || Some(u16::from_be_bytes(*self.payload.get(2..)?.first_chunk()?));
        let is_v4 = self.source.is_ipv4();
        let found = match self.protocol {
            TCP => port()
                .zip(self.payload.get(13))
                .map(|(port, flags)| Transport::Tcp {
                    port,
                    opens: flags & (SYN | ACK) == SYN,
                }),
            UDP => port().map(|port| Transport::Udp { port }),
            ICMP if is_v4 && self.payload.first() == Some(&ICMP_ECHO) => Some(Transport::Echo),
            ICMPV6 if !is_v4 && self.payload.first() == Some(&ICMPV6_ECHO) => Some(Transport::Echo),
            _ => None,
        };
        found.unwrap_or(Transport::Other)
    }
}

/// Returns the checksum of `message` with the pseudo-header of `packet`: 0 if the message holds its own.
fn checksum(packet: &Packet<'_>, message: &[u8]) -> u16 {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return u16::MAX;
    };
    checksum_v6(&source, &destination, message)
}

/// Returns the checksum of the ICMPv6 `message` between two addresses.
pub fn checksum_v6(source: &Ipv6Addr, destination: &Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        let words = bytes.chunks(2);
        words
            .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
            .sum()
    };
    let pseudo = words(&source.octets()) + words(&destination.octets()) + u64::from(ICMPV6);
    let mut sum = pseudo + message.len() as u64 + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
pub mod testing {
    //! Frames for tests.

    use std::net::{IpAddr, Ipv6Addr};

    use super::{ARP, ARP_REQUEST, ICMPV6, IPV4, IPV6, Mac, NEIGHBOR_SOLICITATION, checksum_v6};

    pub const PEER_MAC: Mac = [2, 0, 0, 0, 9, 9];
    const BROADCAST: Mac = [0xff; 6];

    pub fn ethernet(destination: Mac, ethernet_type: u16, payload: &[u8]) -> Vec<u8> {
        [&destination[..], &PEER_MAC, &ethernet_type.to_be_bytes(), payload].concat()
    }

    /// Returns an IP packet with `payload` of `protocol`.
    pub fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = |more: usize| u16::try_from(payload.len() + more).unwrap().to_be_bytes();
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let start = [&[0x45, 0][..], &length(20), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat();
                [&start, &source.octets()[..], &destination.octets(), payload].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let start = [&[0x60, 0, 0, 0][..], &length(0), &[protocol, 255]].concat();
                [&start, &source.octets()[..], &destination.octets(), payload].concat()
            }
            _ => panic!("addresses of two kinds"),
        }
    }

    /// Returns a TCP header with `flags`.
    pub fn tcp(port: u16, flags: u8) -> Vec<u8> {
        let mut header = vec![0; 20];
        header[2..4].copy_from_slice(&port.to_be_bytes());
        header[12..14].copy_from_slice(&[0x50, flags]);
        header
    }

    pub fn ip_frame(destination: Mac, packet: &[u8]) -> Vec<u8> {
        let kind = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
        ethernet(destination, kind, packet)
    }

    pub fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let message = [&ARP_REQUEST[..], &PEER_MAC, &sender, &[0; 6], &target].concat();
        ethernet(BROADCAST, ARP, &message)
    }

    pub fn solicitation(sender: &str, target: &str) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let octets = target.octets();
        let group = format!(
            "ff02::1:ff{:02x}:{:02x}{:02x}",
            octets[13], octets[14], octets[15]
        );
        let mut message = [&[NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &octets].concat();
        message.extend([1, 1]);
        message.extend(PEER_MAC);
        let sum = checksum_v6(&sender.parse().unwrap(), &group.parse().unwrap(), &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mac = [0x33, 0x33, 0xff, octets[13], octets[14], octets[15]];
        ethernet(mac, IPV6, &packet(sender, &group, ICMPV6, &message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{arp_request, ethernet, ip_frame, packet, solicitation, tcp};
    use super::{AddressRequest, Ethernet, IPV6, Packet, Transport};

    fn transport(packet: &[u8]) -> Option<Transport> {
        Packet::parse(packet).map(|packet| packet.transport())
    }

    #[test]
    fn transports_are_read() {
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let tcp_of = |flags| Transport::Tcp {
            port: 80,
            opens: flags,
        };
        for (source, destination, icmp, echo) in [(a, b, 1, 8), ("fd00::1", "fd00::2", 58, 128)] {
            let of = |protocol, payload: &[u8]| transport(&packet(source, destination, protocol, payload));
            assert_eq!(of(6, &tcp(80, 0x02)), Some(tcp_of(true)));
            assert_eq!(of(6, &tcp(80, 0xc2)), Some(tcp_of(true)), "with ECN");
            assert_eq!(of(6, &tcp(80, 0x12)), Some(tcp_of(false)));
            assert_eq!(of(6, &tcp(80, 0x18)), Some(tcp_of(false)));
            assert_eq!(
                of(17, &[0, 9, 0, 53, 0, 8, 0, 0]),
                Some(Transport::Udp { port: 53 })
            );
            assert_eq!(of(icmp, &[echo, 0, 0, 0]), Some(Transport::Echo));
            assert_eq!(of(icmp, &[3, 0]), Some(Transport::Other));
            for truncated in [&[][..], &[0; 3], &tcp(80, 2)[..13]] {
                assert_eq!(of(6, truncated), Some(Transport::Other));
            }
            assert_eq!(of(132, &[1, 2, 3, 4]), Some(Transport::Other));
        }
        // ICMP of the other version.
        assert_eq!(transport(&packet(a, b, 58, &[128, 0])), Some(Transport::Other));
    }

    #[test]
    fn fragments_have_transport_in_first() {
        let mut first = packet("10.0.0.1", "10.0.0.2", 17, &[0, 9, 0, 53, 0, 8, 0, 0]);
        first[6] = 0x20;
        assert_eq!(transport(&first), Some(Transport::Udp { port: 53 }));
        first[7] = 1;
        assert_eq!(transport(&first), Some(Transport::Other));
        let fragment = |offset| [&[17, 0, 0, offset, 0, 0, 0, 1][..], &[0, 9, 0, 53, 0, 8, 0, 0]].concat();
        let of = |offset| transport(&packet("fd00::1", "fd00::2", 44, &fragment(offset)));
        assert_eq!(of(1), Some(Transport::Udp { port: 53 }));
        assert_eq!(of(8), Some(Transport::Other));
    }

    #[test]
    fn extension_headers_are_skipped() {
        let chain = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[6, 1], &[0; 14], &tcp(443, 2)].concat();
        let read = transport(&packet("fd00::1", "fd00::2", 0, &chain));
        assert_eq!(
            read,
            Some(Transport::Tcp {
                port: 443,
                opens: true
            })
        );
        let endless = [0; 200];
        assert_eq!(
            transport(&packet("fd00::1", "fd00::2", 0, &endless)),
            Some(Transport::Other)
        );
        assert_eq!(
            transport(&packet("fd00::1", "fd00::2", 0, &[6, 9, 0, 0])),
            None,
            "truncated"
        );
    }

    #[test]
    fn padding_is_no_payload() {
        let mut padded = packet("10.0.0.1", "10.0.0.2", 6, &tcp(80, 2)[..12]);
        padded.extend([2; 30]);
        assert_eq!(transport(&padded), Some(Transport::Other));
    }

    #[test]
    fn address_requests_are_read() {
        let read = |frame: &[u8]| AddressRequest::parse(&Ethernet::parse(frame).unwrap());
        let request = read(&arp_request([10, 0, 0, 9], [10, 0, 0, 2])).unwrap();
        assert_eq!(
            (request.sender.to_string(), request.target.to_string()),
            ("10.0.0.9".into(), "10.0.0.2".into())
        );
        let solicited = solicitation("fe80::9", "fd00::2");
        let request = read(&solicited).unwrap();
        assert_eq!(
            (request.sender.to_string(), request.target.to_string()),
            ("fe80::9".into(), "fd00::2".into())
        );
        // Hop limit, checksum, type, length of the packet.
        for (at, value) in [(21, 254), (56, 1), (54, 136), (19, 23)] {
            let mut wrong = solicited.clone();
            wrong[at] = value;
            assert_eq!(read(&wrong), None, "byte {at}");
        }
        let mut reply = arp_request([10, 0, 0, 9], [10, 0, 0, 2]);
        reply[21] = 2;
        assert_eq!(read(&reply), None);
        assert_eq!(read(&ethernet([0xff; 6], IPV6, &[])), None);
        assert_eq!(
            read(&ip_frame([2; 6], &packet("fd00::1", "fd00::2", 58, &[128, 0]))),
            None
        );
    }

    proptest! {
        #[test]
        fn malformed_frames_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            for frame in [&bytes[..], bytes.get(cut..).unwrap_or(&[])] {
                if let Some(ethernet) = Ethernet::parse(frame) {
                    let _ = AddressRequest::parse(&ethernet);
                }
                if let Some(packet) = Packet::parse(frame) {
                    let _ = packet.transport();
                }
            }
        }

        #[test]
        fn changed_frames_are_read_without_panic(at in 0_usize..90, value: u8, length in 0_usize..90) {
            for mut frame in [solicitation("fe80::9", "fd00::2"), arp_request([10, 0, 0, 9], [10, 0, 0, 2]),
                ip_frame([2; 6], &packet("fd00::1", "fd00::2", 0, &[&[44, 0, 0, 0, 0, 0, 0, 0][..], &[6, 0, 0, 0, 0, 0, 0, 0], &tcp(80, 2)].concat())),
                ip_frame([2; 6], &packet("10.0.0.1", "10.0.0.2", 6, &tcp(80, 2)))] {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
                frame.truncate(length);
                if let Some(ethernet) = Ethernet::parse(&frame) {
                    let _ = AddressRequest::parse(&ethernet);
                    if let Some(packet) = Packet::parse(ethernet.payload) {
                        let _ = packet.transport();
                    }
                }
            }
        }
    }
}
