use proptest::prelude::{Strategy, any};
use proptest::{collection, prop_assert, prop_oneof, proptest};

use super::{BACKLOG, Fixture, MEMORY, READABLE, packet};
use crate::sync::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{EVENT_IDX, MRG_RXBUF};
use crate::virtio::testing::{Buffer, NEXT, RawDescriptor, WRITE};

/// Checks that the device stops after a `violation` by the driver until its reset, and then works.
fn expect_stop(violation: impl Fn(&mut Fixture)) {
    for features in [0, MRG_RXBUF] {
        let (mut fixture, network) = Fixture::with_network(features);
        lock(&network).inbound.push_back(packet(1, 60));
        violation(&mut fixture);
        fixture.net.process_event(READABLE);
        fixture.net.notify(1);
        assert!(fixture.interrupt.is_reset_needed());
        assert_eq!(fixture.line.take(), 1);
        let (received, sent) = (packet_counts(&network), fixture.driver.queues[1].used_index());
        fixture.net.notify(0);
        fixture.net.notify(1);
        fixture.net.process_event(READABLE);
        assert_eq!(
            (packet_counts(&network), fixture.driver.queues[1].used_index()),
            (received, sent)
        );
        assert_eq!(fixture.line.take(), 0);

        fixture.restart();
        lock(&network).inbound.push_back(packet(1, 60));
        lock(&network).sent.clear();
        fixture.add_buffer(500);
        fixture.add_buffer(500);
        fixture.add_packet(&packet(2, 60));
        fixture.net.process_event(READABLE);
        fixture.net.notify(1);
        assert!(!fixture.used(0).is_empty());
        assert_eq!(lock(&network).sent, [packet(2, 60)]);
        assert!(!fixture.interrupt.is_reset_needed());
    }
}

fn packet_counts(network: &std::sync::Mutex<super::FakeNetwork>) -> (usize, usize) {
    let network = lock(network);
    (network.inbound.len(), network.sent.len())
}

#[test]
fn writable_buffer_in_transmit_queue_stops() {
    expect_stop(|fixture| {
        let address = fixture.memory(100);
        fixture.driver.queues[1].add(&[Buffer::readable(address, 50), Buffer::writable(address + 50, 50)]);
    });
}

#[test]
fn readable_buffer_in_receive_queue_stops() {
    expect_stop(|fixture| {
        let address = fixture.memory(100);
        fixture.driver.queues[0].add(&[Buffer::readable(address, 50), Buffer::writable(address + 50, 50)]);
    });
}

#[test]
fn buffer_shorter_than_header_stops() {
    expect_stop(|fixture| {
        fixture.add_buffer(11);
    });
}

#[test]
fn buffer_outside_memory_stops() {
    for address in [MEMORY as u64 - 10, 1 << 40, u64::MAX - 5] {
        for queue in [0, 1] {
            expect_stop(|fixture| {
                let buffer = Buffer {
                    address,
                    length: 100,
                    writable: queue == 0,
                };
                fixture.driver.queues[queue].add(&[buffer]);
            });
        }
    }
}

#[test]
fn looping_chain_stops() {
    for (queue, flags) in [(0, NEXT | WRITE), (1, NEXT)] {
        expect_stop(|fixture| {
            let address = fixture.memory(100);
            let descriptor = RawDescriptor {
                address,
                length: 100,
                flags,
                next: 0,
            };
            fixture.driver.queues[queue].set_descriptor(0, descriptor);
            fixture.driver.queues[queue].make_available(0);
        });
    }
}

#[test]
fn invalid_available_index_stops() {
    for queue in [0, 1] {
        for index in [17, 0xffff, 0x8000] {
            expect_stop(|fixture| fixture.driver.queues[queue].set_available_index(index));
        }
    }
}

#[test]
fn head_beyond_table_stops() {
    for queue in [0, 1] {
        expect_stop(|fixture| fixture.driver.queues[queue].make_available(16));
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
        let (mut fixture, network) = Fixture::with_network(merge | if events { EVENT_IDX } else { 0 });
        for action in actions {
            match action {
                Action::Describe(queue, at, descriptor) => fixture.driver.queues[queue].set_descriptor(at, descriptor),
                Action::MakeAvailable(queue, head) => fixture.driver.queues[queue].make_available(head),
                Action::Index(queue, index) => fixture.driver.queues[queue].set_available_index(index),
                Action::Add(queue, address, length) => {
                    let descriptor = RawDescriptor { address, length, flags: if queue == 0 { WRITE } else { 0 }, next: 0 };
                    fixture.driver.queues[queue].set_descriptor(3, descriptor);
                    fixture.driver.queues[queue].make_available(3);
                }
                Action::Notify(queue) => fixture.net.notify(queue),
                Action::Ready(token) => fixture.net.process_event(token),
                Action::Arrive(length) => lock(&network).inbound.push_back(packet(1, length)),
                Action::Restart => fixture.restart(),
            }
        }
        fixture.restart();
        lock(&network).inbound.clear();
        lock(&network).sent.clear();
        fixture.add_packet(&packet(2, 60));
        fixture.net.notify(1);
        fixture.net.process_event(BACKLOG);
        prop_assert!(lock(&network).sent == [packet(2, 60)]);
    }
}
