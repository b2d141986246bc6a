//! The log, the numbers and the guest's output.

use super::{Error, RequestContext};
use crate::http::Response;
use crate::schema::{Logger, Metrics, Serial};

pub(crate) fn put_logger(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let logger: Logger = call.read()?;
    call.before_start()?;
    let done = call.process.configure_log(&logger.settings());
    done.map_err(|reason| Error::refused("Logger", reason))?;
    Ok(Response::no_content())
}

pub(crate) fn put_metrics(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let metrics: Metrics = call.read()?;
    call.before_start()?;
    let done = call.process.write_metrics_to(&metrics.metrics_path);
    done.map_err(|reason| Error::refused("Metrics", reason))?;
    Ok(Response::no_content())
}

pub(super) fn put_serial(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let serial: Serial = call.read()?;
    let done = call.control.set_serial(serial.serial_out_path.as_deref());
    done.map_err(Error::of("Serial config"))?;
    Ok(Response::no_content())
}
