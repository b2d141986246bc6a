//! Observable effect of a request, as one line of text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::process::{Process, Response};

/// Requests that show the state of a VMM.
const QUERIES: [&str; 3] = ["/", "/machine-config", "/vm/config"];

/// Returns a request in the format of Go's client. An empty body differs from none.
pub fn request(method: &str, path: &str, body: Option<&str>) -> Vec<u8> {
    let length = body.map_or(String::new(), |body| {
        format!("Content-Length: {}\r\n", body.len())
    });
    let body = body.unwrap_or_default();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}Accept: application/json\r\n\
         Content-Type: application/json\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Returns `response` as text: the status and the body, and the head unless it is the usual one.
pub fn describe(response: &Response) -> String {
    let usual = ["Server: Firecracker API", "Connection: keep-alive"];
    let typed = ["Content-Type: application/json"];
    let length = format!("Content-Length: {}", response.body.len());
    let mut lines: Vec<&str> = response.head.split("\r\n").collect();
    let status = lines.remove(0);
    let code = status.split(' ').nth(1).unwrap_or_default();
    let expected: Vec<&str> = match response.body.as_str() {
        "" => usual.to_vec(),
        _ => [&usual[..], &typed[..], &[length.as_str()][..]].concat(),
    };
    let mut text = if lines == expected && status == format!("HTTP/1.1 {code} ") {
        code.to_owned()
    } else {
        // The length follows from the body.
        lines.retain(|line| *line != length);
        format!("{status}[{}]", lines.join(", "))
    };
    if !response.body.is_empty() {
        text.push(' ');
        text.push_str(&normalize(&response.body));
    }
    text
}

/// Maximum number of shown characters of a body, such as a specification.
const MAX_BODY: usize = 400;

/// Returns JSON with sorted keys, and other text as it is, without the values that depend on the host.
fn normalize(body: &str) -> String {
    let text =
        serde_json::from_str::<Value>(body).map_or_else(|_| body.to_owned(), |value| value.to_string());
    let text = without_host_memory(&text);
    match text.char_indices().nth(MAX_BODY) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Replaces the memory of this host in a message of mayfly.
fn without_host_memory(text: &str) -> String {
    let parts = text.split_once("this host has ");
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(',')?.1)));
    parts.map_or_else(
        || text.to_owned(),
        |(before, after)| format!("{before}this host has MEMORY,{after}"),
    )
}

/// Removes keys whose value is null, which stand for absent ones, and replaces the random MAC addresses: those that `sent` lacks.
fn simplify(value: &mut Value, sent: &str) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            for (key, value) in object {
                let is_random = key == "guest_mac" && value.as_str().is_some_and(|mac| !sent.contains(mac));
                if is_random {
                    *value = "RANDOM".into();
                }
                simplify(value, sent);
            }
        }
        Value::Array(array) => array.iter_mut().for_each(|value| simplify(value, sent)),
        _ => {}
    }
}

/// State of a VMM by its `GET` responses: the value of each key of each path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(BTreeMap<String, Value>);

impl State {
    /// Queries `process`, which has got the requests `sent`. Returns none if the process has ended.
    pub fn query(process: &Process, sent: &str) -> Option<Self> {
        let mut values = BTreeMap::new();
        for path in QUERIES {
            let responses = process.exchange(&[request("GET", path, None)]);
            let body = &responses.first()?.body;
            let Ok(Value::Object(object)) = serde_json::from_str(body) else {
                panic!("GET {path}: {responses:?}");
            };
            values.extend(object.into_iter().map(|(key, mut value)| {
                simplify(&mut value, sent);
                (format!("{path} {key}"), value)
            }));
        }
        Some(Self(values))
    }

    /// Returns the values that differ from those of `before`.
    pub fn changes(&self, before: &Self) -> String {
        let changed = |(key, value): (&String, &Value)| {
            (before.0.get(key) != Some(value)).then(|| format!("{key} = {value}"))
        };
        self.0.iter().filter_map(changed).collect::<Vec<_>>().join(", ")
    }
}
