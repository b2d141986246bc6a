//! Tests of headers that request offloads beyond the negotiated features.

use super::fake::FakeBackend;
use super::{Fixture, READABLE, packet, setup};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4, GUEST_USO6, HOST_TSO4, MRG_RXBUF, MTU,
    rx_flags, tx_header,
};
use crate::virtio::net::{HEADER, NetState};

/// Returns a packet with these flags and this type.
fn with_start(flags: u8, kind: u8, length: usize) -> Vec<u8> {
    let mut packet = packet(1, length);
    packet[..2].copy_from_slice(&[flags, kind]);
    packet
}

#[test]
fn rx_flags_follow_features() {
    let both = GUEST_USO4 | GUEST_USO6;
    for (start, features, flags) in [
        ([0, 0], 0, Some(0)),
        // Without GUEST_CSUM, the flag of a verified checksum has no meaning for the driver.
        ([2, 0], 0, Some(0)),
        ([2, 0], GUEST_CSUM, Some(2)),
        ([1, 0], 0, None),
        ([0xff, 0], GUEST_CSUM, Some(3)),
        ([1, 1], GUEST_CSUM, None),
        ([1, 1], GUEST_TSO4, None),
        ([1, 1], GUEST_CSUM | GUEST_TSO4, Some(1)),
        ([1, 4], GUEST_CSUM | GUEST_TSO4, None),
        ([1, 4], GUEST_CSUM | GUEST_TSO6, Some(1)),
        ([0, 3], GUEST_TSO4, None),
        ([0, 3], GUEST_UFO, Some(0)),
        ([0, 5], GUEST_USO4, None),
        ([0, 5], both, Some(0)),
        // The device does not offer VIRTIO_NET_F_GUEST_ECN.
        ([1, 0x81], u64::MAX, None),
        ([0, 2], u64::MAX, None),
    ] {
        assert_eq!(rx_flags(start, features), flags, "{start:?} {features:#x}");
    }
}

#[test]
fn packets_after_reset_follow_new_features() {
    let (large, none) = (MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, MRG_RXBUF);
    for uses_spare in [false, true] {
        let (mut fixture, network) = Fixture::with_network(large);
        lock(&network).uses_spare = uses_spare;
        let waiting = [with_start(1, 1, 500), with_start(2, 0, 100)];
        fixture.add_buffer(2000);
        fixture.add_buffer(2000);
        lock(&network).inbound.extend(waiting.clone());
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), [512, 112]);

        fixture.features = none;
        fixture.restart();
        let address = fixture.add_buffer(2000);
        lock(&network).inbound.extend(waiting);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), [112]);
        assert_eq!(fixture.driver.read(address, 2), [0, 0]);
        let received = fixture.net.metrics().receive;
        assert_eq!((received.packets, received.drops), (3, 1));
    }
}

#[test]
fn restored_packet_is_checked() {
    for (flags, used) in [(0, vec![112]), (1, vec![])] {
        let (mut fixture, _network) = Fixture::with_network(MRG_RXBUF);
        let state = NetState {
            held: with_start(flags, 0, 100),
            ..fixture.net.save()
        };
        fixture.net.restore(state).unwrap();
        fixture.add_buffer(1000);
        fixture.net.notify(0);
        assert_eq!(fixture.used(0), used);
        assert_eq!(fixture.net.metrics().receive.drops, u64::from(flags));
    }
}

#[test]
fn frame_above_mtu_is_dropped() {
    let large = MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;
    for (features, used) in [
        (large | MTU, vec![1430, 1512]),
        (large, vec![1430, 1431, 1512, 1512]),
    ] {
        for uses_spare in [false, true] {
            let (backend, network) = FakeBackend::new();
            let mut fixture = Fixture::new(setup(backend), features, [16, 16]);
            lock(&network).uses_spare = uses_spare;
            for _ in 0..8 {
                fixture.add_buffer(2000);
            }
            // The MTU is 1400 without the Ethernet header and a VLAN tag.
            let unsegmented = [1418, 1419, 1500].map(|length| with_start(0, 0, length));
            lock(&network).inbound.extend(unsegmented);
            lock(&network).inbound.push_back(with_start(1, 1, 1500));
            fixture.net.process_event(READABLE);
            assert_eq!(fixture.used(0), used);
        }
    }
}

#[test]
fn sent_header_is_checked_copy() {
    let segmented = CSUM | HOST_TSO4;
    let all_ones = [0xff; 10];
    for (start, features, clean) in [
        // Flags that only the device may set, and fields without a meaning.
        ([0xfe, 0], segmented, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (
            [1, 0],
            segmented,
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        // Header length beyond the frame of 60 bytes.
        (
            [1, 1],
            segmented,
            [1, 1, 60, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ),
        ([0, 1], segmented, [0, 1, 60, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]),
    ] {
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&start);
        header[2..].copy_from_slice(&all_ones);
        assert_eq!(tx_header(&header, 60, features), Some(clean), "{start:?}");

        let (mut fixture, network) = Fixture::with_network(features);
        let mut packet = packet(1, 60);
        packet[..HEADER].copy_from_slice(&header);
        fixture.add_packet(&packet);
        fixture.net.notify(1);
        assert_eq!(lock(&network).sent[0][..HEADER], clean);
        assert_eq!(lock(&network).sent[0][HEADER..], packet[HEADER..]);
    }
}
