//! Each test of requests runs on both engines and asserts the engine in use, unless this kernel does not allow
//! io_uring.

mod discard;
mod disk;
mod faults;
mod lifetime;
mod limits;
mod metrics;
mod requests;
mod slow;
mod snapshot;
mod suspended;
mod update;
mod uring;
mod worker;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::snapshot::{ArchiveReader, ArchiveWriter, Component};
use scratch::{Requirement, Temporary, require};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::disk::{DiskFile, Error as DiskError};
use super::extent::Pieces;
use super::{Block, CacheType, Disk, DiskConfig, DiskOptions, Error, IoEngine};
use crate::limiter::Bucket;
use crate::medium::Medium;
use crate::testing::ManualClock;
use crate::virtio::device::{Activation, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::testing::{Buffer, CountingInterrupt, FakeDriver, Used};

/// Milliseconds that do not pass during a test.
const HOURS: u64 = 100 * 3_600_000;

const ENGINES: [IoEngine; 2] = [IoEngine::Sync, IoEngine::Async];
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const SECTORS: u64 = 64;
const MEMORY: usize = 8 << 20;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// Value of a status byte that the device has not written.
const NONE: u8 = 0xaa;

/// A temporary file, removed on drop.
struct Scratch(Temporary);

impl Scratch {
    /// Creates a file with `length` bytes of [`pattern`].
    fn new(length: u64) -> Self {
        let scratch = Self::empty();
        let file = File::create(scratch.path()).unwrap();
        file.write_all_at(&pattern(0, length), 0).unwrap();
        scratch
    }

    fn empty() -> Self {
        Self(Temporary::with(&[]))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn set_len(&self, length: u64) {
        File::options()
            .write(true)
            .open(self.path())
            .unwrap()
            .set_len(length)
            .unwrap();
    }
}

/// Returns bytes that differ from sector to sector, for a file of [`Scratch::new`] at `offset`.
fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| u8::try_from((at / 512 * 7 + at % 251) % 256).unwrap())
        .collect()
}

fn config(path: &Path, engine: IoEngine) -> DiskConfig {
    DiskConfig {
        id: "a drive with a long name".to_owned(),
        path: path.to_owned(),
        read_only: false,
        shared: false,
        allow_empty: false,
        cache: CacheType::Writeback,
        engine,
        bandwidth: None,
        operations: None,
    }
}

/// Repeats `open` while the disk is locked: a child that another test starts keeps the lock of a closed disk until its `execve`.
fn await_unlocked<T>(mut open: impl FnMut() -> Result<T, DiskError>) -> T {
    scratch::wait_for("the lock of a disk", || match open() {
        Err(DiskError::InUse { .. }) => None,
        result => Some(result.unwrap()),
    })
}

fn disk_error(error: Error) -> DiskError {
    match error {
        Error::Disk { source, .. } => source,
        other => panic!("{other}"),
    }
}

/// An active device with its driver.
struct Fixture {
    block: Block,
    driver: FakeDriver,
    line: Arc<CountingInterrupt>,
    interrupt: Arc<VirtioInterrupt>,
    clock: ManualClock,
    next: u64,
}

impl Fixture {
    fn new(config: &DiskConfig) -> Self {
        let clock = ManualClock::default();
        let block = await_unlocked(|| Block::open(config, Box::new(clock.clone())).map_err(disk_error));
        Self::of(block, clock)
    }

    fn on(scratch: &Scratch, engine: IoEngine) -> Self {
        let fixture = Self::new(&config(scratch.path(), engine));
        let is_async = engine == IoEngine::Async && require(Requirement::IoUring);
        let expected = if is_async { IoEngine::Async } else { IoEngine::Sync };
        assert_eq!(fixture.block.engine(), expected);
        fixture
    }

    /// Creates a device on `path`, of any kind, as a disk of `size` bytes.
    fn with_fake_disk(path: &str, size: u64, engine: IoEngine) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let inode = file.metadata().unwrap();
        let file = DiskFile {
            file,
            is_block_device: false,
            block_size: 1,
            discard_pieces: Pieces::CHUNKS,
            medium: Medium::Local,
            inode,
        };
        let disk = Disk::new(file, PathBuf::from(path), size, DiskOptions::default());
        let clock = ManualClock::default();
        let config = config(Path::new(path), engine);
        Self::of(Block::new(disk, &config, Box::new(clock.clone())).unwrap(), clock)
    }

    fn of(mut block: Block, clock: ManualClock) -> Self {
        // The host may delay any write.
        block.executor.disk.pace.slow_write = Duration::MAX;
        // A fake disk has no lock.
        block.executor.disk.is_locked = true;
        let driver = FakeDriver::logged(MEMORY, block.queue_sizes());
        let line = Arc::new(CountingInterrupt::default());
        let interrupt = Arc::new(VirtioInterrupt::new(line.clone()));
        let next = driver.buffers;
        let mut fixture = Self {
            block,
            driver,
            line,
            interrupt,
            clock,
            next,
        };
        fixture.activate(fixture.block.features());
        fixture
    }

    /// Activates the device and processes its events.
    fn activate(&mut self, features: u64) {
        self.start(features);
        self.process_events(0);
    }

    fn start(&mut self, features: u64) {
        let activation = self.driver.activation(features, self.line.clone());
        self.interrupt = Arc::clone(&activation.interrupt);
        self.block.activate(Activation { ..activation });
    }

    /// Drains and saves the device, and restores the state after a reset, which needs no driver.
    fn reload(&mut self) {
        self.block.drain();
        let mut archive = ArchiveWriter::new();
        self.block.save_section("drive", &mut archive).unwrap();
        let saved = self.block.queue_states().remove(0);
        self.block.reset();
        let features = self.block.features();
        let mut activation = self.driver.activation(features, self.line.clone());
        activation.queues[0].set_next_avail(saved.next_avail);
        activation.queues[0].set_next_used(saved.next_used);
        self.interrupt = Arc::clone(&activation.interrupt);
        self.block.activate(activation);
        let bytes = archive.into_bytes();
        let mut archive = ArchiveReader::parse(&bytes).unwrap();
        self.block.restore_section("drive", &mut archive).unwrap();
        archive.finish().unwrap();
    }

    /// Returns the completed bytes of each suspended request.
    fn unfinished(&self) -> Vec<u64> {
        let unfinished = self.block.active.as_ref().unwrap().unfinished();
        unfinished.iter().map(|request| request.done).collect()
    }

    fn reset(&mut self) {
        self.block.reset();
        self.driver.queues[0].clear();
        self.next = self.driver.buffers;
    }

    /// Writes `data` into unused memory. Returns its address.
    fn place(&mut self, data: &[u8]) -> u64 {
        let address = self.next;
        // Odd addresses: buffers have no alignment.
        self.next += (data.len() as u64 + 1) | 1;
        self.driver.write(address, data);
        address
    }

    fn header(&mut self, kind: u32, sector: u64) -> u64 {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.place(&header)
    }

    /// Adds a request with the buffers `data`. Returns its head and the address of its status.
    fn add(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u16, u64) {
        let header = self.header(kind, sector);
        let status = self.place(&[NONE]);
        let mut buffers = vec![Buffer::readable(header, 16)];
        buffers.extend(data);
        buffers.push(Buffer::writable(status, 1));
        (self.driver.queues[0].add(&buffers), status)
    }

    fn status(&self, address: u64) -> u8 {
        self.driver.read(address, 1)[0]
    }

    /// Notifies the device, and processes its events until `count` chains are used.
    fn run(&mut self, count: usize) -> Vec<Used> {
        self.block.notify(0);
        let mut used = self.driver.queues[0].collect_used();
        while used.len() < count {
            self.process_events(60_000);
            used.extend(self.driver.queues[0].collect_used());
        }
        assert_eq!(used.len(), count);
        used
    }

    /// Waits for the end of all abandoned requests, and cancels them again and again: the kernel does not find a read of a pipe that it
    /// moves from a worker to a poll at that moment. A disk is no pipe.
    fn wait_for_abandoned(&mut self) {
        scratch::wait_until("the end of abandoned requests", || {
            self.block.executor.abandon();
            self.block.executor.reap_abandoned();
            !self.block.executor.has_abandoned()
        });
    }

    /// Waits for an event and processes all. Panics after `milliseconds` without an event.
    fn process_events(&mut self, milliseconds: i32) {
        let mut ready = Vec::new();
        for watched in self.block.watched_fds() {
            if self.is_readable(watched.descriptor, 0) {
                ready.push(watched.token);
            }
        }
        if ready.is_empty() {
            let mut polls: Vec<_> = self
                .block
                .watched_fds()
                .iter()
                .map(|watched| poll_of(watched.descriptor))
                .collect();
            assert!(poll(&mut polls, milliseconds) > 0, "no descriptor is ready");
        }
        for token in ready {
            self.block.process_event(token);
        }
    }

    fn is_readable(&self, descriptor: i32, milliseconds: i32) -> bool {
        poll(&mut [poll_of(descriptor)], milliseconds) > 0
    }

    /// Returns true if no descriptor is ready.
    fn is_idle(&self) -> bool {
        self.block
            .watched_fds()
            .iter()
            .all(|watched| !self.is_readable(watched.descriptor, 0))
    }

    /// Runs one request. Returns status and used length.
    fn run_one(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let (head, status) = self.add(kind, sector, data);
        let used = self.run(1);
        assert_eq!(used[0].head, u32::from(head));
        (self.status(status), used[0].length)
    }

    fn read(&mut self, sector: u64, length: u32) -> (u8, Vec<u8>) {
        let address = self.place(&vec![NONE; usize::try_from(length).unwrap()]);
        let (status, used) = self.run_one(IN, sector, &[Buffer::writable(address, length)]);
        if status == OK {
            assert_eq!(used, length + 1);
        }
        (
            status,
            self.driver.read(address, usize::try_from(length).unwrap()),
        )
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let address = self.place(data);
        let (status, used) = self.run_one(
            OUT,
            sector,
            &[Buffer::readable(address, u32::try_from(data.len()).unwrap())],
        );
        assert_eq!(used, 1);
        status
    }

    /// Runs a discard or write zeroes request with `segments` of sector, number and flags. Returns its status.
    fn run_segments(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let mut data = Vec::new();
        for (sector, count, flags) in segments {
            data.extend(sector.to_le_bytes());
            data.extend(count.to_le_bytes());
            data.extend(flags.to_le_bytes());
        }
        let address = self.place(&data);
        self.run_one(
            kind,
            0,
            &[Buffer::readable(address, u32::try_from(data.len()).unwrap())],
        )
        .0
    }
}

/// Returns a bucket of `size` that refills in `refill_time_ms`.
fn bucket(size: u64, refill_time_ms: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        refill_time_ms,
        one_time_burst: 0,
    })
}

/// Returns options for a disk that is not empty.
fn options(read_only: bool) -> DiskOptions {
    DiskOptions {
        read_only,
        ..DiskOptions::default()
    }
}

fn poll_of(descriptor: i32) -> libc::pollfd {
    libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    }
}

fn poll(polls: &mut [libc::pollfd], milliseconds: i32) -> i32 {
    let count = polls.len() as libc::nfds_t;
    // SAFETY: `polls` has `count` entries and outlives the call.
    unsafe { libc::poll(polls.as_mut_ptr(), count, milliseconds) }
}
