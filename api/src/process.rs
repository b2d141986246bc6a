//! The process around a VM, as the API reads and changes it: identity, log and metrics file.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use vmm::control::{Control, OpenFile};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use crate::metrics::{Counters, MetricsFile};

/// Interval between two lines in the metrics file.
const PERIOD: Duration = Duration::from_secs(60);

/// Epoll data of the server.
const SERVER: u64 = 0;
/// Epoll data of the metrics timer.
const TIMER: u64 = 1;

/// Identity of the process in responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Identifier of the VM.
    pub id: String,
    /// Version of the program, in the form that clients of Firecracker parse.
    pub version: String,
    /// Name of the program.
    pub app_name: String,
}

/// Change of the log. A field without a value keeps the present setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggerSettings {
    /// File or FIFO for log messages, opened at once.
    pub path: Option<PathBuf>,
    /// Most verbose level to log.
    pub level: Option<LevelFilter>,
    /// Adds the level to each message.
    pub show_level: Option<bool>,
    /// Adds the source file and line to each message.
    pub show_origin: Option<bool>,
    /// Path of a module; only messages of this module and its submodules are logged.
    pub module: Option<String>,
}

/// Request whose operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingRequest {
    /// Method and path, for the log.
    pub name: String,
    /// Subject of an error of the VM.
    pub part: &'static str,
    /// The body has a deprecated key.
    pub is_deprecated: bool,
}

/// Log of the process.
pub trait LogControl {
    /// Applies all of `settings`, or none after an error.
    ///
    /// # Errors
    /// A text for the client if a setting is invalid or the file cannot be opened.
    fn configure(&mut self, settings: &LoggerSettings) -> Result<(), String>;

    /// Reopens the log file after rotation. Returns false if the log has no file.
    fn reopen(&mut self) -> bool;

    /// Returns the regular files that receive log messages.
    fn open_files(&self) -> Vec<OpenFile>;
}

/// Process around a VM.
pub struct Process {
    instance: Instance,
    logger: Box<dyn LogControl>,
    counters: Counters,
    metrics: Option<MetricsSchedule>,
    /// Open files of the program that no snapshot may replace.
    kept_files: Vec<OpenFile>,
    pending: Option<PendingRequest>,
    /// Watches the server and the metrics timer.
    epoll: Epoll,
}

/// Metrics file and its timer.
struct MetricsSchedule {
    file: MetricsFile,
    timer: TimerFd,
}

impl Process {
    /// Creates a process with its epoll instance, which watches the descriptor `server` if there is one.
    pub(crate) fn new(
        instance: Instance,
        logger: Box<dyn LogControl>,
        server: Option<RawFd>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        if let Some(server) = server {
            let event = EpollEvent::new(EventSet::IN, SERVER);
            epoll.ctl(ControlOperation::Add, server, event)?;
        }
        Ok(Self {
            instance,
            logger,
            counters: Counters::default(),
            metrics: None,
            kept_files: Vec::new(),
            pending: None,
            epoll,
        })
    }

    /// Returns the identity of the process.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Returns the counters of the API.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a response with `status`.
    pub(crate) fn count(&mut self, status: u16) {
        match status {
            200 | 204 => self.counters.accepted += 1,
            _ => self.counters.refused += 1,
        }
    }

    /// Sets the request whose operation runs.
    pub(crate) fn set_pending(&mut self, request: PendingRequest) {
        self.pending = Some(request);
    }

    /// Takes the request whose operation has ended.
    pub(crate) fn take_pending(&mut self) -> Option<PendingRequest> {
        self.pending.take()
    }

    /// Changes the log.
    ///
    /// # Errors
    /// A text for the client, see [`LogControl::configure`].
    pub fn configure_log(&mut self, settings: &LoggerSettings) -> Result<(), String> {
        self.logger.configure(settings)
    }

    /// Opens the file or FIFO at `path`; the metrics are written there each minute.
    ///
    /// # Errors
    /// A text for the client if a metrics file is set already, or `path` cannot be opened.
    pub fn write_metrics_to(&mut self, path: &Path) -> Result<(), String> {
        if self.metrics.is_some() {
            return Err("cannot set the metrics file: it is set already, and can be set only once".into());
        }
        let file = MetricsFile::open(path)?;
        let timer = self
            .start_timer()
            .map_err(|error| format!("cannot set a timer: {error}"))?;
        self.metrics = Some(MetricsSchedule { file, timer });
        Ok(())
    }

    fn start_timer(&self) -> io::Result<TimerFd> {
        let mut timer = TimerFd::new()?;
        timer.reset(PERIOD, Some(PERIOD))?;
        let event = EpollEvent::new(EventSet::IN, TIMER);
        self.epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), event)?;
        Ok(timer)
    }

    /// Adds `file` to the [open files](Self::open_files).
    pub(crate) fn keep_file(&mut self, file: OpenFile) {
        self.kept_files.push(file);
    }

    /// Returns the open files of the process, which no snapshot may replace.
    pub(crate) fn open_files(&self) -> Vec<OpenFile> {
        let metrics = self.metrics.as_ref().and_then(|metrics| metrics.file.open_file());
        let kept = self.kept_files.iter().cloned();
        self.logger
            .open_files()
            .into_iter()
            .chain(metrics)
            .chain(kept)
            .collect()
    }

    /// Writes the metrics now, if there is a metrics file.
    ///
    /// # Errors
    /// A text for the client if the file cannot be written.
    pub fn write_metrics(&mut self, control: &Control) -> Result<(), String> {
        match &mut self.metrics {
            Some(metrics) => metrics.file.write(&control.metrics(), &self.counters),
            None => Ok(()),
        }
    }

    /// Writes the metrics if the timer has expired.
    pub(crate) fn write_due_metrics(&mut self, control: &Control) {
        let Some(metrics) = &mut self.metrics else {
            return;
        };
        let mut events = [EpollEvent::default(); 2];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        if !events[..count].iter().any(|event| event.data() == TIMER) {
            return;
        }
        // The timer has expired, so the read does not block.
        let _ = metrics.timer.wait();
        self.try_write_metrics(control);
    }

    /// Writes the metrics; an error goes to the log.
    pub(crate) fn try_write_metrics(&mut self, control: &Control) {
        if let Err(reason) = self.write_metrics(control) {
            log::warn!("api: cannot write the metrics: {reason}");
        }
    }

    /// Reopens the log file and the metrics file after rotation. Returns false if there is neither.
    pub(crate) fn reopen_logs(&mut self) -> bool {
        let has_log = self.logger.reopen();
        let Some(metrics) = &mut self.metrics else {
            return has_log;
        };
        if let Err(reason) = metrics.file.reopen() {
            log::warn!("api: cannot reopen the metrics file, the old one stays in use: {reason}");
        }
        true
    }
}

impl AsRawFd for Process {
    /// Returns the epoll descriptor, readable while the server or the timer needs service.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fixture;

    #[test]
    fn timer_runs_only_with_metrics_file() {
        let mut fixture = Fixture::new();
        assert!(fixture.api.process().metrics.is_none());
        std::fs::write(fixture.at("@/metrics"), "").unwrap();
        fixture.expect_no_content("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#);
        let metrics = fixture.api.process_mut().metrics.as_mut().unwrap();
        assert!(metrics.timer.is_armed().unwrap());
        // Replaces the minute by an expiry at once.
        metrics.timer.reset(Duration::from_nanos(1), None).unwrap();
        let mut events = [EpollEvent::default()];
        assert_eq!(fixture.api.process().epoll.wait(-1, &mut events).unwrap(), 1);
        vmm::control::Service::ready(&mut fixture.api, &mut fixture.control);
        assert_eq!(fixture.api.process().epoll.wait(0, &mut events).unwrap(), 0);
    }
}
