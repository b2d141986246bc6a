//! Network interfaces and vsock.

use vmm::config::{InterfaceUpdate, NetBackend};
use vmm::control;

use super::context::{Begun, RequestContext};
use super::error::Error;
use crate::http::Response;
use crate::schema::{NetworkInterface, NetworkInterfaceUpdate, RateLimiter, Vsock};

const NETWORK: &str = "Network config";

/// Checks the identifier `id` of a body. Firecracker's sentence about an interface, unlike that about a drive, has both identifiers.
fn check_id(context: &RequestContext<'_>, id: &str) -> Result<(), Error> {
    context.check_id(id).map_err(|error| match (error, context.id) {
        (Error::IdMismatch, Some(path)) => Error::InterfaceMismatch {
            path: path.to_owned(),
            body: id.to_owned(),
        },
        (error, _) => error,
    })
}

pub(crate) fn put_interface(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let interface: NetworkInterface = context.read()?;
    check_id(context, &interface.iface_id)?;
    let config = interface
        .into_config()
        .map_err(|reason| Error::rejected(NETWORK, reason))?;
    let is_unnamed = config.backend == NetBackend::Tap(String::new());
    match context.control.put_device(config) {
        // urunc sends an empty name for a container without a network, and its user may not create a tap.
        Err(control::Error::Device(error)) if is_unnamed => {
            log::warn!(
                "api: the guest has no network interface: no tap is named, and none can be created: {error}"
            );
        }
        result => result.map_err(Error::of(NETWORK))?,
    }
    Ok(Response::no_content())
}

pub(super) fn patch_interface(context: &mut RequestContext<'_>) -> Result<Begun, Error> {
    let NetworkInterfaceUpdate {
        iface_id,
        rx_rate_limiter,
        tx_rate_limiter,
    } = context.read()?;
    check_id(context, &iface_id)?;
    let change = InterfaceUpdate {
        receive: RateLimiter::changes(rx_rate_limiter),
        transmit: RateLimiter::changes(tx_rate_limiter),
    };
    let result = context.control.update_device(iface_id, change.into());
    let progress = result.map_err(Error::of(NETWORK))?;
    Ok(Begun::new(progress, NETWORK))
}

/// Rejects hot-unplug with Firecracker's sentences: before the start, and after it.
pub(super) fn delete_interface(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    context.after_start()?;
    context.before_start()?;
    Ok(Response::no_content())
}

/// Accepts an empty vsock, which urunc sends for a VM without one.
pub(crate) fn put_vsock(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let vsock: Vsock = context.read()?;
    context.before_start()?;
    let response = Response::no_content();
    Ok(match vsock.vsock_id {
        Some(_) => response.deprecated(),
        None => response,
    })
}
