use std::io;

use super::{AGAIN, ONE, Rig, TRANSMIT_TIMER, WRITABLE, fake::FakeBackend, packet, setup};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::MAX_FRAME;
use crate::virtio::net::features::{CSUM, EVENT_IDX, HOST_TSO4};
use crate::virtio::testing::Piece;

#[test]
fn a_batch_of_packets_is_one_interrupt() {
    let (mut rig, wire) = Rig::with_wire(0);
    let packets: Vec<_> = (1..6).map(|seed| packet(seed, 60 * usize::from(seed))).collect();
    for packet in &packets {
        rig.add_packet(packet);
    }
    rig.net.notify(1);
    assert_eq!(rig.line.take(), 1);
    assert_eq!(rig.used(1), [0; 5]);
    assert_eq!(lock(&wire).sent, packets);
    let metrics = rig.net.metrics().transmit;
    assert_eq!((metrics.packets, metrics.bytes), (5, 900));
    assert_eq!(
        rig.driver.queues[1].used_flags(),
        0,
        "the device wants to be kicked"
    );
    rig.net.notify(1);
    assert_eq!(rig.line.take(), 0);
}

#[test]
fn the_driver_says_when_it_wants_to_be_told() {
    let (mut rig, _wire) = Rig::with_wire(EVENT_IDX);
    rig.driver.queues[1].set_used_event(2);
    let mut told = |count| {
        for _ in 0..count {
            rig.add_packet(&packet(1, 60));
        }
        rig.net.notify(1);
        rig.line.take()
    };
    assert_eq!([told(2), told(2), told(2)], [0, 1, 0]);
}

#[test]
fn without_events_the_driver_can_still_refuse_to_be_told() {
    let (mut rig, _wire) = Rig::with_wire(0);
    rig.driver.write(rig.driver.queues[1].available, &[1, 0]);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!((rig.line.take(), rig.used(1).len()), (0, 1));
}

#[test]
fn a_packet_may_be_scattered() {
    let (mut rig, wire) = Rig::with_wire(0);
    let packet = packet(3, 3000);
    let start = rig.memory(10_000);
    rig.driver.write(start, &packet);
    let pieces = [(0, 5), (5, 8), (13, 0), (13, 1000), (1013, 1999)];
    let pieces = pieces.map(|(offset, length)| Piece::readable(start + offset, length));
    rig.driver.queues[1].add(&pieces);
    rig.driver.queues[1].add_indirect(start + 5000, &pieces);
    rig.net.notify(1);
    assert_eq!(lock(&wire).sent, [packet.clone(), packet]);
}

#[test]
fn what_is_no_packet_is_dropped() {
    let (mut rig, wire) = Rig::with_wire(0);
    let longest = packet(1, MAX_FRAME);
    let mut too_long = longest.clone();
    too_long.push(0);
    let no_packets = [&too_long[..], &longest[..11], &longest[..12], &longest[..25], &[]];
    for bytes in no_packets {
        rig.add_packet(bytes);
    }
    rig.add_packet(&longest);
    rig.add_packet(&longest[..26]);
    rig.net.notify(1);
    assert_eq!(rig.used(1), [0; 7]);
    assert_eq!(rig.net.metrics().transmit.drops, 5);
    assert_eq!(lock(&wire).sent, [longest.clone(), longest[..26].to_vec()]);
    assert!(!rig.signal.is_reset_needed());
}

#[test]
fn a_header_may_ask_only_for_what_was_negotiated() {
    let mut checksum = packet(1, 100);
    checksum[0] = 1;
    let mut segments = checksum.clone();
    segments[1] = 1;
    let mut unknown = segments.clone();
    unknown[1] = 77;
    let all = [&checksum, &segments, &unknown];
    for (features, passing) in [(0, 0), (CSUM, 1), (HOST_TSO4, 0), (CSUM | HOST_TSO4, 2)] {
        let (mut rig, wire) = Rig::with_wire(features);
        for packet in all {
            rig.add_packet(packet);
        }
        rig.net.notify(1);
        assert_eq!(rig.used(1).len(), 3);
        assert_eq!(lock(&wire).sent.len(), passing);
        assert_eq!(rig.net.metrics().transmit.drops, 3 - passing as u64);
    }
}

#[test]
fn a_full_back_end_keeps_the_packets_in_the_guest() {
    let (backend, wire) = FakeBackend::new();
    let mut setup = setup(backend);
    let two = Bucket { size: 2, ..ONE };
    setup.transmit_limiter = Limiter::new(None, Some(two)).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    assert!(!rig.serve(WRITABLE), "nobody waits");
    rig.add_packet(&packet(1, 60));
    rig.add_packet(&packet(2, 60));
    lock(&wire).failure = Some(io::ErrorKind::WouldBlock);
    rig.net.notify(1);
    rig.net.notify(1);
    assert!(rig.used(1).is_empty());
    // The socket behind it is writable all the time, so that it is tried again and again, each time when told.
    assert!(rig.serve(WRITABLE));
    assert!(rig.used(1).is_empty());
    lock(&wire).failure = None;
    assert!(rig.serve(WRITABLE));
    assert_eq!(rig.used(1).len(), 2, "the limiter has counted no packet twice");
    assert_eq!(lock(&wire).sent, [packet(1, 60), packet(2, 60)]);
    assert!(!rig.serve(WRITABLE), "nobody waits any more");
}

#[test]
fn a_failure_drops_the_packet() {
    let (mut rig, wire) = Rig::with_wire(0);
    lock(&wire).failure = Some(io::ErrorKind::PermissionDenied);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!(rig.used(1).len(), 1);
    let metrics = rig.net.metrics().transmit;
    assert_eq!((metrics.errors, metrics.packets), (1, 0));
}

#[test]
fn the_limiter_stops_the_queue() {
    let (backend, wire) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.transmit_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    for seed in 1..4 {
        rig.add_packet(&packet(seed, 60));
    }
    rig.net.notify(1);
    rig.net.notify(1);
    assert_eq!(rig.used(1).len(), 1);
    assert_eq!(rig.net.metrics().transmit.throttled, 1);
    assert!(!rig.serve(TRANSMIT_TIMER));
    let none = Bucket::default();
    rig.net.transmit_limiter_mut().update(None, Some(none));
    rig.await_source(TRANSMIT_TIMER);
    assert_eq!(lock(&wire).sent, [packet(1, 60), packet(2, 60), packet(3, 60)]);
}

#[test]
fn a_turn_leaves_to_the_next_what_is_too_much() {
    let (backend, wire) = FakeBackend::new();
    let mut rig = Rig::new(setup(backend), 0, [16, 1024]);
    for _ in 0..600 {
        rig.add_packet(&packet(1, 14));
    }
    rig.net.notify(1);
    assert_eq!(lock(&wire).sent.len(), 512);
    assert!(rig.serve(AGAIN));
    assert_eq!(lock(&wire).sent.len(), 600);
    assert!(!rig.serve(AGAIN));
}

#[test]
fn a_limit_that_is_raised_while_packets_wait_lets_them_pass() {
    let (backend, wire) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.transmit_limiter = Limiter::new(Some(Bucket { size: 100, ..ONE }), None).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    for seed in 1..5 {
        rig.add_packet(&packet(seed, 60));
    }
    rig.net.notify(1);
    assert_eq!(lock(&wire).sent.len(), 1);
    // Still not enough for all, so that it is throttled once more, by the new limit.
    let more = Bucket { size: 130, ..ONE };
    rig.net.transmit_limiter_mut().update(Some(more), None);
    rig.await_source(TRANSMIT_TIMER);
    assert_eq!(lock(&wire).sent.len(), 3);
    assert!(!rig.serve(TRANSMIT_TIMER));
    let none = Bucket::default();
    rig.net.transmit_limiter_mut().update(Some(none), None);
    rig.await_source(TRANSMIT_TIMER);
    assert_eq!(lock(&wire).sent.len(), 4);
}
