//! Attach of a debugger.

use std::os::unix::net::UnixStream;

use vmm::control::Control;

use super::context::RequestContext;
use super::error::Error;
use crate::http::{Request, Response};
use crate::schema::{self, Debugger};

/// Path of the route.
pub(super) const PATH: &str = "/vm/debugger";

/// Protocol of the connection after the response.
const PROTOCOL: &str = "gdb";

const PART: &str = "Attach debugger";

const NO_UPGRADE: &str = "the request has no header Upgrade: gdb; use mayfly ctl gdb";

/// Checks that a debugger can attach. [`take_over`] attaches it.
pub(super) fn put(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let _: Debugger = context.read()?;
    // RFC 9110 §7.8: a server changes only to a protocol that the client requests.
    if context.upgrade != Some(PROTOCOL) {
        return Err(Error::rejected(PART, NO_UPGRADE));
    }
    let checked = context.control.check_attach();
    checked.map_err(|error| Error::rejected(PART, error.to_string()))?;
    Ok(Response::switch_to(PROTOCOL))
}

/// Attaches the debugger of `request`, whose response is sent, on the connection of its client.
pub fn take_over(request: &Request, stream: UnixStream, control: &mut Control) {
    let attached = match schema::read::<Debugger>(&request.body) {
        Ok(debugger) => control
            .attach_debugger(stream, debugger.into())
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = attached {
        log::warn!("{error}");
    }
}
