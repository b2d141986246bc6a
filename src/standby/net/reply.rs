//! Frames in the place of a sleeper: replies to requests for its addresses, and announcements of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{ARP, AddressRequest, ETHERNET, IPV6, Mac, checksum_v6};

const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BROADCAST: Mac = [0xff; 6];

const ICMPV6: u8 = 58;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: the reply to a request; replaces a known address.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Option: address of the target.
const TARGET_ADDRESS: [u8; 2] = [2, 1];
/// All hosts of the network, and the Ethernet address of this group.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Bytes of an ARP message about IPv4.
const ARP_MESSAGE: usize = 28;
/// Bytes of an advertisement with the address of its target.
const ADVERTISEMENT_MESSAGE: usize = 32;
/// Bytes of a frame with an advertisement, the longest one here.
const MAX_FRAME: usize = ETHERNET + 40 + ADVERTISEMENT_MESSAGE;

/// Frame of a few bytes, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: [u8; MAX_FRAME],
    length: usize,
}

impl Frame {
    /// Returns a frame with an Ethernet header.
    fn new(destination: Mac, source: Mac, ethernet_type: u16) -> Self {
        let mut frame = Self {
            bytes: [0; MAX_FRAME],
            length: 0,
        };
        frame.push(&destination);
        frame.push(&source);
        frame.push(&ethernet_type.to_be_bytes());
        frame
    }

    /// Appends `bytes`. The frames of this module have room for them.
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.bytes[self.length..].iter_mut().zip(bytes) {
            *to = *from;
            self.length += 1;
        }
    }

    /// Returns the bytes of the frame.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Returns the reply of the host `mac` to `request`; none if the versions of its addresses differ.
pub fn answer(request: &AddressRequest, mac: Mac) -> Option<Frame> {
    match (request.target, request.sender) {
        (IpAddr::V4(target), IpAddr::V4(sender)) => {
            let ends = [(mac, target), (request.sender_mac, sender)];
            Some(arp(request.sender_mac, REPLY, ends))
        }
        // RFC 4861, section 7.2.4: a probe has no address to reply to.
        (IpAddr::V6(target), IpAddr::V6(sender)) if sender.is_unspecified() => {
            Some(advertisement((ALL_NODES_MAC, ALL_NODES), (mac, target), OVERRIDE))
        }
        (IpAddr::V6(target), IpAddr::V6(sender)) => Some(advertisement(
            (request.sender_mac, sender),
            (mac, target),
            SOLICITED | OVERRIDE,
        )),
        _ => None,
    }
}

/// Returns the frame by which the host `mac` announces that it has the address `ip`: bridges learn its port, and hosts its address.
pub fn announcement(ip: IpAddr, mac: Mac) -> Frame {
    match ip {
        // RFC 5227, section 3: as a request, which more hosts heed than a reply.
        IpAddr::V4(ip) => arp(BROADCAST, REQUEST, [(mac, ip), ([0; 6], ip)]),
        IpAddr::V6(ip) => advertisement((ALL_NODES_MAC, ALL_NODES), (mac, ip), OVERRIDE),
    }
}

/// Returns an ARP message with the addresses of its two `ends`, the sender first.
fn arp(destination: Mac, operation: u8, ends: [(Mac, Ipv4Addr); 2]) -> Frame {
    let mut frame = Frame::new(destination, ends[0].0, ARP);
    frame.push(&ARP_START);
    frame.push(&[0, operation]);
    for (mac, ip) in ends {
        frame.push(&mac);
        frame.push(&ip.octets());
    }
    debug_assert_eq!(frame.length, ETHERNET + ARP_MESSAGE);
    frame
}

/// Returns a neighbor advertisement (RFC 4861, section 4.4) that `target` has its address.
fn advertisement(to: (Mac, Ipv6Addr), target: (Mac, Ipv6Addr), flags: u8) -> Frame {
    let mut frame = Frame::new(to.0, target.0, IPV6);
    let length = u16::try_from(ADVERTISEMENT_MESSAGE).unwrap_or_default();
    frame.push(&[0x60, 0, 0, 0]);
    frame.push(&length.to_be_bytes());
    frame.push(&[ICMPV6, 255]);
    frame.push(&target.1.octets());
    frame.push(&to.1.octets());
    let start = frame.length;
    frame.push(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    frame.push(&target.1.octets());
    frame.push(&TARGET_ADDRESS);
    frame.push(&target.0);
    let sum = checksum_v6(&target.1, &to.1, &frame.bytes[start..frame.length]);
    frame.bytes[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::super::frame::testing::{PEER_MAC, arp_request, solicitation};
    use super::super::frame::{AddressRequest, Ethernet, checksum_v6};
    use super::{announcement, answer};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn answer_to(frame: &[u8]) -> Vec<u8> {
        let request = AddressRequest::parse(&Ethernet::parse(frame).unwrap()).unwrap();
        answer(&request, MAC).unwrap().bytes().to_vec()
    }

    #[test]
    fn arp_reply_goes_to_sender() {
        let reply = answer_to(&arp_request([10, 0, 0, 9], [10, 0, 0, 2]));
        let expected = [
            &PEER_MAC[..],
            &MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &MAC,
            &[10, 0, 0, 2],
            &PEER_MAC,
            &[10, 0, 0, 9],
        ];
        assert_eq!(reply, expected.concat());
    }

    #[test]
    fn advertisement_goes_to_sender_or_all() {
        for (sender, to, mac, flags) in [
            ("fe80::9", "fe80::9", PEER_MAC, 0x60),
            ("::", "ff02::1", [0x33, 0x33, 0, 0, 0, 1], 0x20),
        ] {
            let reply = answer_to(&solicitation(sender, "fd00::2"));
            let (target, to) = ("fd00::2".parse().unwrap(), to.parse().unwrap());
            assert_eq!((&reply[..6], &reply[6..12]), (&mac[..], &MAC[..]));
            assert_eq!(reply[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
            assert_eq!(checksum_v6(&target, &to, &reply[54..]), 0);
            assert_eq!((reply[54], reply[58]), (136, flags));
            assert_eq!(reply[62..78], target.octets());
            assert_eq!(reply[78..], [&[2, 1][..], &MAC].concat());
        }
    }

    #[test]
    fn announcements_name_address_twice() {
        let arp = announcement("10.0.0.2".parse().unwrap(), MAC);
        let expected = [
            &[0xff; 6][..],
            &MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &MAC,
            &[10, 0, 0, 2],
            &[0; 6],
            &[10, 0, 0, 2],
        ];
        assert_eq!(arp.bytes(), expected.concat());
        let advertised = announcement("fd00::2".parse().unwrap(), MAC);
        assert_eq!(advertised.bytes()[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(advertised.bytes()[58], 0x20);
    }
}
