//! Start, pause, resume, and the end that a guest is asked for.

use super::{Error, RequestContext};
use crate::http::Response;
use crate::schema::{Action, ActionType, VmState, VmUpdate};

const INTERNAL: &str = "Internal VMM";

pub(super) fn put_action(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let action: Action = call.read()?;
    match action.action_type {
        ActionType::InstanceStart => {
            let done = call.control.start();
            done.map_err(Error::of("Start microvm"))?;
        }
        ActionType::FlushMetrics => {
            call.after_start()?;
            let done = call.process.write_metrics(call.control);
            done.map_err(|reason| Error::refused(INTERNAL, reason))?;
        }
        ActionType::SendCtrlAltDel => {
            let done = call.control.send_ctrl_alt_del();
            done.map_err(Error::of(INTERNAL))?;
        }
    }
    Ok(Response::no_content())
}

pub(super) fn patch_vm(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let update: VmUpdate = call.read()?;
    let done = match update.state {
        VmState::Paused => call.control.pause(),
        VmState::Resumed => call.control.resume(),
    };
    done.map_err(Error::of(INTERNAL))?;
    Ok(Response::no_content())
}
