//! Messages about requests, in Firecracker's words and levels: its clients and tests wait for them.
//!
//! The target [`TARGET`] marks them, so that the log shows them only in a file, or on stderr if the user chooses a level.

use std::path::Path;
use std::time::Instant;

use log::Level;

use vmm::control::OperationTimes;

use crate::http::{Method, Request, Response};

/// Target of messages in Firecracker's words.
pub const TARGET: &str = "firecracker";

/// Logs the start of the process, and its API socket if there is one.
pub fn log_start(version: &str, socket: Option<&Path>) {
    log::info!(target: TARGET, "Running Firecracker v{version}");
    if let Some(socket) = socket {
        log::info!(target: TARGET, "Listening on API socket ({socket:?}).");
        log::info!(target: TARGET, "API server started.");
    }
}

/// Logs the end of the VM.
pub fn log_stop() {
    log::info!(target: TARGET, "Vmm is stopping.");
}

/// Logs the exit status of the process.
pub fn log_exit(status: u8) {
    match status {
        0 => log::info!(target: TARGET, "Firecracker exiting successfully. exit_code=0"),
        status => log::error!(target: TARGET, "Firecracker exiting with error. exit_code={status}"),
    }
}

/// Logs `request` before its execution.
pub(crate) fn log_request(request: &Request) {
    if log::log_enabled!(target: TARGET, Level::Info) {
        log::info!(target: TARGET, "The API server received a {}.", describe(request));
    }
}

fn describe(request: &Request) -> String {
    let method = match &request.method {
        Method::Get => "Get",
        Method::Put => "Put",
        Method::Patch => "Patch",
        Method::Delete => "Delete",
        Method::Other(name) => name,
    };
    let path = &request.path;
    match path.as_str() {
        // The data of the guest may be secret.
        "/mmds" => format!("{method} request on {path:?}"),
        "/cpu-config" if !log::log_enabled!(target: TARGET, Level::Debug) => format!(
            "{method} request on {path:?}. To view the CPU template received by the API, configure log-level to DEBUG"
        ),
        _ if request.body.is_empty() => format!("{method} request on {path:?}"),
        _ => {
            let body = std::str::from_utf8(&request.body).unwrap_or("inconvertible to UTF-8");
            format!("{method} request on {path:?} with body {body:?}")
        }
    }
}

/// Logs the rejection of a request with `text`.
pub(crate) fn log_fault(text: &str) {
    log::error!(target: TARGET, "Received Error. Status code: 400 Bad Request. Message: {text}");
}

/// Logs the success of a request.
pub(crate) fn log_response(response: &Response) {
    match response.status() {
        200 => log::info!(target: TARGET, "The request was executed successfully. Status code: 200 OK."),
        204 => log::info!(
            target: TARGET,
            "The request was executed successfully. Status code: 204 No Content."
        ),
        _ => {}
    }
}

/// Logs the durations of an operation in the VMM and of its request.
pub(crate) fn log_operation(name: &str, vmm_us: u64, api_us: u64) {
    log::info!(target: TARGET, "'{name}' VMM action took {vmm_us} us.");
    log::info!(target: TARGET, "'{name}' API request took {api_us} us.");
}

/// Logs the duration of a request that began at `start`.
pub(crate) fn log_duration(start: Instant) {
    if log::log_enabled!(target: TARGET, Level::Debug) {
        let us = OperationTimes::elapsed_us(start);
        log::debug!(target: TARGET, "Total previous API call duration: {us} us.");
    }
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::http::{Method, Request};

    fn described(method: Method, path: &str, body: &[u8]) -> String {
        describe(&Request {
            method,
            path: path.into(),
            query: None,
            body: body.into(),
            upgrade: None,
        })
    }

    #[test]
    fn request_is_described_in_words_of_firecracker() {
        assert_eq!(
            described(Method::Get, "/version", b""),
            r#"Get request on "/version""#
        );
        assert_eq!(
            described(Method::Put, "/drives/rootfs", br#"{"drive_id": "rootfs"}"#),
            r#"Put request on "/drives/rootfs" with body "{\"drive_id\": \"rootfs\"}""#
        );
        assert_eq!(
            described(Method::Patch, "/vm", b"\xff"),
            r#"Patch request on "/vm" with body "inconvertible to UTF-8""#
        );
    }

    #[test]
    fn secret_and_long_bodies_are_not_described() {
        let request = described(Method::Put, "/mmds", b"secret");
        assert_eq!(request, r#"Put request on "/mmds""#);
        let request = described(Method::Put, "/cpu-config", b"{}");
        assert!(request.ends_with("configure log-level to DEBUG"), "{request}");
    }
}
