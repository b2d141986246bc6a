//! Random guest behaviour.

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_oneof, proptest};

use super::super::registers as r;
use super::{Fixture, READY};
use crate::testing::{Access, accesses, replay};
use crate::virtio::testing::{Buffer, FakeQueue, RawDescriptor};

/// A change to a virtqueue.
#[derive(Clone, Debug)]
enum Mutation {
    Descriptor(u16, RawDescriptor),
    MakeAvailable(u16),
    AvailableIndex(u16),
    UsedEvent(u16),
    /// Offset from the descriptor table, and value of a byte.
    Byte(u64, u8),
    Notify,
}

fn small_or_any() -> impl Strategy<Value = u16> {
    prop_oneof![0_u16..18, any::<u16>()]
}

/// Returns nearly valid descriptors, which pass the first checks.
fn descriptors() -> impl Strategy<Value = RawDescriptor> {
    let address = prop_oneof![0x1000_u64..0x2_0010, any::<u64>()];
    let length = prop_oneof![0_u32..64, Just(256), any::<u32>()];
    let flags = prop_oneof![0_u16..4, 0_u16..8, any::<u16>()];
    (address, length, flags, small_or_any()).prop_map(|(address, length, flags, next)| RawDescriptor {
        address,
        length,
        flags,
        next,
    })
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let mutation = prop_oneof![
        (0_u16..16, descriptors()).prop_map(|(index, descriptor)| Mutation::Descriptor(index, descriptor)),
        small_or_any().prop_map(Mutation::MakeAvailable),
        small_or_any().prop_map(Mutation::AvailableIndex),
        small_or_any().prop_map(Mutation::UsedEvent),
        (0_u64..0x200, any::<u8>()).prop_map(|(at, value)| Mutation::Byte(at, value)),
        Just(Mutation::Notify),
    ];
    proptest::collection::vec(mutation, 0..48)
}

fn mutate(queue: &mut FakeQueue, mutation: &Mutation) {
    match mutation {
        Mutation::Descriptor(index, descriptor) => queue.set_descriptor(*index, *descriptor),
        Mutation::MakeAvailable(head) => queue.make_available(*head),
        Mutation::AvailableIndex(index) => queue.set_available_index(*index),
        Mutation::UsedEvent(index) => queue.set_used_event(*index),
        Mutation::Byte(..) | Mutation::Notify => {}
    }
}

/// Returns writes to queue and status registers, some of which may start the device.
fn register_writes() -> impl Strategy<Value = Vec<Access>> {
    let offset = prop_oneof![0_u64..0x40, Just(r::STATUS / 4), Just(r::QUEUE_READY / 4)];
    let value = prop_oneof![0_u32..20, Just(0x1000), Just(READY), any::<u32>()];
    let write = (offset, value).prop_map(|(offset, value)| Access::Write {
        offset: offset * 4,
        data: value.to_le_bytes().to_vec(),
    });
    proptest::collection::vec(write, 0..64)
}

proptest! {
    #[test]
    fn random_virtqueue_is_harmless(mutations in mutations(), event_idx: bool, start in 0_u16..3) {
        let mut fixture = Fixture::new();
        let features = u64::from(event_idx) << 29;
        prop_assert!(fixture.driver.start(&mut fixture.transport, features) == READY);
        let buffers = fixture.driver.buffers;
        for _ in 0..start {
            fixture.driver.queues[0].add(&[Buffer::readable(buffers, 16), Buffer::writable(buffers, 16)]);
        }
        let rings = fixture.driver.queues[0].descriptors;
        for mutation in &mutations {
            match mutation {
                Mutation::Notify => fixture.notify(0),
                Mutation::Byte(at, value) => fixture.driver.write(rings + at, &[*value]),
                other => mutate(&mut fixture.driver.queues[0], other),
            }
        }
        fixture.notify(0);
        fixture.expect_recovery();
    }

    #[test]
    fn random_accesses_are_harmless(accesses in accesses(r::REGISTERS_LENGTH), started: bool) {
        let mut fixture = if started { Fixture::started() } else { Fixture::new() };
        replay(&mut fixture.transport, &accesses);
        fixture.expect_recovery();
    }

    #[test]
    fn random_write_order_is_harmless(writes in register_writes(), more in register_writes()) {
        let mut fixture = Fixture::new();
        replay(&mut fixture.transport, &writes);
        fixture.start();
        replay(&mut fixture.transport, &more);
        fixture.expect_recovery();
    }
}
