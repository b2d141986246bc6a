//! `mayfly restore`: loads a snapshot.

use std::time::{Duration, Instant};

use crate::cli::args::RestoreArgs;
use crate::cli::hints::OptionSet;
use crate::session::{Error, SessionSetup, StartError};

/// Loads a snapshot and runs the VM to its end. Returns the exit status. `exec` is the processor time of the process before
/// `started_at`.
///
/// # Errors
/// [`Error`] if the snapshot cannot be loaded, the event loop fails, or the trace cannot be written.
pub fn restore(restore: RestoreArgs, started_at: Instant, exec: Duration) -> Result<u8, Error> {
    let setup = SessionSetup::prepare(restore.session, started_at)?;
    setup.run(exec, OptionSet::Restore, |control| {
        // From a memory file, and therefore loaded at its return.
        let loaded = control.load_snapshot(restore.params);
        loaded.map(drop).map_err(StartError::Load)
    })
}
