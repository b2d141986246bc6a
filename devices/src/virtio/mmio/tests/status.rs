//! Device status and the order of operations.

use super::super::registers as r;
use super::{Bench, READY, count};
use crate::sync::lock;
use crate::virtio::testing::{Buffer, set};

const EVENT_IDX: u64 = 1 << 29;

#[test]
fn started_device_processes_queues() {
    let mut bench = Bench::started();
    assert_eq!(count(&bench.seen.activations), 1);
    for round in 0..100 {
        bench.expect_echo(round % 2, format!("round {round}").as_bytes());
        assert_eq!(bench.get(r::INTERRUPT_STATUS), 1);
        bench.set(r::INTERRUPT_ACK, 1);
        assert_eq!(bench.get(r::INTERRUPT_STATUS), 0);
        assert_eq!(bench.line.take(), 1);
    }
}

#[test]
fn event_idx_suppresses_interrupts() {
    let mut bench = Bench::new();
    assert_eq!(bench.driver.start(&mut bench.transport, EVENT_IDX), READY);
    bench.driver.queues[0].set_used_event(2);
    let interrupts: Vec<u32> = (0..5)
        .map(|_| {
            bench.expect_echo(0, b"x");
            bench.line.take()
        })
        .collect();
    assert_eq!(interrupts, [0, 0, 1, 0, 0]);
    assert_eq!(bench.driver.queues[0].available_event(), 5);
}

#[test]
fn chains_wait_for_driver_ok() {
    let mut bench = Bench::new();
    let buffers = bench.driver.buffers;
    bench.driver.queues[0].add(&[Buffer::writable(buffers, 1)]);
    for status in [
        0,
        r::ACKNOWLEDGE,
        r::DRIVER,
        r::DRIVER_OK,
        r::FEATURES_OK,
        r::DRIVER_OK | r::FAILED,
    ] {
        bench.set(r::STATUS, status);
        bench.notify(0);
    }
    assert_eq!(
        (count(&bench.seen.activations), count(&bench.seen.notifications)),
        (0, 0)
    );
    assert!(bench.driver.queues[0].pop_used().is_none());
}

#[test]
fn driver_ok_processes_early_chains() {
    let mut bench = Bench::new();
    let buffers = bench.driver.buffers;
    bench.driver.queues[1].add(&[Buffer::readable(buffers, 1), Buffer::writable(buffers, 1)]);
    bench.notify(1);
    assert_eq!(bench.start(), READY);
    assert_eq!(bench.driver.queues[1].collect_used().len(), 1);
    assert_eq!(bench.line.take(), 1);
}

#[test]
fn features_ok_and_driver_ok_in_one_write() {
    let mut bench = Bench::new();
    for (index, queue) in (0..).zip(&bench.driver.queues) {
        set(&mut bench.transport, r::QUEUE_SEL, index);
        queue.register(&mut bench.transport);
    }
    bench.set(r::DRIVER_FEATURES_SEL, 1);
    bench.set(r::DRIVER_FEATURES, 1);
    bench.set(r::STATUS, READY);
    assert_eq!(bench.get(r::STATUS), READY);
    bench.expect_echo(0, b"like Unikraft");
}

#[test]
fn driver_ok_activates_once_after_features_ok() {
    let mut bench = Bench::new();
    bench.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER | r::DRIVER_OK);
    assert_eq!(bench.get(r::STATUS), r::ACKNOWLEDGE | r::DRIVER);
    assert_eq!(bench.start(), READY);
    for status in [READY, r::DRIVER_OK, 0x100, !r::FAILED, r::ACKNOWLEDGE] {
        bench.set(r::STATUS, status);
        assert_eq!(bench.get(r::STATUS), READY, "{status:#x}");
    }
    assert_eq!(count(&bench.seen.activations), 1);
    bench.expect_echo(0, b"still there");
}

#[test]
fn failed_driver_does_not_start_device() {
    let mut bench = Bench::new();
    bench.set(r::STATUS, r::FAILED);
    assert_eq!(bench.start() & (r::FAILED | r::DRIVER_OK), r::FAILED);
    assert_eq!(count(&bench.seen.activations), 0);
    bench.expect_recovery();
}

#[test]
fn notification_of_missing_queue_is_ignored() {
    let mut bench = Bench::started();
    let before = count(&bench.seen.notifications);
    for queue in [2, 3, 0x1_0000, u32::MAX] {
        bench.notify(queue);
    }
    bench.transport.notify(usize::MAX);
    assert_eq!(count(&bench.seen.notifications), before);
    bench.transport.notify(1);
    assert_eq!(count(&bench.seen.notifications), before + 1);
}

#[test]
fn ready_queue_is_fixed() {
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
    bench.expect_echo(1, b"unchanged");

    let mut bench = Bench::new();
    bench.driver.queues[0].register(&mut bench.transport);
    bench.set(r::QUEUE_NUM, 3);
    bench.set(r::QUEUE_READY, 1);
    assert_eq!(bench.get(r::QUEUE_READY), 1, "a ready queue has changed its size");
    bench.set(r::QUEUE_READY, 0);
    assert_eq!(
        bench.get(r::QUEUE_READY),
        0,
        "QueueReady was not cleared before DRIVER_OK"
    );
}

#[test]
fn reset_clears_everything() {
    let mut bench = Bench::started();
    let buffers = bench.driver.buffers;
    bench.driver.queues[0].add(&[Buffer::readable(buffers, 1), Buffer::writable(buffers, 1)]);
    let before = count(&bench.seen.notifications);
    bench.set(r::STATUS, 0);
    bench.notify(0);
    assert_eq!(
        (count(&bench.seen.resets), count(&bench.seen.notifications)),
        (1, before)
    );
    for queue in [0, 1] {
        bench.set(r::QUEUE_SEL, queue);
        assert_eq!(bench.get(r::QUEUE_READY), 0);
    }
    bench.set(r::STATUS, 0);
    assert_eq!(count(&bench.seen.resets), 1, "an inactive device was reset");
    bench.expect_recovery();
}

#[test]
fn transport_forwards_events() {
    let mut bench = Bench::new();
    assert_eq!(bench.transport.watched_fds().len(), 1);
    bench.transport.process_event(3);
    assert_eq!(*lock(&bench.seen.tokens), [3]);
}

#[test]
fn unoffered_ring_feature_prevents_features_ok() {
    for (low, high, accepted) in [
        (0, 1 << 2, false),  // RING_PACKED
        (0, 1 << 1, false),  // ACCESS_PLATFORM
        (1 << 28, 0, true),  // INDIRECT_DESC, offered
        (1 << 20, 0, true),  // not offered, ignored
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
