//! Drivers that mean harm, or know no better.

use super::super::registers as r;
use super::{Bench, MEMORY, READY, count};
use crate::virtio::testing::{FakeDriver, INDIRECT, NEXT, Piece, RawDescriptor, WRITE};

const BUFFER: u64 = 0x1_0000;
const TABLE: u64 = 0x1_8000;
const OUTSIDE: u64 = MEMORY as u64;
const BROKEN: u32 = READY | r::DEVICE_NEEDS_RESET;

/// Asserts that the device has stopped, has said so, and can be had again.
fn stopped(bench: &mut Bench, what: &str) {
    assert_eq!(bench.get(r::STATUS), BROKEN, "{what}");
    assert_eq!(bench.get(r::INTERRUPT_STATUS) & 2, 2, "{what}");
    assert!(bench.line.take() > 0, "{what}");
    let kicks = count(&bench.seen.kicks);
    bench.kick(0);
    bench.kick(1);
    assert_eq!(count(&bench.seen.kicks), kicks, "{what}: a kick was handed on");
    bench.works_after_reset();
}

/// Brings the device up, with `registers` written over those of queue 0 before it is made ready.
fn start_with(registers: &[(u64, u32)]) -> Bench {
    let mut bench = Bench::new();
    bench.driver.queues[0].register(&mut bench.transport);
    bench.set(r::QUEUE_READY, 0);
    for (offset, value) in registers {
        bench.set(*offset, *value);
    }
    bench.set(r::QUEUE_READY, 1);
    let ready = bench.get(r::QUEUE_READY);
    bench.set(r::QUEUE_SEL, 1);
    bench.driver.queues[1].register(&mut bench.transport);
    bench.set(r::DRIVER_FEATURES_SEL, 1);
    bench.set(r::DRIVER_FEATURES, 1);
    bench.set(r::STATUS, READY);
    assert_eq!(count(&bench.seen.activations), ready, "{registers:x?}");
    bench
}

#[test]
fn queues_of_impossible_sizes_are_never_ready() {
    for size in [0, 3, 5, 15, 17, 32, 0x8000, 0x1_0000, 0x1_0010, u32::MAX] {
        let mut bench = start_with(&[(r::QUEUE_NUM, size)]);
        stopped(&mut bench, &format!("size {size}"));
    }
    for size in [1, 2, 4, 8, 16] {
        let mut bench = start_with(&[(r::QUEUE_NUM, size)]);
        assert_eq!(bench.get(r::STATUS), READY, "size {size}");
    }
}

#[test]
fn a_queue_of_one_works() {
    let mut bench = Bench::with(FakeDriver::new(MEMORY, &[1, 1]));
    assert_eq!(bench.start(), READY);
    let (buffers, table) = (bench.driver.buffers, bench.driver.buffers + 0x1000);
    for _ in 0..3 {
        let pieces = [Piece::readable(buffers, 4), Piece::writable(buffers, 4)];
        bench.driver.queues[0].add_indirect(table, &pieces);
        bench.kick(0);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 1);
    }
}

#[test]
fn rings_that_are_not_memory_are_never_ready() {
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
        let mut bench = start_with(&[(offset, value)]);
        stopped(&mut bench, &format!("register {offset:#x} with {value:#x}"));
    }
    // To the last byte, with the event fields.
    for (offset, value) in [
        (r::QUEUE_DESC_LOW, end - 0x100),
        (r::QUEUE_DRIVER_LOW, end - 38),
        (r::QUEUE_DEVICE_LOW, end - 136),
    ] {
        let mut bench = start_with(&[(offset, value)]);
        assert_eq!(
            bench.get(r::STATUS),
            READY,
            "register {offset:#x} with {value:#x}"
        );
    }
    // Wraps to the beginning.
    let wrapping = [(r::QUEUE_DESC_LOW, 0xffff_fff0), (r::QUEUE_DESC_HIGH, u32::MAX)];
    stopped(
        &mut start_with(&wrapping),
        "a table at the end of the address space",
    );
}

#[test]
fn all_queues_have_to_be_ready() {
    let mut bench = Bench::new();
    bench.driver.queues.pop();
    assert_eq!(bench.start(), BROKEN);
    assert_eq!(count(&bench.seen.activations), 0);
    assert_eq!(bench.line.take(), 1);
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor {
        address,
        length,
        flags,
        next,
    }
}

/// Starts the device with `table` as its first descriptors, and a descriptor that names itself as an indirect table at
/// [`TABLE`], and kicks it.
fn stopped_by(what: &str, table: &[RawDescriptor]) {
    let mut bench = Bench::started();
    let queue = &mut bench.driver.queues[0];
    queue.write_descriptor(TABLE, descriptor(TABLE, 16, INDIRECT, 0));
    for (index, descriptor) in (0..).zip(table) {
        queue.set_descriptor(index, *descriptor);
    }
    queue.make_available(0);
    bench.kick(0);
    assert!(
        bench.driver.queues[0].pop_used().is_none(),
        "a chain that {what} was used"
    );
    stopped(&mut bench, what);
}

#[test]
fn malformed_chains_stop_the_device() {
    let one = |flags, next| descriptor(BUFFER, 1, flags, next);
    stopped_by("loops", &[one(NEXT, 1), one(NEXT, 0)]);
    stopped_by("loops on nothing", &[descriptor(BUFFER, 0, NEXT, 0)]);
    stopped_by("leaves the table", &[one(NEXT, 16)]);
    stopped_by("is readable behind writable", &[one(NEXT | WRITE, 1), one(0, 0)]);
    for (address, length) in [(OUTSIDE, 1), (OUTSIDE - 1, 2), (u64::MAX, 2), (BUFFER, u32::MAX)] {
        for flags in [0, WRITE] {
            stopped_by("is outside memory", &[descriptor(address, length, flags, 0)]);
        }
    }
}

#[test]
fn malformed_indirect_tables_stop_the_device() {
    for (what, address, length) in [
        ("has a table in a table", TABLE, 16),
        ("has an empty table", TABLE, 0),
        ("has a table with a part", TABLE, 24),
        ("has a table outside memory", OUTSIDE, 16),
        ("has a table that wraps", u64::MAX - 7, 16),
    ] {
        let table = descriptor(address, length, INDIRECT, 0);
        stopped_by(what, &[table]);
        stopped_by(what, &[descriptor(BUFFER, 1, NEXT, 1), table]);
    }
}

#[test]
fn heads_outside_the_table_stop_the_device() {
    for head in [16, 17, 0x8000, u16::MAX] {
        let mut bench = Bench::started();
        bench.driver.queues[0].make_available(head);
        bench.kick(0);
        stopped(&mut bench, &format!("head {head}"));
    }
}

#[test]
fn an_available_index_that_jumps_stops_the_device() {
    for served in [0, 1, 20] {
        for jump in [17, 0x7fff, 0x8000, u16::MAX - 1, u16::MAX] {
            let mut bench = Bench::started();
            for _ in 0..served {
                bench.echoes(0, b"x");
            }
            bench.driver.queues[0].set_available_index(jump.wrapping_add(served));
            bench.kick(0);
            stopped(&mut bench, &format!("from {served} by {jump}"));
        }
    }
}

#[test]
fn an_index_that_wraps_around_is_as_good_as_any() {
    let mut bench = Bench::started();
    for round in 0..70_000_u32 {
        if round % 1000 == 0 {
            bench.echoes(0, b"x");
            continue;
        }
        bench.driver.queues[0].make_available(0);
        bench.kick(0);
        assert!(bench.driver.queues[0].pop_used().is_some());
    }
    assert_eq!(bench.get(r::STATUS), READY);
}

#[test]
fn pieces_of_nothing_are_used_like_others() {
    let mut bench = Bench::started();
    let buffers = bench.driver.buffers;
    for pieces in [
        vec![Piece::readable(u64::MAX, 0)],
        vec![Piece::writable(0, 0)],
        vec![Piece::writable(buffers, 8)],
        vec![Piece::readable(buffers, 8)],
        vec![
            Piece::readable(buffers, 0),
            Piece::readable(buffers, 2),
            Piece::writable(buffers, 0),
        ],
    ] {
        bench.driver.queues[0].add(&pieces);
        bench.kick(0);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 1, "{pieces:?}");
    }
    bench.echoes(0, b"and on it goes");
}

#[test]
fn rings_as_buffers_harm_nobody() {
    for area in 0..3 {
        for offset in (0..0x100).step_by(2) {
            let mut bench = Bench::started();
            let queue = &mut bench.driver.queues[0];
            let target = [queue.descriptors, queue.available, queue.used][area] + offset;
            for _ in 0..7 {
                queue.add(&[Piece::readable(0x1_0000, 8), Piece::writable(target, 8)]);
            }
            bench.driver.write(0x1_0000, &[0xff, 3, 0, 1, 0, 7, 0, 0xff]);
            bench.kick(0);
            bench.kick(0);
            bench.works_after_reset();
        }
    }
}

#[test]
fn rings_on_top_of_each_other_harm_nobody() {
    let at = 0x8000;
    let areas = [r::QUEUE_DESC_LOW, r::QUEUE_DRIVER_LOW, r::QUEUE_DEVICE_LOW];
    for shift in (0..0x120).step_by(16) {
        let mut bench = start_with(&areas.map(|area| (area, at)));
        bench.driver.reset(&mut bench.transport);
        let mut bench = start_with(&[(areas[0], at), (areas[1], at + shift), (areas[2], at + shift)]);
        for index in 0..20 {
            let index: u16 = index;
            bench.driver.write((at + shift + 2).into(), &index.to_le_bytes());
            bench.kick(0);
        }
        bench.works_after_reset();
    }
}

#[test]
fn more_is_never_served_at_a_kick_than_was_published() {
    let mut bench = Bench::started();
    let buffers = bench.driver.buffers;
    for _ in 0..8 {
        bench.driver.queues[0].add(&[Piece::readable(buffers, 1), Piece::writable(buffers, 1)]);
    }
    bench.kick(0);
    bench.kick(0);
    assert_eq!(bench.driver.queues[0].collect_used().len(), 8);
    assert_eq!(bench.driver.queues[0].used_index(), 8);
}
