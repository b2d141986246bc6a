//! Creation and load of snapshots.

use vmm::control::SnapshotKind;

use super::context::{Begun, RequestContext};
use super::error::{CREATE, Error, LOAD};
use crate::process::TimedOperation;
use crate::schema::{SnapshotCreate, SnapshotLoad};

pub(super) fn create(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let create: SnapshotCreate = context.read()?;
    context.after_start()?;
    let open_files = context.process.open_files();
    let params = create.into_params();
    context.operation = Some(match params.kind {
        SnapshotKind::Full => TimedOperation::CreateFull,
        SnapshotKind::Diff => TimedOperation::CreateDiff,
    });
    let result = context.control.create_snapshot(params, open_files);
    let progress = result.map_err(|error| Error::of_create(&error))?;
    Ok(Begun::new(progress, CREATE))
}

/// Loads a snapshot. After a failure of the load itself, the event loop sends the response and then ends the process.
pub(super) fn load(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let load: SnapshotLoad = context.read()?;
    let is_deprecated = load.is_deprecated();
    let params = load.into_params().map_err(Error::Schema)?;
    let mark = Error::mark(is_deprecated);
    context.before_start().map_err(&mark)?;
    context.operation = Some(TimedOperation::Load);
    let result = context.control.load_snapshot(params);
    let progress = result.map_err(|error| mark(Error::of_load(&error)))?;
    Ok(Begun {
        is_deprecated,
        ..Begun::new(progress, LOAD)
    })
}
