//! Snapshot of a crash of the guest.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Control, CreateSnapshotError, CreateSnapshotParams};
use crate::cancellation::Cancellation;
use crate::error_chain::ErrorChain;
use crate::machine;
use crate::persistence::check_writable;

/// The directory for the snapshot of a crash cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot create snapshots in {}; name a directory that exists and is writable", path.display())]
pub struct CrashDirectoryError {
    /// Path of the directory.
    path: PathBuf,
    /// Cause.
    #[source]
    source: io::Error,
}

/// Reason why there is no snapshot of a crash.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The other vCPUs cannot be paused.
    #[error("cannot create a snapshot of the crash")]
    Pause(#[source] machine::Error),
    /// The snapshot cannot be created.
    #[error("cannot create a snapshot of the crash")]
    Create(#[source] CreateSnapshotError),
}

impl Control {
    /// Sets the directory for the snapshot of a crash.
    ///
    /// # Errors
    /// [`CrashDirectoryError`]
    pub fn set_crash_directory(&mut self, path: &Path) -> Result<(), CrashDirectoryError> {
        let open = || {
            // Absolute: the process may change its working directory.
            let path = path.canonicalize()?;
            let directory = File::open(&path)?;
            if !directory.metadata()?.is_dir() {
                return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
            }
            // A crash is too late to refuse it.
            check_writable(&directory)?;
            Ok(path)
        };
        let opened = open().map_err(|source| CrashDirectoryError {
            path: path.to_owned(),
            source,
        });
        self.crash_directory = Some(opened?);
        Ok(())
    }

    /// Creates a snapshot of the crash of a vCPU if there is a directory for it, before the other vCPUs are stopped.
    #[cold]
    pub(crate) fn save_crash(&mut self) {
        if let Some(directory) = self.crash_directory.clone() {
            let created = self.create_crash_snapshot(&directory);
            let created = created.map_err(|error| ErrorChain(&error).to_string());
            self.crash_snapshot = Some(created.map(|()| directory));
        }
    }

    fn create_crash_snapshot(&mut self, directory: &Path) -> Result<(), Error> {
        let Some(vm) = self.vm_mut() else { return Ok(()) };
        let core = vm.core().clone();
        core.pause().map_err(Error::Pause)?;
        vm.set_paused();
        core.machine().use_crash_states();
        let params = CreateSnapshotParams::full_in(directory);
        let created = params.create(&core, vm.config(), &[], &Cancellation::default());
        created.map(drop).map_err(Error::Create)
    }

    /// Takes the result of the snapshot of a crash: its directory, or the error with its causes. `None` without a crash or without a
    /// directory for its snapshot.
    pub fn take_crash_snapshot(&mut self) -> Option<Result<PathBuf, String>> {
        self.crash_snapshot.take()
    }
}
