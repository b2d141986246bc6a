//! Requests of the API.

use api::http::{Method, Request, Response};
use serde_json::json;

/// Content type of the specification.
const YAML: &str = "application/yaml";
/// Specification of the API.
const SPECIFICATION: &str = include_str!("../../resources/standby.yaml");

/// Executes `request`.
pub fn execute(request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (Method::Get, "/") => {
            let body = json!({"app_name": "mayfly-standby", "version": env!("CARGO_PKG_VERSION")});
            Response::json(200, body.to_string())
        }
        (Method::Get, "/openapi.yaml") => Response::text(YAML, SPECIFICATION.as_bytes()),
        (method, path) => reject(
            404,
            &format!("cannot execute {method} {path}: no such request; see GET /openapi.yaml"),
        ),
    }
}

/// Returns a response with `status` and the reason.
fn reject(status: u16, reason: &str) -> Response {
    Response::json(status, json!({ "fault_message": reason }).to_string())
}
