//! Requests that take long, on a storage whose calls the test ends one by one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use scratch::{Requirement, require};

use super::{
    Buffer, DISCARD, ENGINES, FLUSH, Fixture, HOURS, IN, IOERR, IoEngine, NONE, OK, OUT, SECTORS, Scratch,
    WRITE_ZEROES, bucket,
};
use crate::lock;
use crate::virtio::block::disk::{Error, Storage};
use crate::virtio::block::extent::CHUNK_SIZE;
use crate::virtio::block::extent::{Extent, Pieces};
use crate::virtio::block::worker::FLUSH_SIZE;
use crate::virtio::device::VirtioDevice;

pub(super) const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read(Extent),
    Write(Extent),
    Discard(Extent),
    Zero(Extent),
    WriteBack(Extent),
    Flush,
}

/// A storage whose calls wait for a permit.
#[derive(Debug)]
pub(super) struct SlowStorage {
    file: File,
    pub(super) discard_pieces: Pieces,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    calls: Vec<Call>,
    ended: usize,
    permits: usize,
    fails: bool,
    /// Reads and writes transfer at most 100 bytes.
    is_short: bool,
    /// Bytes before this offset have no dirty page.
    clean: u64,
}

impl SlowStorage {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            file: File::options().read(true).write(true).open(path).unwrap(),
            discard_pieces: Pieces::CHUNKS,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn wait_until(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = lock(&self.state);
        let waited = self
            .changed
            .wait_timeout_while(state, LIMIT, |state| !condition(state));
        let (state, result) = waited.unwrap();
        assert!(!result.timed_out(), "the storage is stuck: {:?}", state.calls);
        state
    }

    fn call(&self, call: Call) -> io::Result<()> {
        lock(&self.state).calls.push(call);
        self.changed.notify_all();
        let mut state = self.wait_until(|state| state.permits > 0);
        state.permits -= 1;
        state.ended += 1;
        let fails = state.fails;
        drop(state);
        self.changed.notify_all();
        if fails {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            Ok(())
        }
    }

    pub(super) fn call_count(&self) -> usize {
        lock(&self.state).calls.len()
    }

    /// Waits for the start of call number `count`. Returns all calls.
    pub(super) fn expect_calls(&self, count: usize) -> Vec<Call> {
        self.wait_until(|state| state.calls.len() >= count).calls.clone()
    }

    /// Returns true if a write is among the calls, and forgets all of them.
    pub(super) fn has_written(&self) -> bool {
        let calls = std::mem::take(&mut lock(&self.state).calls);
        calls.iter().any(|call| matches!(call, Call::Write(_)))
    }

    pub(super) fn permit(&self, count: usize) {
        lock(&self.state).permits = count;
        self.changed.notify_all();
    }

    pub(super) fn set_short(&self) {
        lock(&self.state).is_short = true;
    }

    /// Returns the number of bytes that a transfer of `length` moves.
    fn count(&self, length: usize) -> usize {
        if lock(&self.state).is_short {
            length.min(100)
        } else {
            length
        }
    }

    pub(super) fn set_fails(&self, fails: bool) {
        lock(&self.state).fails = fails;
    }
}

impl Storage for SlowStorage {
    fn read(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(Call::Read(extent(offset, data.len() as u64)))?;
        let count = self.count(data.len());
        self.file.read_at(&mut data[..count], offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        self.call(Call::Write(extent(offset, data.len() as u64)))?;
        self.file.write_at(&data[..self.count(data.len())], offset)
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        self.call(Call::Discard(extent))
    }

    fn zero(&self, extent: Extent, _: bool) -> io::Result<()> {
        self.call(Call::Zero(extent))
    }

    fn write_back(&self, extent: Extent) -> io::Result<()> {
        self.call(Call::WriteBack(extent))
    }

    fn flush(&self) -> io::Result<()> {
        self.call(Call::Flush)
    }

    fn discard_pieces(&self) -> Pieces {
        self.discard_pieces
    }

    fn is_clean(&self, extent: Extent) -> bool {
        extent.offset + extent.length <= lock(&self.state).clean
    }
}

pub(super) const ALL: usize = usize::MAX;
/// Sectors of [`CHUNK_SIZE`].
pub(super) const CHUNK: u64 = CHUNK_SIZE / 512;

pub(super) fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

/// Creates a device on a disk of `sectors` whose storage is stuck.
pub(super) fn stuck(scratch: &Scratch, engine: IoEngine, sectors: u64) -> (Fixture, Arc<SlowStorage>) {
    scratch.set_len(sectors * 512);
    // Not as tmpfs, which has nothing to flush.
    let mut fixture = Fixture::with_fake_disk(scratch.path().to_str().unwrap(), sectors * 512, engine);
    let storage = Arc::new(SlowStorage::new(scratch.path()));
    fixture.block.executor.disk.storage = storage.clone();
    (fixture, storage)
}

impl Fixture {
    pub(super) fn add_segment(&mut self, kind: u32, sector: u64, count: u32) -> u64 {
        let mut data = sector.to_le_bytes().to_vec();
        data.extend(count.to_le_bytes());
        data.extend([0; 4]);
        let address = self.place(&data);
        self.add(kind, 0, &[Buffer::readable(address, 16)]).1
    }

    /// Adds a write of `length` bytes at sector 0, all of the same memory.
    fn add_large_write(&mut self, length: u32) -> u64 {
        let address = self.driver.buffers;
        self.add(OUT, 0, &[Buffer::readable(address, length)]).1
    }
}

#[test]
fn stuck_request_delays_no_call_of_device() {
    for engine in ENGINES {
        for kind in [FLUSH, DISCARD, WRITE_ZEROES] {
            let scratch = Scratch::empty();
            let (mut fixture, storage) = stuck(&scratch, engine, 4 * CHUNK);
            let status = match kind {
                FLUSH => fixture.add(FLUSH, 0, &[]).1,
                kind => fixture.add_segment(kind, 0, 4096),
            };
            // Each of these calls would wait for the storage, and fail the test by its limit.
            fixture.block.notify(0);
            storage.expect_calls(1);
            fixture.block.notify(0);
            assert_eq!(fixture.block.metrics().errors, 0);
            assert!(matches!(fixture.block.reopen(None), Err(Error::Busy)));
            assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 1));
            fixture.reset();
            assert_eq!(fixture.block.in_flight(), 0);
            fixture.activate(fixture.block.features());
            assert_eq!(fixture.read(0, 512), (OK, vec![0; 512]));
            // The next work starts after the current call.
            let status = fixture.add(FLUSH, 0, &[]).1;
            storage.permit(ALL);
            fixture.run(1);
            assert_eq!(fixture.status(status), OK);
            assert_eq!(fixture.block.metrics().flushes, 1);
        }
    }
}

#[test]
fn work_is_split_at_multiples_of_chunk() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 6 * CHUNK);
    storage.permit(ALL);
    let half = CHUNK / 2;
    let length = u32::try_from(3 * CHUNK).unwrap();
    let status = fixture.add_segment(DISCARD, half, length);
    let zeroed = fixture.add_segment(WRITE_ZEROES, CHUNK, 1);
    fixture.run(2);
    assert_eq!((fixture.status(status), fixture.status(zeroed)), (OK, OK));
    assert_eq!(
        storage.expect_calls(0),
        [
            Call::Discard(extent(CHUNK_SIZE / 2, CHUNK_SIZE / 2)),
            Call::Discard(extent(CHUNK_SIZE, CHUNK_SIZE)),
            Call::Discard(extent(2 * CHUNK_SIZE, CHUNK_SIZE)),
            Call::Discard(extent(3 * CHUNK_SIZE, CHUNK_SIZE / 2)),
            Call::Zero(extent(CHUNK_SIZE, 512)),
        ]
    );
    assert_eq!(fixture.block.metrics().discards, 2);
}

#[test]
fn discard_is_split_between_units_of_device() {
    for is_limited in [false, true] {
        let scratch = Scratch::empty();
        let (mut fixture, _) = stuck(&scratch, IoEngine::Sync, 16 * CHUNK);
        let mut storage = SlowStorage::new(scratch.path());
        storage.discard_pieces = Pieces::of_units(3 << 20, 1 << 20);
        let storage = Arc::new(storage);
        fixture.block.executor.disk.storage = storage.clone();
        storage.permit(ALL);
        if is_limited {
            fixture.block.update_limiter(None, bucket(100, HOURS));
        }
        let length = u32::try_from(8 * CHUNK).unwrap();
        let status = fixture.add_segment(DISCARD, 0, length);
        // Zeroes need no complete unit.
        let zeroed = fixture.add_segment(WRITE_ZEROES, 0, u32::try_from(2 * CHUNK).unwrap());
        fixture.run(2);
        assert_eq!((fixture.status(status), fixture.status(zeroed)), (OK, OK));
        let mib = |offset: u64, length: u64| extent(offset << 20, length << 20);
        let discards = [mib(0, 1), mib(1, 3), mib(4, 3), mib(7, 1)].map(Call::Discard);
        assert_eq!(storage.expect_calls(0)[..4], discards);
        let zeroes = [mib(0, 1), mib(1, 1)].map(Call::Zero);
        assert_eq!(storage.expect_calls(0)[4..], zeroes);
    }
}

#[test]
fn flush_writes_back_written_bytes_first() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 6 * CHUNK);
    storage.permit(ALL);
    // The first flush covers the complete disk.
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
    let all = [
        Call::WriteBack(extent(0, FLUSH_SIZE)),
        Call::WriteBack(extent(FLUSH_SIZE, 6 * CHUNK_SIZE - FLUSH_SIZE)),
        Call::Flush,
    ];
    assert_eq!(storage.expect_calls(3), all);
    assert_eq!(fixture.write(8, &[1; 4096]), OK);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
    assert_eq!(storage.expect_calls(4)[3..], [Call::Flush]);
    let statuses = [fixture.add_large_write(3 << 20), fixture.add_large_write(5 << 20)];
    fixture.run(2);
    assert_eq!(statuses.map(|status| fixture.status(status)), [OK, OK]);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
    let calls = [
        Call::WriteBack(extent(0, FLUSH_SIZE)),
        Call::WriteBack(extent(FLUSH_SIZE, 1 << 20)),
        Call::Flush,
    ];
    assert_eq!(storage.expect_calls(7)[4..], calls);
}

#[test]
fn first_flush_skips_clean_parts() {
    let scratch = Scratch::empty();
    let gib = 1 << 30;
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, (8 * gib + FLUSH_SIZE) / 512);
    lock(&storage.state).clean = 8 * gib;
    storage.permit(ALL);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
    let calls = [Call::WriteBack(extent(8 * gib, FLUSH_SIZE)), Call::Flush];
    assert_eq!(storage.expect_calls(0), calls);
}

#[test]
fn dirty_page_is_not_clean() {
    let scratch = Scratch::new(SECTORS * 512);
    let fixture = Fixture::on(&scratch, IoEngine::Sync);
    let disk = &fixture.block.executor.disk;
    let file = File::options().write(true).open(scratch.path()).unwrap();
    // Repeated: the host may write back the page at any time. A flush of tmpfs has no effect.
    let is_seen = (0..100).any(|_| {
        file.write_all_at(&[1], 512 * SECTORS - 1).unwrap();
        !disk.storage.is_clean(extent(0, SECTORS * 512))
    });
    assert!(is_seen || disk.is_in_memory());
}

#[test]
fn write_through_write_completes_after_flush() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.reset();
    fixture.activate(0);
    let address = fixture.place(&[7; 512]);
    let (_, status) = fixture.add(OUT, 1, &[Buffer::readable(address, 512)]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    assert_eq!(
        (fixture.status(status), fixture.block.metrics().writes),
        (NONE, 0)
    );
    storage.permit(ALL);
    fixture.run(1);
    assert_eq!((fixture.status(status), fixture.block.metrics().writes), (OK, 1));
    assert_eq!(scratch.contents()[512..1024], [7; 512]);
    storage.set_fails(true);
    assert_eq!(fixture.write(1, &[8; 512]), IOERR);
    assert_eq!(fixture.block.metrics().errors, 1);
}

#[test]
fn write_through_zeroes_complete_after_flush() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        let (mut fixture, storage) = stuck(&scratch, engine, SECTORS);
        let zero = Call::Zero(extent(0, 4096));
        let flush = [zero, Call::WriteBack(extent(0, 4096)), Call::Flush];
        for (features, calls) in [(fixture.block.features(), &flush[..1]), (0, &flush[..])] {
            fixture.reset();
            fixture.activate(features);
            let before = storage.expect_calls(0).len();
            let status = fixture.add_segment(WRITE_ZEROES, 0, 8);
            fixture.block.notify(0);
            for count in 1..=calls.len() {
                storage.expect_calls(before + count);
                fixture.block.notify(0);
                assert_eq!(
                    fixture.status(status),
                    NONE,
                    "completed before {:?}",
                    calls[count - 1]
                );
                storage.permit(1);
            }
            fixture.run(1);
            assert_eq!(fixture.status(status), OK);
            assert_eq!(storage.expect_calls(0)[before..], *calls);
        }
        let before = storage.expect_calls(0).len();
        let status = fixture.add_segment(WRITE_ZEROES, 0, 8);
        fixture.block.notify(0);
        storage.permit(2);
        storage.expect_calls(before + flush.len());
        storage.set_fails(true);
        storage.permit(ALL);
        fixture.run(1);
        assert_eq!(fixture.status(status), IOERR, "the flush has failed");
    }
}

#[test]
fn update_completes_ended_work() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        let (mut fixture, storage) = stuck(&scratch, engine, SECTORS);
        let (_, status) = fixture.add(FLUSH, 0, &[]);
        fixture.block.notify(0);
        storage.permit(ALL);
        assert!(fixture.block.executor.is_worker_idle(LIMIT));
        assert_eq!(fixture.status(status), NONE);
        fixture.block.reopen(None).unwrap();
        assert_eq!(fixture.status(status), OK);
        assert_eq!(fixture.driver.queues[0].collect_used().len(), 1);
    }
}

#[test]
fn reset_clears_event_of_ended_work() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.add(FLUSH, 0, &[]);
    fixture.block.notify(0);
    storage.permit(ALL);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    assert!(!fixture.is_idle());
    fixture.reset();
    assert!(fixture.is_idle());
}

#[test]
fn update_during_cancelled_call_is_busy() {
    for engine in ENGINES {
        let scratch = Scratch::empty();
        let (mut fixture, storage) = stuck(&scratch, engine, 4 * CHUNK);
        fixture.add_segment(DISCARD, 0, 8);
        fixture.block.notify(0);
        storage.expect_calls(1);
        fixture.reset();
        // The worker still uses the disk.
        assert_eq!(fixture.block.in_flight(), 0);
        assert!(matches!(fixture.block.reopen(None), Err(Error::Busy)));
        storage.permit(ALL);
        assert!(fixture.block.executor.is_worker_idle(LIMIT));
        fixture.block.reopen(None).unwrap();
    }
}

#[test]
fn cancelled_work_ends_after_current_call() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 8 * CHUNK);
    fixture.add_segment(DISCARD, 0, 8 * 2048);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.reset();
    storage.permit(ALL);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    assert_eq!(storage.expect_calls(1).len(), 1);
}

#[test]
fn drop_cancels_work() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 2048 * CHUNK);
    fixture.add_segment(DISCARD, 0, 1 << 22);
    fixture.block.notify(0);
    storage.expect_calls(1);
    let Fixture { block, .. } = fixture;
    let dropped = std::thread::spawn(move || drop(block));
    // The drop needs the end of a few calls, not of all 2048.
    scratch::wait_until("the end of the drop", || {
        storage.permit(1);
        dropped.is_finished()
    });
    assert!(storage.expect_calls(1).len() < 2048);
}

#[test]
fn sync_request_waits_for_work_before_it() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 4 * CHUNK);
    let discard = fixture.add_segment(DISCARD, 0, 8);
    let address = fixture.place(&[NONE; 512]);
    let (_, read) = fixture.add(IN, 0, &[Buffer::writable(address, 512)]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.block.notify(0);
    assert_eq!((fixture.status(discard), fixture.status(read)), (NONE, NONE));
    storage.permit(ALL);
    fixture.run(2);
    assert_eq!((fixture.status(discard), fixture.status(read)), (OK, OK));
}

#[test]
fn writes_during_flush_are_limited() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Async, 16 * CHUNK);
    if !require(Requirement::IoUring) {
        return;
    }
    fixture.add(FLUSH, 0, &[]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    for _ in 0..6 {
        fixture.add_large_write(4 << 20);
        fixture.block.notify(0);
    }
    // 16 MiB are written; the others wait for the flush.
    assert_eq!(fixture.driver.queues[0].collect_used().len(), 4);
    storage.permit(ALL);
    assert_eq!(fixture.run(3).len(), 3);
}

#[test]
fn write_through_writes_during_flush_are_limited() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, 16 * CHUNK);
    fixture.reset();
    fixture.activate(0);
    for _ in 0..8 {
        fixture.add_large_write(4 << 20);
    }
    for _ in 0..8 {
        fixture.block.notify(0);
        storage.expect_calls(1);
    }
    // The flush of the first write is in flight, and 16 MiB were written since its begin.
    assert_eq!(fixture.block.queue_states()[0].next_avail, 5);
    storage.permit(ALL);
    fixture.run(8);
}

#[test]
fn one_flush_completes_waiting_flushes() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Async, SECTORS);
    let write_back = Call::WriteBack(extent(0, SECTORS * 512));
    fixture.add(FLUSH, 0, &[]);
    fixture.block.notify(0);
    assert_eq!(storage.expect_calls(1), [write_back]);
    for _ in 0..3 {
        fixture.add(FLUSH, 0, &[]);
    }
    fixture.block.notify(0);
    storage.permit(ALL);
    fixture.run(4);
    assert_eq!(storage.expect_calls(3), [write_back, Call::Flush, Call::Flush]);
    assert_eq!(fixture.block.metrics().flushes, 4);
}

#[test]
fn failure_of_cancelled_flush_fails_next() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.add(FLUSH, 0, &[]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.reset();
    storage.set_fails(true);
    storage.permit(1);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    storage.set_fails(false);
    fixture.activate(fixture.block.features());
    // Other work, cancelled or not, neither reports the error nor forgets it.
    fixture.add_segment(DISCARD, 0, 8);
    fixture.block.notify(0);
    storage.expect_calls(2);
    fixture.reset();
    storage.permit(ALL);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    fixture.activate(fixture.block.features());
    assert_eq!(fixture.run_segments(DISCARD, &[(0, 8, 0)]), OK);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, IOERR);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
}

#[test]
fn failure_of_cancelled_write_through_zeroes_fails_next_flush() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    fixture.reset();
    fixture.activate(0);
    fixture.add_segment(WRITE_ZEROES, 0, 8);
    fixture.block.notify(0);
    storage.expect_calls(1);
    storage.permit(1);
    assert_eq!(storage.expect_calls(2)[1], Call::WriteBack(extent(0, 4096)));
    fixture.reset();
    storage.set_fails(true);
    storage.permit(1);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    storage.set_fails(false);
    storage.permit(ALL);
    fixture.activate(fixture.block.features());
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, IOERR);
    assert_eq!(fixture.run_one(FLUSH, 0, &[]).0, OK);
}

#[test]
fn requests_in_flight_are_limited() {
    let scratch = Scratch::empty();
    let (mut fixture, storage) = stuck(&scratch, IoEngine::Sync, SECTORS);
    let (head, _) = fixture.add(FLUSH, 0, &[]);
    for _ in 1..256 {
        fixture.driver.queues[0].make_available(head);
    }
    fixture.block.notify(0);
    storage.expect_calls(1);
    for _ in 0..100 {
        fixture.driver.queues[0].make_available(head);
    }
    for _ in 0..3 {
        fixture.block.notify(0);
        assert_eq!(fixture.block.in_flight(), 256);
    }
    storage.permit(ALL);
    fixture.run(356);
    assert!(!fixture.interrupt.is_reset_needed());
}
