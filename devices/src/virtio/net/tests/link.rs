//! Tests of the link of a tap in a network namespace. They require root.

use super::tap::{in_own_network, ip, rig, tap};
use super::{READABLE, Rig, WRITABLE, is_readable, packet, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::HEADER;
use crate::virtio::net::features::STATUS;

fn is_up(rig: &Rig) -> bool {
    let mut status = [0];
    rig.net.read_config(6, &mut status);
    assert_eq!(rig.net.link(), status == [1]);
    status == [1]
}

fn send(rig: &mut Rig) {
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert_eq!(rig.used(1), [0], "the packet is sent or dropped");
}

#[test]
fn link_follows_interface_state() {
    in_own_network(|| {
        let mut rig = rig(STATUS, 1500);
        for times in 1..4 {
            ip("link set mayfly0 down");
            send(&mut rig);
            assert!(!is_up(&rig));
            send(&mut rig);
            assert!(!is_up(&rig));
            assert_eq!(rig.net.metrics().transmit.errors, 2 * times);
            assert!(!is_readable(rig.descriptor(WRITABLE), 0), "no event is pending");
            ip("link set mayfly0 up");
            rig.await_source(WRITABLE);
            assert!(is_up(&rig));
            assert!(!is_readable(rig.descriptor(WRITABLE), 0), "no event is pending");
            send(&mut rig);
            assert_eq!(rig.net.metrics().transmit.packets, times);
            rig.line.take();
        }
    });
}

#[test]
fn interface_deleted_while_down_loses_link() {
    in_own_network(|| {
        let mut rig = rig(STATUS, 1500);
        ip("link set mayfly0 down");
        send(&mut rig);
        ip("link del mayfly0");
        rig.add_buffer(2000);
        rig.await_source(READABLE);
        assert!(!is_up(&rig));
        rig.serve(WRITABLE);
        send(&mut rig);
        assert!(!is_readable(rig.descriptor(WRITABLE), 0), "no event is pending");
        rig.restart();
        assert!(
            !rig.signal.is_reset_needed(),
            "a later driver finds the link down"
        );
        assert!(!is_up(&rig));
    });
}

#[test]
fn deleted_interface_loses_link() {
    in_own_network(|| {
        let mut rig = rig(STATUS, 1500);
        rig.add_buffer(2000);
        ip("link del mayfly0");
        rig.net.process_event(READABLE);
        let mut status = [0xff; 2];
        rig.net.read_config(6, &mut status);
        assert_eq!((status, rig.line.take()), ([0, 0], 1));
        rig.add_packet(&packet(1, 60));
        rig.net.notify(1);
        assert_eq!((rig.used(1).len(), rig.net.metrics().transmit.errors), (1, 1));
    });
}

#[test]
fn invalid_header_length_is_corrected() {
    in_own_network(|| {
        let tap = tap("mayfly0");
        ip("link set mayfly0 up");
        let mut rig = Rig::new(setup(Box::new(tap)), 0, [16, 16]);
        let mut packet = packet(1, 60);
        packet[2..10].fill(0xff);
        assert_eq!(packet[..HEADER][10..], [0, 0]);
        rig.add_packet(&packet);
        rig.net.notify(1);
        let sent = rig.net.metrics().transmit;
        assert_eq!(
            (sent.packets, sent.errors),
            (1, 0),
            "the kernel receives the checked copy"
        );
    });
}
