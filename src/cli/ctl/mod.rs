//! `mayfly ctl`: the API of a running mayfly by hand.

pub mod args;
mod config;
mod error;
mod limits;
mod metrics;
mod request;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod units;

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use api::client::Client;
use serde_json::{Value, json};

pub use error::Error;
use request::Request;

/// What is wanted, and from whom.
#[derive(Debug, PartialEq)]
pub struct Ctl {
    /// Path of the API socket.
    pub socket: PathBuf,
    /// How long each request may take.
    pub patience: Duration,
    /// Print what the server says as it came.
    pub json: bool,
    /// What is wanted.
    pub action: CtlCommand,
}

/// What is wanted.
#[derive(Debug, PartialEq)]
pub enum CtlCommand {
    /// Where the VM is in its life.
    Status,
    /// How it is configured.
    Config,
    /// What it has done.
    Metrics,
    /// Start it.
    Start,
    /// Keep it from running.
    Pause,
    /// Let it run again.
    Resume,
    /// Ask the guest to end.
    Stop,
    /// Write a line to the metrics file.
    FlushMetrics,
    /// Change a drive or an interface.
    Change {
        /// `drives` or `network-interfaces`.
        kind: &'static str,
        /// Name of the device.
        id: String,
        /// What changes, as the API takes it.
        body: Value,
    },
    /// Anything else.
    Request {
        /// HTTP method.
        method: String,
        /// Path, with a query where there is one.
        path: String,
        /// What goes with it.
        body: RequestBody,
    },
}

/// What goes with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// Nothing.
    None,
    /// This JSON text.
    Text(String),
    /// What is on stdin.
    Stdin,
}

/// Does what `ctl` says and returns what is to be printed. Reads `stdin` only where `ctl` says so.
///
/// # Errors
/// [`Error`]
pub fn run(ctl: &Ctl, stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let server = Server {
        client: Client::new(&ctl.socket, ctl.patience),
        json: ctl.json,
    };
    let act = |kind: &str| Request::put("/actions", &json!({ "action_type": kind }));
    let state = |state: &str| Request::patch("/vm", &json!({ "state": state }));
    match &ctl.action {
        CtlCommand::Status => server.status(),
        CtlCommand::Config => server.show(&Request::get("/vm/config"), config::table),
        CtlCommand::Metrics => server.metrics(),
        CtlCommand::Start => server.have_done(&act("InstanceStart"), "started"),
        CtlCommand::Pause => server.have_done(&state("Paused"), "paused"),
        CtlCommand::Resume => server.have_done(&state("Resumed"), "resumed"),
        CtlCommand::Stop => server.have_done(
            &act("SendCtrlAltDel"),
            "Ctrl-Alt-Del was pressed; the guest ends if it listens for that",
        ),
        CtlCommand::FlushMetrics => server.have_done(
            &act("FlushMetrics"),
            "a line was written to the metrics file, if there is one",
        ),
        CtlCommand::Change { kind, id, body } => {
            let path = format!("/{kind}/{}", request::segment(id));
            server.have_done(&Request::patch(&path, body), "changed")
        }
        CtlCommand::Request { method, path, body } => {
            let body = request::read(body, stdin)?;
            server.forward(&Request::new(method, path, body))
        }
    }
}

/// The server, and how its answers are wanted.
struct Server {
    client: Client,
    json: bool,
}

impl Server {
    fn status(&self) -> Result<Vec<u8>, Error> {
        let instance = Request::get("/");
        if self.json {
            return self.forward(&instance);
        }
        let config = Request::get("/vm/config");
        let text = status::table(&instance.json(&self.client)?, &config.json(&self.client)?);
        Ok(text.into_bytes())
    }

    fn metrics(&self) -> Result<Vec<u8>, Error> {
        let request = Request::get("/metrics");
        if self.json {
            return self.forward(&request);
        }
        let body = request.send(&self.client)?;
        let text = metrics::tables(&String::from_utf8_lossy(&body)).map_err(Error::Metrics)?;
        Ok(text.into_bytes())
    }

    /// The answer as `table` shows it.
    fn show(&self, request: &Request, table: fn(&Value) -> String) -> Result<Vec<u8>, Error> {
        if self.json {
            return self.forward(request);
        }
        Ok(table(&request.json(&self.client)?).into_bytes())
    }

    /// A word on it when it is done, where no answer is to be printed.
    fn have_done(&self, request: &Request, word: &str) -> Result<Vec<u8>, Error> {
        let answer = self.forward(request)?;
        Ok(if self.json {
            answer
        } else {
            format!("{word}\n").into_bytes()
        })
    }

    /// The answer as it came, with a line break at its end.
    fn forward(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let mut answer = request.send(&self.client)?;
        if answer.last().is_some_and(|last| *last != b'\n') {
            answer.push(b'\n');
        }
        Ok(answer)
    }
}
