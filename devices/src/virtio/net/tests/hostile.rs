use proptest::prelude::{Strategy, any};
use proptest::{collection, prop_assert, prop_oneof, proptest};

use super::{AGAIN, MEMORY, READABLE, Rig, packet};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{EVENT_IDX, MRG_RXBUF};
use crate::virtio::testing::{NEXT, Piece, RawDescriptor, WRITE};

/// Has the driver break a rule, and checks that the device stops until it is reset, and then works.
fn stops(offence: impl Fn(&mut Rig)) {
    for features in [0, MRG_RXBUF] {
        let (mut rig, wire) = Rig::with_wire(features);
        lock(&wire).inbound.push_back(packet(1, 60));
        offence(&mut rig);
        rig.net.process_event(READABLE);
        rig.net.notify(1);
        assert!(rig.signal.is_reset_needed());
        assert_eq!(rig.line.take(), 1);
        let (received, sent) = (waiting_and_sent(&wire), rig.driver.queues[1].used_index());
        rig.net.notify(0);
        rig.net.notify(1);
        rig.net.process_event(READABLE);
        assert_eq!(
            (waiting_and_sent(&wire), rig.driver.queues[1].used_index()),
            (received, sent)
        );
        assert_eq!(rig.line.take(), 0);

        rig.restart();
        lock(&wire).inbound.push_back(packet(1, 60));
        lock(&wire).sent.clear();
        rig.add_buffer(500);
        rig.add_buffer(500);
        rig.add_packet(&packet(2, 60));
        rig.net.process_event(READABLE);
        rig.net.notify(1);
        assert!(!rig.used(0).is_empty());
        assert_eq!(lock(&wire).sent, [packet(2, 60)]);
        assert!(!rig.signal.is_reset_needed());
    }
}

fn waiting_and_sent(wire: &std::sync::Mutex<super::Wire>) -> (usize, usize) {
    let wire = lock(wire);
    (wire.inbound.len(), wire.sent.len())
}

#[test]
fn a_packet_to_write_to() {
    stops(|rig| {
        let address = rig.memory(100);
        rig.driver.queues[1].add(&[Piece::readable(address, 50), Piece::writable(address + 50, 50)]);
    });
}

#[test]
fn a_buffer_to_read_from() {
    stops(|rig| {
        let address = rig.memory(100);
        rig.driver.queues[0].add(&[Piece::readable(address, 50), Piece::writable(address + 50, 50)]);
    });
}

#[test]
fn a_buffer_without_room_for_a_header() {
    stops(|rig| {
        rig.add_buffer(11);
    });
}

#[test]
fn pieces_that_are_no_memory() {
    for address in [MEMORY as u64 - 10, 1 << 40, u64::MAX - 5] {
        for queue in [0, 1] {
            stops(|rig| {
                let piece = Piece {
                    address,
                    length: 100,
                    writable: queue == 0,
                };
                rig.driver.queues[queue].add(&[piece]);
            });
        }
    }
}

#[test]
fn a_chain_that_loops() {
    for (queue, flags) in [(0, NEXT | WRITE), (1, NEXT)] {
        stops(|rig| {
            let address = rig.memory(100);
            let descriptor = RawDescriptor {
                address,
                length: 100,
                flags,
                next: 0,
            };
            rig.driver.queues[queue].set_descriptor(0, descriptor);
            rig.driver.queues[queue].make_available(0);
        });
    }
}

#[test]
fn an_index_that_jumps() {
    for queue in [0, 1] {
        for index in [17, 0xffff, 0x8000] {
            stops(|rig| rig.driver.queues[queue].set_available_index(index));
        }
    }
}

#[test]
fn a_head_beyond_the_table() {
    for queue in [0, 1] {
        stops(|rig| rig.driver.queues[queue].make_available(16));
    }
}

/// Something that the driver does to a queue or that happens to the device.
#[derive(Clone, Debug)]
enum Act {
    Describe(usize, u16, RawDescriptor),
    Publish(usize, u16),
    Index(usize, u16),
    Add(usize, u64, u32),
    Notify(usize),
    Ready(u32),
    Arrive(usize),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let address = prop_oneof![0..MEMORY as u64 + 4096, any::<u64>()];
    let length = prop_oneof![0_u32..3000, any::<u32>()];
    let descriptor =
        (address.clone(), length.clone(), 0_u16..8, 0_u16..18).prop_map(|(address, length, flags, next)| {
            RawDescriptor {
                address,
                length,
                flags,
                next,
            }
        });
    let queue = 0_usize..2;
    prop_oneof![
        (queue.clone(), 0_u16..16, descriptor).prop_map(|(queue, at, what)| Act::Describe(queue, at, what)),
        (queue.clone(), 0_u16..18).prop_map(|(queue, head)| Act::Publish(queue, head)),
        (queue.clone(), any::<u16>()).prop_map(|(queue, index)| Act::Index(queue, index)),
        (queue.clone(), 0x8000_u64..0x10_0000, 12_u32..3000)
            .prop_map(|(queue, at, length)| Act::Add(queue, at, length)),
        queue.prop_map(Act::Notify),
        (0_u32..6).prop_map(Act::Ready),
        (0_usize..5000).prop_map(Act::Arrive),
        proptest::strategy::Just(Act::Restart),
    ]
}

proptest! {
    #[test]
    fn whatever_the_driver_does_the_device_goes_on(
        acts in collection::vec(act(), 0..100), merging in any::<bool>(), events in any::<bool>(),
    ) {
        let merge = if merging { MRG_RXBUF } else { 0 };
        let (mut rig, wire) = Rig::with_wire(merge | if events { EVENT_IDX } else { 0 });
        for act in acts {
            match act {
                Act::Describe(queue, at, descriptor) => rig.driver.queues[queue].set_descriptor(at, descriptor),
                Act::Publish(queue, head) => rig.driver.queues[queue].make_available(head),
                Act::Index(queue, index) => rig.driver.queues[queue].set_available_index(index),
                Act::Add(queue, address, length) => {
                    let descriptor = RawDescriptor { address, length, flags: if queue == 0 { WRITE } else { 0 }, next: 0 };
                    rig.driver.queues[queue].set_descriptor(3, descriptor);
                    rig.driver.queues[queue].make_available(3);
                }
                Act::Notify(queue) => rig.net.notify(queue),
                Act::Ready(token) => rig.net.process_event(token),
                Act::Arrive(length) => lock(&wire).inbound.push_back(packet(1, length)),
                Act::Restart => rig.restart(),
            }
        }
        rig.restart();
        lock(&wire).inbound.clear();
        lock(&wire).sent.clear();
        rig.add_packet(&packet(2, 60));
        rig.net.notify(1);
        rig.net.process_event(AGAIN);
        prop_assert!(lock(&wire).sent == [packet(2, 60)]);
    }
}
