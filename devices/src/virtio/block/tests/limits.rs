use std::time::Duration;

use super::{
    Bench, DISCARD, ENGINES, FLUSH, GET_ID, HOURS, IN, NONE, OK, OUT, Piece, SECTORS, Scratch, WRITE_ZEROES,
    bucket, config,
};
use crate::virtio::block::IoEngine;
use crate::virtio::device::VirtioDevice;

#[test]
fn a_throttled_request_waits_for_the_timer() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.operations = bucket(2, 2);
        let mut bench = Bench::new(&config);
        let mut statuses = Vec::new();
        for sector in 0..3 {
            let address = bench.place(&[NONE; 512]);
            statuses.push(bench.add(IN, sector, &[Piece::writable(address, 512)]).1);
        }
        bench.block.notify(0);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 2);
        assert_eq!(bench.status(statuses[2]), NONE);
        assert_eq!(bench.block.metrics().throttled, 1);
        let [timer, _] = bench.block.watched_fds()[..] else {
            panic!("a timer and an eventfd");
        };
        assert!(bench.polled(timer.descriptor, 60_000));
        bench.clock.advance(Duration::from_millis(1));
        bench.block.process_event(timer.token);
        assert_eq!(bench.driver.queues[0].collect_used().len(), 1);
        assert_eq!(bench.status(statuses[2]), OK);
        assert!(!bench.polled(timer.descriptor, 0));
    }
}

#[test]
fn bytes_are_limited_too_until_the_limit_is_taken_away() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.bandwidth = bucket(4096, HOURS);
        let mut bench = Bench::new(&config);
        assert_eq!(bench.read(0, 4096).0, OK);
        // No bytes of its own.
        assert_eq!(bench.one(FLUSH, 0, &[]).0, OK);
        assert_eq!(bench.write_later(&[8; 512]), 0);
        bench.block.update_limiter(bucket(0, 0), None);
        assert_eq!(bench.run(1).len(), 1);
        assert_eq!(scratch.contents()[..512], [8; 512]);
    }
}

impl Bench {
    /// Adds a write at sector 0 and notifies. Returns how many requests are used.
    fn write_later(&mut self, data: &[u8]) -> usize {
        let address = self.place(data);
        let length = u32::try_from(data.len()).unwrap();
        self.add(OUT, 0, &[Piece::readable(address, length)]);
        self.block.notify(0);
        self.driver.queues[0].collect_used().len()
    }
}

#[test]
fn a_throttled_queue_wakes_nobody() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(1, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.read(0, 512).0, OK);
    assert_eq!(bench.write_later(&[1; 512]), 0);
    assert!(bench.is_idle());
    bench.reset();
    assert!(bench.is_idle());
}

/// Whether a request of `kind` for `segments` leaves anything of a bucket with `size` bytes.
fn passes_whole(kind: u32, segments: &[(u64, u32, u32)], size: u64) -> bool {
    let scratch = Scratch::empty();
    scratch.set_len(64 << 20);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.bandwidth = bucket(size, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.segments(kind, segments), OK);
    bench.write_later(&[1; 512]) == 1
}

#[test]
fn zeros_count_as_what_they_would_be() {
    let two = [(0, 8192, 0), (8192, 8192, 1)];
    assert!(!passes_whole(WRITE_ZEROES, &two, (8 << 20) + 511));
    assert!(passes_whole(WRITE_ZEROES, &two, (8 << 20) + 512));
}

#[test]
fn a_discard_counts_as_its_ends() {
    let two = [(0, 8192, 0), (8192, 8, 0)];
    assert!(!passes_whole(DISCARD, &two, 8192 + 4096 + 511));
    assert!(passes_whole(DISCARD, &two, 8192 + 4096 + 512));
}

#[test]
fn a_request_that_waits_waits_once() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(1, HOURS);
    let mut bench = Bench::new(&config);
    assert_eq!(bench.one(GET_ID, 0, &[]).0, OK);
    assert_eq!(bench.write_later(&[1; 512]), 0);
    for _ in 0..10 {
        bench.block.notify(0);
    }
    assert_eq!(bench.block.metrics().throttled, 1);
}

/// How many of 40 requests of `kind`, added at once, one turn does; with `features`.
fn of_a_turn(features: u64, kind: u32, data: &[u8]) -> usize {
    let scratch = Scratch::new(SECTORS * 512);
    let mut bench = Bench::on(&scratch, IoEngine::Sync);
    bench.reset();
    bench.activate(features);
    let address = bench.place(data);
    let piece = Piece::readable(address, u32::try_from(data.len()).unwrap());
    for _ in 0..40 {
        bench.add(kind, 0, &[piece]);
    }
    bench.block.notify(0);
    let done = bench.driver.queues[0].collect_used().len();
    // The rest is done by the event loop.
    bench.run(40 - done);
    done
}

#[test]
fn a_turn_waits_for_the_medium_only_so_often() {
    let through = 0;
    let flushes = 1 << 9;
    assert_eq!(of_a_turn(flushes, FLUSH, &[]), 16);
    assert_eq!(of_a_turn(flushes, OUT, &[1; 512]), 40);
    assert_eq!(of_a_turn(through, OUT, &[1; 512]), 16);
    let segment = [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(of_a_turn(flushes, DISCARD, &segment), 16);
    assert_eq!(of_a_turn(flushes, DISCARD, &segment.repeat(16)), 1);
    assert_eq!(of_a_turn(flushes, WRITE_ZEROES, &segment), 40);
}
