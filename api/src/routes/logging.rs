//! Log, metrics file and serial output.

use vmm::config::SerialTarget;

use super::context::RequestContext;
use super::error::Error;
use crate::http::Response;
use crate::metrics::LineLabels;
use crate::schema::{Logger, Metrics, Serial, TokenBucket};

pub(crate) fn put_logger(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let logger: Logger = context.read()?;
    context.before_start()?;
    let result = context.process.configure_log(&logger.into_settings());
    result.map_err(|reason| Error::rejected("Logger", reason))?;
    Ok(Response::no_content())
}

pub(crate) fn put_metrics(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let Metrics {
        metrics_path,
        emit_id,
        properties,
    } = context.read()?;
    context.before_start()?;
    let id = (emit_id == Some(true)).then(|| context.process.instance().id.clone());
    let labels = LineLabels { id, properties };
    let result = context.process.write_metrics_to(&metrics_path, labels);
    result.map_err(|reason| Error::rejected("Metrics", reason))?;
    Ok(Response::no_content())
}

pub(super) fn put_serial(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let Serial {
        serial_out_path,
        console,
        rate_limiter,
    } = context.read()?;
    let rejected = |reason: &str| Error::rejected("Serial config", reason);
    let target = match (serial_out_path, console) {
        (None, None) => SerialTarget::Stdio,
        (Some(path), None) => SerialTarget::File(path),
        (None, Some(text)) => text
            .parse()
            .map_err(|reason| rejected(&format!("console {text:?} is invalid: {reason}")))?,
        (Some(_), Some(_)) => {
            return Err(rejected("serial_out_path and console are both given; remove one"));
        }
    };
    let limit = rate_limiter.map(TokenBucket::into_config);
    let result = context.control.set_serial(target, limit);
    result.map_err(Error::of("Serial config"))?;
    Ok(Response::no_content())
}
