//! Drives.

use vmm::config;

use super::context::{Begun, RequestContext};
use super::error::Error;
use super::machine::too_long;
use crate::http::Response;
use crate::schema::{Drive, DriveUpdate, RateLimiter};

const DRIVE: &str = "Drive config";

pub(crate) fn put_drive(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let drive: Drive = context.read()?;
    context.check_id(&drive.drive_id)?;
    context.before_start()?;
    let drive = drive.into_config();
    if let Some(root) = drive.root_argument()
        && let Some(reason) = too_long(&context.control.config().cmdline, Some(root))
    {
        return Err(Error::rejected(DRIVE, reason));
    }
    let result = context.control.put_device(drive);
    result.map_err(Error::of(DRIVE))?;
    Ok(Response::no_content())
}

pub(super) fn patch_drive(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let DriveUpdate {
        drive_id,
        path_on_host,
        rate_limiter,
    } = context.read()?;
    context.check_id(&drive_id)?;
    let change = config::DriveUpdate {
        path: path_on_host,
        limits: RateLimiter::changes(rate_limiter),
    };
    let result = context.control.update_device(drive_id, change.into());
    let progress = result.map_err(Error::of(DRIVE))?;
    Ok(Begun::new(progress, DRIVE))
}

/// Rejects hot-unplug with Firecracker's sentences: before the start, and after it.
pub(super) fn delete_drive(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    context.after_start()?;
    context.before_start()?;
    Ok(Response::no_content())
}
