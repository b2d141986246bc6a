//! Creation and load of snapshots.

use super::context::RequestContext;
use super::error::Error;
use crate::http::Response;
use crate::schema::{SnapshotCreate, SnapshotLoad};

pub(super) fn create(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let create: SnapshotCreate = context.read()?;
    context.after_start()?;
    let open_files = context.process.open_files();
    let result = context
        .control
        .create_snapshot(&create.into_params(), &open_files);
    result.map_err(|error| Error::of_create(&error))?;
    Ok(Response::no_content())
}

/// Loads a snapshot. After a failure of the load itself, the event loop sends the response and then ends the process.
pub(super) fn load(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let load: SnapshotLoad = context.read()?;
    let is_deprecated = load.is_deprecated();
    let params = load.into_params().map_err(Error::Schema)?;
    context.before_start()?;
    let result = context.control.load_snapshot(&params);
    result.map_err(|error| Error::of_load(&error))?;
    let response = Response::no_content();
    Ok(if is_deprecated {
        response.deprecated()
    } else {
        response
    })
}
