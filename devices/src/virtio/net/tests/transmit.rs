use std::io;

use super::{
    BACKLOG, Fixture, ONE, READABLE, RECEIVE_TIMER, TRANSMIT_TIMER, WRITABLE, fake::FakeBackend, packet,
    setup,
};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::MAX_FRAME;
use crate::virtio::net::features::{CSUM, EVENT_IDX, HOST_TSO4};
use crate::virtio::testing::Buffer;

#[test]
fn batch_raises_one_interrupt() {
    let (mut fixture, network) = Fixture::with_network(0);
    let recorder = fixture.net.recorder();
    let packets: Vec<_> = (1..6).map(|seed| packet(seed, 60 * usize::from(seed))).collect();
    for packet in &packets {
        fixture.add_packet(packet);
    }
    fixture.net.notify(1);
    assert_eq!(fixture.line.take(), 1);
    assert_eq!(fixture.used(1), [0; 5]);
    assert_eq!(lock(&network).sent, packets);
    let metrics = fixture.net.metrics().transmit;
    assert_eq!((metrics.packets, metrics.bytes), (5, 900));
    assert_eq!(recorder.metrics(), fixture.net.metrics());
    assert_eq!(
        fixture.driver.queues[1].used_flags(),
        0,
        "notifications are enabled"
    );
    fixture.net.notify(1);
    assert_eq!(fixture.line.take(), 0);
}

#[test]
fn transfers_are_counted_in_both_directions() {
    let (mut fixture, network) = Fixture::with_network(0);
    let recorder = fixture.net.recorder();
    let arp = [vec![0; 12], vec![2; 12], vec![8, 6], vec![0; 28]].concat();
    let exchange = |fixture: &mut Fixture| {
        for packet in [packet(1, 60), arp.clone()] {
            fixture.add_packet(&packet);
            fixture.add_buffer(2048);
            lock(&network).inbound.push_back(packet);
        }
        fixture.net.notify(1);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0).len(), 2);
        recorder.active_frames()
    };
    assert_eq!(exchange(&mut fixture), 0);
    recorder.count_activity(true);
    assert_eq!((exchange(&mut fixture), recorder.has_sent()), (2, true));
    recorder.count_activity(false);
    assert_eq!(exchange(&mut fixture), 2);
}

#[test]
fn used_event_limits_interrupts() {
    let (mut fixture, _network) = Fixture::with_network(EVENT_IDX);
    fixture.driver.queues[1].set_used_event(2);
    let mut interrupts = |count| {
        for _ in 0..count {
            fixture.add_packet(&packet(1, 60));
        }
        fixture.net.notify(1);
        fixture.line.take()
    };
    assert_eq!([interrupts(2), interrupts(2), interrupts(2)], [0, 1, 0]);
}

#[test]
fn no_interrupt_flag_suppresses_interrupts() {
    let (mut fixture, _network) = Fixture::with_network(0);
    fixture.driver.write(fixture.driver.queues[1].available, &[1, 0]);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    assert_eq!((fixture.line.take(), fixture.used(1).len()), (0, 1));
}

#[test]
fn scattered_packet_is_sent() {
    let (mut fixture, network) = Fixture::with_network(0);
    let packet = packet(3, 3000);
    let start = fixture.memory(10_000);
    fixture.driver.write(start, &packet);
    let buffers = [(0, 5), (5, 8), (13, 0), (13, 1000), (1013, 1999)];
    let buffers = buffers.map(|(offset, length)| Buffer::readable(start + offset, length));
    fixture.driver.queues[1].add(&buffers);
    fixture.driver.queues[1].add_indirect(start + 5000, &buffers);
    fixture.net.notify(1);
    assert_eq!(lock(&network).sent, [packet.clone(), packet]);
}

#[test]
fn packet_of_invalid_length_is_dropped() {
    let (mut fixture, network) = Fixture::with_network(0);
    let longest = packet(1, MAX_FRAME);
    let mut too_long = longest.clone();
    too_long.push(0);
    let invalid = [&too_long[..], &longest[..11], &longest[..12], &longest[..25], &[]];
    for bytes in invalid {
        fixture.add_packet(bytes);
    }
    fixture.add_packet(&longest);
    fixture.add_packet(&longest[..26]);
    fixture.net.notify(1);
    assert_eq!(fixture.used(1), [0; 7]);
    assert_eq!(fixture.net.metrics().transmit.drops, 5);
    assert_eq!(lock(&network).sent, [longest.clone(), longest[..26].to_vec()]);
    assert!(!fixture.interrupt.is_reset_needed());
}

#[test]
fn offload_without_feature_is_dropped() {
    let mut checksum = packet(1, 100);
    checksum[0] = 1;
    let mut segments = checksum.clone();
    segments[1] = 1;
    let mut unknown = segments.clone();
    unknown[1] = 77;
    let packets = [&checksum, &segments, &unknown];
    for (features, passing) in [(0, 0), (CSUM, 1), (HOST_TSO4, 0), (CSUM | HOST_TSO4, 2)] {
        let (mut fixture, network) = Fixture::with_network(features);
        for packet in packets {
            fixture.add_packet(packet);
        }
        fixture.net.notify(1);
        assert_eq!(fixture.used(1).len(), 3);
        assert_eq!(lock(&network).sent.len(), passing);
        assert_eq!(fixture.net.metrics().transmit.drops, 3 - passing as u64);
    }
}

#[test]
fn full_backend_keeps_packets_in_queue() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    let two = Bucket { size: 2, ..ONE };
    setup.transmit_limiter = Limiter::new(None, Some(two)).unwrap();
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    assert!(!fixture.process_pending(WRITABLE), "no wait is pending");
    fixture.add_packet(&packet(1, 60));
    fixture.add_packet(&packet(2, 60));
    lock(&network).error = Some(io::ErrorKind::WouldBlock);
    fixture.net.notify(1);
    fixture.net.notify(1);
    assert!(fixture.used(1).is_empty());
    // The descriptor of the fake backend is always writable, so each wait ends at once.
    assert!(fixture.process_pending(WRITABLE));
    assert!(fixture.used(1).is_empty());
    lock(&network).error = None;
    assert!(fixture.process_pending(WRITABLE));
    assert_eq!(fixture.used(1).len(), 2, "each packet consumes one token");
    assert_eq!(lock(&network).sent, [packet(1, 60), packet(2, 60)]);
    assert!(!fixture.process_pending(WRITABLE), "no wait is pending any more");
}

#[test]
fn send_error_drops_packet() {
    let (mut fixture, network) = Fixture::with_network(0);
    lock(&network).error = Some(io::ErrorKind::PermissionDenied);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    assert_eq!(fixture.used(1).len(), 1);
    let metrics = fixture.net.metrics().transmit;
    assert_eq!((metrics.errors, metrics.packets), (1, 0));
}

#[test]
fn limiter_throttles_queue() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.transmit_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    for seed in 1..4 {
        fixture.add_packet(&packet(seed, 60));
    }
    fixture.net.notify(1);
    fixture.net.notify(1);
    assert_eq!(fixture.used(1).len(), 1);
    assert_eq!(fixture.net.metrics().transmit.throttled, 1);
    assert!(!fixture.process_pending(TRANSMIT_TIMER));
    let none = Bucket::default();
    fixture.net.transmit_limiter_mut().update(None, Some(none));
    fixture.await_event(TRANSMIT_TIMER);
    assert_eq!(lock(&network).sent, [packet(1, 60), packet(2, 60), packet(3, 60)]);
}

#[test]
fn batch_limit_schedules_next_batch() {
    let (backend, network) = FakeBackend::new();
    let mut fixture = Fixture::new(setup(backend), 0, [16, 1024]);
    for _ in 0..600 {
        fixture.add_packet(&packet(1, 14));
    }
    fixture.net.notify(1);
    assert_eq!(lock(&network).sent.len(), 512);
    assert!(fixture.process_pending(BACKLOG));
    assert_eq!(lock(&network).sent.len(), 600);
    assert!(!fixture.process_pending(BACKLOG));
}

#[test]
fn raised_limit_releases_packets() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.transmit_limiter = Limiter::new(Some(Bucket { size: 100, ..ONE }), None).unwrap();
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    for seed in 1..5 {
        fixture.add_packet(&packet(seed, 60));
    }
    fixture.net.notify(1);
    assert_eq!(lock(&network).sent.len(), 1);
    // The new limit throttles the last packet again.
    let more = Bucket { size: 130, ..ONE };
    fixture.net.transmit_limiter_mut().update(Some(more), None);
    fixture.await_event(TRANSMIT_TIMER);
    assert_eq!(lock(&network).sent.len(), 3);
    assert!(!fixture.process_pending(TRANSMIT_TIMER));
    let none = Bucket::default();
    fixture.net.transmit_limiter_mut().update(Some(none), None);
    fixture.await_event(TRANSMIT_TIMER);
    assert_eq!(lock(&network).sent.len(), 4);
}

#[test]
fn events_and_batches_are_counted() {
    let (mut fixture, _network) = Fixture::with_network(0);
    let before = fixture.net.metrics();
    fixture.net.notify(1);
    for _ in 0..17 {
        fixture.add_packet(&packet(1, 60));
        fixture.net.notify(1);
        fixture.used(1);
    }
    fixture.net.process_event(TRANSMIT_TIMER);
    let after = fixture.net.metrics();
    assert_eq!(after.transmit.notifications - before.transmit.notifications, 18);
    assert_eq!(after.transmit.limiter_events, 1);
    // The first notification, and the timer.
    assert_eq!(after.transmit.empty_batches - before.transmit.empty_batches, 2);
    assert_eq!(after.transmit.duration.timed, 2, "one in 16 of 17 packets");
    fixture.net.process_event(READABLE);
    fixture.net.process_event(RECEIVE_TIMER);
    fixture.net.notify(0);
    let after = fixture.net.metrics();
    assert_eq!((after.backend_events, after.receive.limiter_events), (1, 1));
    assert_eq!(after.receive.notifications, 1);
    assert_eq!(after.receive.empty_batches - before.receive.empty_batches, 3);
}

#[test]
fn throttled_packets_stay_and_are_counted() {
    let (backend, _network) = FakeBackend::new();
    let setup = crate::virtio::net::NetSetup {
        transmit_limiter: Limiter::new(None, Some(ONE)).unwrap(),
        ..setup(backend)
    };
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    for _ in 0..4 {
        fixture.add_packet(&packet(1, 60));
    }
    fixture.net.notify(1);
    let metrics = fixture.net.metrics().transmit;
    assert_eq!((metrics.packets, metrics.left_buffers), (1, 3));
}

#[test]
fn fault_of_driver_is_counted() {
    let (mut fixture, _network) = Fixture::with_network(0);
    fixture.driver.queues[1].add(&[Buffer::writable(0, 60)]);
    fixture.net.notify(1);
    assert_eq!(fixture.net.metrics().faults, 1);
}
