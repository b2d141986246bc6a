//! The virtio block device, virtio 1.2 §5.2.
//!
//! | module | contents |
//! |---|---|
//! | [`mod@disk`] | [`Disk`]: file or block device behind a drive |
//! | `execute` | execution of requests that need no wait for the disk |
//! | `executor` | [`IoEngine`]: choice between synchronous execution and io_uring |
//! | `extent` | byte ranges, and the pieces of a discard |
//! | [`lock`] | lock of a disk, and its [`Holder`](lock::Holder) |
//! | [`metrics`] | [`BlockMetrics`]: counters and latencies; [`BlockRecorder`] |
//! | `queue` | queue of an active device |
//! | `replacement` | [`DiskUpdate`]: another file or size of a disk, opened without the lock of the device |
//! | `request` | requests, features and configuration space |
//! | `transfer` | requests in flight and their buffers |
//! | `uring` | execution with io_uring |
//! | `worker` | thread for requests that may take long |
//!
//! Data moves between the page cache and guest memory without another copy. Data that waits for the disk moves through a buffer of the
//! device, so that nothing but the device accesses guest memory. A request that fails on the host completes with an error
//! status. Only a chain that is not a request stops the queue.
//!
//! Threat model: the contents of a chain are untrusted and may change during the parse, so header and segments are
//! read once. Other processes may truncate, extend or unplug the disk at any time.

pub mod disk;
mod execute;
mod executor;
mod extent;
pub mod lock;
pub mod metrics;
mod queue;
mod replacement;
mod request;
mod stamp;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;
mod worker;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error as PersistError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Component, Persist, Schema};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock::Clock;
use crate::limiter::{Bucket, Limiter, LimiterState};
use crate::virtio::device::{Activation, VirtioDevice, WatchedFd};
pub use disk::{Disk, DiskOptions};
use executor::Executor;
pub use executor::IoEngine;
use metrics::Meter;
pub use metrics::{BlockMetrics, BlockRecorder};
use queue::ActiveQueue;
pub use replacement::{DiskHandle, DiskUpdate};
pub use stamp::DiskStamp;
use transfer::Unfinished;
use uring::UringEngine;
use worker::DirtyRange;

/// Token of the timerfd of the rate limiter.
const TIMER: u32 = 0;
/// Token of the eventfd.
const WAKE: u32 = 1;

/// Maximum time for requests in flight before an update or a snapshot.
const WORK_TIMEOUT: Duration = Duration::from_millis(100);

/// Durability of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// FLUSH is not offered: the driver cannot flush, and writes stay in the page cache.
    #[default]
    Unsafe,
    /// FLUSH is offered. If the driver does not accept it, every write is write-through.
    Writeback,
}

/// Configuration of a [`Block`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SavedDiskConfig", into = "SavedDiskConfig")]
pub struct DiskConfig {
    /// Name of the drive. GET_ID returns its first 20 bytes to the guest.
    pub id: String,
    /// Path of the file or block device.
    pub path: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
    /// Other shared drives may write the disk too.
    pub shared: bool,
    /// Accepts an empty file as a placeholder for [`Block::update`]. Until then the disk has no sectors, and every
    /// read and write fails.
    pub allow_empty: bool,
    /// Durability of writes.
    pub cache: CacheType,
    /// Execution of requests.
    pub engine: IoEngine,
    /// Token bucket for bytes.
    pub bandwidth: Option<Bucket>,
    /// Token bucket for requests.
    pub operations: Option<Bucket>,
}

impl DiskConfig {
    /// Returns the options for opening the disk.
    fn disk_options(&self) -> DiskOptions {
        DiskOptions {
            read_only: self.read_only,
            allow_empty: self.allow_empty,
            shared: self.shared,
            for_uring: self.engine == IoEngine::Async,
        }
    }
}

/// [`DiskConfig`] as state files hold it. postcard encodes by position: the order of the fields is part of the format.
#[derive(Serialize, Deserialize)]
struct SavedDiskConfig {
    id: String,
    path: PathBuf,
    access: Access,
    allow_empty: bool,
    cache: CacheType,
    engine: IoEngine,
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

/// Access of a drive and of others to the disk. postcard encodes the first two like the `bool` of older state files.
#[derive(Serialize, Deserialize)]
enum Access {
    Writable,
    ReadOnly,
    SharedWritable,
    SharedReadOnly,
}

impl From<DiskConfig> for SavedDiskConfig {
    fn from(config: DiskConfig) -> Self {
        Self {
            id: config.id,
            path: config.path,
            access: match (config.read_only, config.shared) {
                (false, false) => Access::Writable,
                (true, false) => Access::ReadOnly,
                (false, true) => Access::SharedWritable,
                (true, true) => Access::SharedReadOnly,
            },
            allow_empty: config.allow_empty,
            cache: config.cache,
            engine: config.engine,
            bandwidth: config.bandwidth,
            operations: config.operations,
        }
    }
}

impl From<SavedDiskConfig> for DiskConfig {
    fn from(saved: SavedDiskConfig) -> Self {
        Self {
            id: saved.id,
            path: saved.path,
            read_only: matches!(saved.access, Access::ReadOnly | Access::SharedReadOnly),
            shared: matches!(saved.access, Access::SharedWritable | Access::SharedReadOnly),
            allow_empty: saved.allow_empty,
            cache: saved.cache,
            engine: saved.engine,
            bandwidth: saved.bandwidth,
            operations: saved.operations,
        }
    }
}

/// Failure to create a block device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a usable disk.
    #[error("cannot use the disk of drive {id:?}")]
    Disk {
        /// Name of the drive.
        id: String,
        /// Error of the disk.
        #[source]
        source: disk::Error,
    },
    /// The kernel does not create an eventfd or timerfd.
    #[error("cannot create the event descriptors of drive {id:?}")]
    Descriptors {
        /// Name of the drive.
        id: String,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// A virtio block device.
///
/// Events of its [descriptors](VirtioDevice::watched_fds) resume requests that wait for the rate limiter or io_uring.
pub struct Block {
    /// Name of the drive.
    name: String,
    executor: Executor,
    offers_flush: bool,
    /// Capacity in bytes at the activation or the last configuration change notification.
    reported_capacity: u64,
    active: Option<ActiveQueue>,
}

impl Block {
    /// Opens the disk of `config` and creates the device. `clock` is for rate limiter and metrics.
    ///
    /// If `config` selects io_uring and the kernel does not allow it, logs a warning and uses synchronous I/O.
    ///
    /// # Errors
    /// Fails if the disk is not usable, or the kernel does not create the event descriptors.
    pub fn open(config: &DiskConfig, clock: Box<dyn Clock>) -> Result<Self, Error> {
        let mut block = Self::open_unlocked(config, None, clock)?;
        block.lock()?;
        Ok(block)
    }

    /// Opens the disk of `config`, unless `file` is open there, and creates the device like [`open`](Self::open), but leaves the disk
    /// unlocked. The device processes no request before it is [locked](Self::lock).
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_unlocked(
        config: &DiskConfig,
        file: Option<File>,
        clock: Box<dyn Clock>,
    ) -> Result<Self, Error> {
        let (path, options) = (&config.path, config.disk_options());
        let opened = match file {
            Some(file) => Disk::with_file(file, path, options),
            None => Disk::open_unlocked(path, options),
        };
        let mut disk = opened.map_err(|source| Error::Disk {
            id: config.id.clone(),
            source,
        })?;
        disk.open_for_uring();
        Self::new(disk, config, clock).map_err(|source| Error::Descriptors {
            id: config.id.clone(),
            source,
        })
    }

    /// Locks the disk. Has no effect on a locked one.
    ///
    /// # Errors
    /// [`Error::Disk`] if another drive or process has a conflicting lock.
    pub fn lock(&mut self) -> Result<(), Error> {
        self.executor.disk.lock().map_err(|source| Error::Disk {
            id: self.name.clone(),
            source,
        })
    }

    /// Unlocks the disk of a device that has no request in flight. It processes none then.
    pub fn unlock(&mut self) {
        debug_assert!(self.in_flight() == 0, "requests in flight access the disk");
        self.executor.disk.unlock();
    }

    fn new(mut disk: Disk, config: &DiskConfig, clock: Box<dyn Clock>) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let uring = match config.engine {
            IoEngine::Sync => None,
            IoEngine::Async => open_uring(
                &config.id,
                disk.pass_to_uring(|file| UringEngine::new(wake.as_raw_fd(), file)),
            ),
        };
        let mut id = [0; 20];
        let name = config.id.as_bytes();
        let length = name.len().min(id.len());
        id[..length].copy_from_slice(&name[..length]);
        Ok(Self {
            name: config.id.clone(),
            reported_capacity: disk.size(),
            executor: Executor {
                disk,
                id,
                engine: if uring.is_some() {
                    IoEngine::Async
                } else {
                    IoEngine::Sync
                },
                limiter: Limiter::new(config.bandwidth, config.operations)?,
                clock,
                wake,
                meter: Meter::default(),
                uring,
                worker: None,
                dirty: DirtyRange::UNKNOWN,
                written_in_flush: 0,
            },
            offers_flush: config.cache == CacheType::Writeback,
            active: None,
        })
    }

    /// Returns the disk.
    pub fn disk(&self) -> &Disk {
        &self.executor.disk
    }

    /// Returns the engine in use. It may differ from the configuration.
    pub fn engine(&self) -> IoEngine {
        self.executor.engine
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> BlockMetrics {
        self.executor.meter.recorder.metrics()
    }

    /// Returns the recorder of the metrics, for threads that read them without the lock of the device.
    pub fn recorder(&self) -> Arc<BlockRecorder> {
        Arc::clone(&self.executor.meter.recorder)
    }

    /// Returns the open file of the disk, for an update. Waits for requests in flight first: on a disk that does not answer, the call of
    /// the file system would wait too.
    ///
    /// # Errors
    /// Fails with [`disk::Error::Busy`] if requests in flight do not complete within 100 ms.
    pub fn begin_update(&mut self) -> Result<DiskHandle, disk::Error> {
        self.complete_all()?;
        Ok(self.disk().handle())
    }

    /// Replaces file or size of the disk by those of `update`, which [`DiskHandle::update`] has opened. Waits for requests in flight
    /// first, and then sends a configuration change notification.
    ///
    /// # Errors
    /// Fails with [`disk::Error::Busy`] if requests in flight do not complete within 100 ms. The device then keeps its disk.
    pub fn update(&mut self, update: &mut DiskUpdate) -> Result<(), disk::Error> {
        self.complete_all()?;
        self.executor.meter.recorder.updates.add(1);
        self.executor.dirty = DirtyRange::UNKNOWN;
        if self.executor.disk.apply(update) {
            self.executor.replace_uring_file();
            if let Some(active) = &mut self.active {
                active.restart_unfinished();
            }
        }
        self.report_capacity();
        Ok(())
    }

    fn complete_all(&mut self) -> Result<(), disk::Error> {
        self.complete_requests();
        let executor = &mut self.executor;
        if executor.in_flight() == 0 {
            executor.reap_abandoned();
        }
        if executor.in_flight() > 0 || executor.has_abandoned() || !executor.is_worker_idle(Duration::ZERO) {
            executor.meter.recorder.update_failures.add(1);
            // The rest of a partially completed request would go to the other file.
            return Err(disk::Error::Busy);
        }
        Ok(())
    }

    /// Executes reads and writes as on the disk of a server, whatever the disk is.
    ///
    /// # Errors
    /// Fails if the kernel does not duplicate the descriptor.
    #[cfg(any(test, feature = "testing"))]
    pub fn make_disk_remote(&mut self) -> io::Result<()> {
        self.executor.disk.make_remote()
    }

    /// Replaces buckets of the rate limiter like [`Limiter::update`]. A waiting request is retried.
    pub fn update_limiter(&mut self, bandwidth: Option<Bucket>, operations: Option<Bucket>) {
        self.executor.limiter.update(bandwidth, operations);
    }

    /// Waits at most 100 ms for all requests in flight and completes them. The caller must do this before it saves the state.
    ///
    /// Suspends the others: their work ends with the current call, and the next event continues them. The state has them too.
    pub fn drain(&mut self) {
        self.drain_within(WORK_TIMEOUT);
        if let Some(active) = &mut self.active {
            active.suspend(&mut self.executor);
        }
    }

    /// Waits at most 100 ms for requests in flight and completes them. The others stay in flight.
    pub fn complete_requests(&mut self) {
        self.drain_within(WORK_TIMEOUT);
    }

    /// Returns true if [`drain`](Self::drain) would wait.
    pub fn has_requests_in_flight(&self) -> bool {
        self.in_flight() > 0
    }

    /// Returns true if the disk may still change by a request that the device has popped, also by one that it has suspended.
    pub fn has_unfinished_work(&self) -> bool {
        self.in_flight() > 0 || self.executor.has_abandoned()
    }

    fn drain_within(&mut self, timeout: Duration) {
        if self.in_flight() > 0
            && let Some(active) = &mut self.active
        {
            active.drain(&mut self.executor, timeout);
        }
    }

    /// Returns the number of requests in flight.
    fn in_flight(&self) -> usize {
        self.executor.in_flight()
    }

    /// Returns the descriptor of the io_uring, if it exists.
    #[cfg(test)]
    fn uring_descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.executor.uring.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Sends a configuration change notification for the current capacity.
    fn report_capacity(&mut self) {
        self.reported_capacity = self.executor.disk.size();
        if let Some(active) = &self.active {
            active.interrupt().notify_config();
        }
    }

    /// Returns the state of the rate limiter, refilled up to now.
    fn limiter_state(&self) -> LimiterState {
        let now = self.executor.clock.now();
        self.executor.limiter.state_at(now)
    }

    /// Restores the rate limiter, which refills from now on.
    fn restore_limiter(&mut self, state: LimiterState) -> Result<(), PersistError> {
        let limiter = &mut self.executor.limiter;
        limiter.restore(state)?;
        limiter.fill(self.executor.clock.now());
        Ok(())
    }

    fn process(&mut self) {
        if !self.executor.disk.is_locked {
            // Another VM may write the disk. The VM is paused, and its resume follows the lock.
            return;
        }
        match &mut self.active {
            Some(active) => active.process(&mut self.executor),
            None => self.executor.reap_abandoned(),
        }
    }
}

/// Returns the io_uring of drive `id`, or `None` with a warning if it cannot be created.
fn open_uring(id: &str, created: io::Result<UringEngine>) -> Option<UringEngine> {
    created
        .inspect_err(|error| {
            log::warn!("drive {id:?} uses synchronous I/O: cannot create an io_uring: {error}")
        })
        .ok()
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[request::QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        request::features(self.executor.disk.is_read_only(), self.offers_flush)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let disk = &self.executor.disk;
        request::read_config(disk.size(), disk.is_read_only(), offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        // Without an accepted FLUSH, a completed write must be stable, virtio 1.2 §5.2.6.2.
        let write_through = self.offers_flush && activation.features & request::FLUSH == 0;
        self.active = ActiveQueue::new(activation, write_through);
        self.reported_capacity = self.executor.disk.size();
        // Chains may be available already, for example from before a snapshot: no notification follows for them.
        self.executor.wake_up();
    }

    fn reset(&mut self) {
        self.executor.abandon();
        self.active = None;
        self.executor.limiter.clear_timer();
        self.executor.clear_wake();
        // Those whose event is cleared.
        self.executor.reap_abandoned();
    }

    fn notify(&mut self, queue: usize) {
        if queue == 0 {
            self.executor.meter.recorder.notifications.add(1);
            self.process();
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.iter().map(ActiveQueue::queue_state).collect()
    }

    fn watched_fds(&self) -> Vec<WatchedFd> {
        let watched = |descriptor, token| WatchedFd {
            descriptor,
            token,
            edge: false,
        };
        vec![
            watched(self.executor.limiter.as_raw_fd(), TIMER),
            watched(self.executor.wake.as_raw_fd(), WAKE),
        ]
    }

    fn process_event(&mut self, token: u32) {
        match token {
            TIMER => {
                self.executor.meter.recorder.limiter_events.add(1);
                self.executor.limiter.clear_timer();
            }
            WAKE => {
                self.executor.clear_wake();
                if self.reported_capacity != self.executor.disk.size() {
                    // Restored from a snapshot with a disk of another size.
                    self.report_capacity();
                }
            }
            _ => return,
        }
        self.process();
    }
}

/// Saved state of a [`Block`], without its suspended requests. The transport saves queue and features; a snapshot does not contain
/// the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    limiter: LimiterState,
    /// Capacity in bytes that was last reported to the driver.
    reported_capacity: u64,
}

impl Schema for BlockState {
    const NAME: &'static str = "virtio-block";
    const VERSION: u32 = 2;
}

/// Suspended requests of a [`Block`]: a section of its own, which a device without such requests does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedState(Vec<Unfinished>);

impl Schema for UnfinishedState {
    const NAME: &'static str = "virtio-block-unfinished";
    const VERSION: u32 = 1;
}

impl Component for Block {
    /// Fails if requests are in flight; see [`Block::drain`].
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), PersistError> {
        let state = self.save()?;
        let failed = |source| section_error(key, source);
        archive.write(key, &state).map_err(failed)?;
        match self.active.as_ref().map(ActiveQueue::unfinished) {
            Some(unfinished) if !unfinished.is_empty() => archive
                .write(&unfinished_key(key), &UnfinishedState(unfinished))
                .map_err(failed),
            _ => Ok(()),
        }
    }

    /// The event loop then processes the queue, and notifies the driver if the disk has another size.
    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), PersistError> {
        let failed = |source| section_error(key, source);
        let state = archive.read(key).map_err(failed)?;
        let unfinished = archive.read_optional(&unfinished_key(key)).map_err(failed)?;
        self.restore(state)?;
        unfinished.map_or(Ok(()), |unfinished| self.restore_unfinished(unfinished))
    }
}

fn unfinished_key(key: &str) -> String {
    format!("{key}/unfinished")
}

fn section_error(key: &str, source: SectionError) -> PersistError {
    PersistError::Section {
        key: key.to_owned(),
        source,
    }
}

impl Block {
    fn save(&self) -> Result<BlockState, PersistError> {
        match self.in_flight() {
            0 => Ok(BlockState {
                limiter: self.limiter_state(),
                reported_capacity: self.reported_capacity,
            }),
            count => Err(PersistError::Busy {
                component: BlockState::NAME,
                reason: format!(
                    "drive {:?} has {count} unfinished requests; repeat the save when its disk has completed them",
                    self.name
                ),
            }),
        }
    }

    /// Restores rate limiter and reported capacity.
    fn restore(&mut self, state: BlockState) -> Result<(), PersistError> {
        self.restore_limiter(state.limiter)?;
        self.reported_capacity = state.reported_capacity;
        Ok(())
    }

    /// Restores suspended requests. A queue has at most as many as entries; their chains are checked at their start.
    fn restore_unfinished(&mut self, state: UnfinishedState) -> Result<(), PersistError> {
        let UnfinishedState(unfinished) = state;
        let count = unfinished.len();
        match &mut self.active {
            Some(active) if count <= usize::from(request::QUEUE_SIZE) => {
                active.restore_unfinished(unfinished);
                Ok(())
            }
            active => Err(PersistError::Invalid {
                component: UnfinishedState::NAME,
                reason: format!(
                    "the state has {count} requests; an active device has at most {}, and this one is {}",
                    request::QUEUE_SIZE,
                    if active.is_some() { "active" } else { "not active" }
                ),
            }),
        }
    }
}
