use std::io;

use super::{
    BACKLOG, Fixture, ONE, READABLE, RECEIVE_TIMER, fake::FakeBackend, packet, received, setup, waiting,
};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{EVENT_IDX, GUEST_CSUM, GUEST_TSO4, MRG_RXBUF};
use crate::virtio::net::{HEADER, MAX_FRAME, MAX_PACKET};
use crate::virtio::testing::Buffer;

#[test]
fn batch_raises_one_interrupt() {
    for uses_spare in [false, true] {
        let (mut fixture, network) = Fixture::with_network(0);
        lock(&network).uses_spare = uses_spare;
        let buffers: Vec<u64> = (0..4).map(|_| fixture.add_buffer(2048)).collect();
        let packets: Vec<_> = (1..4).map(|seed| packet(seed, 60 * usize::from(seed))).collect();
        lock(&network).inbound.extend(packets.clone());
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.line.take(), 1);
        assert_eq!(fixture.used(0), [72, 132, 192]);
        for (address, packet) in buffers.iter().zip(&packets) {
            assert_eq!(fixture.driver.read(*address, packet.len()), received(packet, 1));
        }
        let metrics = fixture.net.metrics().receive;
        assert_eq!((metrics.packets, metrics.bytes, metrics.drops), (3, 360, 0));
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.line.take(), 0, "no packet has arrived");
    }
}

#[test]
fn mergeable_packet_spans_buffers() {
    for uses_spare in [false, true] {
        let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
        lock(&network).uses_spare = uses_spare;
        let first = fixture.add_buffer(600);
        for _ in 0..4 {
            fixture.add_buffer(600);
        }
        lock(&network).inbound.extend([packet(1, 1500), packet(2, 100)]);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.line.take(), 1);
        assert_eq!(fixture.used(0), [600, 600, 312, 112]);
        assert_eq!(fixture.driver.read(first, 1512), received(&packet(1, 1500), 3));
        assert_eq!(
            fixture.driver.read(first + 1800, 112),
            received(&packet(2, 100), 1)
        );
    }
}

#[test]
fn header_in_scattered_buffer_is_written() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    let start = fixture.memory(2000);
    let buffers = [(0, 1), (1, 10), (11, 0), (11, 3), (14, 1900)];
    let buffers = buffers.map(|(offset, length)| Buffer::writable(start + offset, length));
    fixture.driver.queues[0].add_indirect(start + 3000, &buffers);
    lock(&network).inbound.push_back(packet(5, 900));
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [912]);
    assert_eq!(fixture.driver.read(start, 912), received(&packet(5, 900), 1));
}

#[test]
fn packet_has_at_most_1022_iovecs() {
    // A packet that never fits is dropped: it must not block those behind it.
    for (second, used, drops) in [(511, &[511, 401][..], 0), (512, &[72], 1)] {
        let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
        for count in [511, second] {
            let data = fixture.memory(count);
            let buffers: Vec<_> = (0..count as u64)
                .map(|at| Buffer::writable(data + at, 1))
                .collect();
            let table = fixture.memory(16 * count);
            fixture.driver.queues[0].add_indirect(table, &buffers);
        }
        lock(&network).inbound.extend([packet(1, 900), packet(2, 60)]);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), used);
        assert_eq!(fixture.net.metrics().receive.drops, drops);
    }
}

#[test]
fn packets_without_buffers_stay_in_backend() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    lock(&network).inbound.extend([packet(1, 60), packet(2, 60)]);
    fixture.net.process_event(READABLE);
    assert_eq!(waiting(&network), 2);
    assert_eq!(
        fixture.driver.queues[0].used_flags(),
        0,
        "notifications are enabled"
    );
    let address = fixture.add_buffer(2048);
    fixture.net.notify(0);
    assert_eq!(fixture.used(0), [72]);
    assert_eq!(fixture.driver.read(address, 72), received(&packet(1, 60), 1));
    assert_eq!(waiting(&network), 1);
    fixture.add_buffer(2048);
    fixture.add_buffer(2048);
    fixture.net.notify(0);
    assert_eq!(fixture.used(0), [72]);
    assert_eq!(
        fixture.driver.queues[0].used_flags(),
        1,
        "notifications are disabled while buffers are available"
    );
}

#[test]
fn packet_longer_than_buffers_is_held() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    let first = fixture.add_buffer(1000);
    lock(&network).inbound.extend([packet(1, 3500), packet(2, 60)]);
    fixture.net.process_event(READABLE);
    assert!(fixture.used(0).is_empty());
    fixture.add_buffer(1000);
    fixture.net.notify(0);
    assert!(fixture.used(0).is_empty());
    for _ in 0..3 {
        fixture.add_buffer(1000);
    }
    fixture.net.notify(0);
    assert_eq!(fixture.used(0), [1000, 1000, 1000, 512, 72]);
    assert_eq!(fixture.driver.read(first, 3512), received(&packet(1, 3500), 4));
    assert_eq!(fixture.net.metrics().receive.drops, 0);
}

#[test]
fn packet_longer_than_queue_is_dropped() {
    // Without MRG_RXBUF a packet has one buffer, with it all of them.
    for (features, buffers) in [(0, 1), (MRG_RXBUF, 16)] {
        let (mut fixture, network) = Fixture::with_network(features);
        let first = fixture.memory(0);
        for _ in 0..buffers {
            fixture.add_buffer(100);
        }
        lock(&network).inbound.extend([packet(1, 3000), packet(2, 60)]);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), [72]);
        assert_eq!(fixture.driver.read(first, 72), received(&packet(2, 60), 1));
        assert_eq!(fixture.net.metrics().receive.drops, 1);
    }
}

#[test]
fn packet_of_maximum_length_is_received() {
    for uses_spare in [false, true] {
        let (mut fixture, network) = Fixture::with_network(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
        lock(&network).uses_spare = uses_spare;
        let first = fixture.memory(0);
        for _ in 0..16 {
            fixture.add_buffer(4200);
        }
        let longest = packet(9, MAX_FRAME);
        lock(&network).inbound.push_back(longest.clone());
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0).iter().sum::<u32>(), 65_566);
        assert_eq!(fixture.driver.read(first, longest.len()), received(&longest, 16));
    }
}

#[test]
fn long_packet_after_short_ones_is_received() {
    let (backend, network) = FakeBackend::new();
    let features = MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;
    let mut fixture = Fixture::new(setup(backend), features, [256, 16]);
    for _ in 0..100 {
        fixture.add_buffer(1600);
    }
    lock(&network)
        .inbound
        .extend((0..80).map(|seed| packet(seed, 60)));
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [72; 80]);
    for seed in [1, 2] {
        for _ in 0..50 {
            fixture.add_buffer(1600);
        }
        let length = 20 * 1600 - HEADER;
        lock(&network).inbound.push_back(packet(seed, length));
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), [1600; 20]);
    }
    assert_eq!(fixture.net.metrics().receive.drops, 0);
}

#[test]
fn large_packet_prepares_buffers_for_others() {
    let large = MRG_RXBUF | GUEST_CSUM | GUEST_TSO4;
    for (features, prepares) in [(large, true), (MRG_RXBUF, false)] {
        let (backend, network) = FakeBackend::new();
        let mut fixture = Fixture::new(setup(backend), features, [256, 16]);
        for _ in 0..150 {
            fixture.add_buffer(1600);
        }
        let mut has_space = |length, count| {
            let packets = (0..count).map(|seed| packet(seed, length));
            lock(&network).inbound.extend(packets);
            fixture.net.process_event(READABLE);
            lock(&network).offered >= MAX_PACKET as u64
        };
        assert!(!has_space(1500, 1));
        // Without a copy, later large packets need buffers for the maximum length.
        assert_eq!(has_space(3000, 1), prepares);
        assert_eq!(has_space(1500, 63), prepares);
        assert!(!has_space(1500, 1));
    }
}

#[test]
fn used_event_within_merged_buffers_interrupts() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF | EVENT_IDX);
    for _ in 0..8 {
        fixture.add_buffer(600);
    }
    let mut interrupts_at = |event: u16| {
        fixture.driver.queues[0].set_used_event(event);
        lock(&network).inbound.push_back(packet(1, 1500));
        fixture.net.process_event(READABLE);
        fixture.line.take()
    };
    assert_eq!(interrupts_at(0), 1, "the first of three");
    assert_eq!(interrupts_at(6), 0, "one beyond the three");
    fixture.add_buffer(600);
    let mut interrupts_at = |event: u16| {
        fixture.driver.queues[0].set_used_event(event);
        lock(&network).inbound.push_back(packet(1, 1500));
        fixture.net.process_event(READABLE);
        fixture.line.take()
    };
    assert_eq!(interrupts_at(7), 1, "the middle one");
}

#[test]
fn limiter_holds_packet() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.receive_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    let first = fixture.add_buffer(1000);
    let second = fixture.add_buffer(1000);
    fixture.add_buffer(1000);
    lock(&network)
        .inbound
        .extend([packet(1, 60), packet(2, 70), packet(3, 80)]);
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [72]);
    assert_eq!(fixture.driver.read(first, 72), received(&packet(1, 60), 1));
    fixture.net.notify(0);
    fixture.net.process_event(READABLE);
    assert!(fixture.used(0).is_empty());
    assert_eq!(fixture.net.metrics().receive.throttled, 1);
    assert!(!fixture.process_pending(RECEIVE_TIMER));
    let none = Bucket::default();
    fixture.net.receive_limiter_mut().update(None, Some(none));
    fixture.await_event(RECEIVE_TIMER);
    assert_eq!(fixture.used(0), [82, 92]);
    assert_eq!(fixture.driver.read(second, 82), received(&packet(2, 70), 1));
    assert!(!fixture.process_pending(RECEIVE_TIMER));
}

#[test]
fn receive_error_is_counted() {
    let (mut fixture, network) = Fixture::with_network(0);
    fixture.add_buffer(1000);
    lock(&network).inbound.push_back(packet(1, 60));
    lock(&network).failures = 3;
    fixture.net.process_event(READABLE);
    assert_eq!(
        fixture.used(0),
        [72],
        "no further event may follow for this packet"
    );
    assert_eq!(fixture.net.metrics().receive.errors, 3);
    assert!(fixture.net.link());
}

#[test]
fn permanent_error_ends_batch() {
    let (mut fixture, network) = Fixture::with_network(0);
    fixture.add_buffer(1000);
    lock(&network).inbound.push_back(packet(1, 60));
    lock(&network).error = Some(io::ErrorKind::PermissionDenied);
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.net.metrics().receive.errors, 16);
    assert!(!fixture.process_pending(BACKLOG));
    lock(&network).error = None;
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [72]);
}

#[test]
fn raised_limit_releases_packets() {
    let (backend, network) = FakeBackend::new();
    let mut setup = setup(backend);
    setup.receive_limiter = Limiter::new(Some(Bucket { size: 100, ..ONE }), None).unwrap();
    let mut fixture = Fixture::new(setup, 0, [16, 16]);
    for _ in 0..5 {
        fixture.add_buffer(1000);
    }
    let packets = (1..5).map(|seed| packet(seed, 60));
    lock(&network).inbound.extend(packets);
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [72]);
    // The new limit throttles the last packet again.
    let more = Bucket { size: 130, ..ONE };
    fixture.net.receive_limiter_mut().update(Some(more), None);
    fixture.await_event(RECEIVE_TIMER);
    assert_eq!(fixture.used(0), [72, 72]);
    assert!(!fixture.process_pending(RECEIVE_TIMER));
    let none = Bucket::default();
    fixture.net.receive_limiter_mut().update(Some(none), None);
    fixture.await_event(RECEIVE_TIMER);
    assert_eq!(fixture.used(0), [72]);
    assert!(!fixture.process_pending(RECEIVE_TIMER));
}
