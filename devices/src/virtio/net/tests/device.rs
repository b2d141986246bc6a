use super::{
    BACKLOG, Fixture, MAC, ONE, READABLE, RECEIVE_TIMER, fake::FakeBackend, packet, received, setup,
};
use crate::limiter::{Bucket, Limiter};
use crate::sync::lock;
use crate::virtio::interrupt::CONFIGURATION;
use crate::virtio::mmio::registers::FEATURES_OK;
use crate::virtio::net::features::{BASE, CSUM, GUEST_CSUM, HOST_TSO4, MRG_RXBUF, MTU, OFFLOADS, STATUS};
use crate::virtio::net::{Link, MAX_PACKET, Net, NetState};
use crate::virtio::{DriverState, VirtioDevice};

fn fresh() -> Net {
    Net::new(setup(FakeBackend::new().0)).unwrap()
}

#[test]
fn offered_features_depend_on_backend() {
    let net = fresh();
    assert_eq!(net.device_id(), 1);
    assert_eq!(net.queue_sizes(), [256, 256]);
    assert_eq!(net.features(), BASE | MTU | CSUM | GUEST_CSUM | HOST_TSO4);
    let mut setup = setup(FakeBackend::new().0);
    setup.mtu = None;
    assert_eq!(Net::new(setup).unwrap().features() & MTU, 0);
}

#[test]
fn configuration_reads_at_every_offset() {
    let net = fresh();
    let mut all = [0xff; 16];
    net.read_config(0, &mut all);
    assert_eq!(all[..6], MAC);
    assert_eq!(all[6..], [1, 0, 1, 0, 120, 5, 0, 0, 0, 0]);
    for offset in 0..16 {
        let mut byte = [0xff];
        net.read_config(offset, &mut byte);
        assert_eq!(byte[0], all[usize::try_from(offset).unwrap()]);
    }
    let mut beyond = [0xff; 4];
    net.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn lost_backend_clears_link_status() {
    for (features, interrupts) in [(STATUS, 1), (0, 0)] {
        let (mut fixture, network) = Fixture::with_network(features);
        fixture.add_buffer(100);
        lock(&network).link = Some(Link::Lost);
        fixture.net.process_event(READABLE);
        fixture.net.process_event(READABLE);
        let mut status = [0xff; 2];
        fixture.net.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        assert_eq!(fixture.line.take(), interrupts);
        assert_eq!(fixture.interrupt.status(), interrupts * CONFIGURATION);
    }
}

#[test]
fn idle_device_raises_no_event() {
    let (mut fixture, _network) = Fixture::with_network(0);
    fixture.add_buffer(100);
    fixture.net.notify(0);
    fixture.net.notify(1);
    for token in 0..5 {
        assert!(!fixture.process_pending(token), "descriptor {token} is ready");
    }
    assert_eq!(fixture.line.take(), 0);
}

#[test]
fn backend_receives_negotiated_features() {
    let (mut fixture, network) = Fixture::with_network(GUEST_CSUM | STATUS);
    assert_eq!(lock(&network).features & !(1 << 32), GUEST_CSUM | STATUS);
    fixture.net.reset();
    assert_eq!(lock(&network).features, 0);
}

#[test]
fn reset_device_ignores_events() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    fixture.add_buffer(20);
    lock(&network).inbound.extend([packet(1, 60), packet(2, 60)]);
    fixture.net.process_event(READABLE);
    fixture.net.reset();
    fixture.add_packet(&packet(1, 60));
    for token in 0..5 {
        fixture.net.process_event(token);
    }
    fixture.net.notify(0);
    fixture.net.notify(1);
    assert!(fixture.net.queue_states().is_empty());
    assert_eq!((fixture.used(0).len(), fixture.used(1).len()), (0, 0));
    assert!(lock(&network).sent.is_empty());
    fixture.restart();
    let address = fixture.add_buffer(100);
    fixture.net.notify(0);
    assert_eq!(
        fixture.driver.read(address, 72),
        received(&packet(2, 60), 1),
        "the held packet of the old driver is dropped"
    );
}

#[test]
fn activation_processes_earlier_buffers() {
    let (mut fixture, network) = Fixture::with_network(0);
    lock(&network).inbound.push_back(packet(1, 60));
    fixture.net.reset();
    for queue in &mut fixture.driver.queues {
        queue.clear();
    }
    fixture.add_buffer(100);
    fixture
        .net
        .activate(fixture.driver.activation(0, fixture.line.clone()));
    assert!(
        fixture.used(0).is_empty(),
        "the driver expects no used buffer before its status write returns"
    );
    assert!(fixture.process_pending(BACKLOG));
    assert_eq!(fixture.used(0), [72]);
}

#[test]
fn held_packet_survives_snapshot() {
    let (mut fixture, network) = Fixture::with_network(MRG_RXBUF);
    fixture.add_buffer(100);
    lock(&network).inbound.push_back(packet(1, 500));
    fixture.net.process_event(READABLE);
    let states = fixture.net.queue_states();
    assert_eq!(
        (states[0].next_avail, states[0].next_used),
        (0, 0),
        "no buffer was used"
    );

    let mut clone = fresh();
    clone.activate(fixture.driver.activation(MRG_RXBUF, fixture.line.clone()));
    clone.restore(fixture.net.save()).unwrap();
    for _ in 0..5 {
        fixture.add_buffer(100);
    }
    clone.notify(0);
    assert_eq!(fixture.used(0), [100, 100, 100, 100, 100, 12]);
}

#[test]
fn throttled_packet_survives_snapshot() {
    let (backend, network) = FakeBackend::new();
    let mut limited = setup(backend);
    limited.receive_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut fixture = Fixture::new(limited, 0, [16, 16]);
    fixture.add_buffer(100);
    fixture.add_buffer(100);
    lock(&network).inbound.extend([packet(1, 60), packet(2, 60)]);
    fixture.net.process_event(READABLE);
    assert_eq!(fixture.used(0), [72]);
    let mut clone = fresh();
    clone.restore(fixture.net.save()).unwrap();
    assert!(!clone.receive_limiter().is_throttled());
    clone.process_event(RECEIVE_TIMER);
    // Except `num_buffers`, which is set when the packet enters its buffers.
    let held = clone.save().held;
    assert_eq!((&held[..10], &held[12..]), (&[0; 10][..], &packet(2, 60)[12..]));
}

#[test]
fn reset_keeps_tokens_and_ends_wait() {
    let (backend, network) = FakeBackend::new();
    let mut limited = setup(backend);
    let hundred = Bucket { size: 100, ..ONE };
    limited.receive_limiter = Limiter::new(Some(hundred), None).unwrap();
    limited.transmit_limiter = Limiter::new(Some(hundred), None).unwrap();
    let mut fixture = Fixture::new(limited, 0, [16, 16]);
    // Each direction has 40 tokens after its first packet, and none after its first packet since the reset.
    for lengths in [[60, 80], [40, 14]] {
        for length in lengths {
            fixture.add_buffer(1000);
            fixture.add_packet(&packet(1, length));
            lock(&network).inbound.push_back(packet(1, length));
        }
        lock(&network).sent.clear();
        fixture.net.process_event(READABLE);
        fixture.net.notify(1);
        assert_eq!(fixture.used(0), [12 + u32::try_from(lengths[0]).unwrap()]);
        assert_eq!(lock(&network).sent, [packet(1, lengths[0])]);
        fixture.restart();
    }
}

#[test]
fn oversized_held_packet_is_rejected() {
    let state = |length| NetState {
        held: vec![0; length],
        ..fresh().save()
    };
    assert!(fresh().restore(state(MAX_PACKET)).is_ok());
    let error = fresh().restore(state(MAX_PACKET + 1)).unwrap_err();
    assert!(error.to_string().contains("65567 bytes"), "{error}");
}

#[test]
fn failed_activation_keeps_queue_states() {
    let (mut fixture, network) = Fixture::with_network(0);
    lock(&network).rejects_features = true;
    fixture.restart();
    assert!(fixture.interrupt.is_reset_needed());
    assert_eq!(fixture.net.queue_states().len(), 2);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    fixture.net.process_event(BACKLOG);
    assert!(fixture.used(1).is_empty());
    lock(&network).rejects_features = false;
    fixture.restart();
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    assert_eq!(
        (fixture.interrupt.is_reset_needed(), fixture.used(1).len()),
        (false, 1)
    );
}

#[test]
fn metrics_serialize() {
    fn assert_serializes<T: serde::Serialize>(_value: T) {}
    let net = fresh();
    assert_serializes(net.metrics());
    assert_eq!((net.describe().as_str(), net.link()), ("fake", true));
}

#[test]
fn all_offered_features_are_named() {
    let id = fresh().device_id();
    let names = DriverState::new(id, FEATURES_OK.into(), false, BASE | MTU | OFFLOADS).features();
    assert_eq!(
        names.iter().find(|name| name.starts_with("bit")),
        None,
        "{names:?}"
    );
}
