//! Save and restore.

use proptest::prelude::{prop_assert, proptest};
use snapshot::persist::Error;
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::super::registers as r;
use super::super::state::TransportState;
use super::echo::FEATURE;
use super::{Bench, MEMORY, READY, count};
use crate::sync::lock;
use crate::testing::{accesses, replay};
use crate::virtio::testing::{Buffer, FakeDriver};

/// Name and effect of a change to a valid state.
type Change<'a> = (&'a str, &'a dyn Fn(&mut TransportState));

fn save(bench: &Bench) -> Vec<u8> {
    let mut archive = ArchiveWriter::new();
    bench.transport.save_section("net", &mut archive).unwrap();
    archive.into_bytes()
}

fn restore(bench: &mut Bench, bytes: &[u8]) -> Result<(), Error> {
    let mut archive = ArchiveReader::parse(bytes).unwrap();
    bench.transport.restore_section("net", &mut archive)?;
    archive.finish().unwrap();
    Ok(())
}

/// Saves `bench`. Returns a bench with its memory and driver and a new device, and the saved bytes.
fn save_and_replace(bench: Bench) -> (Bench, Vec<u8>) {
    let bytes = save(&bench);
    (Bench::with(bench.driver), bytes)
}

#[test]
fn running_device_roundtrips() {
    let mut bench = Bench::new();
    assert_eq!(bench.driver.start(&mut bench.transport, FEATURE | 1 << 29), READY);
    *lock(&bench.seen.config_space) = vec![1, 2, 3];
    for _ in 0..21 {
        bench.driver.queues[0].set_used_event(bench.driver.queues[0].used_index());
        bench.expect_echo(0, b"before");
    }
    bench.get(r::CONFIG);
    let status = bench.get(r::INTERRUPT_STATUS);
    assert_eq!(status, 1);
    let (mut bench, bytes) = save_and_replace(bench);
    *lock(&bench.seen.config_space) = vec![1, 2, 3];
    restore(&mut bench, &bytes).unwrap();
    assert_eq!(save(&bench), bytes);
    assert_eq!((bench.get(r::STATUS), bench.get(r::INTERRUPT_STATUS)), (READY, 1));
    assert_eq!(bench.line.take(), 0, "restore raised an interrupt");
    bench.transport.notify_restored();
    assert_eq!(
        bench.line.take(),
        0,
        "an unacknowledged interrupt was raised again"
    );
    assert_eq!(
        (bench.get(r::INTERRUPT_STATUS), count(&bench.seen.notifications)),
        (1, 2)
    );
    bench.set(r::INTERRUPT_ACK, 1);
    bench.transport.notify_restored();
    assert_eq!(
        (bench.line.take(), bench.get(r::INTERRUPT_STATUS)),
        (0, 0),
        "an interrupt without a cause was raised"
    );
    bench.expect_echo(0, b"after");
    bench.expect_echo(1, b"after");
    bench.expect_recovery();
}

#[test]
fn available_chain_is_used_after_restore() {
    let mut bench = Bench::started();
    let buffers = bench.driver.buffers;
    bench.driver.queues[1].add(&[Buffer::readable(buffers, 3), Buffer::writable(buffers, 3)]);
    let (mut bench, bytes) = save_and_replace(bench);
    restore(&mut bench, &bytes).unwrap();
    assert!(bench.driver.queues[1].pop_used().is_none());
    bench.transport.notify_restored();
    assert_eq!(bench.driver.queues[1].collect_used().len(), 1);
    assert_eq!((bench.line.take(), bench.get(r::INTERRUPT_STATUS)), (1, 1));
}

#[test]
fn changed_configuration_is_notified() {
    let mut bench = Bench::started();
    *lock(&bench.seen.config_space) = vec![1];
    let before = bench.get(r::CONFIG_GENERATION);
    let (mut bench, bytes) = save_and_replace(bench);
    *lock(&bench.seen.config_space) = vec![2];
    restore(&mut bench, &bytes).unwrap();
    bench.transport.notify_restored();
    assert_eq!((bench.line.take(), bench.get(r::INTERRUPT_STATUS)), (1, 2));
    assert_ne!(bench.get(r::CONFIG_GENERATION), before);
}

#[test]
fn every_device_status_roundtrips() {
    let needs_reset = |bench: &mut Bench| {
        bench.start();
        bench.driver.queues[0].make_available(77);
        bench.notify(0);
    };
    let half_way = |bench: &mut Bench| {
        bench.set(r::STATUS, r::ACKNOWLEDGE | r::DRIVER);
        bench.set(r::DRIVER_FEATURES, 0xffff);
        bench.set(r::QUEUE_SEL, 1);
        bench.set(r::QUEUE_NUM, 3);
        bench.set(r::QUEUE_DESC_HIGH, 0xfff);
    };
    let unready = |bench: &mut Bench| {
        bench.driver.queues.truncate(1);
        bench.start();
    };
    let stages: [&dyn Fn(&mut Bench); 4] = [&needs_reset, &half_way, &unready, &|_| {}];
    for (index, stage) in stages.iter().enumerate() {
        let mut bench = Bench::new();
        stage(&mut bench);
        let status = bench.get(r::STATUS);
        let bytes = save(&bench);
        // Into a device that was active: none of its state may remain.
        let mut other = Bench::started();
        other.expect_echo(1, b"before the restore");
        restore(&mut other, &bytes).unwrap();
        assert_eq!(other.get(r::STATUS), status, "stage {index}");
        assert_eq!(save(&other), bytes, "stage {index}");
        other.transport.notify_restored();
        other.expect_recovery();
    }
}

#[test]
fn invalid_state_is_rejected() {
    let changes: [Change<'_>; 10] = [
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
        ("no VERSION_1", &|state| state.registers.driver_features = 0),
        ("unknown interrupts", &|state| state.interrupt_status = 4),
        ("active without a ready queue", &|state| {
            state.queues[1].ready = false
        }),
    ];
    let good = Bench::started().transport.state().unwrap();
    Bench::new().transport.restore(good.clone()).unwrap();
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
    for (what, change) in changes.iter().chain(&queue_changes) {
        let mut state = good.clone();
        change(&mut state);
        let mut bench = Bench::new();
        let restored = bench.transport.restore(state);
        assert!(matches!(restored, Err(Error::Invalid { .. })), "{what}");
        assert_eq!(count(&bench.seen.activations), 0, "{what}");
    }
}

#[test]
fn smaller_memory_is_rejected() {
    let bytes = save(&Bench::started());
    let mut small = Bench::with(FakeDriver::new(0x1000, &[]));
    assert!(matches!(restore(&mut small, &bytes), Err(Error::Invalid { .. })));
}

proptest! {
    #[test]
    fn random_state_roundtrips(accesses in accesses(r::CONFIG), started: bool) {
        let mut bench = if started { Bench::started() } else { Bench::new() };
        replay(&mut bench.transport, &accesses);
        let (mut bench, bytes) = save_and_replace(bench);
        restore(&mut bench, &bytes).unwrap();
        prop_assert!(save(&bench) == bytes);
    }

    #[test]
    fn corrupt_byte_is_harmless(at in 0..200_usize, value: u8, running: bool) {
        let bench = if running { Bench::started() } else { Bench::new() };
        let mut bytes = save(&bench);
        let at = at % bytes.len();
        bytes[at] = value;
        let mut other = Bench::with(bench.driver);
        let restored = ArchiveReader::parse(&bytes).is_ok_and(|mut archive| other.transport.restore_section("net", &mut archive).is_ok());
        if restored {
            other.transport.notify_restored();
            other.expect_recovery();
        }
    }
}
