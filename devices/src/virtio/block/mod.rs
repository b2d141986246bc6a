//! The virtio block device, section 5.2 of the specification.
//!
//! | module | holds |
//! |---|---|
//! | `backend` | what a device has whether it is activated or not |
//! | [`config`] | [`DiskConfig`]: what it is made from |
//! | [`device`] | [`Block`]: the device |
//! | [`mod@file`] | [`Disk`]: the file or block device behind it |
//! | [`metrics`] | [`BlockMetrics`]: what it has done, and how long it took |
//! | `queue` | the queue at work |
//! | `request` | what a chain asks for, checked |
//! | `serve` | doing that on the calling thread |
//! | `space` | features and configuration space |
//! | `state` | what is kept in a snapshot |
//! | `uring` | doing reads, writes and flushes by io_uring |
//!
//! Data moves between the file and guest memory with no copy in between. A request that fails on the host fails for the
//! guest, by its status; only a chain that is no request at all stops the queue.
//!
//! Threat model: everything in a chain is untrusted, and may change while it is looked at; header and segments are
//! read once. The file may be shortened, filled or unplugged by others at any time.

pub mod disk;
mod execute;
mod executor;
pub mod metrics;
mod queue;
mod request;
#[cfg(test)]
mod tests;
mod uring;

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error as PersistError;
use snapshot::{Persist, Schema};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock::Clock;
use crate::limiter::{Bucket, Limiter, LimiterState};
use crate::virtio::device::{Activation, VirtioDevice, WatchedFd};
pub use disk::{Disk, DiskOptions};
use executor::Executor;
pub use executor::IoEngine;
pub use metrics::BlockMetrics;
use metrics::Meter;
use queue::ActiveQueue;

/// Token of the limiter's timerfd.
const TIMER: u32 = 0;
/// Token of the eventfd.
const WAKE: u32 = 1;

/// What becomes of what the guest has written, when it wants to be sure of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// The driver is not told that it can flush, so that it does not.
    #[default]
    Unsafe,
    /// The driver can flush. When it does not want to, every write goes through to the medium.
    Writeback,
}

/// What a [`Block`](Block) is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Name of the drive. The guest can read the first 20 bytes of it.
    pub id: String,
    /// The file or block device behind it.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether a file of 0 bytes will do, to be replaced by [`Block::update`](Block::update) when there is
    /// something to put there. Until then the disk has no sectors, and every read and write is answered with an error.
    pub allow_empty: bool,
    /// Whether the driver can flush.
    pub cache: CacheType,
    /// How requests are done.
    pub engine: IoEngine,
    /// Bytes that may be read and written.
    pub bandwidth: Option<Bucket>,
    /// Requests that may be done.
    pub operations: Option<Bucket>,
}

impl DiskConfig {
    /// On what terms the file becomes a disk.
    fn terms(&self) -> DiskOptions {
        DiskOptions {
            read_only: self.read_only,
            allow_empty: self.allow_empty,
        }
    }
}

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
        source: disk::Error,
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

/// A virtio block device.
///
/// What its limiter or io_uring puts off goes on by its [sources](VirtioDevice::watched_fds).
pub struct Block {
    backend: Executor,
    flush: bool,
    /// Bytes of the disk as the driver has been told, as far as there is one.
    told: u64,
    active: Option<ActiveQueue>,
}

impl Block {
    /// Opens the disk of `config`. `clock` is the limiter's.
    ///
    /// When `config` wants io_uring and there is none, a warning says why and the device does without.
    ///
    /// # Errors
    /// Any of this module.
    pub fn open(config: &DiskConfig, clock: Box<dyn Clock>) -> Result<Self, Error> {
        let disk = Disk::open(&config.path, config.terms()).map_err(|source| Error::Disk {
            id: config.id.clone(),
            source,
        })?;
        Self::new(disk, config, clock).map_err(|source| Error::Descriptors {
            id: config.id.clone(),
            source,
        })
    }

    fn new(disk: Disk, config: &DiskConfig, clock: Box<dyn Clock>) -> io::Result<Self> {
        let engine = match config.engine {
            IoEngine::Sync => IoEngine::Sync,
            IoEngine::Async => with_io_uring(&config.id, uring::probe()),
        };
        let mut id = [0; 20];
        let name = config.id.as_bytes();
        let length = name.len().min(id.len());
        id[..length].copy_from_slice(&name[..length]);
        Ok(Self {
            told: disk.size(),
            backend: Executor {
                disk,
                id,
                engine,
                limiter: Limiter::new(config.bandwidth, config.operations)?,
                clock,
                wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                meter: Meter::default(),
                ring: None,
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
    pub fn metrics(&self) -> BlockMetrics {
        self.backend.meter.metrics
    }

    /// Goes on with the file at `path`, which may be the same one with another size, or, without a path, with the size that
    /// the file has now, and tells the driver. The file must be usable as the first one was, and is locked like it;
    /// requests in flight are waited for.
    ///
    /// # Errors
    /// What is wrong with the file; the device goes on with the one it had.
    pub fn update(&mut self, path: Option<&Path>) -> Result<(), disk::Error> {
        self.drain();
        if self.in_flight() > 0 {
            // What the kernel has begun with one file would go on with the other.
            return Err(disk::Error::Busy);
        }
        match path {
            Some(path) => self.backend.disk.replace_file(path)?,
            None => self.backend.disk.measure()?,
        }
        self.report_capacity();
        Ok(())
    }

    /// Replaces buckets of the limiter, as [`Limiter::update`]; who waits for it asks again.
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
    fn in_flight(&self) -> usize {
        self.backend.in_flight()
    }

    /// The descriptor of the ring, if there is one.
    #[cfg(test)]
    fn ring_descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.backend.ring.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Bytes of the disk as the driver has been told.
    fn reported_capacity(&self) -> u64 {
        self.told
    }

    /// As [`reported_capacity`](Self::reported_capacity), of a driver that comes with a snapshot.
    fn set_told(&mut self, size: u64) {
        self.told = size;
    }

    /// Tells the driver that the configuration space has changed.
    fn report_capacity(&mut self) {
        self.told = self.backend.disk.size();
        if let Some(active) = &self.active {
            active.signal().notify_config();
        }
    }

    /// State of the limiter, with all that has come in up to now.
    fn limiter_state(&self) -> LimiterState {
        let now = self.backend.clock.now();
        self.backend.limiter.state_at(now)
    }

    /// Gives the limiter its state. Tokens come from now on.
    fn restore_limiter(&mut self, state: LimiterState) -> Result<(), PersistError> {
        let limiter = &mut self.backend.limiter;
        limiter.restore(state)?;
        limiter.fill(self.backend.clock.now());
        Ok(())
    }

    fn serve(&mut self) {
        if let Some(active) = &mut self.active {
            active.serve(&mut self.backend);
        }
    }
}

/// The engine for the drive `id`, which wants io_uring, after asking for it has come to `probed`.
fn with_io_uring(id: &str, probed: io::Result<()>) -> IoEngine {
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
        &[request::QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        request::features(self.backend.disk.is_read_only(), self.flush)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let disk = &self.backend.disk;
        request::read_config(disk.size(), disk.is_read_only(), offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        // Section 5.2.6.2: with FLUSH offered and not accepted, a write that is done is stable.
        let through = self.flush && activation.features & request::FLUSH == 0;
        self.active = ActiveQueue::new(activation, through);
        self.told = self.backend.disk.size();
        // What was made available while nobody took it, before a snapshot for example, comes with no notification.
        self.backend.wake_up();
    }

    fn reset(&mut self) {
        self.backend.drain();
        self.active = None;
        self.backend.limiter.clear_timer();
        self.backend.quiet();
    }

    fn notify(&mut self, queue: usize) {
        if queue == 0 {
            self.serve();
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.iter().map(ActiveQueue::queue_state).collect()
    }

    fn watched_fds(&self) -> Vec<WatchedFd> {
        let source = |descriptor, token| WatchedFd {
            descriptor,
            token,
            edge: false,
        };
        vec![
            source(self.backend.limiter.as_raw_fd(), TIMER),
            source(self.backend.wake.as_raw_fd(), WAKE),
        ]
    }

    fn process_event(&mut self, token: u32) {
        match token {
            TIMER => self.backend.limiter.clear_timer(),
            WAKE => {
                self.backend.quiet();
                if self.told != self.backend.disk.size() {
                    // After a restore: the disk of the snapshot had another size.
                    self.report_capacity();
                }
            }
            _ => return,
        }
        self.serve();
    }
}

/// State of a [`Block`]. Queue and features are the transport's to keep; the contents of the disk are nobody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    limiter: LimiterState,
    /// Bytes of the disk as the driver knows them.
    size: u64,
}

impl Schema for BlockState {
    const NAME: &'static str = "virtio-block";
    const VERSION: u32 = 2;
}

impl Persist for Block {
    type State = BlockState;

    /// [`Block::drain`] comes before: a request in flight cannot be saved.
    fn save(&self) -> Result<BlockState, PersistError> {
        match self.in_flight() {
            0 => Ok(BlockState {
                limiter: self.limiter_state(),
                size: self.reported_capacity(),
            }),
            count => Err(PersistError::Invalid {
                component: BlockState::NAME,
                reason: format!("{count} requests are in flight"),
            }),
        }
    }

    /// A request that was put off is still in the queue, which is looked at by the event loop; there, the driver is also told
    /// when its disk has another size now.
    fn restore(&mut self, state: BlockState) -> Result<(), PersistError> {
        self.restore_limiter(state.limiter)?;
        self.set_told(state.size);
        Ok(())
    }
}
