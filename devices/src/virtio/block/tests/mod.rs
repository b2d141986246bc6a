//! Every test of requests is run on both engines, and asserts that it is on the one that it wants, unless this kernel
//! has no io_uring for us.

mod disk;
mod faults;
mod hole;
mod lifetime;
mod limits;
mod metrics;
mod requests;
mod snapshot;
mod update;
mod uring;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::uring::probe;
use super::{Block, CacheType, Disk, DiskConfig, DiskOptions, IoEngine};
use crate::limiter::Bucket;
use crate::testing::ManualClock;
use crate::virtio::device::{Activation, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::testing::{CountingInterrupt, FakeDriver, Piece, Used};

/// Long enough that it does not come about during a test.
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
/// What a status is before the device has written it.
const NONE: u8 = 0xaa;

/// A file that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    /// `length` bytes of a pattern that differs from sector to sector.
    fn new(length: u64) -> Self {
        let scratch = Self::empty();
        let file = File::create(&scratch.0).unwrap();
        file.write_all_at(&pattern(0, length), 0).unwrap();
        scratch
    }

    fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("mayfly-block-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn contents(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    fn set_len(&self, length: u64) {
        File::options()
            .write(true)
            .open(&self.0)
            .unwrap()
            .set_len(length)
            .unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What [`Scratch::new`] has from byte `offset`.
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
        allow_empty: false,
        cache: CacheType::Writeback,
        engine,
        bandwidth: None,
        operations: None,
    }
}

/// A device, activated, with its driver.
struct Bench {
    block: Block,
    driver: FakeDriver,
    line: Arc<CountingInterrupt>,
    signal: Arc<VirtioInterrupt>,
    clock: ManualClock,
    next: u64,
}

impl Bench {
    fn new(config: &DiskConfig) -> Self {
        let clock = ManualClock::default();
        Self::of(Block::open(config, Box::new(clock.clone())).unwrap(), clock)
    }

    fn on(scratch: &Scratch, engine: IoEngine) -> Self {
        let bench = Self::new(&config(scratch.path(), engine));
        let expected = if probe().is_ok() { engine } else { IoEngine::Sync };
        assert_eq!(bench.block.engine(), expected);
        bench
    }

    /// On a disk of `size` bytes that is really `path`, whatever that is.
    fn pretending(path: &str, size: u64, engine: IoEngine) -> Self {
        let disk = Disk {
            file: File::options().read(true).write(true).open(path).unwrap(),
            path: PathBuf::from(path),
            size,
            terms: DiskOptions::default(),
            block_device: false,
            block: 1,
            in_memory: false,
        };
        let clock = ManualClock::default();
        let config = config(Path::new(path), engine);
        Self::of(Block::new(disk, &config, Box::new(clock.clone())).unwrap(), clock)
    }

    fn of(block: Block, clock: ManualClock) -> Self {
        let driver = FakeDriver::new(MEMORY, block.queue_sizes());
        let line = Arc::new(CountingInterrupt::default());
        let signal = Arc::new(VirtioInterrupt::new(line.clone()));
        let next = driver.buffers;
        let mut bench = Self {
            block,
            driver,
            line,
            signal,
            clock,
            next,
        };
        bench.activate(bench.block.features());
        bench
    }

    /// Activates the device and lets the event loop look at its queue.
    fn activate(&mut self, features: u64) {
        self.start(features);
        self.turn(0);
    }

    fn start(&mut self, features: u64) {
        let activation = self.driver.activation(features, self.line.clone());
        self.signal = Arc::clone(&activation.signal);
        self.block.activate(Activation { ..activation });
    }

    fn reset(&mut self) {
        self.block.reset();
        self.driver.queues[0].clear();
        self.next = self.driver.buffers;
    }

    /// Fresh memory with `data` in it.
    fn place(&mut self, data: &[u8]) -> u64 {
        let address = self.next;
        // Odd addresses, as no driver is bound to even ones.
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

    /// Adds a request whose data is in `data`. Returns its head and the address of its status.
    fn add(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u16, u64) {
        let header = self.header(kind, sector);
        let status = self.place(&[NONE]);
        let mut pieces = vec![Piece::readable(header, 16)];
        pieces.extend(data);
        pieces.push(Piece::writable(status, 1));
        (self.driver.queues[0].add(&pieces), status)
    }

    fn status(&self, address: u64) -> u8 {
        self.driver.read(address, 1)[0]
    }

    /// Notifies the device, and does what an event loop does until `count` requests are used.
    fn run(&mut self, count: usize) -> Vec<Used> {
        self.block.notify(0);
        let mut used = self.driver.queues[0].collect_used();
        while used.len() < count {
            self.turn(60_000);
            used.extend(self.driver.queues[0].collect_used());
        }
        assert_eq!(used.len(), count);
        used
    }

    /// Waits for a source and serves it. The wait ends at once unless the device has forgotten something.
    fn turn(&mut self, milliseconds: i32) {
        let mut ready = Vec::new();
        for source in self.block.watched_fds() {
            if self.polled(source.descriptor, 0) {
                ready.push(source.token);
            }
        }
        if ready.is_empty() {
            let mut polls: Vec<_> = self
                .block
                .watched_fds()
                .iter()
                .map(|source| poll_of(source.descriptor))
                .collect();
            assert!(
                poll(&mut polls, milliseconds) > 0,
                "nothing comes from any source"
            );
        }
        for token in ready {
            self.block.process_event(token);
        }
    }

    fn polled(&self, descriptor: i32, milliseconds: i32) -> bool {
        poll(&mut [poll_of(descriptor)], milliseconds) > 0
    }

    /// Whether any source is ready now.
    fn is_idle(&self) -> bool {
        self.block
            .watched_fds()
            .iter()
            .all(|source| !self.polled(source.descriptor, 0))
    }

    /// Does one request. Returns status and used length.
    fn one(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let (head, status) = self.add(kind, sector, data);
        let used = self.run(1);
        assert_eq!(used[0].head, u32::from(head));
        (self.status(status), used[0].length)
    }

    fn read(&mut self, sector: u64, length: u32) -> (u8, Vec<u8>) {
        let address = self.place(&vec![NONE; usize::try_from(length).unwrap()]);
        let (status, used) = self.one(IN, sector, &[Piece::writable(address, length)]);
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
        let (status, used) = self.one(
            OUT,
            sector,
            &[Piece::readable(address, u32::try_from(data.len()).unwrap())],
        );
        assert_eq!(used, 1);
        status
    }

    /// A discard or write-zeroes request with `segments` of sector, number and flags.
    fn segments(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
        let mut data = Vec::new();
        for (sector, count, flags) in segments {
            data.extend(sector.to_le_bytes());
            data.extend(count.to_le_bytes());
            data.extend(flags.to_le_bytes());
        }
        let address = self.place(&data);
        self.one(
            kind,
            0,
            &[Piece::readable(address, u32::try_from(data.len()).unwrap())],
        )
        .0
    }
}

/// A bucket of `size` that takes `refill_time_ms` to fill.
fn bucket(size: u64, refill_time_ms: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        refill_time_ms,
        one_time_burst: 0,
    })
}

/// On which terms most disks are opened.
fn terms(read_only: bool) -> DiskOptions {
    DiskOptions {
        read_only,
        allow_empty: false,
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
    // SAFETY: `polls` has `count` entries and lives until the call is over.
    unsafe { libc::poll(polls.as_mut_ptr(), count, milliseconds) }
}
