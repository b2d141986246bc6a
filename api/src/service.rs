//! API of one VM, as a service of the VM's event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmm::control::{Control, OpenFile, OperationResult, Service};

use crate::http::{Handler, Reply, Request, Server};
use crate::metrics::LineLabels;
use crate::process::{Instance, LogControl, Process};
use crate::{config_file, request_log, routes};

/// Failure to create an [`Api`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The epoll instance cannot be created, or it rejects the server.
    #[error("cannot watch the descriptors of the API")]
    Events(#[source] std::io::Error),
}

/// API of one VM.
pub struct Api {
    server: Option<Server>,
    process: Process,
}

impl Api {
    /// Creates the API of a VM. Without a `server`, requests come only from a configuration file.
    ///
    /// # Errors
    /// [`Error::Events`]
    pub fn new(
        instance: Instance,
        server: Option<Server>,
        logger: Box<dyn LogControl>,
    ) -> Result<Self, Error> {
        let descriptor = server.as_ref().map(Server::as_raw_fd);
        let process = Process::new(instance, logger, descriptor).map_err(Error::Events)?;
        Ok(Self { server, process })
    }

    /// Applies the configuration file `text` with the handlers of the API requests. The VM is not started.
    ///
    /// # Errors
    /// [`config_file::Error`]. The sections before the failed one stay applied.
    pub fn apply(&mut self, control: &mut Control, text: &str) -> Result<(), config_file::Error> {
        config_file::apply(control, &mut self.process, text)
    }

    /// Opens the metrics file at `path`, as `PUT /metrics` does. The lines have no labels.
    ///
    /// # Errors
    /// The text that a client receives.
    pub fn write_metrics_to(&mut self, path: &Path) -> Result<(), String> {
        self.process.write_metrics_to(path, LineLabels::default())
    }

    /// Sets wall time and processor time of the start of the process, for the metrics file.
    pub fn set_startup_time(&mut self, wall: Duration, processor: Duration) {
        self.process.set_startup_time(wall, processor);
    }

    /// Writes the line of metrics at the start of a VM that was not started by a request.
    pub fn note_start(&mut self, control: &Control) {
        self.process.follow_state(control);
    }

    /// Adds `file` to the files that no snapshot may replace.
    pub fn keep_file(&mut self, file: OpenFile) {
        self.process.keep_file(file);
    }

    /// Executes one request.
    pub fn handle(&mut self, control: &mut Control, request: &Request) -> Reply {
        routes::execute(request, control, &mut self.process)
    }

    /// Returns the process around the VM.
    pub fn process(&self) -> &Process {
        &self.process
    }

    #[cfg(test)]
    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Writes the metrics for the last time.
    pub fn finish(&mut self, control: &Control) {
        request_log::log_stop();
        self.process.try_write_metrics(control);
    }
}

/// Handler for one call of [`Server::serve`].
struct RequestHandler<'a> {
    control: &'a mut Control,
    process: &'a mut Process,
}

impl Handler for RequestHandler<'_> {
    fn handle(&mut self, request: &Request) -> Reply {
        routes::execute(request, self.control, self.process)
    }

    fn cancel(&mut self) {
        self.control.cancel_operation();
    }

    fn take_over(&mut self, request: &Request, stream: UnixStream) {
        routes::take_over(request, stream, self.control);
    }
}

impl Service for Api {
    fn descriptor(&self) -> RawFd {
        self.process.as_raw_fd()
    }

    fn ready(&mut self, control: &mut Control) {
        let process = &mut self.process;
        process.write_due_metrics(control);
        if let Some(server) = &mut self.server {
            server.serve(&mut RequestHandler { control, process });
        }
    }

    fn finish_operation(&mut self, control: &mut Control, result: OperationResult) {
        let process = &mut self.process;
        if let Some(response) = routes::finish(result, control, process)
            && let Some(server) = &mut self.server
        {
            server.respond(&response, &mut RequestHandler { control, process });
        }
    }

    fn reopen_logs(&mut self) -> bool {
        self.process.reopen_logs()
    }
}

#[cfg(test)]
mod tests;
