//! Frames that precede those of the backend.

use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::fake::FakeBackend;
use super::{BACKLOG, Fixture, MAC, ONE, READABLE, RECEIVE_TIMER, packet, received, setup};
use crate::limiter::Limiter;
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{GUEST_CSUM, MRG_RXBUF};
use crate::virtio::net::first_frames::{Error, MAX_FIRST_BYTES, MAX_FIRST_FRAMES};
use crate::virtio::net::{AddressMap, FirstFrames, HEADER, MAX_PACKET, NetSetup};

fn records(packets: &[Vec<u8>]) -> Vec<u8> {
    let record = |packet: &Vec<u8>| {
        let length = u32::try_from(packet.len()).unwrap();
        [&length.to_le_bytes()[..], packet].concat()
    };
    packets.iter().flat_map(record).collect()
}

fn frames(packets: &[Vec<u8>]) -> FirstFrames {
    FirstFrames::parse(records(packets)).unwrap()
}

fn used_packets(fixture: &mut Fixture, addresses: &[u64]) -> Vec<Vec<u8>> {
    let lengths = fixture.used(0);
    let packets = addresses.iter().zip(lengths);
    packets
        .map(|(address, length)| fixture.driver.read(*address, length.try_into().unwrap()))
        .collect()
}

fn numbered(seeds: std::ops::Range<u8>) -> Vec<Vec<u8>> {
    seeds
        .map(|seed| packet(seed, 60 + 7 * usize::from(seed)))
        .collect()
}

fn all_received(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    packets.iter().map(|packet| received(packet, 1)).collect()
}

#[test]
fn first_frames_precede_those_of_backend() {
    for uses_spare in [false, true] {
        let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
        lock(&network).uses_spare = uses_spare;
        lock(&network).inbound.extend(numbered(4..6));
        fixture.net.set_first_frames(frames(&numbered(1..4)));
        // The backend is ready before the driver has buffers.
        fixture.net.process_event(READABLE);
        let mut seen = Vec::new();
        for _ in 0..5 {
            let address = fixture.add_buffer(2048);
            fixture.net.notify(0);
            seen.extend(used_packets(&mut fixture, &[address]));
        }
        assert_eq!(seen, all_received(&numbered(1..6)));
        let metrics = fixture.net.metrics().receive;
        assert_eq!((metrics.packets, metrics.drops), (5, 0));
    }
}

#[test]
fn first_frames_arrive_without_event_of_backend() {
    let (backend, _network) = FakeBackend::new();
    let mut fixture = Fixture::new(setup(backend), 0, [16, 16]);
    let addresses: Vec<_> = (0..3).map(|_| fixture.add_buffer(2048)).collect();
    fixture.net.set_first_frames(frames(&numbered(1..4)));
    fixture.net.notify(0);
    assert_eq!(
        used_packets(&mut fixture, &addresses),
        all_received(&numbered(1..4))
    );
    assert_eq!(fixture.line.take(), 1);
}

#[test]
fn first_frames_survive_reset() {
    let (mut fixture, network) = Fixture::with_network(0);
    fixture.net.set_first_frames(frames(&numbered(1..4)));
    let address = fixture.add_buffer(2048);
    fixture.net.notify(0);
    assert_eq!(
        used_packets(&mut fixture, &[address]),
        all_received(&numbered(1..2))
    );
    // Held without a buffer.
    fixture.restart();
    lock(&network).inbound.extend(numbered(4..5));
    let addresses: Vec<_> = (0..4).map(|_| fixture.add_buffer(2048)).collect();
    fixture.net.process_event(READABLE);
    assert_eq!(
        used_packets(&mut fixture, &addresses),
        all_received(&numbered(2..5))
    );
}

#[test]
fn first_frames_use_tokens() {
    let (backend, _network) = FakeBackend::new();
    let setup = NetSetup {
        receive_limiter: Limiter::new(None, Some(ONE)).unwrap(),
        ..setup(backend)
    };
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    fixture.net.set_first_frames(frames(&numbered(1..3)));
    let addresses: Vec<_> = (0..2).map(|_| fixture.add_buffer(2048)).collect();
    fixture.net.notify(0);
    assert_eq!(used_packets(&mut fixture, &addresses).len(), 1);
    fixture
        .net
        .receive_limiter_mut()
        .update(None, Some(crate::limiter::Bucket { size: 0, ..ONE }));
    fixture.net.process_event(RECEIVE_TIMER);
    assert_eq!(
        used_packets(&mut fixture, &addresses[1..]),
        all_received(&numbered(2..3))
    );
}

/// Saves the device of `fixture`, and restores it into one that has `frames`.
fn reload(fixture: &Fixture, frames: FirstFrames) -> Fixture {
    let mut archive = ArchiveWriter::new();
    fixture.net.save_section("net", &mut archive).unwrap();
    let bytes = archive.into_bytes();
    let (mut restored, _) = Fixture::with_network(0);
    restored.net.set_first_frames(frames);
    let mut reader = ArchiveReader::parse(&bytes).unwrap();
    restored.net.restore_section("net", &mut reader).unwrap();
    reader.finish().unwrap();
    restored
}

#[test]
fn snapshot_keeps_waiting_first_frames() {
    let (mut fixture, network) = Fixture::with_network(0);
    fixture.net.set_first_frames(frames(&numbered(1..4)));
    let address = fixture.add_buffer(2048);
    fixture.net.notify(0);
    assert_eq!(used_packets(&mut fixture, &[address]).len(), 1);
    lock(&network).inbound.extend(numbered(9..10));
    fixture.net.process_event(READABLE);
    let mut restored = reload(&fixture, frames(&numbered(4..6)));
    let addresses: Vec<_> = (0..6).map(|_| restored.add_buffer(2048)).collect();
    restored.net.process_event(BACKLOG);
    assert_eq!(
        used_packets(&mut restored, &addresses),
        all_received(&numbered(2..6))
    );
    // The second load has delivered all: nothing is saved twice.
    let mut again = reload(&restored, FirstFrames::default());
    again.add_buffer(2048);
    again.net.process_event(BACKLOG);
    assert!(again.used(0).is_empty());
}

#[test]
fn held_packet_of_backend_precedes_first_frames() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    lock(&network).inbound.extend([packet(1, 1000)]);
    fixture.add_buffer(600);
    fixture.net.process_event(READABLE);
    assert!(fixture.used(0).is_empty(), "the packet is held");
    let mut restored = reload(&fixture, frames(&numbered(2..3)));
    let addresses: Vec<_> = (0..2).map(|_| restored.add_buffer(2048)).collect();
    restored.net.process_event(BACKLOG);
    let expected = [packet(1, 1000), packet(2, 74)];
    assert_eq!(used_packets(&mut restored, &addresses), all_received(&expected));
}

#[test]
fn guest_without_buffers_does_not_grow_state() {
    let (fixture, _network) = Fixture::with_network(0);
    let large = || frames(&vec![packet(1, 60_000); 60]);
    let once = reload(&fixture, large());
    let again = reload(&once, large());
    let kept = MAX_FIRST_BYTES / (4 + HEADER + 60_000);
    let drops = again.net.metrics().receive.drops;
    assert_eq!(drops, 120 - kept as u64);
}

#[test]
fn first_frames_have_address_of_guest() {
    let (backend, network) = FakeBackend::new();
    let guest = [10, 0, 0, 2];
    let clone = [10, 0, 7, 1];
    let map = AddressMap {
        guest_ip: guest.into(),
        ip: clone.into(),
        guest_mac: MAC,
        mac: MAC,
        pass_ipv6: false,
    };
    let setup = NetSetup {
        addresses: Some(map),
        ..setup(backend)
    };
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    let request = |target: [u8; 4]| {
        let start = [
            &[0xff; 6][..],
            &[2, 0, 0, 0, 9, 9],
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        ]
        .concat();
        let message = [&[2, 0, 0, 0, 9, 9][..], &[10, 0, 7, 9], &[0; 6], &target].concat();
        [&[0; HEADER][..], &start, &message].concat()
    };
    let other = packet(3, 100);
    fixture
        .net
        .set_first_frames(frames(&[request(clone), other, request(clone)]));
    lock(&network).inbound.push_back(request(clone));
    let addresses: Vec<_> = (0..4).map(|_| fixture.add_buffer(2048)).collect();
    fixture.net.process_event(READABLE);
    let seen = used_packets(&mut fixture, &addresses);
    assert_eq!(seen, vec![received(&request(guest), 1); 3]);
    assert_eq!(fixture.net.metrics().receive.address_drops.protocol, 1);
}

/// Returns a packet of UDP over IPv4 whose checksum holds the sum of the pseudo-header only, and the complete checksum.
fn partial_datagram(data: &[u8]) -> (Vec<u8>, u16) {
    let words = |bytes: &[u8]| -> u32 {
        let words = bytes.chunks(2);
        words
            .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
            .sum()
    };
    let fold = |sum: u32| u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    let length = u16::try_from(8 + data.len()).unwrap();
    let pseudo = 0x0a00 + 1 + 0x0a00 + 2 + 17 + u32::from(length);
    let udp = [&[0, 7, 0, 9][..], &length.to_be_bytes(), &[0, 0], data].concat();
    let complete = !fold(pseudo + words(&udp));
    let mut packet = vec![0; HEADER + 34];
    packet[HEADER + 12..HEADER + 14].copy_from_slice(&[8, 0]);
    packet.extend(&udp);
    packet[HEADER + 40..HEADER + 42].copy_from_slice(&fold(pseudo).to_be_bytes());
    packet[..HEADER].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
    (packet, complete)
}

#[test]
fn partial_checksum_is_completed() {
    for (features, length) in [(0, 5), (0, 0), (GUEST_CSUM, 1400)] {
        let data: Vec<_> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (packet, complete) = partial_datagram(&data);
        let (mut fixture, _network) = Fixture::with_network(features);
        fixture
            .net
            .set_first_frames(frames(std::slice::from_ref(&packet)));
        let address = fixture.add_buffer(2048);
        fixture.net.notify(0);
        let seen = &used_packets(&mut fixture, &[address])[0];
        assert_eq!(seen[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let checksum = u16::from_be_bytes([seen[HEADER + 40], seen[HEADER + 41]]);
        assert_eq!(checksum, complete, "{length}");
        assert_eq!(seen[HEADER + 42..], packet[HEADER + 42..]);
    }
}

#[test]
fn invalid_records_are_rejected() {
    let parse = |bytes: &[u8]| FirstFrames::parse(bytes.to_vec()).map(|frames| frames.len());
    assert_eq!(parse(&[]), Ok(0));
    let good = records(&[packet(1, 60), packet(2, MAX_PACKET - HEADER)]);
    assert_eq!(parse(&good), Ok(2));
    for length in [1, 3, 4, 5, 75, 77, good.len() - 1] {
        let number = if length < 76 { 1 } else { 2 };
        assert_eq!(parse(&good[..length]), Err(Error::Truncated(number)), "{length}");
    }
    for length in [0, 25, MAX_PACKET + 1, 1 << 20] {
        let record = [
            &u32::try_from(length).unwrap().to_le_bytes()[..],
            &vec![0; length],
        ]
        .concat();
        assert_eq!(parse(&record), Err(Error::Length { number: 1, length }));
    }
    let huge = [&[0xff; 4][..], &[0; 100]].concat();
    assert!(matches!(parse(&huge), Err(Error::Length { number: 1, .. })));
    let many = vec![packet(1, 14); MAX_FIRST_FRAMES];
    assert_eq!(parse(&records(&many)), Ok(MAX_FIRST_FRAMES));
    assert_eq!(
        parse(&records(&vec![packet(1, 14); MAX_FIRST_FRAMES + 1])),
        Err(Error::TooMany)
    );
    assert_eq!(
        parse(&vec![0; MAX_FIRST_BYTES + 1]),
        Err(Error::TooLong(MAX_FIRST_BYTES + 1))
    );
    for (header, is_valid) in [
        ([0; HEADER], true),
        ([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], true),
        ([4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], false),
        ([0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], false),
        ([1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], true),
        ([1, 0, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0], true),
        ([1, 0, 0, 0, 0, 0, 58, 0, 1, 0, 0, 0], false),
        ([1, 0, 0, 0, 0, 0, 61, 0, 0, 0, 0, 0], false),
        ([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], false),
    ] {
        let mut packet = packet(1, 60);
        packet[..HEADER].copy_from_slice(&header);
        let expected = if is_valid { Ok(1) } else { Err(Error::Header(1)) };
        assert_eq!(parse(&records(&[packet])), expected, "{header:?}");
    }
}

#[test]
fn forged_state_is_rejected() {
    let (fixture, _network) = Fixture::with_network(0);
    let mut archive = ArchiveWriter::new();
    fixture.net.save_section("net", &mut archive).unwrap();
    let state = crate::virtio::net::FirstFramesState(vec![1, 0, 0, 0, 0]);
    archive.write("net/first-frames", &state).unwrap();
    let bytes = archive.into_bytes();
    let (mut restored, _network) = Fixture::with_network(0);
    let error = restored
        .net
        .restore_section("net", &mut ArchiveReader::parse(&bytes).unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("frame 1 has 1 bytes"), "{error}");
}
