//! Device status and the order of operations.

use super::super::registers as r;
use super::{Fixture, READY, count};
use crate::sync::lock;
use crate::testing::capture_log;
use crate::virtio::testing::{Buffer, set};

const EVENT_IDX: u64 = 1 << 29;

#[test]
fn started_device_processes_queues() {
    let mut fixture = Fixture::started();
    assert_eq!(count(&fixture.seen.activations), 1);
    for round in 0..100 {
        fixture.expect_echo(round % 2, format!("round {round}").as_bytes());
        assert_eq!(fixture.get(r::INTERRUPT_STATUS), 1);
        fixture.set(r::INTERRUPT_ACK, 1);
        assert_eq!(fixture.get(r::INTERRUPT_STATUS), 0);
        assert_eq!(fixture.line.take(), 1);
    }
}

#[test]
fn recorder_has_status_and_features() {
    let mut fixture = Fixture::new();
    let recorder = fixture.transport.recorder();
    assert_eq!(format!("{:?}", recorder.driver_state()), "[] []");
    fixture.set(r::STATUS, r::ACKNOWLEDGE);
    assert_eq!(format!("{:?}", recorder.driver_state()), "[Acknowledged] []");
    assert_eq!(fixture.driver.start(&mut fixture.transport, EVENT_IDX), READY);
    let state = recorder.driver_state();
    assert!(state.has_driver());
    assert_eq!(state.features(), ["EVENT_IDX", "VERSION_1"]);
    fixture.transport.interrupt.set_needs_reset();
    assert!(!recorder.driver_state().has_driver());
    fixture.set(r::STATUS, 0);
    assert_eq!(format!("{:?}", recorder.driver_state()), "[] []");
}

#[test]
fn event_idx_suppresses_interrupts() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.driver.start(&mut fixture.transport, EVENT_IDX), READY);
    fixture.driver.queues[0].set_used_event(2);
    let interrupts: Vec<u32> = (0..5)
        .map(|_| {
            fixture.expect_echo(0, b"x");
            fixture.line.take()
        })
        .collect();
    assert_eq!(interrupts, [0, 0, 1, 0, 0]);
    assert_eq!(fixture.driver.queues[0].available_event(), 5);
}

#[test]
fn chains_wait_for_driver_ok() {
    let mut fixture = Fixture::new();
    let buffers = fixture.driver.buffers;
    fixture.driver.queues[0].add(&[Buffer::writable(buffers, 1)]);
    for status in [
        0,
        r::ACKNOWLEDGE,
        r::DRIVER,
        r::DRIVER_OK,
        r::FEATURES_OK,
        r::DRIVER_OK | r::FAILED,
    ] {
        fixture.set(r::STATUS, status);
        fixture.notify(0);
    }
    assert_eq!(
        (
            count(&fixture.seen.activations),
            count(&fixture.seen.notifications)
        ),
        (0, 0)
    );
    assert!(fixture.driver.queues[0].pop_used().is_none());
}

#[test]
fn driver_ok_processes_early_chains() {
    let mut fixture = Fixture::new();
    let buffers = fixture.driver.buffers;
    fixture.driver.queues[1].add(&[Buffer::readable(buffers, 1), Buffer::writable(buffers, 1)]);
    fixture.notify(1);
    assert_eq!(fixture.start(), READY);
    assert_eq!(fixture.driver.queues[1].collect_used().len(), 1);
    assert_eq!(fixture.line.take(), 1);
}

#[test]
fn one_write_of_features_ok_and_driver_ok_starts_device() {
    let mut fixture = Fixture::new();
    for (index, queue) in (0..).zip(&fixture.driver.queues) {
        set(&mut fixture.transport, r::QUEUE_SEL, index);
        queue.register(&mut fixture.transport);
    }
    fixture.set(r::DRIVER_FEATURES_SEL, 1);
    fixture.set(r::DRIVER_FEATURES, 1);
    fixture.set(r::STATUS, READY);
    assert_eq!(fixture.get(r::STATUS), READY);
    fixture.expect_echo(0, b"like Unikraft");
}

#[test]
fn driver_without_version_1_starts_and_is_warned_once() {
    let mut fixture = Fixture::new();
    let messages = capture_log(|| {
        for _ in 0..3 {
            fixture.set(r::STATUS, 0);
            let negotiated = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK;
            fixture.set(r::STATUS, negotiated);
            assert_eq!(fixture.get(r::STATUS), negotiated);
            for (index, queue) in (0..).zip(&fixture.driver.queues) {
                set(&mut fixture.transport, r::QUEUE_SEL, index);
                queue.register(&mut fixture.transport);
            }
            fixture.set(r::STATUS, READY);
            assert_eq!(fixture.get(r::STATUS), READY);
        }
    });
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].contains("VERSION_1"), "{messages:?}");
    fixture.expect_echo(0, b"like OSv");
}

#[test]
fn only_driver_sets_features_ok() {
    let mut fixture = Fixture::new();
    // VERSION_1: the features are valid, but the driver may still change them.
    fixture.set(r::DRIVER_FEATURES_SEL, 1);
    fixture.set(r::DRIVER_FEATURES, 1);
    for status in [r::ACKNOWLEDGE, r::DRIVER, r::DRIVER_OK, r::FAILED] {
        fixture.set(r::STATUS, status);
        assert_eq!(fixture.get(r::STATUS) & r::FEATURES_OK, 0, "{status:#x}");
    }
}

#[test]
fn driver_ok_activates_once_after_features_ok() {
    let mut fixture = Fixture::new();
    fixture.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER | r::DRIVER_OK);
    assert_eq!(fixture.get(r::STATUS), r::ACKNOWLEDGE | r::DRIVER);
    assert_eq!(fixture.start(), READY);
    for status in [READY, r::DRIVER_OK, 0x100, !r::FAILED, r::ACKNOWLEDGE] {
        fixture.set(r::STATUS, status);
        assert_eq!(fixture.get(r::STATUS), READY, "{status:#x}");
    }
    assert_eq!(count(&fixture.seen.activations), 1);
    fixture.expect_echo(0, b"still there");
}

#[test]
fn failed_driver_does_not_start_device() {
    let mut fixture = Fixture::new();
    fixture.set(r::STATUS, r::FAILED);
    assert_eq!(fixture.start() & (r::FAILED | r::DRIVER_OK), r::FAILED);
    assert_eq!(count(&fixture.seen.activations), 0);
    fixture.expect_recovery();
}

#[test]
fn notification_of_missing_queue_is_ignored() {
    let mut fixture = Fixture::started();
    let before = count(&fixture.seen.notifications);
    for queue in [2, 3, 0x1_0000, u32::MAX] {
        fixture.notify(queue);
    }
    fixture.transport.notify(usize::MAX);
    assert_eq!(count(&fixture.seen.notifications), before);
    fixture.transport.notify(1);
    assert_eq!(count(&fixture.seen.notifications), before + 1);
}

#[test]
fn ready_queue_is_fixed() {
    let mut fixture = Fixture::started();
    for queue in 0..3 {
        fixture.set(r::QUEUE_SEL, queue);
        for offset in [
            r::QUEUE_NUM,
            r::QUEUE_DESC_LOW,
            r::QUEUE_DRIVER_HIGH,
            r::QUEUE_DEVICE_LOW,
        ] {
            fixture.set(offset, 0xdead_beef);
        }
        fixture.set(r::QUEUE_READY, 0);
        assert_eq!(fixture.get(r::QUEUE_READY), u32::from(queue < 2));
    }
    fixture.expect_echo(1, b"unchanged");

    let mut fixture = Fixture::new();
    fixture.driver.queues[0].register(&mut fixture.transport);
    fixture.set(r::QUEUE_NUM, 3);
    fixture.set(r::QUEUE_READY, 1);
    assert_eq!(
        fixture.get(r::QUEUE_READY),
        1,
        "a ready queue has changed its size"
    );
    fixture.set(r::QUEUE_READY, 0);
    assert_eq!(
        fixture.get(r::QUEUE_READY),
        0,
        "QueueReady was not cleared before DRIVER_OK"
    );
}

#[test]
fn reset_clears_everything() {
    let mut fixture = Fixture::started();
    let buffers = fixture.driver.buffers;
    fixture.driver.queues[0].add(&[Buffer::readable(buffers, 1), Buffer::writable(buffers, 1)]);
    let before = count(&fixture.seen.notifications);
    fixture.set(r::STATUS, 0);
    fixture.notify(0);
    assert_eq!(
        (count(&fixture.seen.resets), count(&fixture.seen.notifications)),
        (1, before)
    );
    for queue in [0, 1] {
        fixture.set(r::QUEUE_SEL, queue);
        assert_eq!(fixture.get(r::QUEUE_READY), 0);
    }
    fixture.set(r::STATUS, 0);
    assert_eq!(count(&fixture.seen.resets), 1, "an inactive device was reset");
    fixture.expect_recovery();
}

#[test]
fn transport_forwards_events() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.transport.watched_fds().len(), 1);
    fixture.transport.process_event(3);
    assert_eq!(*lock(&fixture.seen.tokens), [3]);
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
        let mut fixture = Fixture::new();
        fixture.set(r::DRIVER_FEATURES_SEL, 1);
        fixture.set(r::DRIVER_FEATURES, 1 | high);
        fixture.set(r::DRIVER_FEATURES_SEL, 0);
        fixture.set(r::DRIVER_FEATURES, low);
        fixture.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK);
        assert_eq!(
            fixture.get(r::STATUS) & r::FEATURES_OK != 0,
            accepted,
            "{low:#x} {high:#x}"
        );
    }
}

#[test]
fn events_interrupts_and_failures_are_counted() {
    let mut fixture = Fixture::new();
    let recorder = fixture.transport.recorder();
    fixture.transport.process_event(0);
    fixture.set(r::CONFIG, 1);
    // Without a ready queue.
    for status in [r::ACKNOWLEDGE, r::DRIVER] {
        fixture.set(r::STATUS, status);
    }
    fixture.set(r::DRIVER_FEATURES_SEL, 1);
    fixture.set(r::DRIVER_FEATURES, 1);
    fixture.set(r::STATUS, r::FEATURES_OK);
    fixture.set(r::STATUS, READY);
    let metrics = recorder.metrics();
    assert_eq!((metrics.events, metrics.config_failures), (1, 1));
    assert_eq!((metrics.activation_failures, metrics.interrupts), (1, 1));
    fixture.expect_recovery();
    let metrics = recorder.metrics();
    assert_eq!((metrics.activation_failures, metrics.interrupts), (1, 3));
}
