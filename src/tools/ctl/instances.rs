//! Instances of a supervisor.

use std::thread;
use std::time::{Duration, Instant};

use api::client::Client;
use serde_json::{Value, json};

use super::request::{self, Error, Request};
use super::tables::{Table, cell};

/// Interval of requests for the state.
const INTERVAL: Duration = Duration::from_millis(5);

/// Returns the path of the instance `id`.
pub(super) fn path(id: &str) -> String {
    format!("/instances/{}", request::encode_segment(id))
}

/// Returns the request that begins `change`, `wake` or `suspend`.
pub(super) fn change(id: &str, change: &str) -> Request {
    Request::put(&format!("{}/state", path(id)), &json!({ "state": change }))
}

/// Waits until the instance is in the state of `change`, at most for `timeout`. Returns the instance.
///
/// # Errors
/// [`Error::State`] in a state that ends the change, and [`Error::Late`].
pub(super) fn wait(
    client: &Client,
    id: &str,
    change: &'static str,
    timeout: Duration,
) -> Result<Value, Error> {
    // A wake that is given up leaves the instance suspended, a rejected suspend leaves it running.
    let (expected, opposite) = match change {
        "wake" => ("running", "suspended"),
        _ => ("suspended", "running"),
    };
    let end = Instant::now() + timeout;
    loop {
        let instance = Request::get(&path(id)).json(client)?;
        let state = instance["state"].as_str().unwrap_or_default();
        if state == expected {
            return Ok(instance);
        }
        let (id, state, reason) = (id.to_owned(), state.to_owned(), cell(&instance["reason"]));
        if state == "failed" || state == opposite {
            return Err(Error::State {
                change,
                id,
                state,
                reason,
            });
        }
        if Instant::now() >= end {
            return Err(Error::Late {
                change,
                id,
                state,
                reason,
                timeout,
            });
        }
        thread::sleep(INTERVAL);
    }
}

/// Returns all instances as a table, or as JSON with a line each.
pub(super) fn list(client: &Client, as_json: bool) -> Result<Vec<u8>, Error> {
    let mut table = Table::with_heading(&["id", "state", "wakes", "process", "reason"]);
    let (mut lines, mut next) = (String::new(), String::new());
    loop {
        let page = Request::get(&format!("/instances?limit=1000{next}")).json(client)?;
        for instance in page["instances"].as_array().into_iter().flatten() {
            if as_json {
                lines.push_str(&format!("{instance}\n"));
            }
            let keys = ["id", "state", "wakes", "pid", "reason"];
            table.push_row(keys.iter().map(|key| cell(&instance[*key])).collect());
        }
        match page["next"].as_str() {
            Some(id) => next = format!("&after={id}"),
            None if as_json => return Ok(lines.into_bytes()),
            None => return Ok(table.or_empty().to_string().into_bytes()),
        }
    }
}

/// Returns an instance as a table, followed by its configuration.
pub(super) fn describe(client: &Client, id: &str) -> Result<Vec<u8>, Error> {
    let instance = Request::get(&path(id)).json(client)?;
    let mut table = Table::new();
    for (name, key) in [
        ("id", "id"),
        ("state", "state"),
        ("reason", "reason"),
        ("wakes", "wakes"),
        ("process", "pid"),
        ("API socket", "api_socket"),
    ] {
        table.push_row(vec![name.to_owned(), cell(&instance[key])]);
    }
    let none = serde_json::Map::new();
    for (key, value) in instance["config"].as_object().unwrap_or(&none) {
        let text = match value {
            Value::String(_) => cell(value),
            other => other.to_string(),
        };
        table.push_row(vec![key.clone(), text]);
    }
    Ok(table.to_string().into_bytes())
}
