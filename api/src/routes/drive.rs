//! Drives.

use vmm::config;

use super::boot::too_long;
use super::{Error, RequestContext};
use crate::http::Response;
use crate::schema::{Drive, DriveUpdate, RateLimiter};

const DRIVE: &str = "Drive config";

pub(crate) fn put_drive(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let drive: Drive = call.read()?;
    call.check_id(&drive.drive_id)?;
    call.before_start()?;
    let drive = drive.config();
    if let Some(root) = drive.root_argument()
        && let Some(reason) = too_long(&call.control.config().cmdline, Some(root))
    {
        return Err(Error::refused(DRIVE, reason));
    }
    let done = call.control.put_device(drive);
    done.map_err(Error::of(DRIVE))?;
    Ok(Response::no_content())
}

pub(super) fn patch_drive(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let update: DriveUpdate = call.read()?;
    call.check_id(&update.drive_id)?;
    let limits = RateLimiter::changes(update.rate_limiter);
    let change = config::DriveUpdate {
        path: update.path_on_host,
        limits,
    };
    let done = call.control.update_device(&update.drive_id, &change.into());
    done.map_err(Error::of(DRIVE))?;
    Ok(Response::no_content())
}

/// Nothing is taken from a guest that runs.
pub(super) fn delete_drive(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    call.after_start()?;
    call.before_start()?;
    Ok(Response::no_content())
}
