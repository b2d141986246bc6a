//! Decision about a frame for a sleeper: wake it, answer in its place, or ignore the frame.

use std::net::IpAddr;

use super::frame::{AddressRequest, Ethernet, IPV4, IPV6, Mac, Packet, Transport};
use super::reply;

/// Frames that wake an instance. ARP requests and neighbor solicitations never do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WakeRule {
    /// Each frame to the Ethernet address of the instance.
    Unicast,
    /// Frames that open a connection: TCP with SYN and without ACK, and UDP datagrams.
    NewConnections,
    /// TCP segments and UDP datagrams to one of these ports.
    Ports(Box<[u16]>),
}

impl WakeRule {
    /// Returns true if `packet`, a unicast to the instance, wakes it; none is a frame of another protocol.
    pub fn wakes(&self, packet: Option<&Packet<'_>>) -> bool {
        let transport = packet.map_or(Transport::Other, Packet::transport);
        match (self, transport) {
            (Self::Unicast, _) => true,
            (Self::NewConnections, Transport::Tcp { opens, .. }) => opens,
            (Self::NewConnections, Transport::Udp { .. }) => true,
            (Self::Ports(ports), Transport::Tcp { port, .. } | Transport::Udp { port }) => {
                ports.contains(&port)
            }
            (Self::NewConnections | Self::Ports(_), _) => false,
        }
    }
}

/// Addresses of a sleeper, as its network sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Ethernet address.
    pub mac: Mac,
    /// IP addresses for which requests are answered.
    pub ip: Box<[IpAddr]>,
}

/// Decision about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame wakes the sleeper.
    Wake,
    /// The sleeper has sent this frame.
    Answer(reply::Frame),
    /// The frame has no effect.
    Ignore,
}

/// Decides about an Ethernet frame for a sleeper with `addresses`.
pub fn classify(frame: &[u8], addresses: &Addresses, rule: &WakeRule) -> Verdict {
    let Some(ethernet) = Ethernet::parse(frame) else {
        return Verdict::Ignore;
    };
    if ethernet.is_unicast() && ethernet.destination != addresses.mac {
        return Verdict::Ignore;
    }
    if let Some(request) = AddressRequest::parse(&ethernet) {
        return match addresses.ip.contains(&request.target) {
            true => reply::answer(&request, addresses.mac).map_or(Verdict::Ignore, Verdict::Answer),
            false => Verdict::Ignore,
        };
    }
    let packet = match ethernet.ethernet_type {
        IPV4 | IPV6 => Packet::parse(ethernet.payload),
        super::frame::ARP => return Verdict::Ignore,
        _ => None,
    };
    match ethernet.is_unicast() && rule.wakes(packet.as_ref()) {
        true => Verdict::Wake,
        false => Verdict::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::testing::{arp_request, ethernet, ip_frame, packet, solicitation, tcp};
    use super::{Addresses, Verdict, WakeRule, classify};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn addresses() -> Addresses {
        Addresses {
            mac: MAC,
            ip: ["10.0.0.2", "fd00::2"].map(|text| text.parse().unwrap()).into(),
        }
    }

    fn verdict(frame: &[u8], rule: &WakeRule) -> Verdict {
        classify(frame, &addresses(), rule)
    }

    #[test]
    fn rule_decides_about_unicast() {
        let rules = [
            WakeRule::Unicast,
            WakeRule::NewConnections,
            WakeRule::Ports([80, 443].into()),
        ];
        for (source, destination, icmp, echo) in
            [("10.0.0.9", "10.0.0.2", 1, 8), ("fd00::9", "fd00::2", 58, 128)]
        {
            for (protocol, payload, expected) in [
                (6, tcp(80, 2), [true, true, true]),
                (6, tcp(80, 0x18), [true, false, true]),
                (6, tcp(22, 2), [true, true, false]),
                (17, vec![0, 9, 1, 0xbb, 0, 8, 0, 0], [true, true, true]),
                (17, vec![0, 9, 0, 53, 0, 8, 0, 0], [true, true, false]),
                (icmp, vec![echo, 0, 0, 0], [true, false, false]),
                (132, vec![0; 12], [true, false, false]),
            ] {
                let frame = ip_frame(MAC, &packet(source, destination, protocol, &payload));
                let wakes = rules
                    .each_ref()
                    .map(|rule| verdict(&frame, rule) == Verdict::Wake);
                assert_eq!(wakes, expected, "{protocol} {payload:?}");
            }
        }
        let other = ethernet(MAC, 0x8100, &[0, 1, 8, 0]);
        assert_eq!(
            rules
                .each_ref()
                .map(|rule| verdict(&other, rule) == Verdict::Wake),
            [true, false, false]
        );
    }

    #[test]
    fn frames_of_others_are_ignored() {
        let ping = packet("10.0.0.9", "10.0.0.2", 1, &[8, 0, 0, 0]);
        for mac in [[2, 0, 0, 0, 0, 2], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert_eq!(
                verdict(&ip_frame(mac, &ping), &WakeRule::Unicast),
                Verdict::Ignore
            );
        }
        assert_eq!(verdict(&[], &WakeRule::Unicast), Verdict::Ignore);
        assert_eq!(verdict(&[2; 13], &WakeRule::Unicast), Verdict::Ignore);
    }

    #[test]
    fn address_requests_never_wake() {
        for (frame, is_answered) in [
            (arp_request([10, 0, 0, 9], [10, 0, 0, 2]), true),
            (arp_request([0, 0, 0, 0], [10, 0, 0, 2]), true),
            (arp_request([10, 0, 0, 9], [10, 0, 0, 3]), false),
            (solicitation("fe80::9", "fd00::2"), true),
            (solicitation("::", "fd00::2"), true),
            (solicitation("fe80::9", "fd00::3"), false),
        ] {
            for to_mac in [false, true] {
                let mut frame = frame.clone();
                if to_mac {
                    frame[..6].copy_from_slice(&MAC);
                }
                let found = verdict(&frame, &WakeRule::Unicast);
                assert_eq!(matches!(found, Verdict::Answer(_)), is_answered, "{frame:?}");
                assert_ne!(found, Verdict::Wake);
            }
        }
        // Neither does a reply.
        let mut reply = arp_request([10, 0, 0, 9], [10, 0, 0, 2]);
        reply[..6].copy_from_slice(&MAC);
        reply[21] = 2;
        assert_eq!(verdict(&reply, &WakeRule::Unicast), Verdict::Ignore);
    }

    proptest! {
        #[test]
        fn any_frame_has_verdict(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), to_mac: bool) {
            if let (true, Some(start)) = (to_mac, bytes.first_chunk_mut()) {
                *start = MAC;
            }
            let found = verdict(&bytes, &WakeRule::Unicast);
            prop_assert!(found != Verdict::Wake || bytes.starts_with(&MAC));
        }
    }
}
