//! Network interfaces, and the vsock that is none.

use vmm::config::{InterfaceUpdate, NetBackend};
use vmm::control;

use super::{Error, RequestContext};
use crate::http::Response;
use crate::schema::{NetworkInterface, NetworkInterfaceUpdate, RateLimiter, Vsock};

const NETWORK: &str = "Network config";

pub(crate) fn put_interface(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let interface: NetworkInterface = call.read()?;
    call.check_id(&interface.iface_id)?;
    let config = interface
        .config()
        .map_err(|reason| Error::refused(NETWORK, reason))?;
    let is_unnamed = config.backend == NetBackend::Tap(String::new());
    match call.control.put_device(config) {
        // urunc names no tap for a container without a network, whose user may not make one.
        Err(control::Error::Device(error)) if is_unnamed => {
            log::warn!(
                "api: no tap was named and none can be made, so that the guest has no interface: {error}"
            );
        }
        done => done.map_err(Error::of(NETWORK))?,
    }
    Ok(Response::no_content())
}

pub(super) fn patch_interface(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let update: NetworkInterfaceUpdate = call.read()?;
    call.check_id(&update.iface_id)?;
    let change = InterfaceUpdate {
        receive: RateLimiter::changes(update.rx_rate_limiter),
        transmit: RateLimiter::changes(update.tx_rate_limiter),
    };
    let done = call.control.update_device(&update.iface_id, &change.into());
    done.map_err(Error::of(NETWORK))?;
    Ok(Response::no_content())
}

/// Nothing is taken from a guest that runs.
pub(super) fn delete_interface(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    call.after_start()?;
    call.before_start()?;
    Ok(Response::no_content())
}

/// urunc sends an empty vsock for a VM that is to have none.
pub(crate) fn put_vsock(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let vsock: Vsock = call.read()?;
    call.before_start()?;
    let response = Response::no_content();
    Ok(match vsock.vsock_id {
        Some(_) => response.deprecated(),
        None => response,
    })
}
