use std::io;

use super::{BACKLOG, ONE, Rig, TRANSMIT_TIMER, WRITABLE, fake::FakeBackend, packet, setup};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::MAX_FRAME;
use crate::virtio::net::features::{CSUM, EVENT_IDX, HOST_TSO4};
use crate::virtio::testing::Buffer;

#[test]
fn batch_raises_one_interrupt() {
    let (mut rig, network) = Rig::with_network(0);
    let packets: Vec<_> = (1..6).map(|seed| packet(seed, 60 * usize::from(seed))).collect();
    for packet in &packets {
        rig.add_packet(packet);
    }
    rig.net.notify(1);
    assert_eq!(rig.line.take(), 1);
    assert_eq!(rig.used(1), [0; 5]);
    assert_eq!(lock(&network).sent, packets);
    let metrics = rig.net.metrics().transmit;
    assert_eq!((metrics.packets, metrics.bytes), (5, 900));
    assert_eq!(rig.driver.queues[1].used_flags(), 0, "notifications are enabled");
    rig.net.notify(1);
    assert_eq!(rig.line.take(), 0);
}

#[test]
fn used_event_limits_interrupts() {
    let (mut rig, _network) = Rig::with_network(EVENT_IDX);
    rig.driver.queues[1].set_used_event(2);
    let mut interrupts = |count| {
        for _ in 0..count {
            rig.add_packet(&packet(1, 60));
        }
        rig.net.notify(1);
        rig.line.take()
    };
    assert_eq!([interrupts(2), interrupts(2), interrupts(2)], [0, 1, 0]);
}

#[test]
fn no_interrupt_flag_suppresses_interrupts() {
    let (mut rig, _network) = Rig::with_network(0);
    rig.driver.write(rig.driver.queues[1].available, &[1, 0]);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!((rig.line.take(), rig.used(1).len()), (0, 1));
}

#[test]
fn scattered_packet_is_sent() {
    let (mut rig, network) = Rig::with_network(0);
    let packet = packet(3, 3000);
    let start = rig.memory(10_000);
    rig.driver.write(start, &packet);
    let buffers = [(0, 5), (5, 8), (13, 0), (13, 1000), (1013, 1999)];
    let buffers = buffers.map(|(offset, length)| Buffer::readable(start + offset, length));
    rig.driver.queues[1].add(&buffers);
    rig.driver.queues[1].add_indirect(start + 5000, &buffers);
    rig.net.notify(1);
    assert_eq!(lock(&network).sent, [packet.clone(), packet]);
}

#[test]
fn packet_of_invalid_length_is_dropped() {
    let (mut rig, network) = Rig::with_network(0);
    let longest = packet(1, MAX_FRAME);
    let mut too_long = longest.clone();
    too_long.push(0);
    let invalid = [&too_long[..], &longest[..11], &longest[..12], &longest[..25], &[]];
    for bytes in invalid {
        rig.add_packet(bytes);
    }
    rig.add_packet(&longest);
    rig.add_packet(&longest[..26]);
    rig.net.notify(1);
    assert_eq!(rig.used(1), [0; 7]);
    assert_eq!(rig.net.metrics().transmit.drops, 5);
    assert_eq!(lock(&network).sent, [longest.clone(), longest[..26].to_vec()]);
    assert!(!rig.signal.is_reset_needed());
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
        let (mut rig, network) = Rig::with_network(features);
        for packet in packets {
            rig.add_packet(packet);
        }
        rig.net.notify(1);
        assert_eq!(rig.used(1).len(), 3);
        assert_eq!(lock(&network).sent.len(), passing);
        assert_eq!(rig.net.metrics().transmit.drops, 3 - passing as u64);
    }
}

#[test]
fn full_backend_keeps_packets_in_queue() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    let two = Bucket { size: 2, ..ONE };
    setup.transmit_limiter = Limiter::new(None, Some(two)).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    assert!(!rig.serve(WRITABLE), "no wait is pending");
    rig.add_packet(&packet(1, 60));
    rig.add_packet(&packet(2, 60));
    lock(&network).error = Some(io::ErrorKind::WouldBlock);
    rig.net.notify(1);
    rig.net.notify(1);
    assert!(rig.used(1).is_empty());
    // The descriptor of the fake backend is always writable, so each wait ends at once.
    assert!(rig.serve(WRITABLE));
    assert!(rig.used(1).is_empty());
    lock(&network).error = None;
    assert!(rig.serve(WRITABLE));
    assert_eq!(rig.used(1).len(), 2, "each packet consumes one token");
    assert_eq!(lock(&network).sent, [packet(1, 60), packet(2, 60)]);
    assert!(!rig.serve(WRITABLE), "no wait is pending any more");
}

#[test]
fn send_error_drops_packet() {
    let (mut rig, network) = Rig::with_network(0);
    lock(&network).error = Some(io::ErrorKind::PermissionDenied);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!(rig.used(1).len(), 1);
    let metrics = rig.net.metrics().transmit;
    assert_eq!((metrics.errors, metrics.packets), (1, 0));
}

#[test]
fn limiter_throttles_queue() {
    let (backend, network) = FakeBackend::new();
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
    assert_eq!(lock(&network).sent, [packet(1, 60), packet(2, 60), packet(3, 60)]);
}

#[test]
fn batch_limit_schedules_next_batch() {
    let (backend, network) = FakeBackend::new();
    let mut rig = Rig::new(setup(backend), 0, [16, 1024]);
    for _ in 0..600 {
        rig.add_packet(&packet(1, 14));
    }
    rig.net.notify(1);
    assert_eq!(lock(&network).sent.len(), 512);
    assert!(rig.serve(BACKLOG));
    assert_eq!(lock(&network).sent.len(), 600);
    assert!(!rig.serve(BACKLOG));
}

#[test]
fn raised_limit_releases_packets() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.transmit_limiter = Limiter::new(Some(Bucket { size: 100, ..ONE }), None).unwrap();
    let mut rig = Rig::new(setup, 0, [16, 16]);
    for seed in 1..5 {
        rig.add_packet(&packet(seed, 60));
    }
    rig.net.notify(1);
    assert_eq!(lock(&network).sent.len(), 1);
    // The new limit throttles the last packet again.
    let more = Bucket { size: 130, ..ONE };
    rig.net.transmit_limiter_mut().update(Some(more), None);
    rig.await_source(TRANSMIT_TIMER);
    assert_eq!(lock(&network).sent.len(), 3);
    assert!(!rig.serve(TRANSMIT_TIMER));
    let none = Bucket::default();
    rig.net.transmit_limiter_mut().update(Some(none), None);
    rig.await_source(TRANSMIT_TIMER);
    assert_eq!(lock(&network).sent.len(), 4);
}
