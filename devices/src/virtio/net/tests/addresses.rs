//! Device with a rewriter of addresses.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{Bytes, GuestAddress};

use super::fake::FakeBackend;
use super::{Fixture, READABLE, WRITABLE, received, setup};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::MRG_RXBUF;
use crate::virtio::net::{AddressDrops, AddressMap, HEADER, NetSetup, Stream};
use crate::virtio::testing::Buffer;

const GUEST: [u8; 4] = [10, 0, 0, 2];
const CLONE: [u8; 4] = [10, 0, 7, 1];
const PEER: [u8; 4] = [10, 0, 7, 9];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Offset of the source address in a packet.
const SOURCE: usize = HEADER + 14 + 12;

const MAP: AddressMap = AddressMap {
    guest_ip: Ipv4Addr::new(10, 0, 0, 2),
    ip: Ipv4Addr::new(10, 0, 7, 1),
    guest_mac: MAC,
    mac: MAC,
    pass_ipv6: false,
};

fn fixture(features: u64) -> (Fixture, std::sync::Arc<std::sync::Mutex<super::FakeNetwork>>) {
    let (backend, network) = FakeBackend::new();
    let setup = NetSetup {
        addresses: Some(MAP),
        mtu: None,
        ..setup(backend)
    };
    (Fixture::new(setup, features, [16, 16]), network)
}

/// Returns a packet of UDP without a checksum and `length` bytes of data.
fn datagram(source: [u8; 4], destination: [u8; 4], length: usize) -> Vec<u8> {
    let total = u16::try_from(28 + length).unwrap().to_be_bytes();
    let mut ip = [
        &[0x45, 0][..],
        &total,
        &[0, 0, 0, 0, 64, 17, 0, 0],
        &source,
        &destination,
    ]
    .concat();
    let words = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let data: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let (to, from) = if source == PEER {
        (MAC, PEER_MAC)
    } else {
        (PEER_MAC, MAC)
    };
    [
        &[0; HEADER][..],
        &to,
        &from,
        &[8, 0],
        &ip,
        &[0, 1, 0, 2, 0, 0, 0, 0],
        &data,
    ]
    .concat()
}

fn with_type(ethernet_type: u16) -> Vec<u8> {
    let mut packet = datagram(GUEST, PEER, 20);
    packet[HEADER + 12..HEADER + 14].copy_from_slice(&ethernet_type.to_be_bytes());
    packet
}

#[test]
fn sent_packet_has_address_of_clone() {
    let (mut fixture, network) = fixture(0);
    for length in [0, 100, 118, 119, 3000] {
        fixture.add_packet(&datagram(GUEST, PEER, length));
        // Each boundary between buffers may be in the headers.
        let packet = datagram(GUEST, PEER, length);
        let start = fixture.memory(packet.len());
        fixture.driver.write(start, &packet);
        let rest = u32::try_from(packet.len() - 30).unwrap();
        let buffers = [(0, 12), (12, 18), (30, rest)];
        let buffers = buffers.map(|(offset, length)| Buffer::readable(start + offset, length));
        fixture.driver.queues[1].add(&buffers);
        fixture.net.notify(1);
        let seen = datagram(CLONE, PEER, length);
        assert_eq!(std::mem::take(&mut lock(&network).sent), [seen.clone(), seen]);
        assert_eq!(
            fixture.driver.read(start, packet.len()),
            packet,
            "guest memory is unchanged"
        );
        fixture.used(1);
    }
}

#[test]
fn received_packet_has_address_of_guest() {
    for (uses_spare, features) in [(false, 0), (true, 0), (false, MRG_RXBUF), (true, MRG_RXBUF)] {
        for length in [0, 100, 118, 119, 1400] {
            let (mut fixture, network) = fixture(features);
            lock(&network).uses_spare = uses_spare;
            let address = fixture.add_buffer(1500);
            let seen = datagram(PEER, CLONE, length);
            lock(&network).inbound.push_back(seen.clone());
            fixture.net.process_event(READABLE);
            assert_eq!(fixture.used(0), [u32::try_from(seen.len()).unwrap()]);
            let packet = received(&datagram(PEER, GUEST, length), 1);
            assert_eq!(fixture.driver.read(address, seen.len()), packet);
        }
    }
}

#[test]
fn packet_beyond_buffers_is_rewritten() {
    // The first buffer ends in the rewritten start, behind it, or at its end.
    for size in [20, 60, 172, 173, 500] {
        let (mut fixture, network) = fixture(MRG_RXBUF);
        let first = fixture.add_buffer(size);
        let seen = datagram(PEER, CLONE, 1000);
        lock(&network).inbound.push_back(seen.clone());
        fixture.net.process_event(READABLE);
        assert!(fixture.used(0).is_empty());
        fixture.add_buffer(1500);
        fixture.net.notify(0);
        assert_eq!(
            fixture.used(0).iter().sum::<u32>(),
            u32::try_from(seen.len()).unwrap()
        );
        let packet = received(&datagram(PEER, GUEST, 1000), 2);
        assert_eq!(fixture.driver.read(first, seen.len()), packet, "{size}");
    }
}

#[test]
fn dropped_packets_are_counted_by_reason() {
    let (mut fixture, network) = fixture(0);
    let recorder = fixture.net.recorder();
    let mut malformed = datagram(GUEST, PEER, 20);
    malformed[HEADER + 14] = 0x44;
    let sent = [
        with_type(0x86dd),
        with_type(0x8100),
        with_type(0x1234),
        malformed.clone(),
    ];
    for packet in sent
        .iter()
        .chain([&datagram(PEER, PEER, 20), &datagram(GUEST, PEER, 20)])
    {
        fixture.add_packet(packet);
    }
    fixture.net.notify(1);
    assert_eq!(fixture.used(1), [0; 6]);
    assert_eq!(lock(&network).sent, [datagram(CLONE, PEER, 20)]);
    let address = fixture.add_buffer(1500);
    let received_packets = [
        datagram(GUEST, CLONE, 20),
        datagram(PEER, GUEST, 20),
        datagram(PEER, CLONE, 20),
    ];
    lock(&network)
        .inbound
        .extend(sent.into_iter().chain(received_packets));
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0).len(), 1);
    let packet = received(&datagram(PEER, GUEST, 20), 1);
    assert_eq!(fixture.driver.read(address, packet.len()), packet);
    let drops = AddressDrops {
        ipv6: 1,
        vlan: 1,
        protocol: 1,
        source: 1,
        destination: 0,
        malformed: 1,
    };
    let metrics = recorder.metrics();
    assert_eq!(metrics.transmit.address_drops, drops);
    assert_eq!(
        metrics.receive.address_drops,
        AddressDrops {
            destination: 1,
            ..drops
        }
    );
    assert_eq!((metrics.transmit.drops, metrics.receive.drops), (0, 0));
    assert_eq!((metrics.transmit.packets, metrics.receive.packets), (1, 1));
}

#[test]
fn conflict_is_counted() {
    let (mut fixture, network) = fixture(0);
    fixture.add_buffer(1500);
    let start = [&[0xff; 6][..], &PEER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let claim = [&[0; HEADER][..], &start, &PEER_MAC, &CLONE, &[0; 6], &PEER].concat();
    lock(&network).inbound.push_back(claim);
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0).len(), 1);
    assert_eq!(fixture.net.metrics().address_conflicts, 1);
}

#[test]
fn stream_carries_rewritten_frames() {
    let (socket, mut other) = UnixStream::pair().unwrap();
    let setup = NetSetup {
        addresses: Some(MAP),
        mtu: None,
        ..setup(Box::new(Stream::new(socket).unwrap()))
    };
    let mut fixture = Fixture::new(setup, 0, [256, 256]);
    let framed = |packet: &[u8]| {
        let frame = &packet[HEADER..];
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
    };
    let address = fixture.add_buffer(1500);
    other.write_all(&framed(&datagram(PEER, CLONE, 200))).unwrap();
    fixture.net.process_event(READABLE);
    let packet = received(&datagram(PEER, GUEST, 200), 1);
    assert_eq!(fixture.driver.read(address, packet.len()), packet);

    // More than the socket takes at once: frames are cut at any byte.
    let count = 200;
    for _ in 0..count {
        fixture.add_packet(&datagram(GUEST, PEER, 4001));
    }
    fixture.net.notify(1);
    let expected = framed(&datagram(CLONE, PEER, 4001)).repeat(count);
    other.set_nonblocking(true).unwrap();
    let mut seen = Vec::new();
    let mut bytes = vec![0; 5003];
    while seen.len() < expected.len() {
        match other.read(&mut bytes) {
            Ok(length) => seen.extend_from_slice(&bytes[..length]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                fixture.await_event(WRITABLE);
            }
        }
    }
    assert!(seen == expected);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the thread ends once the flag is set")]
fn racing_guest_sends_from_no_other_address() {
    const COUNT: u64 = 3000;
    let (mut fixture, network) = fixture(0);
    let packet = datagram(GUEST, PEER, 20);
    let address = fixture.memory(packet.len());
    fixture.driver.write(address, &packet);
    let buffer = Buffer::readable(address, u32::try_from(packet.len()).unwrap());
    let head = fixture.driver.queues[1].add(&[buffer]);
    fixture.net.notify(1);
    let (memory, is_done) = (fixture.driver.memory.clone(), AtomicBool::new(false));
    let source = GuestAddress(address + SOURCE as u64);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                memory.write_slice(&PEER, source).unwrap();
                memory.write_slice(&GUEST, source).unwrap();
            }
        });
        for _ in 1..COUNT {
            fixture.driver.queues[1].make_available(head);
            fixture.net.notify(1);
        }
        is_done.store(true, Ordering::Relaxed);
    });
    let metrics = fixture.net.metrics().transmit;
    let sent = &lock(&network).sent;
    assert!(sent.iter().all(|packet| packet[SOURCE..SOURCE + 4] == CLONE));
    // A write is not atomic: a mixture of both addresses is dropped too.
    assert_eq!(sent.len() as u64 + metrics.address_drops.source, COUNT);
}
