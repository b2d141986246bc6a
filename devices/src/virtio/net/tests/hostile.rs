use proptest::prelude::{Strategy, any};
use proptest::{collection, prop_assert, prop_oneof, proptest};

use super::{BACKLOG, MEMORY, READABLE, Rig, packet};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{EVENT_IDX, MRG_RXBUF};
use crate::virtio::testing::{Buffer, NEXT, RawDescriptor, WRITE};

/// Checks that the device stops after a `violation` by the driver until its reset, and then works.
fn expect_stop(violation: impl Fn(&mut Rig)) {
    for features in [0, MRG_RXBUF] {
        let (mut rig, network) = Rig::with_network(features);
        lock(&network).inbound.push_back(packet(1, 60));
        violation(&mut rig);
        rig.net.process_event(READABLE);
        rig.net.notify(1);
        assert!(rig.signal.is_reset_needed());
        assert_eq!(rig.line.take(), 1);
        let (received, sent) = (waiting_and_sent(&network), rig.driver.queues[1].used_index());
        rig.net.notify(0);
        rig.net.notify(1);
        rig.net.process_event(READABLE);
        assert_eq!(
            (waiting_and_sent(&network), rig.driver.queues[1].used_index()),
            (received, sent)
        );
        assert_eq!(rig.line.take(), 0);

        rig.restart();
        lock(&network).inbound.push_back(packet(1, 60));
        lock(&network).sent.clear();
        rig.add_buffer(500);
        rig.add_buffer(500);
        rig.add_packet(&packet(2, 60));
        rig.net.process_event(READABLE);
        rig.net.notify(1);
        assert!(!rig.used(0).is_empty());
        assert_eq!(lock(&network).sent, [packet(2, 60)]);
        assert!(!rig.signal.is_reset_needed());
    }
}

fn waiting_and_sent(network: &std::sync::Mutex<super::FakeNetwork>) -> (usize, usize) {
    let network = lock(network);
    (network.inbound.len(), network.sent.len())
}

#[test]
fn writable_buffer_in_transmit_queue_stops() {
    expect_stop(|rig| {
        let address = rig.memory(100);
        rig.driver.queues[1].add(&[Buffer::readable(address, 50), Buffer::writable(address + 50, 50)]);
    });
}

#[test]
fn readable_buffer_in_receive_queue_stops() {
    expect_stop(|rig| {
        let address = rig.memory(100);
        rig.driver.queues[0].add(&[Buffer::readable(address, 50), Buffer::writable(address + 50, 50)]);
    });
}

#[test]
fn buffer_shorter_than_header_stops() {
    expect_stop(|rig| {
        rig.add_buffer(11);
    });
}

#[test]
fn buffer_outside_memory_stops() {
    for address in [MEMORY as u64 - 10, 1 << 40, u64::MAX - 5] {
        for queue in [0, 1] {
            expect_stop(|rig| {
                let buffer = Buffer {
                    address,
                    length: 100,
                    writable: queue == 0,
                };
                rig.driver.queues[queue].add(&[buffer]);
            });
        }
    }
}

#[test]
fn looping_chain_stops() {
    for (queue, flags) in [(0, NEXT | WRITE), (1, NEXT)] {
        expect_stop(|rig| {
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
fn invalid_available_index_stops() {
    for queue in [0, 1] {
        for index in [17, 0xffff, 0x8000] {
            expect_stop(|rig| rig.driver.queues[queue].set_available_index(index));
        }
    }
}

#[test]
fn head_beyond_table_stops() {
    for queue in [0, 1] {
        expect_stop(|rig| rig.driver.queues[queue].make_available(16));
    }
}

/// Action of the driver or event of the device.
#[derive(Clone, Debug)]
enum Action {
    Describe(usize, u16, RawDescriptor),
    MakeAvailable(usize, u16),
    Index(usize, u16),
    Add(usize, u64, u32),
    Notify(usize),
    Ready(u32),
    Arrive(usize),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
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
        (queue.clone(), 0_u16..16, descriptor)
            .prop_map(|(queue, at, descriptor)| Action::Describe(queue, at, descriptor)),
        (queue.clone(), 0_u16..18).prop_map(|(queue, head)| Action::MakeAvailable(queue, head)),
        (queue.clone(), any::<u16>()).prop_map(|(queue, index)| Action::Index(queue, index)),
        (queue.clone(), 0x8000_u64..0x10_0000, 12_u32..3000)
            .prop_map(|(queue, at, length)| Action::Add(queue, at, length)),
        queue.prop_map(Action::Notify),
        (0_u32..6).prop_map(Action::Ready),
        (0_usize..5000).prop_map(Action::Arrive),
        proptest::strategy::Just(Action::Restart),
    ]
}

proptest! {
    #[test]
    fn device_works_after_random_actions(
        actions in collection::vec(action(), 0..100), merging in any::<bool>(), events in any::<bool>(),
    ) {
        let merge = if merging { MRG_RXBUF } else { 0 };
        let (mut rig, network) = Rig::with_network(merge | if events { EVENT_IDX } else { 0 });
        for action in actions {
            match action {
                Action::Describe(queue, at, descriptor) => rig.driver.queues[queue].set_descriptor(at, descriptor),
                Action::MakeAvailable(queue, head) => rig.driver.queues[queue].make_available(head),
                Action::Index(queue, index) => rig.driver.queues[queue].set_available_index(index),
                Action::Add(queue, address, length) => {
                    let descriptor = RawDescriptor { address, length, flags: if queue == 0 { WRITE } else { 0 }, next: 0 };
                    rig.driver.queues[queue].set_descriptor(3, descriptor);
                    rig.driver.queues[queue].make_available(3);
                }
                Action::Notify(queue) => rig.net.notify(queue),
                Action::Ready(token) => rig.net.process_event(token),
                Action::Arrive(length) => lock(&network).inbound.push_back(packet(1, length)),
                Action::Restart => rig.restart(),
            }
        }
        rig.restart();
        lock(&network).inbound.clear();
        lock(&network).sent.clear();
        rig.add_packet(&packet(2, 60));
        rig.net.notify(1);
        rig.net.process_event(BACKLOG);
        prop_assert!(lock(&network).sent == [packet(2, 60)]);
    }
}
