//! Reads and writes of a file on tmpfs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::MonotonicClock;
use devices::virtio::VirtioDevice;
use devices::virtio::block::{Block, CacheType, DiskConfig, IoEngine};
use devices::virtio::mmio::Transport;
use devices::virtio::testing::{Buffer, CountingInterrupt, FakeDriver};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::comparison::Benchmark;
use super::net::notify_and_wait;

/// Bytes of the file.
const DISK: u64 = 64 << 20;
const SECTOR: u64 = 512;
/// Maximum bytes of one buffer of a chain.
const CHUNK_SIZE: u32 = 64 << 10;

/// Requests of a benchmark.
#[derive(Clone, Copy)]
pub struct Shape {
    name: &'static str,
    goal: f64,
    write: bool,
    random: bool,
    length: u32,
    /// Requests of one pass.
    requests: u32,
    /// Requests of one notification.
    depth: usize,
}

const PAGE: Shape = Shape {
    name: "4 KiB random reads, depth 64",
    goal: 0.8,
    write: false,
    random: true,
    length: 4096,
    requests: 64,
    depth: 64,
};

const MEGABYTE: Shape = Shape {
    name: "1 MiB sequential reads, depth 4",
    goal: 0.9,
    write: false,
    random: false,
    length: 1 << 20,
    requests: 8,
    depth: 4,
};

/// Benchmarks of each I/O engine.
pub const SHAPES: [Shape; 6] = [
    PAGE,
    Shape {
        name: "4 KiB random writes, depth 64",
        write: true,
        ..PAGE
    },
    Shape {
        name: "4 KiB random reads, depth 1",
        depth: 1,
        ..PAGE
    },
    Shape {
        name: "4 KiB random writes, depth 1",
        write: true,
        depth: 1,
        ..PAGE
    },
    MEGABYTE,
    Shape {
        name: "1 MiB sequential writes, depth 4",
        write: true,
        ..MEGABYTE
    },
];

/// Repeated requests with the same buffers.
pub struct Pages {
    name: String,
    shape: Shape,
    path: PathBuf,
    file: File,
    transport: Transport,
    driver: FakeDriver,
    heads: Vec<u16>,
    /// Guest-physical addresses of the header and the data of each request.
    addresses: Vec<(u64, u64)>,
    offsets: Vec<u64>,
    seed: u64,
}

impl Pages {
    /// Creates a disk with `engine`.
    pub fn new(engine: IoEngine, shape: Shape) -> Self {
        let path = PathBuf::from(format!("/dev/shm/mayfly-queue-{}", std::process::id()));
        let content: Vec<u8> = (0..=250).cycle().take(usize::try_from(DISK).unwrap()).collect();
        fs::write(&path, content).unwrap();
        let config = DiskConfig {
            id: "bench".into(),
            path: path.clone(),
            read_only: false,
            shared: false,
            allow_empty: false,
            cache: CacheType::Unsafe,
            engine,
            bandwidth: None,
            operations: None,
        };
        let block = Block::open(&config, Box::new(MonotonicClock::new())).unwrap();
        let engine = format!("{:?}", block.engine()).to_lowercase();
        let sizes = block.queue_sizes().to_vec();
        let mut driver = FakeDriver::new(64 << 20, &sizes);
        let line = Arc::new(CountingInterrupt::default());
        let mut transport: Transport = Transport::new(Box::new(block), driver.memory.clone(), line);
        driver.start(&mut transport, 0);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (heads, addresses) = chains(&mut driver, shape);
        // The first requests warm up at offset 0.
        notify_and_wait(&mut transport, &mut driver, 0, heads.len());
        Self {
            name: format!("block, {engine}: {}", shape.name),
            shape,
            path,
            file,
            transport,
            driver,
            heads,
            addresses,
            offsets: vec![0; usize::try_from(shape.requests).unwrap()],
            seed: 0x2545_f491_4f6c_dd1d,
        }
    }

    /// Returns the transport of the device.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Chooses the offsets of the next pass, in the same sequence for both sides.
    fn choose(&mut self) {
        let count = DISK / u64::from(self.shape.length);
        for offset in &mut self.offsets {
            self.seed = match self.shape.random {
                true => {
                    let seed = self.seed ^ (self.seed << 13);
                    let seed = seed ^ (seed >> 7);
                    seed ^ (seed << 17)
                }
                false => self.seed.wrapping_add(1),
            };
            *offset = (self.seed % count) * u64::from(self.shape.length);
        }
    }

    fn host_address(&self, index: usize) -> *mut libc::c_void {
        let (_, data) = self.addresses[index % self.addresses.len()];
        let address = self.driver.memory.get_host_address(GuestAddress(data));
        address.unwrap().cast()
    }
}

/// Creates and makes available a chain for each request of one notification.
fn chains(driver: &mut FakeDriver, shape: Shape) -> (Vec<u16>, Vec<(u64, u64)>) {
    let mut at = driver.buffers;
    let mut chains = (Vec::new(), Vec::new());
    for _ in 0..shape.depth {
        let (header, status, data) = (at, at + 16, at + 4096);
        driver.write(header, &[u8::from(shape.write), 0, 0, 0]);
        let mut buffers = vec![Buffer::readable(header, 16)];
        for start in (0..shape.length).step_by(usize::try_from(CHUNK_SIZE).unwrap()) {
            buffers.push(Buffer {
                address: data + u64::from(start),
                length: CHUNK_SIZE.min(shape.length - start),
                writable: !shape.write,
            });
        }
        buffers.push(Buffer::writable(status, 1));
        chains.0.push(driver.queues[0].add(&buffers));
        chains.1.push((header, data));
        at = data + u64::from(shape.length);
    }
    chains
}

impl Benchmark for Pages {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn goal(&self) -> f64 {
        self.shape.goal
    }

    fn operations(&self) -> u32 {
        self.shape.requests
    }

    fn floor(&mut self) -> Duration {
        self.choose();
        let length = usize::try_from(self.shape.length).unwrap();
        let file = self.file.as_raw_fd();
        let mut elapsed = Duration::ZERO;
        for offsets in self.offsets.chunks(self.heads.len()) {
            // Reads the clock as often as the device side does.
            let start = Instant::now();
            for (index, offset) in offsets.iter().enumerate() {
                let address = self.host_address(index);
                let offset = i64::try_from(*offset).unwrap();
                let count = match self.shape.write {
                    // SAFETY: the kernel reads within the data of a request in the driver's memory.
                    true => unsafe { libc::pwrite(file, address, length, offset) },
                    // SAFETY: as above, and the kernel writes there.
                    false => unsafe { libc::pread(file, address, length, offset) },
                };
                assert_eq!(usize::try_from(count), Ok(length));
            }
            elapsed += start.elapsed();
        }
        elapsed
    }

    fn device(&mut self) -> Duration {
        self.choose();
        let mut elapsed = Duration::ZERO;
        for offsets in self.offsets.chunks(self.heads.len()) {
            for (offset, (header, _)) in offsets.iter().zip(&self.addresses) {
                self.driver.write(header + 8, &(offset / SECTOR).to_le_bytes());
            }
            for head in &self.heads[..offsets.len()] {
                self.driver.queues[0].make_available(*head);
            }
            elapsed += notify_and_wait(&mut self.transport, &mut self.driver, 0, offsets.len());
        }
        for (header, _) in &self.addresses {
            assert_eq!(self.driver.read(header + 16, 1), [0], "status of a request");
        }
        elapsed
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
