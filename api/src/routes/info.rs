//! Requests that only read.

use super::context::{RequestContext, json};
use super::error::Error;
use crate::http::Response;
use crate::metrics;
use crate::schema::{InstanceInfo, MachineConfiguration, Version, VmConfiguration, VmRegisters, VmStatus};

/// OpenAPI specification of all routes.
const SPECIFICATION: &str = include_str!("../../../resources/openapi.yaml");

/// Lack of memory for a response.
const NO_MEMORY: &str =
    "cannot write the response: out of memory; raise RLIMIT_AS (ulimit -v), or free memory of the host";

pub(super) fn instance(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let instance = context.process.instance();
    json(&InstanceInfo {
        id: &instance.id,
        state: context.control.state().into(),
        vmm_version: &instance.version,
        app_name: &instance.app_name,
    })
}

pub(super) fn version(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&Version {
        firecracker_version: &context.process.instance().version,
    })
}

pub(super) fn configuration(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let has_kernel = context.control.has_kernel();
    json(&VmConfiguration::from_config(
        context.control.config(),
        has_kernel,
    ))
}

pub(super) fn status(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let status = context.control.status();
    let instance = context.process.instance();
    json(&VmStatus::new(
        &instance.id,
        (&instance.app_name, &instance.version),
        context.control.state().into(),
        status,
    ))
}

pub(super) fn registers(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&VmRegisters::new(&context.control.inspect_vcpus()))
}

pub(super) fn machine(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&MachineConfiguration::from_config(context.control.config()))
}

pub(super) fn metrics(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let text = metrics::prometheus(&context.control.metrics(), context.process.counters());
    let text = text.ok_or_else(|| Error::rejected("Metrics", NO_MEMORY))?;
    Ok(Response::text("text/plain; version=0.0.4", text.into_bytes()))
}

pub(super) fn specification(_: &mut RequestContext<'_>) -> Result<Response, Error> {
    Ok(Response::text("application/yaml", SPECIFICATION.as_bytes()))
}
