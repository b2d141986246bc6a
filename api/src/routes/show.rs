//! What can be looked at.

use vmm::control::InstanceState;

use super::{Error, RequestContext, json};
use crate::http::Response;
use crate::metrics;
use crate::schema::{InstanceInfo, MachineConfiguration, Version, VmConfiguration};

/// What is implemented, for machines to read.
const SPECIFICATION: &str = include_str!("../../../resources/openapi.yaml");

pub(super) fn instance(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let instance = call.process.instance();
    json(&InstanceInfo {
        id: &instance.id,
        state: match call.control.state() {
            InstanceState::NotStarted => "Not started",
            InstanceState::Running => "Running",
            InstanceState::Paused => "Paused",
        },
        vmm_version: &instance.version,
        app_name: &instance.app_name,
    })
}

pub(super) fn version(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&Version {
        firecracker_version: &call.process.instance().version,
    })
}

pub(super) fn configuration(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let has_kernel = call.control.has_kernel();
    json(&VmConfiguration::of(call.control.config(), has_kernel))
}

pub(super) fn machine(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    json(&MachineConfiguration::of(call.control.config()))
}

pub(super) fn metrics(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let text = metrics::prometheus(&call.control.metrics(), call.process.counters());
    Ok(Response::text("text/plain; version=0.0.4", text))
}

pub(super) fn specification(_: &mut RequestContext<'_>) -> Result<Response, Error> {
    Ok(Response::text("application/yaml", SPECIFICATION))
}
