//! A VM behind a control socket: from the flags to its end, in one line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::http::{HttpLimits, Server};
use api::process::{LogControl as _, LoggerSettings};
use api::{Api, Instance};
use vmm::control::{self, Control};
use vmm::event_loop::{self, ExitReason};
use vmm::timeline::Timeline;
use vmm::vcpu::StopReason;

use crate::cli::args::firecracker::{FirecrackerArgs, VERSION};
use crate::logging::{ProcessLog, print_message};
use crate::process;
use crate::run;
use crate::terminal::console;

/// Why a VM could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log is not as the flags want it.
    #[error("cannot log as asked: {0}")]
    Log(String),
    /// The metrics are not as the flags want them.
    #[error("cannot write metrics as asked: {0}")]
    Metrics(String),
    /// The control socket could not be made.
    #[error(transparent)]
    Socket(api::http::Error),
    /// The API could not be made.
    #[error("cannot serve the API")]
    Api(#[source] api::service::Error),
    /// The configuration cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    ReadConfig {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error("cannot use the configuration {}", path.display())]
    Config {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<api::ConfigFileError>,
    },
    /// The configured VM cannot be started.
    #[error(transparent)]
    Start(control::Error),
    /// The process could not be prepared, or the VM not be watched.
    #[error(transparent)]
    Run(run::Error),
}

/// The way to a VM from outside.
pub struct ApiOptions<'a> {
    /// Path of the control socket; none for none.
    pub socket: Option<&'a Path>,
    /// Limits of the control socket.
    pub limits: HttpLimits,
    /// Name of the VM.
    pub id: &'a str,
    /// The log.
    pub log: &'a LoggerSettings,
}

impl ApiOptions<'_> {
    /// Opens the socket and the log.
    ///
    /// # Errors
    /// [`Error::Socket`], [`Error::Log`] and [`Error::Api`].
    pub fn open(self) -> Result<Api, Error> {
        // First of all, so that those who wait for the socket wait as short as can be; who comes now is served a little later.
        let bound = self.socket.map(|path| Server::bind(path, self.limits));
        let server = bound.transpose().map_err(Error::Socket)?;
        let mut log = ProcessLog::new(self.id);
        log.configure(self.log).map_err(Error::Log)?;
        let instance = Instance {
            id: self.id.to_owned(),
            version: VERSION.into(),
            app_name: "Firecracker".into(),
        };
        Api::new(instance, server, Box::new(log)).map_err(Error::Api)
    }
}

/// Serves what `options` say until the VM is over. `origin` is when the process began.
///
/// # Errors
/// [`Error`] when there was nothing to be served.
pub fn serve(options: FirecrackerArgs, origin: Instant) -> Result<u8, Error> {
    let front = ApiOptions {
        socket: options.socket.as_deref(),
        limits: options.limits,
        id: &options.id,
        log: &options.log,
    };
    // While signals still end the process, for a FIFO may keep this waiting. A failure is told when there is a log for it.
    let config = options.config_file.map(read_config);
    // Before any thread starts, so that all of them leave the signals to the event loop; before anything is written to a FIFO;
    // and before there is a socket, whose file must not stay behind.
    let signals = run::block_signals().map_err(Error::Run)?;
    let mut api = front.open()?;
    for flag in &options.without_effect {
        log::warn!("{flag} changes nothing: mayfly has no such thing");
    }
    if let Some(path) = &options.metrics {
        api.write_metrics_to(path).map_err(Error::Metrics)?;
    }
    let timeline = Arc::new(Timeline::new(origin, true));
    let mut control = Control::new(Box::new(|| Ok(console::open()?)), timeline);
    if let Some(config) = config {
        let (path, text) = config?;
        let applied = api.apply(&mut control, &text).map_err(Box::new);
        applied.map_err(|source| Error::Config { path, source })?;
        control.start().map_err(Error::Start)?;
    }
    let end = event_loop::run(&mut control, Some(&mut api), &signals);
    let end = end.map_err(|error| Error::Run(run::Error::Vm(error)))?;
    api.finish(&control);
    // Its socket goes with it, before the signal that may have ended the VM ends this process too.
    drop(api);
    run::shut_down(control);
    Ok(exit_status(&end))
}

/// The configuration at `path`, with that path.
fn read_config(path: PathBuf) -> Result<(PathBuf, String), Error> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Error::ReadConfig { path, source }),
    }
}

/// The exit status that Firecracker would have: 1 for a guest that cannot go on.
fn exit_status(end: &ExitReason) -> u8 {
    let status = run::exit_status(end);
    match end {
        ExitReason::Guest(StopReason::TripleFault { .. } | StopReason::Fault(_)) => {
            print_message("the exit status is 1, as Firecracker's is");
            process::FAILURE
        }
        _ => status,
    }
}
