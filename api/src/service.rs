//! The API as a VM's event loop knows it.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use vmm::control::{Control, Service};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use crate::http::{Handler, Request, Response, Server};
use crate::logger::{LogControl, LoggerSettings};
use crate::metrics::{Counters, MetricsFile};
use crate::{config_file, routes};

/// How often a line of numbers is written.
const PERIOD: Duration = Duration::from_secs(60);

/// What the descriptors of the two are called.
const SERVER: u64 = 0;
const TIMER: u64 = 1;

/// What a client is told of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Name of the VM.
    pub id: String,
    /// Version of the program, as its clients expect it.
    pub version: String,
    /// Name of the program, as its clients expect it.
    pub app_name: String,
}

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its descriptors cannot be watched.
    #[error("cannot watch the descriptors of the API")]
    Events(#[source] std::io::Error),
}

/// The process around a VM, as far as a client can look at it and change it.
pub struct Process {
    instance: Instance,
    logger: Box<dyn LogControl>,
    counters: Counters,
    numbers: Option<MetricsSchedule>,
    /// Of the server and of the timer.
    epoll: Epoll,
}

/// Where the numbers go, and when.
struct MetricsSchedule {
    file: MetricsFile,
    timer: TimerFd,
}

impl Process {
    /// What a client is told.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What the API has done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a request that was answered with `status`.
    pub(crate) fn count(&mut self, status: u16) {
        match status {
            200 | 204 => self.counters.accepted += 1,
            _ => self.counters.refused += 1,
        }
    }

    /// Changes the log.
    ///
    /// # Errors
    /// What a client is told.
    pub fn configure_log(&mut self, settings: &LoggerSettings) -> Result<(), String> {
        self.logger.configure(settings)
    }

    /// Has a line of numbers written to the file or FIFO at `path` each minute from now on.
    ///
    /// # Errors
    /// What a client is told.
    pub fn write_metrics_to(&mut self, path: &Path) -> Result<(), String> {
        if self.numbers.is_some() {
            return Err("there is a file for the metrics already; it can be set only once".into());
        }
        let file = MetricsFile::open(path)?;
        let timer = self
            .timer()
            .map_err(|error| format!("cannot set a timer: {error}"))?;
        self.numbers = Some(MetricsSchedule { file, timer });
        Ok(())
    }

    fn timer(&self) -> std::io::Result<TimerFd> {
        let mut timer = TimerFd::new()?;
        timer.reset(PERIOD, Some(PERIOD))?;
        let event = EpollEvent::new(EventSet::IN, TIMER);
        self.epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), event)?;
        Ok(timer)
    }

    /// Writes a line of numbers now, if somebody wanted them.
    ///
    /// # Errors
    /// What a client is told.
    pub fn write_metrics(&mut self, control: &Control) -> Result<(), String> {
        match &mut self.numbers {
            Some(numbers) => numbers.file.write(&control.metrics(), &self.counters),
            None => Ok(()),
        }
    }

    /// The same when it is time for it.
    fn tick(&mut self, control: &Control) {
        let Some(numbers) = &mut self.numbers else {
            return;
        };
        let mut events = [EpollEvent::default(); 2];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        if !events[..count].iter().any(|event| event.data() == TIMER) {
            return;
        }
        // It is over, so that this does not wait.
        let _ = numbers.timer.wait();
        self.write_line(control);
    }

    fn write_line(&mut self, control: &Control) {
        if let Err(reason) = self.write_metrics(control) {
            log::warn!("api: cannot write the metrics: {reason}");
        }
    }
}

/// The API of one VM.
pub struct Api {
    server: Option<Server>,
    process: Process,
}

impl Api {
    /// An API that is served by `server`, or only by a file if there is none.
    ///
    /// # Errors
    /// [`Error::Events`]
    pub fn new(
        instance: Instance,
        server: Option<Server>,
        logger: Box<dyn LogControl>,
    ) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Events)?;
        if let Some(server) = &server {
            let event = EpollEvent::new(EventSet::IN, SERVER);
            epoll
                .ctl(ControlOperation::Add, server.as_raw_fd(), event)
                .map_err(Error::Events)?;
        }
        let process = Process {
            instance,
            logger,
            counters: Counters::default(),
            numbers: None,
            epoll,
        };
        Ok(Self { server, process })
    }

    /// Does what a configuration file says, by the same code as if a client had said it. The VM is not started.
    ///
    /// # Errors
    /// [`config_file::Error`]. What the file says before that has been done.
    pub fn apply(&mut self, control: &mut Control, text: &str) -> Result<(), config_file::Error> {
        config_file::apply(control, &mut self.process, text)
    }

    /// Has the numbers written to `path`, as `PUT /metrics` does.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn write_metrics_to(&mut self, path: &Path) -> Result<(), String> {
        self.process.write_metrics_to(path)
    }

    /// Answers one request.
    pub fn answer(&mut self, control: &mut Control, request: &Request) -> Response {
        routes::answer(request, control, &mut self.process)
    }

    /// The process around the VM, as the API sees it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Writes the last line of numbers.
    pub fn finish(&mut self, control: &Control) {
        self.process.write_line(control);
    }
}

/// Answers for one turn of the server.
struct RequestHandler<'a> {
    control: &'a mut Control,
    process: &'a mut Process,
}

impl Handler for RequestHandler<'_> {
    fn answer(&mut self, request: &Request) -> Response {
        routes::answer(request, self.control, self.process)
    }
}

impl Service for Api {
    fn descriptor(&self) -> RawFd {
        self.process.epoll.as_raw_fd()
    }

    fn ready(&mut self, control: &mut Control) {
        let process = &mut self.process;
        process.tick(control);
        if let Some(server) = &mut self.server {
            server.serve(&mut RequestHandler { control, process });
        }
    }

    fn reopen_logs(&mut self) -> bool {
        let has_log = self.process.logger.reopen();
        let Some(numbers) = &mut self.process.numbers else {
            return has_log;
        };
        if let Err(reason) = numbers.file.reopen() {
            log::warn!("api: {reason}");
        }
        true
    }
}

#[cfg(test)]
mod tests;
