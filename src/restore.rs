//! `mayfly restore`: loads a snapshot.

use std::env;
use std::time::{Duration, Instant};

use crate::cli::args::RestoreArgs;
use crate::cli::hints::OptionSet;
use crate::measurement;
use crate::session::{Error, SessionSetup, StartError};
use crate::shell;

/// Loads a snapshot, here or in a shell, and runs the VM to its end. Returns the exit status. `exec` is the processor time of the
/// process before `started_at`.
///
/// # Errors
/// [`Error`] if the snapshot cannot be loaded, the event loop fails, or the trace would be written to another file of it.
pub fn restore(restore: RestoreArgs, started_at: Instant, exec: Duration) -> Result<u8, Error> {
    if let Some(socket) = &restore.shell {
        // Without the names of program and command.
        let arguments = env::args_os().skip(2);
        return shell::restore(socket, &restore.params, arguments).map_err(Error::Shell);
    }
    let recorded = restore
        .params
        .working_set
        .record
        .as_ref()
        .map(|record| &record.path);
    let inputs = || measurement::snapshot_files(&restore.params);
    let setup = SessionSetup::prepare(restore.session, recorded, &inputs, started_at)?;
    setup.run(exec, OptionSet::Restore, |control| {
        // From a memory file, and therefore loaded at its return.
        let loaded = control.load_snapshot(restore.params);
        loaded.map(drop).map_err(StartError::Load)
    })
}
