use snapshot::Persist;

use super::lifetime::{start_reads, uncached};
use super::update::capacity;
use super::{Bench, Buffer, HOURS, IN, NONE, OK, SECTORS, Scratch, bucket, config};
use crate::testing::ManualClock;
use crate::virtio::block::{Block, IoEngine};
use crate::virtio::device::VirtioDevice;

#[test]
fn save_with_requests_in_flight_fails() {
    let scratch = uncached(4 << 20);
    let mut bench = start_reads(&scratch);
    // All reads may be complete already, and then the save succeeds.
    if bench.block.in_flight() > 0 {
        let error = bench.block.save().unwrap_err();
        assert!(error.to_string().contains("in flight"));
    }
    bench.block.drain();
    assert!(bench.block.save().is_ok());
}

#[test]
fn rate_limiter_roundtrips() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.read_only = true;
    config.operations = bucket(3, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.read(0, 512).0, OK);
    let mut restored = Block::open(&config, Box::new(ManualClock::default())).unwrap();
    restored.restore(bench.block.save().unwrap()).unwrap();

    let mut bench = Bench::of(restored, ManualClock::default());
    assert_eq!(bench.read(0, 512).0, OK);
    assert_eq!(bench.read(1, 512).0, OK);
    let address = bench.place(&[NONE; 512]);
    bench.add(IN, 2, &[Buffer::writable(address, 512)]);
    bench.block.notify(0);
    assert!(bench.driver.queues[0].collect_used().is_empty());
    assert_eq!(bench.block.queue_states()[0].next_avail, 2);
}

#[test]
fn available_request_runs_after_restore() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    let state = bench.block.save().unwrap();
    bench.reset();
    let address = bench.place(&[NONE; 512]);
    let (_, status) = bench.add(IN, 0, &[Buffer::writable(address, 512)]);
    bench.start(bench.block.features());
    bench.block.restore(state).unwrap();
    // No notification, and no interrupt for an unchanged configuration.
    bench.process_events(0);
    assert_eq!((bench.status(status), bench.signal.status()), (OK, 1));
}

#[test]
fn restore_notifies_changed_capacity() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    let state = bench.block.save().unwrap();
    scratch.set_len(2 * SECTORS * 512);
    bench.block.update(None).unwrap();
    bench.reset();
    bench.signal.clear();
    bench.start(bench.block.features());
    bench.block.restore(state.clone()).unwrap();
    // The saved state keeps the capacity that the driver knows, for the next restore.
    assert_eq!(bench.block.save().unwrap(), state);
    assert_eq!(bench.signal.status(), 0);
    bench.process_events(0);
    assert_eq!((bench.signal.status(), capacity(&bench)), (2, 2 * SECTORS));
    assert_ne!(bench.block.save().unwrap(), state);
}
