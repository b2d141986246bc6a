//! Requests that a snapshot suspends, on a storage whose calls the test ends one by one.

use std::sync::mpsc;
use std::time::Duration;

use scratch::{Requirement, require};
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::uring::{replace_uring, stop_uring};
use super::worker::{ALL, CHUNK, Call, LIMIT, SlowStorage, extent, stuck};
use super::{
    Buffer, DISCARD, ENGINES, FLUSH, Fixture, GET_ID, IN, IoEngine, NONE, OK, OUT, SECTORS, Scratch,
    WRITE_ZEROES, bucket,
};
use crate::virtio::block::UnfinishedState;
use crate::virtio::block::extent::CHUNK_SIZE;
use crate::virtio::block::transfer::Unfinished;
use crate::virtio::device::VirtioDevice;

/// Sectors of a discard of four pieces.
const FOUR: u32 = 4 * 2048;

/// Starts a request of four pieces, of which two calls have ended and the third is stuck.
fn start_of_four(fixture: &mut Fixture, storage: &SlowStorage, kind: u32) -> u64 {
    let status = fixture.add_segment(kind, 0, FOUR);
    fixture.block.notify(0);
    storage.permit(2);
    storage.expect_calls(3);
    status
}

#[test]
fn suspended_discards_and_zeroes_continue_after_their_pieces() {
    for engine in ENGINES {
        for kind in [DISCARD, WRITE_ZEROES] {
            let scratch = Scratch::empty();
            let (mut fixture, storage) = stuck(&scratch, engine, 8 * CHUNK);
            let first = start_of_four(&mut fixture, &storage, kind);
            let second = fixture.add_segment(kind, 4 * CHUNK, 8);
            let address = fixture.place(&[NONE; 512]);
            // With the asynchronous engine, it ends before them.
            let (_, read) = fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
            fixture.block.notify(0);
            assert!(fixture.block.save().is_err());
            fixture.reload();
            let is_async = fixture.block.engine() == IoEngine::Async;
            let expected = [2 * CHUNK_SIZE, 0, 0];
            assert_eq!(fixture.unfinished(), expected[..if is_async { 2 } else { 3 }]);
            assert_eq!((fixture.status(first), fixture.status(second)), (NONE, NONE));
            storage.permit(ALL);
            fixture.run(3);
            assert_eq!(
                [first, second, read].map(|status| fixture.status(status)),
                [OK; 3]
            );
            let pieces = [0, 1, 2, 2, 3].map(|number| extent(number * CHUNK_SIZE, CHUNK_SIZE));
            let extents = pieces.into_iter().chain([extent(4 * CHUNK_SIZE, 4096)]);
            let expected: Vec<_> = extents
                .map(|extent| match kind {
                    DISCARD => Call::Discard(extent),
                    _ => Call::Zero(extent),
                })
                .collect();
            let is_change = |call: &Call| !matches!(call, Call::Read(_));
            let mut calls = storage.expect_calls(0);
            calls.retain(is_change);
            assert_eq!(calls, expected);
        }
    }
}

#[test]
fn suspension_waits_for_current_call() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 2048 * CHUNK);
    fixture.add_segment(DISCARD, 0, 1 << 22);
    fixture.block.notify(0);
    storage.expect_calls(1);
    let worker = fixture.block.executor.worker.as_mut().unwrap();
    let (sender, receiver) = mpsc::channel();
    let mut unfinished = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(worker.suspend(LIMIT)));
        // The suspension begins during one of the calls, and needs its end.
        scratch::wait_until("the suspension", || {
            storage.permit(1);
            unfinished = receiver.try_recv().unwrap_or_default();
            !unfinished.is_empty()
        });
    });
    let calls = u64::try_from(storage.call_count()).unwrap();
    assert!(calls < 2048, "the discard has ended");
    assert_eq!(unfinished[0].done, calls * CHUNK_SIZE);
}

#[test]
fn suspended_write_through_zeroes_flush() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.reset();
    fixture.activate(0);
    let status = fixture.add_segment(WRITE_ZEROES, 0, 8);
    fixture.block.notify(0);
    storage.permit(1);
    storage.expect_calls(2);
    fixture.block.drain();
    assert_eq!(fixture.unfinished(), [4096]);
    storage.permit(ALL);
    fixture.run(1);
    assert_eq!(fixture.status(status), OK);
    let write_back = Call::WriteBack(extent(0, 4096));
    assert_eq!(
        storage.expect_calls(3),
        [Call::Zero(extent(0, 4096)), write_back, Call::Flush]
    );
}

#[test]
fn suspended_discard_waits_for_rate_limiter() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        let (mut fixture, storage) = stuck(&scratch, engine, 4 * CHUNK);
        storage.permit(ALL);
        fixture.block.update_limiter(None, bucket(2, 1000));
        let status = fixture.add_segment(DISCARD, 0, FOUR);
        fixture.block.notify(0);
        fixture.reload();
        assert_eq!(fixture.unfinished(), [2 * CHUNK_SIZE]);
        fixture.process_events(0);
        assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 0));
        fixture.clock.advance(Duration::from_secs(1));
        fixture.run(1);
        assert_eq!(fixture.status(status), OK);
        let pieces = [0, 1, 2, 3].map(|number| Call::Discard(extent(number * CHUNK_SIZE, CHUNK_SIZE)));
        assert_eq!(storage.expect_calls(0), pieces);
    }
}

#[test]
fn repeated_snapshots_complete_long_discard() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        let (mut fixture, storage) = stuck(&scratch, engine, 4 * CHUNK);
        let status = fixture.add_segment(DISCARD, 0, FOUR);
        fixture.block.notify(0);
        // Each interval has time for one call beside the stuck one.
        for number in 1..=3 {
            storage.permit(1);
            storage.expect_calls(2 * number);
            fixture.reload();
            assert_eq!(
                fixture.unfinished(),
                [u64::try_from(number).unwrap() * CHUNK_SIZE]
            );
            storage.permit(1);
            fixture.process_events(0);
            storage.expect_calls(2 * number + 1);
        }
        storage.permit(ALL);
        fixture.run(1);
        assert_eq!(fixture.status(status), OK);
    }
}

#[test]
fn suspended_flush_precedes_later_requests() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    let (flush_head, flush) = fixture.add(FLUSH, 0, &[]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.reload();
    assert_eq!(fixture.unfinished(), [0]);
    let (id_head, id) = fixture.add(GET_ID, 0, &[]);
    storage.permit(ALL);
    let heads: Vec<_> = fixture.run(2).iter().map(|used| used.head).collect();
    assert_eq!(heads, [flush_head, id_head].map(u32::from));
    assert_eq!((fixture.status(flush), fixture.status(id)), (OK, OK));
}

#[test]
fn replaced_disk_restarts_suspended_request() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 8 * CHUNK);
    start_of_four(&mut fixture, &storage, WRITE_ZEROES);
    fixture.block.drain();
    assert_eq!(fixture.unfinished(), [2 * CHUNK_SIZE]);
    storage.permit(ALL);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    let other = Scratch::empty();
    let length = 8 * CHUNK_SIZE;
    std::fs::write(other.path(), vec![1; usize::try_from(length).unwrap()]).unwrap();
    fixture.block.reopen(None).unwrap();
    assert_eq!(fixture.unfinished(), [2 * CHUNK_SIZE]);
    fixture.block.reopen(Some(other.path())).unwrap();
    assert_eq!(fixture.unfinished(), [0]);
    fixture.run(1);
    let zeroed = usize::try_from(4 * CHUNK_SIZE).unwrap();
    assert!(other.contents()[..zeroed].iter().all(|byte| *byte == 0));
}

#[test]
fn reset_forgets_suspended_requests() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 8 * CHUNK);
    start_of_four(&mut fixture, &storage, DISCARD);
    fixture.block.drain();
    fixture.reset();
    fixture.activate(fixture.block.features());
    assert!(fixture.unfinished().is_empty());
    storage.permit(ALL);
    assert_eq!(fixture.read(0, 512).0, OK);
}

/// Restores `count` requests with head 0xffff in the device of `fixture`.
fn restore(fixture: &mut Fixture, count: usize) -> Result<(), String> {
    let mut archive = ArchiveWriter::new();
    let state = fixture.block.save().unwrap();
    archive.write("drive", &state).unwrap();
    let request = Unfinished {
        head: u16::MAX,
        done: u64::MAX,
    };
    let unfinished = UnfinishedState(vec![request; count]);
    archive.write("drive/unfinished", &unfinished).unwrap();
    let bytes = archive.into_bytes();
    let mut archive = ArchiveReader::parse(&bytes).unwrap();
    let restored = fixture.block.restore_section("drive", &mut archive);
    restored.map_err(|error| error.to_string())
}

#[test]
fn invalid_suspended_requests_are_harmless() {
    let scratch = Scratch::new(SECTORS * 512);
    let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
    let error = restore(&mut fixture, 257).unwrap_err();
    assert!(error.contains("257 requests"), "{error}");
    restore(&mut fixture, 256).unwrap();
    fixture.block.notify(0);
    assert!(fixture.interrupt.is_reset_needed());
    fixture.block.drain();
    fixture.reset();
    let error = restore(&mut fixture, 1).unwrap_err();
    assert!(error.contains("not active"), "{error}");
}

#[test]
fn completed_bytes_beyond_request_are_harmless() {
    for kind in [IN, OUT, FLUSH, GET_ID, DISCARD, 99] {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::on(&scratch, IoEngine::Sync);
        let address = fixture.place(&[NONE; 512]);
        let data = match kind {
            IN | GET_ID => Buffer::writable(address, 512),
            _ => Buffer::readable(address, 512),
        };
        let (head, status) = fixture.add(kind, 0, &[data]);
        let unfinished = UnfinishedState(vec![Unfinished { head, done: u64::MAX }]);
        fixture.block.restore_unfinished(unfinished).unwrap();
        fixture.run(2);
        assert_ne!(fixture.status(status), NONE);
        assert_eq!(scratch.contents().len(), 64 * 512);
    }
}

#[test]
fn requests_in_flight_are_limited_with_both_engines() {
    if !require(Requirement::IoUring) {
        return;
    }
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Async, SECTORS);
    fixture.reset();
    fixture.activate(0);
    let address = fixture.place(&[1; 512]);
    let (flush, _) = fixture.add(FLUSH, 0, &[]);
    let (write, _) = fixture.add(OUT, 0, &[Buffer::readable(address, 512)]);
    let ring = stop_uring(&fixture);
    for head in [flush, write] {
        for _ in 0..200 {
            fixture.driver.queues[0].make_available(head);
        }
        fixture.block.notify(0);
    }
    assert_eq!(fixture.block.in_flight(), 256);
    replace_uring(&fixture, &ring);
    fixture.reset();
    storage.permit(ALL);
}
