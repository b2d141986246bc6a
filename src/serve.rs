//! `mayfly --api-sock`: serves a VM over an API socket, as Firecracker does.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use api::request_log;
use devices::ThreadRole;
use vmm::control;
use vmm::event_loop::{self, ExitReason};
use vmm::memory::bus_error;
use vmm::timeline::Timeline;
use vmm::vcpu::StopReason;

use crate::cli::args::firecracker::{FirecrackerArgs, VERSION};
use crate::cli::hints::OptionSet;
use crate::crash;
use crate::filters::{self, FileRules};
use crate::logging::print_message;
use crate::process;
use crate::session::{self, ApiError, ApiOptions};

/// Firecracker's exit status after SIGBUS.
const BUS_ERROR: u8 = 149;

/// Failure of a server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The seccomp filters cannot be used.
    #[error(transparent)]
    Filters(filters::Error),
    /// The waiting process cannot be restricted.
    #[error("cannot restrict the system calls of the process")]
    Restrict(#[source] io::Error),
    /// The API socket or the log cannot be opened.
    #[error(transparent)]
    Api(ApiError),
    /// The metrics file cannot be opened.
    #[error("cannot write metrics: {0}")]
    Metrics(String),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    ReadConfig {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The configuration is invalid.
    #[error("cannot use the configuration file {}", path.display())]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// Error in the configuration.
        #[source]
        source: Box<api::ConfigFileError>,
    },
    /// The configured VM cannot be started.
    #[error(transparent)]
    Start(control::Error),
    /// Signals cannot be blocked, or the event loop failed.
    #[error(transparent)]
    Session(session::Error),
}

/// Serves a VM to its end. Returns the exit status. Times count from `started_at`.
///
/// # Errors
/// [`Error`] if the API cannot be opened, the configuration file cannot be used, or the event loop fails.
pub fn serve(options: FirecrackerArgs, started_at: Instant) -> Result<u8, Error> {
    let api = ApiOptions {
        socket: options.socket.as_deref(),
        limits: options.limits,
        id: &options.id,
        log: &options.log,
    };
    let files = FileRules {
        has_clients: options.socket.is_some(),
        outputs: [&options.log.path, &options.metrics]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        snapshots: options.crash_directory.iter().cloned().collect(),
        ..FileRules::default()
    };
    filters::set_up(&options.isolation, files).map_err(Error::Filters)?;
    // Before signals are blocked: opening a FIFO may block. A failure is returned later, when the log that must show it is open.
    let config = options.config_file.map(read_config);
    // Before any thread starts: threads inherit the mask. Before writes to a FIFO: SIGPIPE must not end the process. Before the
    // socket exists: a signal must not leave its file behind.
    let signals = session::block_signals().map_err(Error::Session)?;
    bus_error::set_exit_status(BUS_ERROR);
    let mut api = api.open().map_err(Error::Api)?;
    request_log::log_start(VERSION, options.socket.as_deref());
    api.set_startup_time(started_at.elapsed(), process::cpu_time());
    for flag in &options.without_effect {
        log::warn!("{flag} has no effect: mayfly does not support it");
    }
    if let Some(path) = &options.metrics {
        api.write_metrics_to(path).map_err(Error::Metrics)?;
    }
    let timeline = Arc::new(Timeline::new(started_at, true));
    let mut control = session::new_control(&timeline);
    control.set_plain_crash_status();
    session::set_crash_directory(&mut control, options.crash_directory.as_deref()).map_err(Error::Session)?;
    if let Some(config) = config {
        let (path, text) = config?;
        let applied = api.apply(&mut control, &text).map_err(Box::new);
        applied.map_err(|source| Error::Config { path, source })?;
        control.start().map_err(Error::Start)?;
        api.note_start(&control);
    } else {
        // Before the thread of the preparation, which inherits the role.
        ThreadRole::Start.enter().map_err(Error::Restrict)?;
        control.prepare();
    }
    let end = event_loop::run(&mut control, Some(&mut api), &signals, None);
    let mut end = end.map_err(|error| Error::Session(session::Error::Vm(error)))?;
    api.finish(&control);
    // Removes the socket's file: `exit_status` may end the process by a signal.
    drop(api);
    crash::report(&mut control, &mut end);
    session::shut_down(control);
    Ok(exit_status(&end))
}

/// Returns the path and the content of the configuration file.
fn read_config(path: PathBuf) -> Result<(PathBuf, String), Error> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Error::ReadConfig { path, source }),
    }
}

/// Returns Firecracker's exit status for `end`: 1 after a fault of the guest or of KVM.
fn exit_status(end: &ExitReason) -> u8 {
    let status = session::exit_status(end, OptionSet::None);
    match end {
        ExitReason::Guest(StopReason::CpuShutdown { .. } | StopReason::Fault(_)) => {
            print_message("exit status 1, as Firecracker's");
            process::FAILURE
        }
        _ => status,
    }
}
