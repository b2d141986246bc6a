//! Save and restore.

use proptest::prelude::{prop_assert, proptest};
use snapshot::persist::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::super::registers as r;
use super::super::state::TransportState;
use super::echo::FEATURE;
use super::{Fixture, MEMORY, READY, count};
use crate::sync::lock;
use crate::testing::{accesses, replay};
use crate::virtio::testing::{Buffer, FakeDriver, set};

/// Name and effect of a change to a valid state.
type Change<'a> = (&'a str, &'a dyn Fn(&mut TransportState));

fn save(fixture: &Fixture) -> Vec<u8> {
    let mut archive = ArchiveWriter::new();
    fixture.transport.save_section("net", &mut archive).unwrap();
    archive.into_bytes()
}

fn restore(fixture: &mut Fixture, bytes: &[u8]) -> Result<(), Error> {
    let mut archive = ArchiveReader::parse(bytes).unwrap();
    fixture.transport.restore_section("net", &mut archive)?;
    archive.finish().unwrap();
    Ok(())
}

/// Saves `fixture`. Returns a fixture with its memory and driver and a new device, and the saved bytes.
fn save_and_replace(fixture: Fixture) -> (Fixture, Vec<u8>) {
    let bytes = save(&fixture);
    (Fixture::with(fixture.driver), bytes)
}

#[test]
fn running_device_round_trips() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.driver.start(&mut fixture.transport, FEATURE | 1 << 29),
        READY
    );
    *lock(&fixture.seen.config_space) = vec![1, 2, 3];
    for _ in 0..21 {
        fixture.driver.queues[0].set_used_event(fixture.driver.queues[0].used_index());
        fixture.expect_echo(0, b"before");
    }
    fixture.get(r::CONFIG);
    let status = fixture.get(r::INTERRUPT_STATUS);
    assert_eq!(status, 1);
    let (mut fixture, bytes) = save_and_replace(fixture);
    *lock(&fixture.seen.config_space) = vec![1, 2, 3];
    restore(&mut fixture, &bytes).unwrap();
    assert_eq!(save(&fixture), bytes);
    let state = fixture.transport.recorder().driver_state();
    assert!(state.has_driver());
    assert_eq!(state.features(), ["bit 5", "EVENT_IDX", "VERSION_1"]);
    assert_eq!(
        (fixture.get(r::STATUS), fixture.get(r::INTERRUPT_STATUS)),
        (READY, 1)
    );
    assert_eq!(fixture.line.take(), 0, "restore raised an interrupt");
    fixture.transport.notify_restored();
    assert_eq!(
        fixture.line.take(),
        0,
        "an unacknowledged interrupt was raised again"
    );
    assert_eq!(
        (
            fixture.get(r::INTERRUPT_STATUS),
            count(&fixture.seen.notifications)
        ),
        (1, 2)
    );
    fixture.set(r::INTERRUPT_ACK, 1);
    fixture.transport.notify_restored();
    assert_eq!(
        (fixture.line.take(), fixture.get(r::INTERRUPT_STATUS)),
        (0, 0),
        "an interrupt without a cause was raised"
    );
    fixture.expect_echo(0, b"after");
    fixture.expect_echo(1, b"after");
    fixture.expect_recovery();
}

#[test]
fn available_chain_is_used_after_restore() {
    let mut fixture = Fixture::started();
    let buffers = fixture.driver.buffers;
    fixture.driver.queues[1].add(&[Buffer::readable(buffers, 3), Buffer::writable(buffers, 3)]);
    let (mut fixture, bytes) = save_and_replace(fixture);
    restore(&mut fixture, &bytes).unwrap();
    assert!(fixture.driver.queues[1].pop_used().is_none());
    fixture.transport.notify_restored();
    assert_eq!(fixture.driver.queues[1].collect_used().len(), 1);
    assert_eq!((fixture.line.take(), fixture.get(r::INTERRUPT_STATUS)), (1, 1));
}

#[test]
fn changed_configuration_is_notified() {
    let mut fixture = Fixture::started();
    *lock(&fixture.seen.config_space) = vec![1];
    let before = fixture.get(r::CONFIG_GENERATION);
    let (mut fixture, bytes) = save_and_replace(fixture);
    *lock(&fixture.seen.config_space) = vec![2];
    restore(&mut fixture, &bytes).unwrap();
    fixture.transport.notify_restored();
    assert_eq!((fixture.line.take(), fixture.get(r::INTERRUPT_STATUS)), (1, 2));
    assert_ne!(fixture.get(r::CONFIG_GENERATION), before);
}

#[test]
fn zeros_behind_configuration_are_not_saved() {
    let mut fixture = Fixture::new();
    let empty = save(&fixture).len();
    *lock(&fixture.seen.config_space) = vec![1, 0, 3, 0, 0];
    fixture.get(r::CONFIG_GENERATION);
    // The saved state does not depend on the number of bytes that are compared.
    assert_eq!(save(&fixture).len(), empty + 3);
}

#[test]
fn every_device_status_round_trips() {
    let needs_reset = |fixture: &mut Fixture| {
        fixture.start();
        fixture.driver.queues[0].make_available(77);
        fixture.notify(0);
    };
    let partially_configured = |fixture: &mut Fixture| {
        fixture.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER);
        fixture.set(r::DRIVER_FEATURES, 0xffff);
        fixture.set(r::QUEUE_SEL, 1);
        fixture.set(r::QUEUE_NUM, 3);
        fixture.set(r::QUEUE_DESC_HIGH, 0xfff);
    };
    let unready = |fixture: &mut Fixture| {
        fixture.driver.queues.truncate(1);
        fixture.start();
    };
    let setups: [&dyn Fn(&mut Fixture); 4] = [&needs_reset, &partially_configured, &unready, &|_| {}];
    for (index, setup) in setups.iter().enumerate() {
        let mut fixture = Fixture::new();
        setup(&mut fixture);
        let status = fixture.get(r::STATUS);
        let bytes = save(&fixture);
        // Into a device that was active: none of its state may remain.
        let mut other = Fixture::started();
        other.expect_echo(1, b"before the restore");
        restore(&mut other, &bytes).unwrap();
        assert_eq!(other.get(r::STATUS), status, "setup {index}");
        assert_eq!(save(&other), bytes, "setup {index}");
        other.transport.notify_restored();
        other.expect_recovery();
    }
}

#[test]
fn invalid_state_is_rejected() {
    let changes: [Change<'_>; 9] = [
        ("another device", &|state| state.device_id = 1),
        ("a queue too few", &|state| state.queues.truncate(1)),
        ("unknown status", &|state| state.registers.status |= 0x10),
        ("DEVICE_NEEDS_RESET in status", &|state| {
            state.registers.status |= r::DEVICE_NEEDS_RESET
        }),
        ("started without features", &|state| {
            state.registers.status &= !r::FEATURES_OK
        }),
        ("active but not started", &|state| {
            state.registers.status &= !r::DRIVER_OK
        }),
        ("features that are not offered", &|state| {
            state.registers.driver_features |= 1 << 50
        }),
        ("unknown interrupts", &|state| state.interrupt_status = 4),
        ("active without a ready queue", &|state| {
            state.queues[1].ready = false
        }),
    ];
    let good = Fixture::started().transport.state().unwrap();
    Fixture::new().transport.restore(good.clone()).unwrap();
    let queue_changes: [Change<'_>; 4] = [
        ("a size that is no power of two", &|state| {
            state.queues[0].size = 3
        }),
        ("a size too large", &|state| state.queues[0].size = 32),
        ("a ring outside memory", &|state| {
            state.queues[0].used = MEMORY as u64
        }),
        ("a misaligned ring", &|state| state.queues[1].descriptors += 8),
    ];
    for (case, change) in changes.iter().chain(&queue_changes) {
        let mut state = good.clone();
        change(&mut state);
        let mut fixture = Fixture::new();
        let restored = fixture.transport.restore(state);
        assert!(matches!(restored, Err(Error::Invalid { .. })), "{case}");
        assert_eq!(count(&fixture.seen.activations), 0, "{case}");
    }
}

#[test]
fn device_without_version_1_round_trips() {
    let mut fixture = Fixture::new();
    let ready = r::ACKNOWLEDGE | r::DRIVER | r::FEATURES_OK;
    fixture.set(r::STATUS, ready);
    for (index, queue) in (0..).zip(&fixture.driver.queues) {
        set(&mut fixture.transport, r::QUEUE_SEL, index);
        queue.register(&mut fixture.transport);
    }
    fixture.set(r::STATUS, READY);
    fixture.expect_echo(0, b"before");
    let (mut fixture, bytes) = save_and_replace(fixture);
    restore(&mut fixture, &bytes).unwrap();
    assert!(save(&fixture) == bytes);
    fixture.expect_echo(0, b"after");
}

#[test]
fn smaller_memory_is_rejected() {
    let bytes = save(&Fixture::started());
    let mut small = Fixture::with(FakeDriver::new(0x1000, &[]));
    assert!(matches!(restore(&mut small, &bytes), Err(Error::Invalid { .. })));
}

proptest! {
    #[test]
    fn random_state_round_trips(accesses in accesses(r::CONFIG), started: bool) {
        let mut fixture = if started { Fixture::started() } else { Fixture::new() };
        replay(&mut fixture.transport, &accesses);
        let (mut fixture, bytes) = save_and_replace(fixture);
        restore(&mut fixture, &bytes).unwrap();
        prop_assert!(save(&fixture) == bytes);
    }

    #[test]
    fn corrupt_byte_is_harmless(at in 0..200_usize, value: u8, running: bool) {
        let fixture = if running { Fixture::started() } else { Fixture::new() };
        let mut bytes = save(&fixture);
        let at = at % bytes.len();
        bytes[at] = value;
        let mut other = Fixture::with(fixture.driver);
        let restored = ArchiveReader::parse(&bytes).is_ok_and(|mut archive| other.transport.restore_section("net", &mut archive).is_ok());
        if restored {
            other.transport.notify_restored();
            other.expect_recovery();
        }
    }
}
