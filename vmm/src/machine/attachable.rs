//! Operations of the machine on one kind of virtio device.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::block::{self, Block, DiskHandle, DiskUpdate, disk};
use devices::virtio::net::{Net, stream, tap};
use snapshot::file::FileIdentity;

use super::bounded;
use super::io_thread::ThreadWait;
use super::recorder::Recorder;
use super::user_network;
use crate::config::{DeviceUpdate, DriveUpdate, InterfaceUpdate};

/// Reason why the host side of a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk of a drive cannot be opened or locked.
    #[error(transparent)]
    Drive(block::Error),
    /// The tap of an interface cannot be opened.
    #[error("cannot attach network interface {0:?}")]
    Tap(String, #[source] tap::Error),
    /// The socket of an interface cannot be connected.
    #[error("cannot attach network interface {0:?}")]
    Stream(String, #[source] stream::Error),
    /// The passt of an interface cannot be started.
    #[error("cannot attach network interface {0:?}")]
    User(String, #[source] user_network::Error),
    /// A file descriptor of an interface cannot be created.
    #[error("cannot attach network interface {0:?}")]
    Descriptors(String, #[source] io::Error),
}

/// Reason why an attached device cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The file of a drive cannot be replaced.
    #[error(transparent)]
    Drive(disk::Error),
    /// The file of a drive cannot be opened in time.
    #[error("cannot open disk {path:?}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: bounded::Error,
    },
    /// The I/O thread does not answer.
    #[error(transparent)]
    Thread(ThreadWait),
}

/// Operations of the machine on one kind of device. A new kind implements it and [`Recorder`], and adds a case to
/// [`open`](super::attachments::open) and [`DeviceCounters`](super::recorder::DeviceCounters).
pub(super) trait Attachable: VirtioDevice {
    /// Waits until no request is in flight.
    fn drain(&mut self) {}

    /// Returns true if [`drain`](Self::drain) would wait.
    fn has_requests_in_flight(&self) -> bool {
        false
    }

    /// Returns the regular file that the device has open.
    fn file(&self) -> Option<FileIdentity> {
        None
    }

    /// Returns the open disk of a drive.
    fn disk(&self) -> Option<DiskHandle> {
        None
    }

    /// As [`disk`](Self::disk), unless a popped request may still change the disk.
    fn settled_disk(&self) -> Option<DiskHandle> {
        None
    }

    /// Returns the descriptor that becomes readable with the next frame to the guest.
    fn wake_descriptor(&self) -> Option<RawFd> {
        None
    }

    /// Returns true while a received frame waits in the device.
    fn has_waiting_frame(&self) -> bool {
        false
    }

    /// Completes the requests in flight for which `update` would wait. Cancels none.
    fn prepare_update(&mut self, _update: &DeviceUpdate) {}

    /// Locks the host side, as far as it has a lock. Has no effect while it is locked.
    fn lock_backend(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Removes the lock of [`lock_backend`](Self::lock_backend). The device does nothing before it is locked again.
    fn unlock_backend(&mut self) {}

    /// Returns the file behind the device, if `update` opens or measures one.
    ///
    /// # Errors
    /// Fails if requests in flight do not complete.
    fn begin_update(&mut self, _update: &DeviceUpdate) -> Result<Option<DiskHandle>, UpdateError> {
        Ok(None)
    }

    /// Applies `update`, whose file `disk` has been opened; `disk` then owns the replaced file. An update of another kind has no
    /// effect.
    fn update(&mut self, update: &DeviceUpdate, disk: &mut Option<DiskUpdate>) -> Result<(), UpdateError>;

    /// Returns the recorder of the counters.
    fn recorder(&self) -> Arc<dyn Recorder>;
}

impl Attachable for Block {
    fn drain(&mut self) {
        Block::drain(self);
    }

    fn has_requests_in_flight(&self) -> bool {
        Block::has_requests_in_flight(self)
    }

    fn file(&self) -> Option<FileIdentity> {
        Block::disk(self).identity()
    }

    fn disk(&self) -> Option<DiskHandle> {
        Some(Block::disk(self).handle())
    }

    fn settled_disk(&self) -> Option<DiskHandle> {
        let is_settled = !self.has_unfinished_work();
        is_settled.then(|| Block::disk(self).handle())
    }

    fn lock_backend(&mut self) -> Result<(), Error> {
        self.lock().map_err(Error::Drive)
    }

    fn unlock_backend(&mut self) {
        self.unlock();
    }

    fn prepare_update(&mut self, update: &DeviceUpdate) {
        if update.calls_file_system() {
            self.complete_requests();
        }
    }

    fn begin_update(&mut self, update: &DeviceUpdate) -> Result<Option<DiskHandle>, UpdateError> {
        if !update.calls_file_system() {
            return Ok(None);
        }
        Block::begin_update(self).map(Some).map_err(UpdateError::Drive)
    }

    fn update(&mut self, update: &DeviceUpdate, disk: &mut Option<DiskUpdate>) -> Result<(), UpdateError> {
        let DeviceUpdate::Drive(update) = update else {
            return Ok(());
        };
        // All fields, so that a new one does not compile until it is handled. `disk` is the open file at the path.
        let DriveUpdate { path: _, limits } = update;
        if let Some(disk) = disk {
            Block::update(self, disk).map_err(UpdateError::Drive)?;
        }
        self.update_limiter(limits.bandwidth, limits.operations);
        Ok(())
    }

    fn recorder(&self) -> Arc<dyn Recorder> {
        Block::recorder(self)
    }
}

impl Attachable for Net {
    fn wake_descriptor(&self) -> Option<RawFd> {
        Net::wake_descriptor(self)
    }

    fn has_waiting_frame(&self) -> bool {
        Net::has_waiting_frame(self)
    }

    fn update(&mut self, update: &DeviceUpdate, _disk: &mut Option<DiskUpdate>) -> Result<(), UpdateError> {
        let DeviceUpdate::Interface(update) = update else {
            return Ok(());
        };
        let InterfaceUpdate { receive, transmit } = update;
        self.receive_limiter_mut()
            .update(receive.bandwidth, receive.operations);
        self.transmit_limiter_mut()
            .update(transmit.bandwidth, transmit.operations);
        Ok(())
    }

    fn recorder(&self) -> Arc<dyn Recorder> {
        Net::recorder(self)
    }
}
