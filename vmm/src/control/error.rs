//! Why a VM is not as its owner wishes it.

use std::io;
use std::path::PathBuf;

use crate::config::DeviceKind;
use crate::machine::UpdateError;
use crate::vm::ConsoleError;
use crate::{boot, config, machine};

/// Why a wish was refused. What was there before the wish goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would change what the guest was started with.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It needs a guest.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// A guest without an image.
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    /// The image cannot be used.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The initrd cannot be used.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The parts do not make a machine.
    #[error("cannot make this machine")]
    Config(#[source] config::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(machine::DeviceError),
    /// There is no console for the guest.
    #[error(transparent)]
    Console(ConsoleError),
    /// The machine cannot be built, booted or paused.
    #[error(transparent)]
    Machine(machine::Error),
    /// No drive or interface of that name.
    #[error("there is no {kind} {id:?}: there are {known}")]
    Unknown {
        /// Kind of the device.
        kind: DeviceKind,
        /// Its name.
        id: String,
        /// The names that there are.
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
    /// The machine has no keys to press.
    #[error("SendCtrlAltDel is not supported on this architecture: its machine has no keyboard.")]
    NoKeyboard,
    /// The file for the guest's output cannot be used.
    #[error("cannot open {} for the guest's serial output", path.display())]
    Serial {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The names of what there is, for an error that says that something is not.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".into() } else { names }
}
