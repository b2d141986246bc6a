//! Snapshots of a running VM by its API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::{self, Client};
use serde_json::{Value, json};
use vmm::ErrorChain;

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
    /// The API takes no such path.
    #[error("cannot create a snapshot with the file {0:?}: the path is not UTF-8; rename its directory")]
    NotUtf8(PathBuf),
    /// No snapshot was created, and the VM did not resume either.
    #[error("{}; the VM may still be paused: {}", ErrorChain(.created), ErrorChain(.resumed))]
    NotResumed {
        /// Reason why no snapshot was created.
        created: Box<Error>,
        /// Reason why the VM did not resume.
        resumed: Box<Error>,
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
        // Before the pause: an error here leaves the VM as it is.
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| Error::NotUtf8(path.to_owned()))
        };
        let body = json!({
            "snapshot_type": kind,
            "snapshot_path": text(state)?,
            "mem_file_path": text(memory)?,
        });
        let set_state = |state: &str| json!({ "state": state });
        if is_running {
            self.request("pause the VM", "PATCH", "/vm", Some(set_state("Paused")))?;
        }
        let created = self.request("create a snapshot", "PUT", "/snapshot/create", Some(body));
        let resumed = match is_running {
            true => self.request("resume the VM", "PATCH", "/vm", Some(set_state("Resumed"))),
            false => Ok(Value::Null),
        };
        match (created, resumed) {
            (Err(created), Err(resumed)) => Err(Error::NotResumed {
                created: Box::new(created),
                resumed: Box::new(resumed),
            }),
            (created, resumed) => created.and(resumed).map(drop),
        }
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread;

    use super::VmClient;

    /// Creates a snapshot by a server that rejects the requests with a reason, in their order.
    fn create(reasons: [&str; 3]) -> Result<(), String> {
        let directory = scratch::Directory::new();
        let listener = UnixListener::bind(directory.path("s")).unwrap();
        let client = VmClient::new(&directory.path("s"));
        thread::scope(|scope| {
            scope.spawn(|| {
                for reason in reasons {
                    let mut stream = scratch::accept(&listener);
                    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                    let body = format!(r#"{{"fault_message":"{reason}"}}"#);
                    let head = match reason {
                        "" => "HTTP/1.1 204 \r\n\r\n".to_owned(),
                        _ => format!("HTTP/1.1 400 \r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                    };
                    stream.write_all(head.as_bytes()).unwrap();
                }
            });
            let created = client.create_snapshot(true, "Full", Path::new("/s"), Path::new("/m"));
            created.map_err(|error| error.to_string())
        })
    }

    #[test]
    fn path_that_is_not_utf8_sends_no_request() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let path = Path::new(OsStr::from_bytes(b"/d\xff/state"));
        // No server exists: a request would fail by its connection.
        let client = VmClient::new(Path::new("/nonexistent/socket"));
        for (state, memory) in [(path, Path::new("/m")), (Path::new("/s"), path)] {
            let error = client.create_snapshot(true, "Full", state, memory).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot create a snapshot with the file \"/d\\xFF/state\": the path is not UTF-8; rename its directory"
            );
        }
    }

    #[test]
    fn failed_snapshot_is_reported_before_failed_resume() {
        assert_eq!(create(["", "", ""]), Ok(()));
        let error = |text: &str| Err(text.to_owned());
        assert_eq!(
            create(["", "no space", ""]),
            error("cannot create a snapshot: no space")
        );
        assert_eq!(create(["", "", "busy"]), error("cannot resume the VM: busy"));
        assert_eq!(
            create(["", "no space", "busy"]),
            error(
                "cannot create a snapshot: no space; the VM may still be paused: cannot resume the VM: busy"
            )
        );
    }
}
