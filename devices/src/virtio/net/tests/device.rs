use snapshot::Persist;

use super::{AGAIN, MAC, ONE, READABLE, RECEIVE_TIMER, Rig, fake::FakeBackend, packet, received, setup};
use crate::limiter::Limiter;
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::interrupt::CONFIGURATION;
use crate::virtio::net::features::{BASE, CSUM, GUEST_CSUM, HOST_TSO4, MRG_RXBUF, MTU, STATUS};
use crate::virtio::net::{Link, MAX_PACKET, Net, NetState};

fn fresh() -> Net {
    Net::new(setup(FakeBackend::new().0)).unwrap()
}

#[test]
fn what_is_offered_depends_on_the_back_end() {
    let net = fresh();
    assert_eq!(net.device_id(), 1);
    assert_eq!(net.queue_sizes(), [256, 256]);
    assert_eq!(net.features(), BASE | MTU | CSUM | GUEST_CSUM | HOST_TSO4);
    let mut setup = setup(FakeBackend::new().0);
    setup.mtu = None;
    assert_eq!(Net::new(setup).unwrap().features() & MTU, 0);
}

#[test]
fn the_configuration_space_reads_at_every_offset() {
    let net = fresh();
    let mut whole = [0xff; 16];
    net.read_config(0, &mut whole);
    assert_eq!(whole[..6], MAC);
    assert_eq!(whole[6..], [1, 0, 1, 0, 120, 5, 0, 0, 0, 0]);
    for offset in 0..16 {
        let mut byte = [0xff];
        net.read_config(offset, &mut byte);
        assert_eq!(byte[0], whole[usize::try_from(offset).unwrap()]);
    }
    let mut beyond = [0xff; 4];
    net.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn a_lost_connection_is_a_link_that_goes_down() {
    for (features, interrupts) in [(STATUS, 1), (0, 0)] {
        let (mut rig, wire) = Rig::with_wire(features);
        rig.add_buffer(100);
        lock(&wire).link = Some(Link::Lost);
        rig.net.process_event(READABLE);
        rig.net.process_event(READABLE);
        let mut status = [0xff; 2];
        rig.net.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        assert_eq!(rig.line.take(), interrupts);
        assert_eq!(rig.signal.status(), interrupts * CONFIGURATION);
    }
}

#[test]
fn an_idle_device_wakes_nobody() {
    let (mut rig, _wire) = Rig::with_wire(0);
    rig.add_buffer(100);
    rig.net.notify(0);
    rig.net.notify(1);
    for token in 0..5 {
        assert!(!rig.serve(token), "source {token} is ready");
    }
    assert_eq!(rig.line.take(), 0);
}

#[test]
fn the_back_end_is_told_what_was_accepted() {
    let (mut rig, wire) = Rig::with_wire(GUEST_CSUM | STATUS);
    assert_eq!(lock(&wire).features & !(1 << 32), GUEST_CSUM | STATUS);
    rig.net.reset();
    assert_eq!(lock(&wire).features, 0);
}

#[test]
fn nothing_is_done_for_a_driver_that_is_gone() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
    rig.add_buffer(20);
    lock(&wire).inbound.extend([packet(1, 60), packet(2, 60)]);
    rig.net.process_event(READABLE);
    rig.net.reset();
    rig.add_packet(&packet(1, 60));
    for token in 0..5 {
        rig.net.process_event(token);
    }
    rig.net.notify(0);
    rig.net.notify(1);
    assert!(rig.net.queue_states().is_empty());
    assert_eq!((rig.used(0).len(), rig.used(1).len()), (0, 0));
    assert!(lock(&wire).sent.is_empty());
    rig.restart();
    let address = rig.add_buffer(100);
    rig.net.notify(0);
    assert_eq!(
        rig.driver.read(address, 72),
        received(&packet(2, 60), 1),
        "the packet that was held was the old driver's"
    );
}

#[test]
fn buffers_before_the_activation_need_no_kick() {
    let (mut rig, wire) = Rig::with_wire(0);
    lock(&wire).inbound.push_back(packet(1, 60));
    rig.net.reset();
    for queue in &mut rig.driver.queues {
        queue.clear();
    }
    rig.add_buffer(100);
    rig.net.activate(rig.driver.activation(0, rig.line.clone()));
    assert!(
        rig.used(0).is_empty(),
        "the driver does not expect anything before its write is done"
    );
    assert!(rig.serve(AGAIN));
    assert_eq!(rig.used(0), [72]);
}

#[test]
fn a_packet_that_waits_survives_a_snapshot() {
    let (mut rig, wire) = Rig::with_wire(MRG_RXBUF);
    rig.add_buffer(100);
    lock(&wire).inbound.push_back(packet(1, 500));
    rig.net.process_event(READABLE);
    let states = rig.net.queue_states();
    assert_eq!(
        (states[0].next_avail, states[0].next_used),
        (0, 0),
        "no buffer was used"
    );

    let mut clone = fresh();
    clone.activate(rig.driver.activation(MRG_RXBUF, rig.line.clone()));
    clone.restore(rig.net.save().unwrap()).unwrap();
    for _ in 0..5 {
        rig.add_buffer(100);
    }
    clone.notify(0);
    assert_eq!(rig.used(0), [100, 100, 100, 100, 100, 12]);
}

#[test]
fn a_throttled_packet_survives_a_snapshot() {
    let (backend, wire) = FakeBackend::new();
    let mut limited = setup(backend);
    limited.receive_limiter = Limiter::new(None, Some(ONE)).unwrap();
    let mut rig = Rig::new(limited, 0, [16, 16]);
    rig.add_buffer(100);
    rig.add_buffer(100);
    lock(&wire).inbound.extend([packet(1, 60), packet(2, 60)]);
    rig.net.process_event(READABLE);
    assert_eq!(rig.used(0), [72]);
    let mut clone = fresh();
    clone.restore(rig.net.save().unwrap()).unwrap();
    assert!(!clone.receive_limiter().is_throttled());
    clone.process_event(RECEIVE_TIMER);
    // All but `num_buffers`, which is set when the packet goes into its buffers.
    let held = clone.save().unwrap().held;
    assert_eq!((&held[..10], &held[12..]), (&[0; 10][..], &packet(2, 60)[12..]));
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let state = |length| NetState {
        held: vec![0; length],
        ..fresh().save().unwrap()
    };
    assert!(fresh().restore(state(MAX_PACKET)).is_ok());
    let refused = fresh().restore(state(MAX_PACKET + 1)).unwrap_err();
    assert!(refused.to_string().contains("65567 bytes"), "{refused}");
}

#[test]
fn a_back_end_that_takes_no_features_leaves_a_state_that_is_whole() {
    let (mut rig, wire) = Rig::with_wire(0);
    lock(&wire).refuses = true;
    rig.restart();
    assert!(rig.signal.is_reset_needed());
    assert_eq!(rig.net.queue_states().len(), 2);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    rig.net.process_event(AGAIN);
    assert!(rig.used(1).is_empty());
    lock(&wire).refuses = false;
    rig.restart();
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!((rig.signal.is_reset_needed(), rig.used(1).len()), (false, 1));
}

#[test]
fn what_is_counted_goes_into_a_report() {
    fn reported<T: serde::Serialize>(_report: T) {}
    let net = fresh();
    reported(net.metrics());
    assert_eq!((net.describe().as_str(), net.link()), ("fake", true));
}
