//! Suspend of an idle VM.

use vmm::control::{CancelReason, Progress};

use super::context::{Begun, RequestContext, json};
use super::error::{Error, SUSPEND};
use crate::http::{Method, Request, Response};
use crate::schema::{self, ScaleToZero, ScaleToZeroAction, ScaleToZeroActionType, ScaleToZeroInfo};

/// Path of the routes.
pub(super) const PATH: &str = "/scale-to-zero";

pub(super) fn get(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&ScaleToZeroInfo::from_status(&context.control.scale_to_zero()))
}

pub(super) fn put(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let body: ScaleToZero = context.read()?;
    let config = body.into_config().map_err(Error::Schema)?;
    let result = context.control.set_scale_to_zero(config);
    result.map_err(|error| Error::of_suspend(&error))?;
    Ok(Response::no_content())
}

pub(super) fn patch(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let body: ScaleToZeroAction = context.read()?;
    let control = &mut context.control;
    let result = match body.action {
        ScaleToZeroActionType::Ready => control.set_ready().map(|()| Progress::Done),
        ScaleToZeroActionType::Suspend => control.suspend(),
        ScaleToZeroActionType::Cancel => {
            let cancelled = control.cancel_suspend(CancelReason::Request);
            cancelled.map(|()| Progress::Done)
        }
    };
    let progress = result.map_err(|error| Error::of_suspend(&error))?;
    Ok(Begun::new(progress, SUSPEND))
}

/// Returns true if `request` cancels a suspend: it is executed while the suspend runs.
pub(super) fn is_cancel(request: &Request) -> bool {
    request.method == Method::Patch
        && request.path == PATH
        && schema::read::<ScaleToZeroAction>(&request.body)
            .is_ok_and(|body| body.action == ScaleToZeroActionType::Cancel)
}
