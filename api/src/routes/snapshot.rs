//! Snapshots of the VM, and the VM of a snapshot.

use super::{Error, RequestContext};
use crate::http::Response;
use crate::schema::{SnapshotCreate, SnapshotLoad};

const CREATE: &str = "Create snapshot";
const LOAD: &str = "Load snapshot";

pub(super) fn create(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let create: SnapshotCreate = call.read()?;
    call.after_start()?;
    let done = call.control.create_snapshot(&create.into_params());
    done.map_err(|error| Error::failed(CREATE, &error))?;
    Ok(Response::no_content())
}

/// After a failure that came of the snapshot, the event loop ends the process once the client has its answer.
pub(super) fn load(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let load: SnapshotLoad = call.read()?;
    let is_deprecated = load.is_deprecated();
    let thaw = load.into_params().map_err(Error::Schema)?;
    call.before_start()?;
    let done = call.control.load_snapshot(&thaw);
    done.map_err(|error| Error::failed(LOAD, &error))?;
    let response = Response::no_content();
    Ok(if is_deprecated {
        response.deprecated()
    } else {
        response
    })
}
