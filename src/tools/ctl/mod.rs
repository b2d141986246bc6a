//! `mayfly ctl`: one request to the API of a running mayfly.
//!
//! | module | contents |
//! |---|---|
//! | `instances` | instances of a supervisor |
//! | `args` | the command line, and [`Ctl`], its result |
//! | `console` | serial console on stdin and stdout |
//! | `gdb` | gdb on stdin and stdout |
//! | `request` | a request, its response, and the errors of both |
//! | `status` | status of vCPUs and devices as tables |
//! | `tables` | responses as tables |

pub mod args;
mod console;
mod gdb;
mod instances;
mod request;
mod status;
mod tables;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::Path;

use api::client::Client;
use args::{Ctl, CtlCommand};
use console::Place;
use request::Request;
use serde_json::json;
use tables::cell;

pub use request::Error;

/// Sends the requests of `ctl` and returns the text to print. Reads `stdin` only for a request body of `-`.
///
/// # Errors
/// [`Error`] if the server cannot be reached, rejects a request, or sends a response that cannot be displayed.
pub fn run(ctl: &Ctl, stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let server = Server {
        client: Client::new(&ctl.socket, ctl.timeout),
        json: ctl.json,
    };
    let act = |kind: &str| Request::put("/actions", &json!({ "action_type": kind }));
    let suspend = |action: &str| Request::patch("/scale-to-zero", &json!({ "action": action }));
    let state = |state: &str| Request::patch("/vm", &json!({ "state": state }));
    match &ctl.command {
        CtlCommand::Status { registers } => server.status(*registers),
        CtlCommand::Config => server.config(),
        CtlCommand::Metrics => server.forward(&Request::get("/metrics")),
        CtlCommand::Start => server.execute(&act("InstanceStart"), "started"),
        CtlCommand::Pause => server.execute(&state("Paused"), "paused"),
        CtlCommand::Resume => server.execute(&state("Resumed"), "resumed"),
        CtlCommand::Stop => server.execute(
            &act("SendCtrlAltDel"),
            "Ctrl-Alt-Del sent; a guest that handles it shuts down or reboots",
        ),
        CtlCommand::FlushMetrics => server.execute(
            &act("FlushMetrics"),
            "metrics written to the metrics file, if one is configured",
        ),
        CtlCommand::Suspend => server.execute(&suspend("Suspend"), "suspended"),
        CtlCommand::CancelSuspend => {
            server.execute(&suspend("Cancel"), "suspend cancelled; the guest resumes")
        }
        CtlCommand::Ready => server.execute(&suspend("Ready"), "ready; the cool-down begins"),
        CtlCommand::Console(path) => server.console(path.as_deref()),
        CtlCommand::Gdb => gdb::connect(&ctl.socket, ctl.timeout),
        CtlCommand::Change { kind, id, body } => {
            let path = format!("/{kind}/{}", request::encode_segment(id));
            server.execute(&Request::patch(&path, body), "changed")
        }
        CtlCommand::Instances => instances::list(&server.client, server.json),
        CtlCommand::Instance(id) => match server.json {
            true => server.forward(&Request::get(&instances::path(id))),
            false => instances::describe(&server.client, id),
        },
        CtlCommand::SetInstance { id, change } => {
            server.forward(&instances::change(id, change))?;
            let instance = instances::wait(&server.client, id, change, ctl.timeout)?;
            Ok(match server.json {
                true => format!("{instance}\n").into_bytes(),
                false => format!("{id} is {}\n", cell(&instance["state"])).into_bytes(),
            })
        }
        CtlCommand::Delete(id) => {
            server.execute(&Request::new("DELETE", &instances::path(id), None), "deleted")
        }
        CtlCommand::Request { method, path, body } => {
            let body = request::read_body(body, stdin)?;
            server.forward(&Request::new(method, path, body))
        }
    }
}

/// The server, and the format of its responses.
struct Server {
    client: Client,
    /// Print responses unchanged.
    json: bool,
}

impl Server {
    fn status(&self, registers: bool) -> Result<Vec<u8>, Error> {
        let (instance, status) = (Request::get("/"), Request::get("/vm/status"));
        let inspection = registers.then(|| Request::get("/vm/registers"));
        if self.json {
            if let Some(inspection) = inspection {
                return self.forward(&inspection);
            }
            // Firecracker has no status, and its instance is a part of it.
            return self.forward(&status).or_else(|error| {
                let is_rejected = error.is_rejection();
                let instance = is_rejected.then(|| self.forward(&instance).ok()).flatten();
                instance.ok_or(error)
            });
        }
        let config = Request::get("/vm/config");
        let mut text = tables::status(&instance.json(&self.client)?, &config.json(&self.client)?);
        // Before the registers, whose request interrupts the vCPUs.
        let status = match status.json(&self.client) {
            Err(error) if error.is_rejection() && !registers => return Ok(text.into_bytes()),
            status => status?,
        };
        let inspection = inspection.map(|request| request.json(&self.client)).transpose()?;
        text.push_str(&status::details(&status, inspection.as_ref()));
        Ok(text.into_bytes())
    }

    /// Attaches to the console at `path`, or to that of the server.
    fn console(&self, path: Option<&Path>) -> Result<Vec<u8>, Error> {
        let place = match path {
            Some(path) => Place::new(path),
            None => Place::find(&Request::get("/vm/status").json(&self.client)?)?,
        };
        console::attach(&place)
    }

    fn config(&self) -> Result<Vec<u8>, Error> {
        let request = Request::get("/vm/config");
        if self.json {
            return self.forward(&request);
        }
        Ok(tables::config(&request.json(&self.client)?).into_bytes())
    }

    /// Sends `request` and returns `confirmation`, or the response itself for `--json`.
    fn execute(&self, request: &Request, confirmation: &str) -> Result<Vec<u8>, Error> {
        let response = self.forward(request)?;
        Ok(if self.json {
            response
        } else {
            format!("{confirmation}\n").into_bytes()
        })
    }

    /// Returns the body of the response, unchanged except for a line feed added at its end where it has none.
    fn forward(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let mut body = request.send(&self.client)?;
        if body.last().is_some_and(|last| *last != b'\n') {
            body.push(b'\n');
        }
        Ok(body)
    }
}
