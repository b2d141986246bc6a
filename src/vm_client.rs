//! Snapshots of a running VM by its API.

use std::path::Path;
use std::time::Duration;

use api::client::{self, Client};
use serde_json::{Value, json};

/// Timeout of a request: the response to a snapshot request arrives after all of the memory is written.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API of the VM cannot be reached.
    #[error(transparent)]
    Client(client::Error),
    /// The VM rejects a request.
    #[error("cannot {operation}: {reason}")]
    Rejected {
        /// The requested operation.
        operation: &'static str,
        /// Reason in the response.
        reason: String,
    },
}

/// Client of the API of a VM.
pub struct VmClient(Client);

impl VmClient {
    /// Returns a client of the API socket at `socket`, without a connection.
    pub fn new(socket: &Path) -> Self {
        Self(Client::new(socket, TIMEOUT))
    }

    /// Returns true if the guest runs, false if it is paused or not started.
    ///
    /// # Errors
    /// [`Error`]
    pub fn is_running(&self) -> Result<bool, Error> {
        let instance = self.request("read the instance state", "GET", "/", None)?;
        Ok(instance["state"] == "Running")
    }

    /// Creates a snapshot of `kind` (`Full` or `Diff`) with the absolute paths `state` and `memory`. A VM that `is_running` is paused
    /// meanwhile; it resumes even if no snapshot was created.
    ///
    /// # Errors
    /// [`Error`]
    pub fn create_snapshot(
        &self,
        is_running: bool,
        kind: &str,
        state: &Path,
        memory: &Path,
    ) -> Result<(), Error> {
        let set_state = |state: &str| json!({ "state": state });
        if is_running {
            self.request("pause the VM", "PATCH", "/vm", Some(set_state("Paused")))?;
        }
        let body = json!({
            "snapshot_type": kind,
            "snapshot_path": state,
            "mem_file_path": memory,
        });
        let created = self.request("create a snapshot", "PUT", "/snapshot/create", Some(body));
        if is_running {
            self.request("resume the VM", "PATCH", "/vm", Some(set_state("Resumed")))?;
        }
        created.map(drop)
    }

    /// Sends a request for `operation` and returns the body of its response, or null if that is no JSON.
    fn request(
        &self,
        operation: &'static str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Error> {
        let body = body.map(|body| body.to_string());
        let response = self.0.request(method, path, body.as_deref().map(str::as_bytes));
        let response = response.map_err(Error::Client)?;
        let content: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        if response.is_success() {
            return Ok(content);
        }
        let reason = content["fault_message"].as_str();
        let reason = reason.map_or_else(|| format!("status {}", response.status), str::to_owned);
        Err(Error::Rejected { operation, reason })
    }
}
