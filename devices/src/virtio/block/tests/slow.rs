//! Reads and writes that wait for the disk: on a storage whose calls the test ends one by one, or in a pipe without data.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scratch::{Requirement, require};

use super::lifetime::uncached;
use super::worker::{ALL, Call, LIMIT, SlowStorage, extent};
use super::{Block, Buffer, Fixture, GET_ID, IN, IoEngine, NONE, OK, OUT, SECTORS, Scratch, config, pattern};
use crate::medium::Medium;
use crate::testing::ManualClock;
use crate::virtio::block::disk::{Disk, DiskFile, DiskOptions, Error};
use crate::virtio::block::extent::Pieces;
use crate::virtio::block::transfer::{MAX_BUFFERED, PIECE_SIZE};
use crate::virtio::device::VirtioDevice;

/// Limit of a call that does not wait for the disk, with a margin for a busy host.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Creates a disk on `file` with `size` bytes of which no call completes at once.
fn remote_disk(file: File, size: u64) -> Disk {
    let inode = file.metadata().unwrap();
    let file = DiskFile {
        file,
        is_block_device: false,
        block_size: 1,
        discard_pieces: Pieces::CHUNKS,
        medium: Medium::Remote,
        inode,
    };
    let disk = Disk::new(file, "disk".into(), size, DiskOptions::default());
    disk.pace.lacks_nowait_reads.set(true);
    disk.pace.lacks_nowait_writes.set(true);
    disk
}

fn fixture_on(disk: Disk, engine: IoEngine) -> Fixture {
    let clock = ManualClock::default();
    let config = config(disk.path(), engine);
    Fixture::of(Block::new(disk, &config, Box::new(clock.clone())).unwrap(), clock)
}

/// Creates a device of the synchronous engine on `scratch`, whose storage is stuck.
fn stuck(scratch: &Scratch) -> (Fixture, Arc<SlowStorage>) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(scratch.path())
        .unwrap();
    let size = file.metadata().unwrap().len();
    let mut fixture = fixture_on(remote_disk(file, size), IoEngine::Sync);
    let storage = Arc::new(SlowStorage::new(scratch.path()));
    fixture.block.executor.disk.storage = storage.clone();
    (fixture, storage)
}

impl Fixture {
    /// Adds a read or write of `length` bytes at `sector`. Returns the addresses of status and data.
    fn add_transfer(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u64, u64) {
        let address = self.place(data);
        let length = u32::try_from(data.len()).unwrap();
        // Two buffers, of which the first ends within a sector.
        let split = length / 3;
        let data = match kind {
            IN => [
                Buffer::writable(address, split),
                Buffer::writable(address + u64::from(split), length - split),
            ],
            _ => [
                Buffer::readable(address, split),
                Buffer::readable(address + u64::from(split), length - split),
            ],
        };
        (self.add(kind, sector, &data).1, address)
    }
}

#[test]
fn stuck_transfer_delays_no_call_of_device() {
    for kind in [IN, OUT] {
        let scratch = Scratch::new(SECTORS * 512);
        let (mut fixture, storage) = stuck(&scratch);
        let (status, _) = fixture.add_transfer(kind, 1, &[7; 1024]);
        // Each of these calls would wait for the storage, and fail the test by its limit.
        fixture.block.notify(0);
        storage.expect_calls(1);
        fixture.block.notify(0);
        assert!(matches!(fixture.block.reopen(None), Err(Error::Busy)));
        assert_eq!(fixture.block.metrics().update_failures, 1);
        assert_eq!((fixture.status(status), fixture.block.in_flight()), (NONE, 1));
        fixture.reset();
        assert_eq!(fixture.block.in_flight(), 0);
        fixture.activate(fixture.block.features());
        let (status, _) = fixture.add_transfer(OUT, 1, &[9; 1024]);
        fixture.block.notify(0);
        // The write follows the abandoned call, which could overwrite it otherwise.
        assert_eq!(storage.expect_calls(1).len(), 1);
        storage.permit(ALL);
        fixture.run(1);
        assert_eq!(fixture.status(status), OK);
        assert_eq!(scratch.contents()[512..1536], [9; 1024]);
        assert_eq!(fixture.block.executor.worker.as_ref().unwrap().buffered(), 0);
    }
}

#[test]
fn abandoned_read_changes_no_guest_memory() {
    let scratch = Scratch::new(SECTORS * 512);
    let (mut fixture, storage) = stuck(&scratch);
    let (status, data) = fixture.add_transfer(IN, 0, &[NONE; 1024]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    fixture.reset();
    storage.permit(ALL);
    assert!(fixture.block.executor.is_worker_idle(LIMIT));
    fixture.activate(fixture.block.features());
    fixture.block.notify(0);
    assert_eq!(
        (fixture.status(status), fixture.driver.read(data, 1024)),
        (NONE, vec![NONE; 1024])
    );
}

#[test]
fn long_transfer_is_split() {
    let scratch = Scratch::empty();
    let length = 2 * PIECE_SIZE + 1536;
    scratch.set_len(length + 512);
    let (mut fixture, storage) = stuck(&scratch);
    storage.permit(ALL);
    let data = pattern(0, length);
    let (status, address) = fixture.add_transfer(OUT, 1, &data);
    // The second request follows all pieces of the first.
    let (second, _) = fixture.add_transfer(IN, 0, &[NONE; 1024]);
    fixture.run(2);
    assert_eq!((fixture.status(status), fixture.status(second)), (OK, OK));
    let pieces = [
        extent(512, PIECE_SIZE),
        extent(512 + PIECE_SIZE, PIECE_SIZE),
        extent(512 + 2 * PIECE_SIZE, 1536),
    ];
    let mut calls: Vec<_> = pieces.map(Call::Write).to_vec();
    calls.push(Call::Read(extent(0, 1024)));
    assert_eq!(storage.expect_calls(4), calls);
    assert!(scratch.contents()[512..] == data);
    // The read returns the written bytes into the same memory.
    fixture.driver.write(address, &vec![NONE; data.len()]);
    let count = u32::try_from(length).unwrap();
    let buffers = [
        Buffer::writable(address, 5000),
        Buffer::writable(address + 5000, count - 5000),
    ];
    assert_eq!(fixture.run_one(IN, 1, &buffers), (OK, count + 1));
    assert!(fixture.driver.read(address, data.len()) == data);
    assert_eq!(storage.expect_calls(7)[4..], pieces.map(Call::Read));
}

#[test]
fn short_transfers_continue() {
    let scratch = Scratch::new(SECTORS * 512);
    let (mut fixture, storage) = stuck(&scratch);
    storage.permit(ALL);
    storage.set_short();
    assert_eq!(fixture.read(1, 1024), (OK, pattern(512, 1024)));
    let data = pattern(7, 1024);
    assert_eq!(fixture.write(4, &data), OK);
    assert_eq!(scratch.contents()[2048..3072], data);
    assert_eq!(storage.expect_calls(0).len(), 22);
}

#[test]
fn drain_suspends_transfers() {
    let scratch = Scratch::new(SECTORS * 512);
    let (mut fixture, storage) = stuck(&scratch);
    let (read, data) = fixture.add_transfer(IN, 0, &[NONE; 1024]);
    let (write, _) = fixture.add_transfer(OUT, 4, &[3; 512]);
    let (_, id) = fixture.add(GET_ID, 0, &[]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    // GET_ID waits for the end of the transfers before it.
    assert_eq!(fixture.block.queue_states()[0].next_avail, 2);
    fixture.reload();
    assert_eq!(fixture.unfinished(), [0, 0]);
    assert_eq!(fixture.driver.read(data, 1024), [NONE; 1024]);
    storage.permit(ALL);
    fixture.run(3);
    assert_eq!([read, write, id].map(|status| fixture.status(status)), [OK; 3]);
    assert_eq!(fixture.driver.read(data, 1024), pattern(0, 1024));
    assert_eq!(scratch.contents()[2048..2560], [3; 512]);
    assert_eq!(fixture.block.metrics().reads, 1);
}

#[test]
fn failed_transfer_fails_request() {
    let scratch = Scratch::new(SECTORS * 512);
    let (mut fixture, storage) = stuck(&scratch);
    storage.permit(ALL);
    storage.set_fails(true);
    assert_eq!(fixture.write(0, &[1; 512]), super::IOERR);
    assert_eq!(fixture.read(0, 512).0, super::IOERR);
    assert_eq!(fixture.block.metrics().errors, 2);
    storage.set_fails(false);
    assert_eq!(fixture.read(0, 512), (OK, pattern(0, 512)));
}

#[test]
fn buffers_are_limited() {
    let scratch = Scratch::empty();
    scratch.set_len(1 << 20);
    let (mut fixture, storage) = stuck(&scratch);
    let address = fixture.driver.buffers;
    for _ in 0..20 {
        fixture.add(OUT, 0, &[Buffer::readable(address, 1 << 20)]);
    }
    fixture.block.notify(0);
    let popped = u64::from(fixture.block.queue_states()[0].next_avail);
    assert!(
        popped * PIECE_SIZE >= MAX_BUFFERED && popped <= 5,
        "{popped} requests"
    );
    assert_eq!(fixture.block.metrics().engine_full, 1);
    storage.permit(ALL);
    fixture.run(20);
}

#[test]
fn write_of_partial_uncached_page_waits() {
    let scratch = uncached(1 << 20);
    let mut fixture = Fixture::with_fake_disk(scratch.path().to_str().unwrap(), 1 << 20, IoEngine::Sync);
    let storage = Arc::new(SlowStorage::new(scratch.path()));
    fixture.block.executor.disk.storage = storage.clone();
    storage.permit(ALL);
    assert_eq!(fixture.write(8 * 20 + 1, &[1; 512]), OK);
    assert_eq!(
        storage.expect_calls(0),
        [Call::Write(extent(4096 * 20 + 512, 512))]
    );
    // A complete page needs no read.
    assert_eq!(fixture.write(8 * 40, &[1; 4096]), OK);
    assert_eq!(storage.expect_calls(0).len(), 1);
}

#[test]
fn writes_wait_after_slow_write() {
    for (engine, is_write_through) in [
        (IoEngine::Sync, false),
        (IoEngine::Sync, true),
        (IoEngine::Async, false),
    ] {
        let scratch = Scratch::new(SECTORS * 512);
        let mut fixture = Fixture::with_fake_disk(scratch.path().to_str().unwrap(), SECTORS * 512, engine);
        let storage = Arc::new(SlowStorage::new(scratch.path()));
        fixture.block.executor.disk.storage = storage.clone();
        storage.permit(ALL);
        fixture.block.executor.disk.pace.lacks_nowait_writes.set(true);
        fixture.reset();
        fixture.activate(if is_write_through {
            0
        } else {
            fixture.block.features()
        });
        assert_eq!(fixture.write(0, &[1; 4096]), OK);
        assert!(!storage.has_written());
        fixture.block.executor.disk.note_write(Duration::MAX);
        let mut count = 0;
        while fixture.block.executor.disk.pace.fast_writes_left.get() > 0 {
            assert!(count <= 1000, "a plain write is never tried again");
            assert_eq!(fixture.write(0, &[1; 4096]), OK);
            count += 1;
        }
        assert_eq!(count, 64);
        // The synchronous engine has executed all of them on the worker, and none after them.
        let has_written = storage.has_written();
        assert_eq!(has_written, fixture.block.engine() == IoEngine::Sync);
        assert_eq!(fixture.write(0, &[1; 4096]), OK);
        assert!(!storage.has_written());
    }
}

/// Creates a device of the asynchronous engine on a pipe, which its writer returned too. Returns `None` without io_uring.
fn pipe() -> Option<(Fixture, File)> {
    if !require(Requirement::IoUring) {
        return None;
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let disk = remote_disk(std::os::fd::OwnedFd::from(reader).into(), SECTORS * 512);
    let fixture = fixture_on(disk, IoEngine::Async);
    assert_eq!(fixture.block.engine(), IoEngine::Async);
    Some((fixture, std::os::fd::OwnedFd::from(writer).into()))
}

#[test]
fn reset_abandons_async_requests() {
    let Some((mut fixture, mut writer)) = pipe() else {
        return;
    };
    let mut placed = Vec::new();
    for _ in 0..4 {
        placed.push(fixture.add_transfer(IN, 0, &[NONE; 1024]));
    }
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 4);
    let begin = Instant::now();
    fixture.reset();
    assert!(begin.elapsed() < CALL_LIMIT);
    assert_eq!(fixture.block.in_flight(), 0);
    // The kernel has cancelled the reads, or completes them now.
    writer.write_all(&[1; 8192]).unwrap();
    while fixture.block.executor.has_abandoned() {
        fixture.process_events(60_000);
    }
    // A pipe has no size, but the device is not busy.
    assert!(matches!(fixture.block.reopen(None), Err(Error::System { .. })));
    fixture.activate(fixture.block.features());
    for (status, data) in placed {
        assert_eq!(
            (fixture.status(status), fixture.driver.read(data, 1024)),
            (NONE, vec![NONE; 1024])
        );
    }
    assert!(fixture.driver.queues[0].collect_used().is_empty());
    let (status, data) = fixture.add_transfer(IN, 0, &[NONE; 1024]);
    fixture.run(1);
    assert_eq!(
        (fixture.status(status), fixture.driver.read(data, 1024)),
        (OK, vec![1; 1024])
    );
}

#[test]
fn drain_suspends_async_requests() {
    let Some((mut fixture, mut writer)) = pipe() else {
        return;
    };
    let (status, data) = fixture.add_transfer(IN, 0, &[NONE; 1024]);
    fixture.block.notify(0);
    let error = fixture.block.save().unwrap_err().to_string();
    assert!(
        error.contains(r#"drive "a drive with a long name" has 1 unfinished requests"#),
        "{error}"
    );
    let begin = Instant::now();
    fixture.block.drain();
    assert!(begin.elapsed() < CALL_LIMIT);
    assert!(fixture.block.save().is_ok());
    assert_eq!(fixture.unfinished(), [0]);
    fixture.reload();
    // The kernel has cancelled the first read, or it takes data without effect.
    writer.write_all(&[1; 4096]).unwrap();
    fixture.run(1);
    assert_eq!(
        (fixture.status(status), fixture.driver.read(data, 1024)),
        (OK, vec![1; 1024])
    );
}

#[test]
fn suspended_transfer_continues_after_its_pieces() {
    let scratch = Scratch::empty();
    let length = 3 * PIECE_SIZE;
    scratch.set_len(length);
    let (mut fixture, storage) = stuck(&scratch);
    let data = pattern(0, length);
    let (status, _) = fixture.add_transfer(OUT, 0, &data);
    fixture.block.notify(0);
    storage.permit(1);
    let wake = fixture.block.watched_fds()[1];
    assert!(fixture.is_readable(wake.descriptor, 60_000));
    fixture.block.process_event(wake.token);
    storage.expect_calls(2);
    fixture.reload();
    assert_eq!(fixture.unfinished(), [PIECE_SIZE]);
    storage.permit(ALL);
    fixture.run(1);
    assert_eq!(fixture.status(status), OK);
    assert!(scratch.contents() == data);
    // The second piece is repeated: its first call has not ended before the suspension.
    let piece = |number| Call::Write(extent(number * PIECE_SIZE, PIECE_SIZE));
    assert_eq!(storage.expect_calls(4), [0, 1, 1, 2].map(piece));
}

#[test]
fn drop_of_stuck_device_does_not_wait() {
    if let Some((mut fixture, _writer)) = pipe() {
        fixture.add_transfer(IN, 0, &[NONE; 1024]);
        fixture.block.notify(0);
        let begin = Instant::now();
        drop(fixture);
        assert!(begin.elapsed() < CALL_LIMIT);
    }
    let scratch = Scratch::new(SECTORS * 512);
    let (mut fixture, storage) = stuck(&scratch);
    fixture.add_transfer(IN, 0, &[NONE; 1024]);
    fixture.block.notify(0);
    storage.expect_calls(1);
    let begin = Instant::now();
    drop(fixture);
    assert!(begin.elapsed() < CALL_LIMIT);
    storage.permit(ALL);
}

#[test]
fn reset_frees_memory_of_requests() {
    let Some((mut fixture, _writer)) = pipe() else {
        return;
    };
    for _ in 0..64 {
        fixture.add_transfer(IN, 0, &[NONE; 1024]);
    }
    fixture.block.notify(0);
    assert_eq!(fixture.block.in_flight(), 64);
    fixture.reset();
    let uring = fixture.block.executor.uring.as_ref().unwrap();
    assert_eq!((uring.in_flight(), uring.is_full()), (0, false));
    fixture.wait_for_abandoned();
    assert_eq!(fixture.block.executor.uring.as_ref().unwrap().heap_size(), 0);
}
