//! Tests of the rewriter against a [`model`] that computes every checksum anew.

mod model;

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use self::model::{Checksum, Datagram, Part, arp, checksum_offset, icmp_error, icmp6, packet, set_partial};
use super::{ARP, AddressMap, AddressRewriter, DropReason, IPV4, IPV6, MAX_START};

const GUEST: [u8; 4] = [10, 0, 0, 2];
const CLONE: [u8; 4] = [10, 0, 7, 1];
const PEER: [u8; 4] = [192, 168, 3, 9];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLONE_MAC: [u8; 6] = [2, 0, 0, 7, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
const GROUP: [u8; 6] = [0xff; 6];
const UNSPECIFIED: [u8; 4] = [0; 4];

fn map() -> AddressMap {
    AddressMap {
        guest_ip: Ipv4Addr::from(GUEST),
        ip: Ipv4Addr::from(CLONE),
        guest_mac: GUEST_MAC,
        mac: CLONE_MAC,
        pass_ipv6: false,
    }
}

/// Rewrites `packet` as the device does: only the copied start changes.
fn outbound_by(map: &AddressMap, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut packet = packet.to_vec();
    let (length, copied) = (packet.len(), packet.len().min(MAX_START));
    AddressRewriter::new(map).rewrite_outbound(&mut packet[..copied], length)?;
    Ok(packet)
}

fn inbound_by(map: &AddressMap, packet: &[u8]) -> Result<(Vec<u8>, Option<[u8; 6]>), DropReason> {
    let mut packet = packet.to_vec();
    let (length, copied) = (packet.len(), packet.len().min(MAX_START));
    let claimant = AddressRewriter::new(map).rewrite_inbound(&mut packet[..copied], length)?;
    Ok((packet, claimant))
}

fn outbound(packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    outbound_by(&map(), packet)
}

fn inbound(packet: &[u8]) -> Result<Vec<u8>, DropReason> {
    inbound_by(&map(), packet).map(|(packet, _)| packet)
}

/// Returns a packet from the guest as the guest sends it, and as the network sees it.
fn from_guest(datagram: &Datagram) -> [Vec<u8>; 2] {
    [(GUEST_MAC, GUEST), (CLONE_MAC, CLONE)]
        .map(|(mac, ip)| finish(datagram, packet(PEER_MAC, mac, IPV4, &datagram.build(ip, PEER))))
}

/// Returns a packet to the guest as the network sees it, and as the guest receives it.
fn to_guest(datagram: &Datagram) -> [Vec<u8>; 2] {
    [(CLONE_MAC, CLONE), (GUEST_MAC, GUEST)]
        .map(|(mac, ip)| finish(datagram, packet(mac, PEER_MAC, IPV4, &datagram.build(PEER, ip))))
}

fn finish(datagram: &Datagram, mut packet: Vec<u8>) -> Vec<u8> {
    if datagram.checksum == Checksum::Partial {
        set_partial(&mut packet, 20 + datagram.options.len(), datagram.protocol);
    }
    packet
}

fn udp(checksum: Checksum) -> Datagram {
    Datagram {
        protocol: 17,
        options: Vec::new(),
        payload: (0..40).collect(),
        checksum,
        part: Part::Whole,
    }
}

/// Returns datagrams of all protocols that the rewriter treats, and of others.
fn datagrams() -> impl Strategy<Value = Datagram> {
    let protocol = prop_oneof![
        Just(6),
        Just(17),
        Just(136),
        Just(33),
        Just(1),
        Just(132),
        any::<u8>()
    ];
    let checksum = prop_oneof![
        Just(Checksum::Full),
        Just(Checksum::Absent),
        Just(Checksum::Partial)
    ];
    let part = prop_oneof![
        3 => Just(Part::Whole),
        1 => (3_usize..12).prop_map(Part::First),
        1 => (3_usize..12).prop_map(Part::Later),
    ];
    let options = (0_usize..=10).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    (protocol, options, vec(any::<u8>(), 24..200), checksum, part).prop_map(
        |(protocol, options, mut payload, mut checksum, part)| {
            // Errors are built apart, and random ones quote no packet.
            if protocol == 1 {
                payload[0] = 8;
            }
            let has_zero = matches!(protocol, 17 | 136);
            let is_whole = matches!(part, Part::Whole);
            if checksum == Checksum::Absent && !has_zero
                || checksum == Checksum::Partial && (!is_whole || checksum_offset(protocol).is_none())
            {
                checksum = Checksum::Full;
            }
            Datagram {
                protocol,
                options,
                payload,
                checksum,
                part,
            }
        },
    )
}

fn icmp_kinds() -> impl Strategy<Value = u8> {
    prop_oneof![Just(3), Just(4), Just(5), Just(11), Just(12)]
}

proptest! {
    #[test]
    fn packet_from_guest_equals_rebuilt_one(datagram in datagrams(), padding in 0_usize..20) {
        let [sent, seen] = from_guest(&datagram).map(|packet| [packet, vec![0; padding]].concat());
        prop_assert_eq!(outbound(&sent), Ok(seen));
    }

    #[test]
    fn packet_to_guest_equals_rebuilt_one(datagram in datagrams(), padding in 0_usize..20) {
        let [seen, received] = to_guest(&datagram).map(|packet| [packet, vec![0; padding]].concat());
        prop_assert_eq!(inbound(&seen), Ok(received));
    }

    #[test]
    fn icmp_error_from_guest_equals_rebuilt_one(
        datagram in datagrams(), kind in icmp_kinds(), quoted in 0_usize..200,
    ) {
        // An error of the guest quotes a packet to it.
        let error = |ip| icmp_error(kind, &datagram.build(PEER, ip), quoted);
        let [sent, seen] = [(GUEST_MAC, GUEST), (CLONE_MAC, CLONE)]
            .map(|(mac, ip)| packet(PEER_MAC, mac, IPV4, &error(ip).build(ip, PEER)));
        if datagram.checksum != Checksum::Partial {
            prop_assert_eq!(outbound(&sent), Ok(seen));
        }
    }

    #[test]
    fn icmp_error_to_guest_equals_rebuilt_one(
        datagram in datagrams(), kind in icmp_kinds(), quoted in 0_usize..200,
    ) {
        let error = |ip| icmp_error(kind, &datagram.build(ip, PEER), quoted);
        let [seen, received] = [(CLONE_MAC, CLONE), (GUEST_MAC, GUEST)]
            .map(|(mac, ip)| packet(mac, PEER_MAC, IPV4, &error(ip).build(PEER, ip)));
        if datagram.checksum != Checksum::Partial {
            prop_assert_eq!(inbound(&seen), Ok(received));
        }
    }

    #[test]
    fn passed_packet_has_address_of_clone(
        datagram in datagrams(), changes in vec((0_usize..200, any::<u8>()), 0..6), length in 0_usize..260,
        kind in 0_usize..4,
    ) {
        let mut sent = match kind {
            0 => packet(GROUP, GUEST_MAC, ARP, &arp(1, (GUEST_MAC, GUEST), ([0; 6], PEER))),
            1 => {
                let error = icmp_error(3, &datagram.build(PEER, GUEST), length);
                packet(PEER_MAC, GUEST_MAC, IPV4, &error.build(GUEST, PEER))
            }
            _ => from_guest(&datagram)[0].clone(),
        };
        for (at, value) in changes {
            if let Some(byte) = sent.get_mut(at) {
                *byte = value;
            }
        }
        sent.truncate(length);
        // Both directions accept any bytes.
        let _ = inbound(&sent);
        if let Ok(seen) = outbound(&sent) {
            prop_assert_eq!(seen.len(), sent.len());
            prop_assert_eq!(&seen[18..24], &CLONE_MAC);
            let is_arp = seen[24..26] == ARP.to_be_bytes();
            prop_assert!(is_arp || seen[24..26] == IPV4.to_be_bytes());
            let source: [u8; 4] = seen[if is_arp { 40 } else { 38 }..][..4].try_into().unwrap();
            prop_assert!([CLONE, UNSPECIFIED].contains(&source));
            // The kernel must not write a checksum over a checked address.
            let first_written = usize::from(u16::from_le_bytes([seen[6], seen[7]]));
            prop_assert!(seen[0] & 1 == 0 || !is_arp && first_written >= 34);
        }
    }
}

#[test]
fn zero_checksum_of_udp_is_no_checksum() {
    let [sent, seen] = from_guest(&udp(Checksum::Absent));
    assert_eq!(sent[12 + 14 + 26..][..2], [0, 0]);
    assert_eq!(outbound(&sent), Ok(seen));
    // The checksum at the other address is zero, which UDP sends as 0xffff.
    let found = (0..=u16::MAX).find_map(|word| {
        let mut datagram = udp(Checksum::Full);
        datagram.payload[30..32].copy_from_slice(&word.to_be_bytes());
        let [sent, seen] = from_guest(&datagram);
        (seen[12 + 14 + 26..][..2] == [0xff, 0xff]).then_some((sent, seen))
    });
    let (sent, seen) = found.expect("one in 65,535 checksums is zero");
    assert_eq!(outbound(&sent), Ok(seen));
}

#[test]
fn source_other_than_guest_is_dropped() {
    let datagram = udp(Checksum::Full);
    let from = |mac, ip| outbound(&packet(PEER_MAC, mac, IPV4, &datagram.build(ip, PEER)));
    assert_eq!(from(GUEST_MAC, PEER), Err(DropReason::Source));
    assert_eq!(from(GUEST_MAC, CLONE), Err(DropReason::Source));
    assert_eq!(from(PEER_MAC, GUEST), Err(DropReason::Source));
    let unspecified = packet(PEER_MAC, CLONE_MAC, IPV4, &datagram.build(UNSPECIFIED, PEER));
    assert_eq!(from(GUEST_MAC, UNSPECIFIED), Ok(unspecified));
    let arp = |mac, ip| {
        let message = arp(1, (mac, ip), ([0; 6], PEER));
        outbound(&packet(GROUP, GUEST_MAC, ARP, &message)).map(|_| ())
    };
    assert_eq!(arp(GUEST_MAC, GUEST), Ok(()));
    assert_eq!(arp(GUEST_MAC, UNSPECIFIED), Ok(()));
    assert_eq!(arp(GUEST_MAC, PEER), Err(DropReason::Source));
    assert_eq!(arp(PEER_MAC, GUEST), Err(DropReason::Source));
}

#[test]
fn other_protocol_is_dropped() {
    for (ethernet_type, reason) in [
        (IPV6, DropReason::Ipv6),
        (0x8100, DropReason::Vlan),
        (0x88a8, DropReason::Vlan),
        (0x9100, DropReason::Vlan),
        (0x88cc, DropReason::Protocol),
        (0x0026, DropReason::Protocol),
    ] {
        let body = udp(Checksum::Full).build(GUEST, PEER);
        let sent = packet(PEER_MAC, GUEST_MAC, ethernet_type, &body);
        assert_eq!(outbound(&sent), Err(reason));
        let seen = packet(CLONE_MAC, PEER_MAC, ethernet_type, &body);
        assert_eq!(inbound(&seen), Err(reason));
    }
}

#[test]
fn packet_for_another_host_is_dropped() {
    let datagram = udp(Checksum::Full);
    let to = |mac, ip| inbound(&packet(mac, PEER_MAC, IPV4, &datagram.build(PEER, ip)));
    assert_eq!(to(GUEST_MAC, CLONE), Err(DropReason::Destination));
    assert_eq!(to(PEER_MAC, CLONE), Err(DropReason::Destination));
    for mac in [CLONE_MAC, GROUP] {
        assert_eq!(to(mac, GUEST), Err(DropReason::Destination));
    }
    assert_eq!(to(CLONE_MAC, [10, 0, 7, 2]), Err(DropReason::Destination));
    let from_guest_address = packet(CLONE_MAC, PEER_MAC, IPV4, &datagram.build(GUEST, CLONE));
    assert_eq!(inbound(&from_guest_address), Err(DropReason::Source));
}

#[test]
fn group_passes_in_both_directions() {
    let datagram = udp(Checksum::Full);
    for (mac, ip) in [
        (GROUP, [255; 4]),
        (GROUP, [10, 0, 7, 255]),
        ([1, 0, 0x5e, 0, 0, 251], [224, 0, 0, 251]),
    ] {
        let seen = packet(mac, PEER_MAC, IPV4, &datagram.build(PEER, ip));
        assert_eq!(inbound(&seen), Ok(seen.clone()));
        let sent = packet(mac, GUEST_MAC, IPV4, &datagram.build(GUEST, ip));
        let seen = packet(mac, CLONE_MAC, IPV4, &datagram.build(CLONE, ip));
        assert_eq!(outbound(&sent), Ok(seen));
    }
}

#[test]
fn arp_has_address_of_clone() {
    for (operation, target) in [(1, ([0; 6], PEER)), (2, (PEER_MAC, PEER))] {
        let from = |mac, ip| packet(GROUP, mac, ARP, &arp(operation, (mac, ip), target));
        assert_eq!(outbound(&from(GUEST_MAC, GUEST)), Ok(from(CLONE_MAC, CLONE)));
        let to = |mac, ip| packet(mac, PEER_MAC, ARP, &arp(operation, (PEER_MAC, PEER), (mac, ip)));
        assert_eq!(inbound(&to(CLONE_MAC, CLONE)), Ok(to(GUEST_MAC, GUEST)));
    }
    let request = |ip| packet(GROUP, PEER_MAC, ARP, &arp(1, (PEER_MAC, PEER), ([0; 6], ip)));
    assert_eq!(inbound(&request(CLONE)), Ok(request(GUEST)));
    assert_eq!(inbound(&request([10, 0, 7, 2])), Ok(request([10, 0, 7, 2])));
    assert_eq!(inbound(&request(GUEST)), Err(DropReason::Destination));
    // Probe and announcement of the guest (RFC 5227).
    let probe = |mac, ip| packet(GROUP, mac, ARP, &arp(1, (mac, UNSPECIFIED), ([0; 6], ip)));
    assert_eq!(outbound(&probe(GUEST_MAC, GUEST)), Ok(probe(CLONE_MAC, CLONE)));
    let announcement = |mac, ip| packet(GROUP, mac, ARP, &arp(1, (mac, ip), (mac, ip)));
    assert_eq!(
        outbound(&announcement(GUEST_MAC, GUEST)),
        Ok(announcement(CLONE_MAC, CLONE))
    );
}

#[test]
fn other_host_with_address_is_found() {
    let claim = |ip| packet(GROUP, PEER_MAC, ARP, &arp(1, (PEER_MAC, ip), ([0; 6], PEER)));
    assert_eq!(
        inbound_by(&map(), &claim(CLONE)),
        Ok((claim(GUEST), Some(PEER_MAC)))
    );
    assert_eq!(inbound_by(&map(), &claim(PEER)), Ok((claim(PEER), None)));
    // The guest has that address, but not on this network.
    assert_eq!(inbound(&claim(GUEST)), Err(DropReason::Source));
}

#[test]
fn malformed_packet_is_dropped() {
    let [valid, _] = from_guest(&udp(Checksum::Full));
    let ip = 12 + 14;
    let changed = |at: usize, value: u8| {
        let mut packet = valid.clone();
        packet[at] = value;
        outbound(&packet)
    };
    for (at, value) in [(ip, 0x65), (ip, 0x44), (ip, 0x4f), (ip + 2, 0xff), (ip + 3, 19)] {
        assert_eq!(changed(at, value), Err(DropReason::Malformed), "{at} {value}");
    }
    // A segment to segment further may have no total length.
    let mut without_length = valid.clone();
    without_length[ip + 2..ip + 4].fill(0);
    assert!(outbound(&without_length).is_ok());
    for length in 0..ip + 28 {
        assert_eq!(outbound(&valid[..length]), Err(DropReason::Malformed), "{length}");
    }
    for (at, value) in [(0, 2), (2, 6), (4, 8), (5, 6)] {
        let mut message = arp(1, (GUEST_MAC, GUEST), ([0; 6], PEER));
        message[at] = value;
        let sent = packet(GROUP, GUEST_MAC, ARP, &message);
        assert_eq!(outbound(&sent), Err(DropReason::Malformed));
    }
}

#[test]
fn first_fragment_without_checksum_is_dropped() {
    let mut datagram = udp(Checksum::Full);
    datagram.protocol = 6;
    for (units, result) in [(1, false), (2, false), (3, true)] {
        datagram.part = Part::First(units);
        assert_eq!(outbound(&from_guest(&datagram)[0]).is_ok(), result);
    }
}

#[test]
fn partial_checksum_in_header_is_dropped() {
    // The kernel would write the checksum over the source address.
    let [mut sent, _] = from_guest(&udp(Checksum::Partial));
    assert!(outbound(&sent).is_ok());
    for (start, passes) in [
        (0, false),
        (13, false),
        (14, false),
        (26, false),
        (33, false),
        (34, true),
    ] {
        sent[6] = start;
        assert_eq!(outbound(&sent).is_ok(), passes, "{start}");
    }
    let mut request = packet(GROUP, GUEST_MAC, ARP, &arp(1, (GUEST_MAC, GUEST), ([0; 6], PEER)));
    request[0] = 1;
    request[6] = 100;
    assert_eq!(outbound(&request), Err(DropReason::Malformed));
}

#[test]
fn partial_checksum_of_icmp_error_stays() {
    let error = |ip| icmp_error(3, &udp(Checksum::Full).build(PEER, ip), 28);
    let [mut sent, mut seen] = [(GUEST_MAC, GUEST), (CLONE_MAC, CLONE)]
        .map(|(mac, ip)| packet(PEER_MAC, mac, IPV4, &error(ip).build(ip, PEER)));
    for packet in [&mut sent, &mut seen] {
        (packet[0], packet[6], packet[8]) = (1, 34, 2);
        packet[12 + 34 + 2..][..2].fill(0);
    }
    assert_eq!(outbound(&sent), Ok(seen));
}

#[test]
fn equal_mac_addresses_are_not_checked() {
    let map = AddressMap {
        mac: GUEST_MAC,
        ..map()
    };
    let datagram = udp(Checksum::Full);
    for mac in [GUEST_MAC, PEER_MAC] {
        let from = |ip| packet(PEER_MAC, mac, IPV4, &datagram.build(ip, PEER));
        assert_eq!(outbound_by(&map, &from(GUEST)), Ok(from(CLONE)));
        let to = |ip| packet(mac, PEER_MAC, IPV4, &datagram.build(PEER, ip));
        assert_eq!(inbound_by(&map, &to(CLONE)), Ok((to(GUEST), None)));
    }
}

#[test]
fn passed_ipv6_announces_mac_address_of_clone() {
    let map = AddressMap {
        pass_ipv6: true,
        ..map()
    };
    // Solicitation with an option before the address; advertisement with the address of the target; echo request.
    for (kind, offset, option) in [(135, 24, 1), (136, 24, 2), (133, 8, 1), (128, 8, 1)] {
        let message = |mac: [u8; 6]| {
            let start = [&[kind, 0, 0, 0][..], &vec![7; offset - 4]].concat();
            icmp6(&[&start[..], &[14, 1, 0, 0, 0, 0, 0, 0], &[option, 1], &mac].concat())
        };
        let announced = if kind == 128 { GUEST_MAC } else { CLONE_MAC };
        let sent = packet(PEER_MAC, GUEST_MAC, IPV6, &message(GUEST_MAC));
        let seen = packet(PEER_MAC, CLONE_MAC, IPV6, &message(announced));
        assert_eq!(outbound_by(&map, &sent), Ok(seen));
    }
    let message = icmp6(&[128, 0, 0, 0, 1, 2, 3, 4]);
    let seen = packet(CLONE_MAC, PEER_MAC, IPV6, &message);
    let received = packet(GUEST_MAC, PEER_MAC, IPV6, &message);
    assert_eq!(inbound_by(&map, &seen), Ok((received, None)));
    let mut checksum_in_header = seen;
    (checksum_in_header[0], checksum_in_header[6]) = (1, 53);
    assert_eq!(inbound_by(&map, &checksum_in_header), Err(DropReason::Malformed));
}
