//! The device as its transport and its owner see it.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::{self, Disk};
use super::queue::{Active, Backend};
use super::{space, uring};
use crate::clock::Clock;
use crate::limiter::{Bucket, Limiter};
use crate::virtio::device::{Activation, Source, VirtioDevice};

/// Token of the limiter's timerfd.
const TIMER: u32 = 0;
/// Token of the eventfd.
const WAKE: u32 = 1;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its file cannot be used.
    #[error("cannot use the disk of drive {id:?}")]
    Disk {
        /// Name of the drive.
        id: String,
        /// What is in the way.
        #[source]
        source: file::Error,
    },
    /// There is no eventfd or timerfd to be had.
    #[error("cannot make the descriptors of drive {id:?}")]
    Descriptors {
        /// Name of the drive.
        id: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What becomes of what the guest has written, when it wants to be sure of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// The driver is not told that it can flush, so that it does not.
    #[default]
    Unsafe,
    /// The driver can flush. When it does not want to, every write goes through to the medium.
    Writeback,
}

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One after the other, by whoever notifies.
    #[default]
    Sync,
    /// By io_uring.
    Async,
}

/// What a [`Block`] is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the drive. The guest can read the first 20 bytes of it.
    pub id: String,
    /// The file or block device behind it.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the driver can flush.
    pub cache: CacheType,
    /// How requests are done.
    pub engine: IoEngine,
    /// Bytes that may be read and written.
    pub bandwidth: Option<Bucket>,
    /// Requests that may be done.
    pub operations: Option<Bucket>,
}

/// What a device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Reads done.
    pub reads: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes read by reads that were done.
    pub read_bytes: u64,
    /// Bytes written by writes that were done.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discard and write-zeroes requests done.
    pub discards: u64,
    /// Requests of any kind that did not end well.
    pub errors: u64,
    /// Times that a request had to wait for the limiter.
    pub throttled: u64,
    /// Times that the driver's queue was malformed, which stopped it.
    pub malformed: u64,
}

/// A virtio block device.
///
/// What its limiter or io_uring puts off goes on by its [sources](VirtioDevice::sources).
pub struct Block {
    backend: Backend,
    flush: bool,
    active: Option<Active>,
}

impl Block {
    /// Opens the disk of `config`. `clock` is the limiter's.
    ///
    /// When `config` wants io_uring and there is none, a warning says why and the device does without.
    ///
    /// # Errors
    /// Any of this module.
    pub fn open(config: &Config, clock: Box<dyn Clock>) -> Result<Self, Error> {
        let disk = Disk::open(&config.path, config.read_only).map_err(|source| Error::Disk {
            id: config.id.clone(),
            source,
        })?;
        Self::new(disk, config, clock).map_err(|source| Error::Descriptors {
            id: config.id.clone(),
            source,
        })
    }

    pub(super) fn new(disk: Disk, config: &Config, clock: Box<dyn Clock>) -> io::Result<Self> {
        let engine = match config.engine {
            IoEngine::Sync => IoEngine::Sync,
            IoEngine::Async => with_io_uring(&config.id, uring::probe()),
        };
        let mut id = [0; 20];
        let name = config.id.as_bytes();
        let length = name.len().min(id.len());
        id[..length].copy_from_slice(&name[..length]);
        Ok(Self {
            backend: Backend {
                disk,
                id,
                engine,
                limiter: Limiter::new(config.bandwidth, config.operations)?,
                clock,
                wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                metrics: Metrics::default(),
            },
            flush: config.cache == CacheType::Writeback,
            active: None,
        })
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.backend.disk
    }

    /// How requests are really done.
    pub fn engine(&self) -> IoEngine {
        self.backend.engine
    }

    /// What the device has done.
    pub fn metrics(&self) -> Metrics {
        self.backend.metrics
    }

    /// Goes on with the file at `path`, which may be the same one with another size, and tells the driver. It must be
    /// usable as the first one was; requests in flight are waited for.
    ///
    /// # Errors
    /// What is wrong with the file; the device goes on with the one it had.
    pub fn update(&mut self, path: &Path) -> Result<(), file::Error> {
        self.drain();
        self.backend.disk.renew(path)?;
        if let Some(active) = &self.active {
            active.signal().configuration_changed();
        }
        Ok(())
    }

    /// Replaces buckets of the limiter, as [`Limiter::update`].
    pub fn update_limiter(&mut self, bandwidth: Option<Bucket>, operations: Option<Bucket>) {
        self.backend.limiter.update(bandwidth, operations);
    }

    /// Waits for all requests in flight and gives them to the driver. To be called before the state is saved.
    pub fn drain(&mut self) {
        if let Some(active) = &mut self.active {
            active.drain(&mut self.backend);
        }
    }

    /// Requests that io_uring has not done yet.
    pub(super) fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, Active::in_flight)
    }

    pub(super) fn limiter(&self) -> &Limiter {
        &self.backend.limiter
    }

    pub(super) fn limiter_mut(&mut self) -> &mut Limiter {
        &mut self.backend.limiter
    }

    fn serve(&mut self) {
        if let Some(active) = &mut self.active {
            active.serve(&mut self.backend);
        }
    }
}

/// The engine for the drive `id`, which wants io_uring, after asking for it has come to `probed`.
pub(super) fn with_io_uring(id: &str, probed: io::Result<()>) -> IoEngine {
    match probed {
        Ok(()) => IoEngine::Async,
        Err(error) => {
            log::warn!("drive {id:?} does without io_uring: {error}");
            IoEngine::Sync
        }
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[space::QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        space::features(self.backend.disk.is_read_only(), self.flush)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let disk = &self.backend.disk;
        space::read(disk.size(), disk.is_read_only(), offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        // Section 5.2.6.2: with FLUSH offered and not accepted, a write that is done is stable.
        let through = self.flush && activation.features & space::FLUSH == 0;
        self.active = Active::new(activation, through);
    }

    fn reset(&mut self) {
        // Waits for what is in flight.
        self.active = None;
        self.backend.limiter.resume();
        self.backend.quiet();
    }

    fn notify(&mut self, queue: usize) {
        if queue == 0 {
            self.serve();
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.iter().map(Active::queue_state).collect()
    }

    fn sources(&self) -> Vec<Source> {
        let source = |descriptor, token| Source {
            descriptor,
            token,
            edge: false,
        };
        vec![
            source(self.backend.limiter.as_raw_fd(), TIMER),
            source(self.backend.wake.as_raw_fd(), WAKE),
        ]
    }

    fn ready(&mut self, token: u32) {
        match token {
            TIMER => self.backend.limiter.resume(),
            WAKE => self.backend.quiet(),
            _ => return,
        }
        self.serve();
    }
}
