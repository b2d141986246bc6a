//! Start, pause, resume, and Ctrl-Alt-Del.

use vmm::control::Progress;

use super::context::{Begun, RequestContext};
use super::error::Error;
use crate::http::Response;
use crate::process::TimedOperation;
use crate::schema::{Action, ActionType, VmState, VmUpdate};

const INTERNAL: &str = "Internal VMM";

pub(super) fn put_action(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let action: Action = context.read()?;
    match action.action_type {
        ActionType::InstanceStart => {
            let result = context.control.start();
            result.map_err(Error::of("Start microvm"))?;
        }
        ActionType::FlushMetrics => {
            context.after_start()?;
            let result = context.process.write_metrics(context.control);
            result.map_err(|reason| Error::rejected(INTERNAL, reason))?;
        }
        ActionType::SendCtrlAltDel => {
            let result = context.control.request_shutdown();
            result.map_err(Error::of(INTERNAL))?;
        }
    }
    Ok(Response::no_content())
}

pub(super) fn patch_vm(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let update: VmUpdate = context.read()?;
    context.operation = Some(match update.state {
        VmState::Paused => TimedOperation::Pause,
        VmState::Resumed => TimedOperation::Resume,
    });
    let result = match update.state {
        VmState::Paused => context.control.pause(),
        VmState::Resumed => context.control.resume().map(|()| Progress::Done),
    };
    let progress = result.map_err(Error::of(INTERNAL))?;
    Ok(Begun::new(progress, INTERNAL))
}
