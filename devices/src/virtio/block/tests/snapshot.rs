use snapshot::Persist;

use super::lifetime::{cold, reading};
use super::update::capacity;
use super::{Bench, HOURS, IN, NONE, OK, Piece, SECTORS, Scratch, bucket, config};
use crate::testing::ManualClock;
use crate::virtio::block::{Block, IoEngine};
use crate::virtio::device::VirtioDevice;

#[test]
fn requests_in_flight_are_not_saved() {
    let scratch = cold(4 << 20);
    let mut bench = reading(&scratch);
    // Some may be done by now, and then there is nothing to refuse.
    if bench.block.in_flight() > 0 {
        let error = bench.block.save().unwrap_err();
        assert!(error.to_string().contains("in flight"));
    }
    bench.block.drain();
    assert!(bench.block.save().is_ok());
}

#[test]
fn the_limiter_survives_a_snapshot() {
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
    bench.add(IN, 2, &[Piece::writable(address, 512)]);
    bench.block.notify(0);
    assert!(bench.driver.queues[0].collect_used().is_empty());
    assert_eq!(bench.block.queue_states()[0].next_avail, 2);
}

#[test]
fn what_was_put_off_before_a_snapshot_is_done_after_it() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    let state = bench.block.save().unwrap();
    bench.reset();
    let address = bench.place(&[NONE; 512]);
    let (_, status) = bench.add(IN, 0, &[Piece::writable(address, 512)]);
    bench.start(bench.block.features());
    bench.block.restore(state).unwrap();
    // No notification, and no interrupt for a configuration that is as it was.
    bench.turn(0);
    assert_eq!((bench.status(status), bench.signal.status()), (OK, 1));
}

#[test]
fn a_disk_of_another_size_is_announced_after_a_restore() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    let state = bench.block.save().unwrap();
    scratch.set_len(2 * SECTORS * 512);
    bench.block.update(None).unwrap();
    bench.reset();
    bench.signal.clear();
    bench.start(bench.block.features());
    bench.block.restore(state.clone()).unwrap();
    // Saved again before the driver knows, it is told after the next restore.
    assert_eq!(bench.block.save().unwrap(), state);
    assert_eq!(bench.signal.status(), 0);
    bench.turn(0);
    assert_eq!((bench.signal.status(), capacity(&bench)), (2, 2 * SECTORS));
    assert_ne!(bench.block.save().unwrap(), state);
}
