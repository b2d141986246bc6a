//! Requests of the API.

use std::fmt::Write as _;

use api::http::{Method, Reply, Request, Response};
use serde_json::{Value, json};

use super::core::Core;
use super::lifecycle::Cause;
use super::live::WakeFrames;
use super::register::Rejection;
use super::registry::{Entry, Key, State};
use super::schema::{Kind, Schema, optional, required};

/// Content type of the specification.
const YAML: &str = "application/yaml";
/// Content type of the metrics.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Specification of the API.
const SPECIFICATION: &str = include_str!("../../resources/standby.yaml");

/// Number of instances in a page.
const PAGE: usize = 100;
/// Maximum number of instances in a page.
const MAX_PAGE: usize = 1000;

/// Body of `PUT /instances/{id}/state`.
pub const STATE_CHANGE: Schema = Schema {
    name: "StateChange",
    about: "Change of the state of an instance.",
    fields: &[required(
        "state",
        Kind::Words(&["wake", "suspend"]),
        "wake: let the guest run. suspend: suspend it, also if it is not idle.",
    )],
};

/// Query of `GET /instances`.
const PAGE_QUERY: Schema = Schema {
    name: "PageQuery",
    about: "",
    fields: &[
        optional("after", Kind::Text(64), ""),
        optional("limit", Kind::Text(4), ""),
        optional(
            "state",
            Kind::Words(&["suspended", "waking", "running", "suspending", "failed"]),
            "",
        ),
    ],
};

/// Executes `request`. [`respond`] creates the response to a registration.
pub fn execute(core: &mut Core, request: &Request) -> Reply {
    let result = match (&request.method, request.path.strip_prefix("/instances/")) {
        (Method::Put, Some(id)) if !id.contains('/') => {
            if core.registration.is_some() {
                return Reply::Busy;
            }
            match core.begin_registration(id, &request.body) {
                Ok(()) => return Reply::Pending,
                Err(rejection) => Err(rejection),
            }
        }
        _ => route(core, request),
    };
    Reply::Response(result.unwrap_or_else(|rejection| {
        log::info!("standby: {} {} was rejected", request.method, request.path);
        reject(core, &rejection)
    }))
}

/// Returns the response to a registration.
pub fn respond(core: &mut Core, result: Result<(), Rejection>) -> Response {
    match result {
        Ok(()) => Response::no_content(),
        Err(rejection) => reject(core, &rejection),
    }
}

fn reject(core: &mut Core, rejection: &Rejection) -> Response {
    core.counters.rejected += 1;
    log::info!("standby: rejected a request: {}", rejection.reason);
    let body = json!({ "fault_message": rejection.reason });
    Response::json(rejection.status, body.to_string())
}

fn route(core: &mut Core, request: &Request) -> Result<Response, Rejection> {
    let path: Vec<&str> = request.path.split('/').skip(1).collect();
    match (&request.method, path.as_slice()) {
        (Method::Get, [""]) => Ok(describe(core)),
        (Method::Get, ["openapi.yaml"]) => Ok(Response::text(YAML, SPECIFICATION.as_bytes())),
        (Method::Get, ["metrics"]) => Ok(Response::text(PROMETHEUS, metrics(core).into_bytes())),
        (Method::Get, ["instances"]) => list(core, request.query.as_deref()),
        (Method::Get, ["instances", id]) => {
            let key = find(core, id)?;
            let entry = core.registry.get(key).ok_or_else(|| Rejection::missing(id))?;
            Ok(Response::json(200, instance(core, entry, true).to_string()))
        }
        (Method::Delete, ["instances", id]) => {
            let kill = match request.query.as_deref() {
                None | Some("kill=false") => false,
                Some("kill=true") => true,
                Some(query) => {
                    return Err(Rejection::invalid(format!(
                        "cannot use the query {query:?}: expected kill=true"
                    )));
                }
            };
            core.delete(id, kill).map(|()| Response::no_content())
        }
        (Method::Put, ["instances", id, "state"]) => {
            let key = find(core, id)?;
            let change = STATE_CHANGE.parse(&request.body).map_err(Rejection::invalid)?;
            match change.get("state").and_then(Value::as_str) {
                Some("wake") => core.wake(key, Cause::Request, WakeFrames::default()),
                _ => suspend(core, key, id)?,
            }
            Ok(Response::no_content())
        }
        (Method::Get, ["networks"]) => Ok(Response::json(
            200,
            json!({"networks": core.networks.list()}).to_string(),
        )),
        (Method::Get, ["networks", id]) => match core.networks.describe(id) {
            Some(network) => Ok(Response::json(200, network.to_string())),
            None => Err(Rejection {
                status: 404,
                reason: format!("cannot find the network {id:?}: it is not registered"),
            }),
        },
        (Method::Put, ["networks", id]) => core
            .register_network(id, &request.body)
            .map(|()| Response::no_content()),
        (Method::Delete, ["networks", id]) => core.delete_network(id).map(|()| Response::no_content()),
        (method, _) => {
            let path = &request.path;
            let reason = format!("cannot execute {method} {path}: no such request; see GET /openapi.yaml");
            Err(Rejection { status: 404, reason })
        }
    }
}

fn find(core: &Core, id: &str) -> Result<Key, Rejection> {
    core.registry.find(id).ok_or_else(|| Rejection::missing(id))
}

fn suspend(core: &mut Core, key: Key, id: &str) -> Result<(), Rejection> {
    let state = core.registry.get(key).map(|entry| entry.state);
    if state == Some(State::Failed) {
        let reason =
            format!("cannot suspend {id:?}: it is failed, and has no process; wake it, or delete it");
        return Err(Rejection::conflict(reason));
    }
    core.suspend(key);
    match core.registry.get(key) {
        Some(entry) if entry.state == State::Running => Err(Rejection::conflict(format!(
            "cannot suspend {id:?}: {}",
            entry.reason
        ))),
        _ => Ok(()),
    }
}

fn describe(core: &Core) -> Response {
    let states: serde_json::Map<String, Value> = State::ALL
        .iter()
        .map(|state| (state.name().to_owned(), core.registry.count(*state).into()))
        .collect();
    let body = json!({
        "app_name": "mayfly-standby",
        "version": env!("CARGO_PKG_VERSION"),
        "instances": core.registry.len(),
        "states": states,
    });
    Response::json(200, body.to_string())
}

/// Returns an instance as JSON, in a list without its configuration.
fn instance(core: &Core, entry: &Entry, is_complete: bool) -> Value {
    let running = entry.live.as_ref().and_then(|live| live.running.as_ref());
    let mut value = json!({
        "id": entry.id,
        "state": entry.state.name(),
        "reason": entry.reason,
        "since_ms": entry.since_ms,
        "wakes": entry.wakes,
        "pid": running.map(|running| running.pid),
    });
    if is_complete {
        let config = entry.parse().ok();
        let socket = config.map(|config| core.directory.join(core.socket(&entry.id, &config)));
        value["api_socket"] = json!(running.and(socket).map(|path| path.display().to_string()));
        value["config"] = serde_json::from_str(&entry.config).unwrap_or_default();
    }
    value
}

fn list(core: &Core, query: Option<&str>) -> Result<Response, Rejection> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    let object: serde_json::Map<String, Value> = pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.into())
        })
        .collect();
    let query = PAGE_QUERY
        .parse(Value::Object(object).to_string().as_bytes())
        .map_err(Rejection::invalid)?;
    let text = |key: &str| query.get(key).and_then(Value::as_str);
    let limit = match text("limit") {
        None => PAGE,
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_PAGE).contains(limit))
            .ok_or_else(|| {
                Rejection::invalid(format!("limit: {limit:?} is no number from 1 to {MAX_PAGE}"))
            })?,
    };
    let state = State::ALL
        .into_iter()
        .find(|state| Some(state.name()) == text("state"));
    let keys = core.registry.page(text("after"), limit, state);
    let entries = keys.iter().filter_map(|key| core.registry.get(*key));
    let instances: Vec<_> = entries.map(|entry| instance(core, entry, false)).collect();
    let last = (instances.len() == limit).then(|| instances.last()).flatten();
    let body = json!({"instances": instances, "next": last.map(|last| &last["id"])});
    Ok(Response::json(200, body.to_string()))
}

fn metrics(core: &Core) -> String {
    let mut gauges = Vec::new();
    for state in State::ALL {
        let mut labels = String::new();
        // Writing to a String cannot fail.
        let _ = write!(labels, "{{state=\"{}\"}}", state.name());
        let count = core.registry.count(state) as u64;
        gauges.push((
            "mayfly_standby_instances",
            "Instances by their state.",
            labels,
            count,
        ));
    }
    for (name, about, value) in [
        (
            "mayfly_standby_waiting_wakes",
            "Wakes that wait for their turn.",
            core.queue.waiting() as u64,
        ),
        (
            "mayfly_standby_active_wakes",
            "Wakes in progress.",
            core.queue.active() as u64,
        ),
        (
            "mayfly_standby_shells",
            "Shells that wait for a snapshot.",
            core.shells.count() as u64,
        ),
        (
            "mayfly_standby_memory_bytes",
            "Memory of the processes, by samples.",
            core.used_kib() << 10,
        ),
    ] {
        gauges.push((name, about, String::new(), value));
    }
    let names = ["kept", "ignored", "unknown", "dropped"];
    for (kind, count) in names.iter().zip(core.networks.counters()) {
        let about = "Packets to sleepers of shared networks since the start.";
        gauges.push((
            "mayfly_standby_network_packets",
            about,
            format!("{{kind=\"{kind}\"}}"),
            count,
        ));
    }
    core.counters.text(&gauges)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{config::SCHEMAS, networks};
    use super::STATE_CHANGE;

    /// Line before the generated section, which extends to the end of the file.
    const LAST: &str = "        fault_message: {type: string, description: Reason.}\n";

    #[test]
    fn specification_is_generated_from_schemas() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("resources/standby.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let (rest, present) = text.split_once(LAST).unwrap();
        let generated: String = SCHEMAS
            .iter()
            .chain(&[&STATE_CHANGE])
            .chain(&networks::SCHEMAS)
            .map(|schema| schema.yaml())
            .collect();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, format!("{rest}{LAST}{generated}")).unwrap();
            return;
        }
        assert_eq!(
            present, generated,
            "UPDATE_OPENAPI=1 cargo test --bin mayfly-standby specification"
        );
    }
}
