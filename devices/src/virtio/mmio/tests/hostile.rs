//! Hostile and faulty drivers.

use super::super::registers as r;
use super::{Fixture, MEMORY, READY, count};
use crate::virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};

const BUFFER: u64 = 0x1_0000;
const TABLE: u64 = 0x1_8000;
const OUTSIDE: u64 = MEMORY as u64;
const NEEDS_RESET: u32 = READY | r::DEVICE_NEEDS_RESET;

/// Asserts that the device has stopped, has notified its driver, and works after a reset.
fn expect_stopped(fixture: &mut Fixture, case: &str) {
    assert_eq!(fixture.get(r::STATUS), NEEDS_RESET, "{case}");
    assert_eq!(fixture.get(r::INTERRUPT_STATUS) & 2, 2, "{case}");
    assert!(fixture.line.take() > 0, "{case}");
    let notifications = count(&fixture.seen.notifications);
    fixture.notify(0);
    fixture.notify(1);
    assert_eq!(
        count(&fixture.seen.notifications),
        notifications,
        "{case}: the device was notified"
    );
    fixture.expect_recovery();
}

/// Starts the device, with `registers` of queue 0 overwritten before QueueReady.
fn start_with(registers: &[(u64, u32)]) -> Fixture {
    let mut fixture = Fixture::new();
    fixture.driver.queues[0].register(&mut fixture.transport);
    fixture.set(r::QUEUE_READY, 0);
    for (offset, value) in registers {
        fixture.set(*offset, *value);
    }
    fixture.set(r::QUEUE_READY, 1);
    let ready = fixture.get(r::QUEUE_READY);
    fixture.set(r::QUEUE_SEL, 1);
    fixture.driver.queues[1].register(&mut fixture.transport);
    fixture.set(r::DRIVER_FEATURES_SEL, 1);
    fixture.set(r::DRIVER_FEATURES, 1);
    fixture.set(r::STATUS, READY);
    assert_eq!(count(&fixture.seen.activations), ready, "{registers:x?}");
    fixture
}

#[test]
fn queue_with_invalid_size_is_not_ready() {
    for size in [0, 3, 5, 15, 17, 32, 0x8000, 0x1_0000, 0x1_0010, u32::MAX] {
        let mut fixture = start_with(&[(r::QUEUE_NUM, size)]);
        expect_stopped(&mut fixture, &format!("size {size}"));
    }
    for size in [1, 2, 4, 8, 16] {
        let mut fixture = start_with(&[(r::QUEUE_NUM, size)]);
        assert_eq!(fixture.get(r::STATUS), READY, "size {size}");
    }
}

#[test]
fn queue_of_size_one_works() {
    let mut fixture = Fixture::with(FakeDriver::new(MEMORY, &[1, 1]));
    assert_eq!(fixture.start(), READY);
    let (buffers, table) = (fixture.driver.buffers, fixture.driver.buffers + 0x1000);
    for _ in 0..3 {
        let chain = [Buffer::readable(buffers, 4), Buffer::writable(buffers, 4)];
        fixture.driver.queues[0].add_indirect(table, &chain);
        fixture.notify(0);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
    }
}

#[test]
fn queue_outside_memory_is_not_ready() {
    let end = u32::try_from(MEMORY).unwrap();
    for (offset, value) in [
        (r::QUEUE_DESC_LOW, 0x1008),
        (r::QUEUE_DESC_LOW, end),
        (r::QUEUE_DESC_LOW, end - 0xf0),
        (r::QUEUE_DESC_LOW, 0xffff_fff0),
        (r::QUEUE_DESC_HIGH, 1),
        (r::QUEUE_DESC_HIGH, u32::MAX),
        (r::QUEUE_DRIVER_LOW, 0),
        (r::QUEUE_DRIVER_LOW, 0x1001),
        (r::QUEUE_DRIVER_LOW, end - 36),
        (r::QUEUE_DRIVER_HIGH, u32::MAX),
        (r::QUEUE_DEVICE_LOW, 0x1002),
        (r::QUEUE_DEVICE_LOW, end - 132),
        (r::QUEUE_DEVICE_HIGH, 0x8000_0000),
    ] {
        let mut fixture = start_with(&[(offset, value)]);
        expect_stopped(&mut fixture, &format!("register {offset:#x} with {value:#x}"));
    }
    // Up to the last byte, event fields included.
    for (offset, value) in [
        (r::QUEUE_DESC_LOW, end - 0x100),
        (r::QUEUE_DRIVER_LOW, end - 38),
        (r::QUEUE_DEVICE_LOW, end - 136),
    ] {
        let mut fixture = start_with(&[(offset, value)]);
        assert_eq!(
            fixture.get(r::STATUS),
            READY,
            "register {offset:#x} with {value:#x}"
        );
    }
    // The table wraps around the address space.
    let wrapping = [(r::QUEUE_DESC_LOW, 0xffff_fff0), (r::QUEUE_DESC_HIGH, u32::MAX)];
    expect_stopped(
        &mut start_with(&wrapping),
        "a table at the end of the address space",
    );
}

#[test]
fn start_without_ready_queue_needs_reset() {
    let mut fixture = Fixture::new();
    fixture.driver.queues.pop();
    assert_eq!(fixture.start(), NEEDS_RESET);
    assert_eq!(count(&fixture.seen.activations), 0);
    assert_eq!(fixture.line.take(), 1);
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address,
        length,
        flags,
        next,
    }
}

/// Starts the device with `table` as its first descriptors and, at [`TABLE`], an indirect descriptor that refers to
/// itself. Expects the device to stop at a notification.
fn expect_stopped_by(case: &str, table: &[RawDescriptor]) {
    let mut fixture = Fixture::started();
    let queue = &mut fixture.driver.queues[0];
    queue.write_descriptor(TABLE, descriptor(TABLE, 16, INDIRECT, 0));
    for (index, descriptor) in (0..).zip(table) {
        queue.set_descriptor(index, *descriptor);
    }
    queue.make_available(0);
    fixture.notify(0);
    assert!(
        fixture.driver.queues[0].pop_used().is_none(),
        "a chain that {case} was used"
    );
    expect_stopped(&mut fixture, case);
}

#[test]
fn malformed_chain_stops_device() {
    let one = |flags, next| descriptor(BUFFER, 1, flags, next);
    expect_stopped_by("loops", &[one(NEXT, 1), one(NEXT, 0)]);
    expect_stopped_by("loops on nothing", &[descriptor(BUFFER, 0, NEXT, 0)]);
    expect_stopped_by("leaves the table", &[one(NEXT, 16)]);
    expect_stopped_by("is readable behind writable", &[one(NEXT | WRITE, 1), one(0, 0)]);
    for (address, length) in [(OUTSIDE, 1), (OUTSIDE - 1, 2), (u64::MAX, 2), (BUFFER, u32::MAX)] {
        for flags in [0, WRITE] {
            expect_stopped_by("is outside memory", &[descriptor(address, length, flags, 0)]);
        }
    }
}

#[test]
fn malformed_indirect_table_stops_device() {
    for (case, address, length) in [
        ("has a table in a table", TABLE, 16),
        ("has an empty table", TABLE, 0),
        ("has a table with half a descriptor", TABLE, 24),
        ("has a table outside memory", OUTSIDE, 16),
        ("has a table that wraps", u64::MAX - 7, 16),
    ] {
        let table = descriptor(address, length, INDIRECT, 0);
        expect_stopped_by(case, &[table]);
        expect_stopped_by(case, &[descriptor(BUFFER, 1, NEXT, 1), table]);
    }
}

#[test]
fn head_outside_table_stops_device() {
    for head in [16, 17, 0x8000, u16::MAX] {
        let mut fixture = Fixture::started();
        fixture.driver.queues[0].make_available(head);
        fixture.notify(0);
        expect_stopped(&mut fixture, &format!("head {head}"));
    }
}

#[test]
fn available_index_jump_stops_device() {
    for processed in [0, 1, 20] {
        for jump in [17, 0x7fff, 0x8000, u16::MAX - 1, u16::MAX] {
            let mut fixture = Fixture::started();
            for _ in 0..processed {
                fixture.expect_echo(0, b"x");
            }
            fixture.driver.queues[0].set_available_index(jump.wrapping_add(processed));
            fixture.notify(0);
            expect_stopped(&mut fixture, &format!("from {processed} by {jump}"));
        }
    }
}

#[test]
fn available_index_wraps_around() {
    let mut fixture = Fixture::started();
    for round in 0..70_000_u32 {
        if round % 1000 == 0 {
            fixture.expect_echo(0, b"x");
            continue;
        }
        fixture.driver.queues[0].make_available(0);
        fixture.notify(0);
        assert!(fixture.driver.queues[0].pop_used().is_some());
    }
    assert_eq!(fixture.get(r::STATUS), READY);
}

#[test]
fn empty_buffers_are_used() {
    let mut fixture = Fixture::started();
    let buffers = fixture.driver.buffers;
    for chain in [
        vec![Buffer::readable(u64::MAX, 0)],
        vec![Buffer::writable(0, 0)],
        vec![Buffer::writable(buffers, 8)],
        vec![Buffer::readable(buffers, 8)],
        vec![
            Buffer::readable(buffers, 0),
            Buffer::readable(buffers, 2),
            Buffer::writable(buffers, 0),
        ],
    ] {
        fixture.driver.queues[0].add(&chain);
        fixture.notify(0);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 1, "{chain:?}");
    }
    fixture.expect_echo(0, b"still works");
}

#[test]
fn rings_as_buffers_are_harmless() {
    for area in 0..3 {
        for offset in (0..0x100).step_by(2) {
            let mut fixture = Fixture::started();
            let queue = &mut fixture.driver.queues[0];
            let target = [queue.descriptors, queue.available, queue.used][area] + offset;
            for _ in 0..7 {
                queue.add(&[Buffer::readable(0x1_0000, 8), Buffer::writable(target, 8)]);
            }
            fixture.driver.write(0x1_0000, &[0xff, 3, 0, 1, 0, 7, 0, 0xff]);
            fixture.notify(0);
            fixture.notify(0);
            fixture.expect_recovery();
        }
    }
}

#[test]
fn overlapping_rings_are_harmless() {
    let at = 0x8000;
    let areas = [r::QUEUE_DESC_LOW, r::QUEUE_DRIVER_LOW, r::QUEUE_DEVICE_LOW];
    for shift in (0..0x120).step_by(16) {
        let mut fixture = start_with(&areas.map(|area| (area, at)));
        fixture.driver.reset(&mut fixture.transport);
        let mut fixture = start_with(&[(areas[0], at), (areas[1], at + shift), (areas[2], at + shift)]);
        for index in 0..20 {
            let index: u16 = index;
            fixture
                .driver
                .write((at + shift + 2).into(), &index.to_le_bytes());
            fixture.notify(0);
        }
        fixture.expect_recovery();
    }
}

#[test]
fn notification_uses_only_available_chains() {
    let mut fixture = Fixture::started();
    let buffers = fixture.driver.buffers;
    for _ in 0..8 {
        fixture.driver.queues[0].add(&[Buffer::readable(buffers, 1), Buffer::writable(buffers, 1)]);
    }
    fixture.notify(0);
    fixture.notify(0);
    assert_eq!(fixture.driver.queues[0].collect_used().len(), 8);
    assert_eq!(fixture.driver.queues[0].used_index(), 8);
}
