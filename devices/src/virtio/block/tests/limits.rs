use std::sync::Arc;
use std::time::Duration;

use super::worker::{ALL, SlowStorage};
use super::{
    Buffer, DISCARD, ENGINES, FLUSH, Fixture, GET_ID, HOURS, IN, NONE, OK, OUT, SECTORS, Scratch,
    WRITE_ZEROES, bucket, config,
};
use crate::virtio::block::IoEngine;
use crate::virtio::block::extent::CHUNK_SIZE;
use crate::virtio::device::VirtioDevice;

#[test]
fn throttled_request_waits_for_timer() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.operations = bucket(2, 2);
        let mut fixture = Fixture::new(&config);
        let mut statuses = Vec::new();
        for sector in 0..3 {
            let address = fixture.place(&[NONE; 512]);
            statuses.push(fixture.add(IN, sector, &[Buffer::writable(address, 512)]).1);
        }
        fixture.block.notify(0);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 2);
        assert_eq!(fixture.status(statuses[2]), NONE);
        assert_eq!(fixture.block.metrics().throttled, 1);
        let [timer, _] = fixture.block.watched_fds()[..] else {
            panic!("the device has not exactly two descriptors");
        };
        assert!(fixture.is_readable(timer.descriptor, 60_000));
        fixture.clock.advance(Duration::from_millis(1));
        fixture.block.process_event(timer.token);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
        assert_eq!(fixture.status(statuses[2]), OK);
        assert!(!fixture.is_readable(timer.descriptor, 0));
    }
}

#[test]
fn bandwidth_limit_ends_with_update() {
    for engine in ENGINES {
        let scratch = Scratch::new(SECTORS * 512);
        let mut config = config(scratch.path(), engine);
        config.bandwidth = bucket(4096, HOURS);
        let mut fixture = Fixture::new(&config);
        assert_eq!(fixture.read(0, 4096).0, OK);
        // A flush consumes no bytes.
        assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
        assert_eq!(fixture.add_write(&[8; 512]), 0);
        fixture.block.update_limiter(bucket(0, 0), None);
        assert_eq!(fixture.run(1).len(), 1);
        assert_eq!(scratch.contents()[..512], [8; 512]);
    }
}

impl Fixture {
    /// Adds a write at sector 0 and notifies. Returns the number of used chains.
    fn add_write(&mut self, data: &[u8]) -> usize {
        let address = self.place(data);
        let length = u32::try_from(data.len()).unwrap();
        self.add(OUT, 0, &[Buffer::readable(address, length)]);
        self.block.notify(0);
        self.driver.queues[0].collect_used().len()
    }
}

#[test]
fn throttled_queue_makes_no_descriptor_ready() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(1, HOURS);
    let mut fixture = Fixture::new(&config);
    assert_eq!(fixture.read(0, 512).0, OK);
    assert_eq!(fixture.add_write(&[1; 512]), 0);
    assert!(fixture.is_idle());
    fixture.reset();
    assert!(fixture.is_idle());
}

#[test]
fn reset_keeps_tokens_and_ends_wait() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    // The timer expires after a millisecond; the clock of the limiter stands still.
    config.operations = bucket(1, 1);
    let mut fixture = Fixture::new(&config);
    assert_eq!(fixture.read(0, 512).0, OK);
    assert_eq!(fixture.add_write(&[1; 512]), 0);
    let [timer, _] = fixture.block.watched_fds()[..] else {
        panic!("the device has not exactly two descriptors");
    };
    assert!(fixture.is_readable(timer.descriptor, 60_000));
    fixture.reset();
    assert!(fixture.is_idle(), "the wait of a request survives its reset");
    fixture.activate(fixture.block.features());
    assert_eq!(fixture.add_write(&[1; 512]), 0, "a reset refills the bucket");
    assert_eq!(fixture.block.metrics().throttled, 2);
}

/// Returns true if a request of `kind` for `segments` leaves 512 bytes in a bucket of `size` bytes.
fn leaves_sector(kind: u32, segments: &[(u64, u32, u32)], size: u64) -> bool {
    let scratch = Scratch::empty();
    scratch.set_len(64 << 20);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.bandwidth = bucket(size, HOURS);
    let mut fixture = Fixture::new(&config);
    assert_eq!(fixture.run_segments(kind, segments), OK);
    fixture.add_write(&[1; 512]) == 1
}

#[test]
fn write_zeroes_consumes_its_length() {
    let two = [(0, 8192, 0), (8192, 8192, 1)];
    assert!(!leaves_sector(WRITE_ZEROES, &two, (8 << 20) + 511));
    assert!(leaves_sector(WRITE_ZEROES, &two, (8 << 20) + 512));
}

#[test]
fn discard_consumes_partial_blocks_of_each_piece() {
    let two = [(0, 8192, 0), (8192, 8, 0)];
    let consumed = 4 * 8192 + 4096;
    assert!(!leaves_sector(DISCARD, &two, consumed + 511));
    assert!(leaves_sector(DISCARD, &two, consumed + 512));
}

#[test]
fn pieces_wait_for_operations() {
    for engine in ENGINES {
        for kind in [DISCARD, WRITE_ZEROES] {
            let scratch = Scratch::empty();
            scratch.set_len(8 << 20);
            let mut config = config(scratch.path(), engine);
            config.operations = bucket(2, 2);
            let mut fixture = Fixture::new(&config);
            let storage = Arc::new(SlowStorage::new(scratch.path()));
            fixture.block.executor.disk.storage = storage.clone();
            storage.permit(ALL);
            let status = fixture.add_segment(kind, 2048, 3 * 2048);
            fixture.block.notify(0);
            let [timer, wake] = fixture.block.watched_fds()[..] else {
                panic!("the device has not exactly two descriptors");
            };
            for _ in 0..2 {
                assert!(fixture.is_readable(wake.descriptor, 60_000));
                fixture.block.process_event(wake.token);
            }
            assert_eq!(storage.expect_calls(0).len(), 2, "the third piece needs a token");
            // It must not overtake the piece.
            let (_, id) = fixture.add(GET_ID, 0, &[]);
            fixture.block.notify(0);
            assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 1));
            assert_eq!(fixture.block.metrics().throttled, 1);
            assert!(fixture.is_readable(timer.descriptor, 60_000));
            fixture.clock.advance(Duration::from_millis(1));
            fixture.block.process_event(timer.token);
            storage.expect_calls(3);
            assert!(fixture.is_readable(wake.descriptor, 60_000));
            fixture.block.process_event(wake.token);
            assert_eq!((fixture.status(status), fixture.status(id)), (OK, NONE));
            fixture.clock.advance(Duration::from_millis(1));
            assert_eq!(fixture.run(2).len(), 2);
            assert_eq!(fixture.status(id), OK);
            assert_eq!(fixture.block.metrics().discards, 1);
        }
    }
}

#[test]
fn drain_and_reset_end_wait_of_piece() {
    for drains in [true, false] {
        let scratch = Scratch::empty();
        scratch.set_len(8 << 20);
        let mut config = config(scratch.path(), IoEngine::Sync);
        config.operations = bucket(1, HOURS);
        let mut fixture = Fixture::new(&config);
        let status = fixture.add_segment(DISCARD, 0, 2 * 2048);
        fixture.block.notify(0);
        let wake = fixture.block.watched_fds()[1];
        assert!(fixture.is_readable(wake.descriptor, 60_000));
        fixture.block.process_event(wake.token);
        assert_eq!(fixture.block.in_flight(), 1);
        if drains {
            fixture.block.drain();
            assert_eq!(fixture.unfinished(), [CHUNK_SIZE]);
            fixture.block.update_limiter(None, bucket(0, 0));
            fixture.run(1);
            assert_eq!(fixture.status(status), OK);
        } else {
            fixture.reset();
            fixture.block.update_limiter(None, bucket(0, 0));
            fixture.activate(fixture.block.features());
            assert_eq!(fixture.run_one(GET_ID, 0, &[]).0, OK);
        }
        assert_eq!(fixture.block.in_flight(), 0);
    }
}

#[test]
fn throttled_request_counts_once() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut config = config(scratch.path(), IoEngine::Sync);
    config.operations = bucket(1, HOURS);
    let mut fixture = Fixture::new(&config);
    assert_eq!(fixture.run_one(GET_ID, 0, &[]).0, OK);
    assert_eq!(fixture.add_write(&[1; 512]), 0);
    for _ in 0..10 {
        fixture.block.notify(0);
    }
    assert_eq!(fixture.block.metrics().throttled, 1);
}

/// Returns the number of chains that one batch pops, of 40 available reads of `length` bytes.
fn batch_length(length: u32) -> u16 {
    let scratch = Scratch::empty();
    scratch.set_len(8 << 20);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    let address = fixture.next;
    fixture.next += u64::from(length);
    for _ in 0..40 {
        fixture.add(IN, 0, &[Buffer::writable(address, length)]);
    }
    fixture.block.notify(0);
    let popped = fixture.block.queue_states()[0].next_avail;
    // The event loop processes the rest.
    fixture.run(40);
    popped
}

#[test]
fn batch_limits_copied_bytes() {
    assert_eq!(batch_length(512), 40);
    assert_eq!(batch_length(4 << 20), 4);
    assert_eq!(batch_length(3 << 20), 6);
}
