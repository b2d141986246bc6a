//! The life of a device: who may do what when.

use super::super::registers as r;
use super::{Bench, READY, count};
use crate::sync::lock;
use crate::virtio::testing::{Piece, set};

const EVENT_IDX: u64 = 1 << 29;

#[test]
fn a_started_device_serves_its_queues() {
    let mut bench = Bench::started();
    assert_eq!(count(&bench.seen.activations), 1);
    for round in 0..100 {
        bench.echoes(round % 2, format!("round {round}").as_bytes());
        assert_eq!(bench.get(r::INTERRUPT_STATUS), 1);
        bench.set(r::INTERRUPT_ACK, 1);
        assert_eq!(bench.get(r::INTERRUPT_STATUS), 0);
        assert_eq!(bench.line.take(), 1);
    }
}

#[test]
fn event_idx_spares_interrupts() {
    let mut bench = Bench::new();
    assert_eq!(bench.driver.start(&mut bench.transport, EVENT_IDX), READY);
    bench.driver.queues[0].set_used_event(2);
    let interrupts: Vec<u32> = (0..5)
        .map(|_| {
            bench.echoes(0, b"x");
            bench.line.take()
        })
        .collect();
    assert_eq!(interrupts, [0, 0, 1, 0, 0]);
    assert_eq!(bench.driver.queues[0].available_event(), 5);
}

#[test]
fn nothing_is_served_before_driver_ok() {
    let mut bench = Bench::new();
    let buffers = bench.driver.buffers;
    bench.driver.queues[0].add(&[Piece::writable(buffers, 1)]);
    for status in [
        0,
        r::ACKNOWLEDGE,
        r::DRIVER,
        r::DRIVER_OK,
        r::FEATURES_OK,
        r::DRIVER_OK | r::FAILED,
    ] {
        bench.set(r::STATUS, status);
        bench.kick(0);
    }
    assert_eq!((count(&bench.seen.activations), count(&bench.seen.kicks)), (0, 0));
    assert!(bench.driver.queues[0].pop_used().is_none());
}

#[test]
fn what_was_kicked_too_early_is_served_at_driver_ok() {
    let mut bench = Bench::new();
    let buffers = bench.driver.buffers;
    bench.driver.queues[1].add(&[Piece::readable(buffers, 1), Piece::writable(buffers, 1)]);
    bench.kick(1);
    assert_eq!(bench.start(), READY);
    assert_eq!(bench.driver.queues[1].collect_used().len(), 1);
    assert_eq!(bench.line.take(), 1);
}

#[test]
fn features_and_driver_may_be_ok_at_once() {
    let mut bench = Bench::new();
    for (index, queue) in (0..).zip(&bench.driver.queues) {
        set(&mut bench.transport, r::QUEUE_SEL, index);
        queue.register(&mut bench.transport);
    }
    bench.set(r::DRIVER_FEATURES_SEL, 1);
    bench.set(r::DRIVER_FEATURES, 1);
    bench.set(r::STATUS, READY);
    assert_eq!(bench.get(r::STATUS), READY);
    bench.echoes(0, b"as Unikraft does it");
}

#[test]
fn driver_ok_needs_features_ok_and_activates_once() {
    let mut bench = Bench::new();
    bench.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER | r::DRIVER_OK);
    assert_eq!(bench.get(r::STATUS), r::ACKNOWLEDGE | r::DRIVER);
    assert_eq!(bench.start(), READY);
    for status in [READY, r::DRIVER_OK, 0x100, !r::FAILED, r::ACKNOWLEDGE] {
        bench.set(r::STATUS, status);
        assert_eq!(bench.get(r::STATUS), READY, "{status:#x}");
    }
    assert_eq!(count(&bench.seen.activations), 1);
    bench.echoes(0, b"still there");
}

#[test]
fn a_driver_that_failed_starts_nothing() {
    let mut bench = Bench::new();
    bench.set(r::STATUS, r::FAILED);
    assert_eq!(bench.start() & (r::FAILED | r::DRIVER_OK), r::FAILED);
    assert_eq!(count(&bench.seen.activations), 0);
    bench.works_after_reset();
}

#[test]
fn a_kick_goes_to_a_queue_that_is_there() {
    let mut bench = Bench::started();
    let before = count(&bench.seen.kicks);
    for queue in [2, 3, 0x1_0000, u32::MAX] {
        bench.kick(queue);
    }
    bench.transport.notify(usize::MAX);
    assert_eq!(count(&bench.seen.kicks), before);
    bench.transport.notify(1);
    assert_eq!(count(&bench.seen.kicks), before + 1);
}

#[test]
fn a_ready_queue_stays_as_it_is() {
    let mut bench = Bench::started();
    for queue in 0..3 {
        bench.set(r::QUEUE_SEL, queue);
        for offset in [
            r::QUEUE_NUM,
            r::QUEUE_DESC_LOW,
            r::QUEUE_DRIVER_HIGH,
            r::QUEUE_DEVICE_LOW,
        ] {
            bench.set(offset, 0xdead_beef);
        }
        bench.set(r::QUEUE_READY, 0);
        assert_eq!(bench.get(r::QUEUE_READY), u32::from(queue < 2));
    }
    bench.echoes(1, b"as it was");

    let mut bench = Bench::new();
    bench.driver.queues[0].register(&mut bench.transport);
    bench.set(r::QUEUE_NUM, 3);
    bench.set(r::QUEUE_READY, 1);
    assert_eq!(
        bench.get(r::QUEUE_READY),
        1,
        "its size is the one it became ready with"
    );
    bench.set(r::QUEUE_READY, 0);
    assert_eq!(
        bench.get(r::QUEUE_READY),
        0,
        "before DRIVER_OK it can be taken back"
    );
}

#[test]
fn a_reset_takes_everything_back_at_any_time() {
    let mut bench = Bench::started();
    let buffers = bench.driver.buffers;
    bench.driver.queues[0].add(&[Piece::readable(buffers, 1), Piece::writable(buffers, 1)]);
    let before = count(&bench.seen.kicks);
    bench.set(r::STATUS, 0);
    bench.kick(0);
    assert_eq!((count(&bench.seen.resets), count(&bench.seen.kicks)), (1, before));
    for queue in [0, 1] {
        bench.set(r::QUEUE_SEL, queue);
        assert_eq!(bench.get(r::QUEUE_READY), 0);
    }
    bench.set(r::STATUS, 0);
    assert_eq!(
        count(&bench.seen.resets),
        1,
        "a device that is not active is not reset"
    );
    bench.works_after_reset();
}

#[test]
fn sources_and_readiness_pass_through() {
    let mut bench = Bench::new();
    assert_eq!(bench.transport.sources().len(), 1);
    bench.transport.ready(3);
    assert_eq!(*lock(&bench.seen.tokens), [3]);
}

#[test]
fn a_ring_that_was_not_offered_is_refused_and_another_stray_bit_is_not() {
    for (low, high, accepted) in [
        (0, 1 << 2, false),  // RING_PACKED
        (0, 1 << 1, false),  // ACCESS_PLATFORM
        (1 << 28, 0, true),  // INDIRECT_DESC, which is offered
        (1 << 20, 0, true),  // no feature of this device
        (1 << 31, 0, false), // reserved
    ] {
        let mut bench = Bench::new();
        bench.set(r::DRIVER_FEATURES_SEL, 1);
        bench.set(r::DRIVER_FEATURES, 1 | high);
        bench.set(r::DRIVER_FEATURES_SEL, 0);
        bench.set(r::DRIVER_FEATURES, low);
        bench.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK);
        assert_eq!(
            bench.get(r::STATUS) & r::FEATURES_OK != 0,
            accepted,
            "{low:#x} {high:#x}"
        );
    }
}
