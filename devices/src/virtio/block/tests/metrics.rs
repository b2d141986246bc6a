use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{
    Buffer, ENGINES, FLUSH, Fixture, GET_ID, IN, IOERR, NONE, OK, SECTORS, Scratch, UNSUPP, bucket, config,
};
use crate::clock::Clock;
use crate::virtio::block::metrics::SAMPLE;
use crate::virtio::block::{Block, IoEngine};
use crate::virtio::device::VirtioDevice;

/// A clock that advances 3 us at each read.
struct TickingClock(Arc<AtomicU32>);

impl Clock for TickingClock {
    fn now(&self) -> Duration {
        Duration::from_micros(3) * self.0.fetch_add(1, Ordering::SeqCst)
    }
}

#[test]
fn sampled_reads_and_all_flushes_are_timed() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let reads = Arc::new(AtomicU32::new(0));
        let config = config(scratch.path(), engine);
        let block = Block::open(&config, Box::new(TickingClock(reads.clone()))).unwrap();
        let mut fixture = Fixture::of(block, super::ManualClock::default());
        for _ in 0..2 * SAMPLE {
            assert_eq!(fixture.read(0, 512).0, OK);
        }
        for _ in 0..5 {
            assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
        }
        assert_eq!(fixture.write(0, &[1; 512]), OK);
        let metrics = fixture.block.metrics();
        let timed = |histogram: crate::Histogram| (histogram.count(), histogram.sum_us());
        assert_eq!(timed(metrics.read_latency), (2, 6));
        assert_eq!(timed(metrics.write_latency), (1, 3));
        assert_eq!(timed(metrics.flush_latency), (5, 15));
        assert_eq!((metrics.reads, metrics.writes, metrics.flushes), (32, 1, 5));
        assert_eq!(reads.load(Ordering::SeqCst), 16, "clock reads");
        // Failed reads and other requests are not timed.
        for _ in 0..2 * SAMPLE {
            assert_eq!(fixture.read(SECTORS, 512).0, IOERR);
            assert_eq!(fixture.run_one(GET_ID, 0, &[]).0, OK);
        }
        assert_eq!(fixture.block.metrics().read_latency.count(), 2);
    }
}

#[test]
fn recorder_outlives_reset_and_device() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::new(&config(scratch.path(), ENGINES[0]));
    let recorder = fixture.block.recorder();
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    fixture.reset();
    let metrics = recorder.metrics();
    assert_eq!((metrics.writes, metrics.written_bytes), (1, 512));
    assert_eq!(metrics, fixture.block.metrics());
    drop(fixture);
    assert_eq!(recorder.metrics(), metrics);
}

#[test]
fn batches_and_failures_are_counted() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(4, 1);
    let mut fixture = Fixture::new(&config);
    let before = fixture.block.metrics();
    fixture.block.notify(0);
    assert_eq!(fixture.read(SECTORS, 512).0, IOERR, "beyond the end");
    assert_eq!(fixture.run_one(99, 0, &[]).0, UNSUPP);
    assert_eq!(fixture.read(0, 512).0, OK);
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    let metrics = fixture.block.metrics();
    assert_eq!(metrics.notifications - before.notifications, 5);
    assert_eq!(metrics.empty_batches - before.empty_batches, 1);
    assert_eq!((metrics.errors, metrics.rejected), (2, 2));
    assert_eq!(
        (metrics.read_duration.timed, metrics.write_duration.timed),
        (1, 0)
    );
    for sector in 0..3 {
        let address = fixture.place(&[NONE; 512]);
        fixture.add(IN, sector, &[Buffer::writable(address, 512)]);
    }
    fixture.block.notify(0);
    let left = fixture.block.metrics();
    assert_eq!((left.throttled, left.left_requests), (1, 3));
    assert_eq!(left.empty_batches, metrics.empty_batches);
    let timer = fixture.block.watched_fds()[0];
    fixture.block.process_event(timer.token);
    assert_eq!(fixture.block.metrics().limiter_events, 1);
}

#[test]
fn failure_of_the_disk_is_not_rejected() {
    let mut fixture = Fixture::with_fake_disk("/dev/full", 1 << 20, IoEngine::Sync);
    assert_eq!(fixture.write(0, &[1; 512]), IOERR);
    let metrics = fixture.block.metrics();
    assert_eq!((metrics.errors, metrics.rejected), (1, 0));
}

#[test]
fn updates_are_counted() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::new(&config(scratch.path(), IoEngine::Sync));
    fixture.block.reopen(None).unwrap();
    let metrics = fixture.block.metrics();
    assert_eq!((metrics.updates, metrics.update_failures), (1, 0));
}
