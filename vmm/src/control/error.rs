//! Errors of the control of a VM.

use super::scale_to_zero::ScaleToZeroError;
use crate::cancellation::BeginError;
use crate::config::DeviceKind;
use crate::machine::UpdateError;
use crate::persistence::{CreateSnapshotError, LoadSnapshotError};
use crate::vm::ConsoleError;
use crate::{boot, config, console, machine};

/// Failure of an operation, which has not changed the VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation requires a VM before its start.
    #[error("cannot change this setting: the VM is started; change it before the start")]
    AfterStart,
    /// The operation requires a started VM.
    #[error("cannot control the VM: it is not started; start it first")]
    BeforeStart,
    /// No image is set.
    #[error("cannot start the VM: no image is set; set one first")]
    NoKernel,
    /// The image is unusable.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The initrd is unusable.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The configuration is invalid.
    #[error("cannot configure the machine")]
    Config(#[source] config::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(machine::DeviceError),
    /// The console of the guest cannot be opened.
    #[error(transparent)]
    Console(ConsoleError),
    /// The machine cannot be built, started or paused.
    #[error(transparent)]
    Machine(machine::Error),
    /// No device of this kind has this ID.
    #[error("cannot change {kind} {id:?}: there is no such {kind}; choose one of: {known}")]
    Unknown {
        /// Kind of the device.
        kind: DeviceKind,
        /// ID in the request.
        id: String,
        /// IDs of the devices of this kind, separated by commas, or `none`.
        known: String,
    },
    /// A device cannot be changed.
    #[error("cannot change {kind} {id:?}")]
    Update {
        /// Kind of the device.
        kind: DeviceKind,
        /// ID of the device.
        id: String,
        /// Cause.
        #[source]
        source: UpdateError,
    },
    /// The operation cannot run on another thread.
    #[error("cannot begin the operation")]
    Thread(#[source] BeginError),
    /// The machine has no device through which a user requests a shutdown.
    #[error("cannot press Ctrl-Alt-Del: the machine has no keyboard on this architecture")]
    NoShutdownRequest,
    /// The architecture has no SMT.
    #[error("cannot configure SMT: this architecture has none; configure 1 thread for each core")]
    NoSmt,
    /// The console of the guest cannot be opened.
    #[error(transparent)]
    Serial(console::Error),
}

/// Failure of an operation on a thread of its own.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The VM cannot be paused or changed.
    #[error(transparent)]
    Control(Error),
    /// The snapshot cannot be created.
    #[error(transparent)]
    Create(CreateSnapshotError),
    /// The snapshot cannot be loaded.
    #[error(transparent)]
    Load(LoadSnapshotError),
    /// The VM cannot be suspended, or continues.
    #[error(transparent)]
    Suspend(ScaleToZeroError),
}
