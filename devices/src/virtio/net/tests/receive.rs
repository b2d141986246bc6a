use std::io;

use super::{AGAIN, ONE, READABLE, RECEIVE_TIMER, Rig, fake::FakeBackend, packet, received, setup, waiting};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{EVENT_IDX, GUEST_CSUM, GUEST_TSO4, MRG_RXBUF};
use crate::virtio::net::{HEADER, MAX_FRAME};
use crate::virtio::testing::Piece;

#[test]
fn a_batch_of_packets_is_one_interrupt() {
    for by_spare in [false, true] {
        let (mut rig, wire) = Rig::with_wire(0);
        lock(&wire).by_spare = by_spare;
        let buffers: Vec<u64> = (0..4).map(|_| rig.add_buffer(2048)).collect();
        let packets: Vec<_> = (1..4).map(|seed| packet(seed, 60 * usize::from(seed))).collect();
        lock(&wire).inbound.extend(packets.clone());
        rig.net.process_event(READABLE);
        assert_eq!(rig.line.take(), 1);
        assert_eq!(rig.used(0), [72, 132, 192]);
        for (address, packet) in buffers.iter().zip(&packets) {
            assert_eq!(rig.driver.read(*address, packet.len()), received(packet, 1));
        }
        let metrics = rig.net.metrics().receive;
        assert_eq!((metrics.packets, metrics.bytes, metrics.drops), (3, 360, 0));
        rig.net.process_event(READABLE);
        assert_eq!(rig.line.take(), 0, "nothing has come");
    }
}

#[test]
fn a_packet_takes_several_buffers_when_they_may_be_merged() {
    for by_spare in [false, true] {
        let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
        lock(&wire).by_spare = by_spare;
        let first = rig.add_buffer(600);
        for _ in 0..4 {
            rig.add_buffer(600);
        }
        lock(&wire).inbound.extend([packet(1, 1500), packet(2, 100)]);
        rig.net.process_event(READABLE);
        assert_eq!(rig.line.take(), 1);
        assert_eq!(rig.used(0), [600, 600, 312, 112]);
        assert_eq!(rig.driver.read(first, 1512), received(&packet(1, 1500), 3));
        assert_eq!(rig.driver.read(first + 1800, 112), received(&packet(2, 100), 1));
    }
}

#[test]
fn the_header_may_be_scattered() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
    let start = rig.memory(2000);
    let pieces = [(0, 1), (1, 10), (11, 0), (11, 3), (14, 1900)];
    let pieces = pieces.map(|(offset, length)| Piece::writable(start + offset, length));
    rig.driver.queues[0].add_indirect(start + 3000, &pieces);
    lock(&wire).inbound.push_back(packet(5, 900));
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [912]);
    assert_eq!(rig.driver.read(start, 912), received(&packet(5, 900), 1));
}

#[test]
fn packets_wait_in_the_back_end_for_buffers() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
    lock(&wire).inbound.extend([packet(1, 60), packet(2, 60)]);
    rig.net.process_event(READABLE);
    assert_eq!(waiting(&wire), 2);
    assert_eq!(
        rig.driver.queues[0].used_flags(),
        0,
        "the device wants to be kicked"
    );
    let address = rig.add_buffer(2048);
    rig.net.notify(0);
    assert_eq!(rig.used(0), [72]);
    assert_eq!(rig.driver.read(address, 72), received(&packet(1, 60), 1));
    assert_eq!(waiting(&wire), 1);
    rig.add_buffer(2048);
    rig.add_buffer(2048);
    rig.net.notify(0);
    assert_eq!(rig.used(0), [72]);
    assert_eq!(
        rig.driver.queues[0].used_flags(),
        1,
        "with buffers there, kicks are of no use"
    );
}

#[test]
fn a_packet_longer_than_the_buffers_there_is_not_lost() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
    let first = rig.add_buffer(1000);
    lock(&wire).inbound.extend([packet(1, 3500), packet(2, 60)]);
    rig.net.process_event(READABLE);
    assert!(rig.used(0).is_empty());
    rig.add_buffer(1000);
    rig.net.notify(0);
    assert!(rig.used(0).is_empty());
    for _ in 0..3 {
        rig.add_buffer(1000);
    }
    rig.net.notify(0);
    assert_eq!(rig.used(0), [1000, 1000, 1000, 512, 72]);
    assert_eq!(rig.driver.read(first, 3512), received(&packet(1, 3500), 4));
    assert_eq!(rig.net.metrics().receive.drops, 0);
}

#[test]
fn a_packet_that_never_fits_is_dropped() {
    // Without merging it has one buffer; with merging it has all.
    for (features, buffers) in [(0, 1), (MRG_RXBUF, 16)] {
        let (mut rig, wire) = Rig::with_wire(features);
        let first = rig.memory(0);
        for _ in 0..buffers {
            rig.add_buffer(100);
        }
        lock(&wire).inbound.extend([packet(1, 3000), packet(2, 60)]);
        rig.net.process_event(READABLE);
        assert_eq!(rig.used(0), [72]);
        assert_eq!(rig.driver.read(first, 72), received(&packet(2, 60), 1));
        assert_eq!(rig.net.metrics().receive.drops, 1);
    }
}

#[test]
fn the_longest_packet_passes() {
    for by_spare in [false, true] {
        let (mut rig, wire) = Rig::with_wire(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
        lock(&wire).by_spare = by_spare;
        let first = rig.memory(0);
        for _ in 0..16 {
            rig.add_buffer(4200);
        }
        let longest = packet(9, MAX_FRAME);
        lock(&wire).inbound.push_back(longest.clone());
        rig.net.process_event(READABLE);
        assert_eq!(rig.used(0).iter().sum::<u32>(), 65_566);
        assert_eq!(rig.driver.read(first, longest.len()), received(&longest, 16));
    }
}

#[test]
fn a_long_packet_after_many_short_ones_is_whole() {
    let (backend, wire) = FakeBackend::new();
    let features = MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;
    let mut rig = Rig::new(setup(backend), features, [256, 16]);
    for _ in 0..100 {
        rig.add_buffer(1600);
    }
    lock(&wire).inbound.extend((0..80).map(|seed| packet(seed, 60)));
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72; 80]);
    for seed in [1, 2] {
        for _ in 0..50 {
            rig.add_buffer(1600);
        }
        let length = 20 * 1600 - HEADER;
        lock(&wire).inbound.push_back(packet(seed, length));
        rig.net.process_event(READABLE);
        assert_eq!(rig.used(0), [1600; 20]);
    }
    assert_eq!(rig.net.metrics().receive.drops, 0);
}

#[test]
fn the_driver_is_told_when_its_event_is_among_merged_buffers() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF | EVENT_IDX);
    for _ in 0..8 {
        rig.add_buffer(600);
    }
    let mut told_at = |event: u16| {
        rig.driver.queues[0].set_used_event(event);
        lock(&wire).inbound.push_back(packet(1, 1500));
        rig.net.process_event(READABLE);
        rig.line.take()
    };
    assert_eq!(told_at(0), 1, "the first of three");
    assert_eq!(told_at(6), 0, "one beyond the three");
    rig.add_buffer(600);
    let mut told_at = |event: u16| {
        rig.driver.queues[0].set_used_event(event);
        lock(&wire).inbound.push_back(packet(1, 1500));
        rig.net.process_event(READABLE);
        rig.line.take()
    };
    assert_eq!(told_at(7), 1, "the middle one");
}

#[test]
fn the_limiter_holds_a_packet_back_and_loses_none() {
    let (backend, wire) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.receive_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    let first = rig.add_buffer(1000);
    let second = rig.add_buffer(1000);
    rig.add_buffer(1000);
    lock(&wire)
        .inbound
        .extend([packet(1, 60), packet(2, 70), packet(3, 80)]);
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72]);
    assert_eq!(rig.driver.read(first, 72), received(&packet(1, 60), 1));
    rig.net.notify(0);
    rig.net.process_event(READABLE);
    assert!(rig.used(0).is_empty());
    assert_eq!(rig.net.metrics().receive.throttled, 1);
    assert!(!rig.serve(RECEIVE_TIMER));
    let none = Bucket::default();
    rig.net.receive_limiter_mut().update(None, Some(none));
    rig.await_source(RECEIVE_TIMER);
    assert_eq!(rig.used(0), [82, 92]);
    assert_eq!(rig.driver.read(second, 82), received(&packet(2, 70), 1));
    assert!(!rig.serve(RECEIVE_TIMER));
}

#[test]
fn a_failure_is_counted_and_ends_nothing() {
    let (mut rig, wire) = Rig::with_wire(0);
    rig.add_buffer(1000);
    lock(&wire).inbound.push_back(packet(1, 60));
    lock(&wire).faults = 3;
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72], "there may be no other news of this packet");
    assert_eq!(rig.net.metrics().receive.errors, 3);
    assert!(rig.net.link());
}

#[test]
fn a_failure_that_lasts_does_not_keep_the_event_loop() {
    let (mut rig, wire) = Rig::with_wire(0);
    rig.add_buffer(1000);
    lock(&wire).inbound.push_back(packet(1, 60));
    lock(&wire).failure = Some(io::ErrorKind::PermissionDenied);
    rig.net.process_event(READABLE);
    assert_eq!(rig.net.metrics().receive.errors, 16);
    assert!(!rig.serve(AGAIN));
    lock(&wire).failure = None;
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72]);
}

#[test]
fn a_limit_that_is_raised_while_a_packet_waits_lets_it_pass() {
    let (backend, wire) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.receive_limiter = Limiter::new(Some(Bucket { size: 100, ..ONE }), None).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    for _ in 0..5 {
        rig.add_buffer(1000);
    }
    let packets = (1..5).map(|seed| packet(seed, 60));
    lock(&wire).inbound.extend(packets);
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72]);
    // Still not enough for all, so that it is throttled once more, by the new limit.
    let more = Bucket { size: 130, ..ONE };
    rig.net.receive_limiter_mut().update(Some(more), None);
    rig.await_source(RECEIVE_TIMER);
    assert_eq!(rig.used(0), [72, 72]);
    assert!(!rig.serve(RECEIVE_TIMER));
    let none = Bucket::default();
    rig.net.receive_limiter_mut().update(Some(none), None);
    rig.await_source(RECEIVE_TIMER);
    assert_eq!(rig.used(0), [72]);
    assert!(!rig.serve(RECEIVE_TIMER));
}
