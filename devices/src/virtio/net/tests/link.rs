//! Tests of the link of a tap in a network namespace. They require root.

use super::tap::{fixture, in_own_network, ip, tap};
use super::{Fixture, READABLE, WRITABLE, is_readable, packet, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::HEADER;
use crate::virtio::net::features::STATUS;

fn is_up(fixture: &Fixture) -> bool {
    let mut status = [0];
    fixture.net.read_config(6, &mut status);
    assert_eq!(fixture.net.link(), status == [1]);
    status == [1]
}

fn send(fixture: &mut Fixture) {
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    assert_eq!(fixture.used(1), [0], "the packet is sent or dropped");
}

#[test]
fn link_follows_interface_state() {
    in_own_network(|| {
        let mut fixture = fixture(STATUS, 1500);
        for times in 1..4 {
            ip("link set mayfly0 down");
            send(&mut fixture);
            assert!(!is_up(&fixture));
            send(&mut fixture);
            assert!(!is_up(&fixture));
            assert_eq!(fixture.net.metrics().transmit.errors, 2 * times);
            assert!(
                !is_readable(fixture.descriptor(WRITABLE), 0),
                "no event is pending"
            );
            ip("link set mayfly0 up");
            fixture.await_event(WRITABLE);
            assert!(is_up(&fixture));
            assert!(
                !is_readable(fixture.descriptor(WRITABLE), 0),
                "no event is pending"
            );
            send(&mut fixture);
            assert_eq!(fixture.net.metrics().transmit.packets, times);
            fixture.line.take();
        }
    });
}

#[test]
fn interface_deleted_while_down_loses_link() {
    in_own_network(|| {
        let mut fixture = fixture(STATUS, 1500);
        ip("link set mayfly0 down");
        send(&mut fixture);
        ip("link del mayfly0");
        fixture.add_buffer(2000);
        fixture.await_event(READABLE);
        assert!(!is_up(&fixture));
        fixture.process_pending(WRITABLE);
        send(&mut fixture);
        assert!(
            !is_readable(fixture.descriptor(WRITABLE), 0),
            "no event is pending"
        );
        fixture.restart();
        assert!(
            !fixture.interrupt.is_reset_needed(),
            "a later driver finds the link down"
        );
        assert!(!is_up(&fixture));
    });
}

#[test]
fn deleted_interface_loses_link() {
    in_own_network(|| {
        let mut fixture = fixture(STATUS, 1500);
        fixture.add_buffer(2000);
        ip("link del mayfly0");
        fixture.net.process_event(READABLE);
        let mut status = [0xff; 2];
        fixture.net.read_config(6, &mut status);
        assert_eq!((status, fixture.line.take()), ([0, 0], 1));
        fixture.add_packet(&packet(1, 60));
        fixture.net.notify(1);
        assert_eq!(
            (fixture.used(1).len(), fixture.net.metrics().transmit.errors),
            (1, 1)
        );
    });
}

#[test]
fn invalid_header_length_is_corrected() {
    in_own_network(|| {
        let tap = tap("mayfly0");
        ip("link set mayfly0 up");
        let mut fixture = Fixture::new(setup(Box::new(tap)), 0, [16, 16]);
        let mut packet = packet(1, 60);
        packet[2..10].fill(0xff);
        assert_eq!(packet[..HEADER][10..], [0, 0]);
        fixture.add_packet(&packet);
        fixture.net.notify(1);
        let sent = fixture.net.metrics().transmit;
        assert_eq!(
            (sent.packets, sent.errors),
            (1, 0),
            "the kernel receives the checked copy"
        );
    });
}
