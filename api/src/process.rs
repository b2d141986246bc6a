//! The process around a VM, as the API reads and changes it: identity, log and metrics file.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::LevelFilter;
use vmm::control::{Control, InstanceState, OpenFile, OperationTimes};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use crate::http::{Method, Response};
use crate::metrics::{Counters, LineLabels, MetricsFile, ProcessMetrics};
use crate::request_log;

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

/// Operation whose duration Firecracker records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimedOperation {
    Pause,
    Resume,
    CreateFull,
    CreateDiff,
    Load,
}

impl TimedOperation {
    /// Returns Firecracker's name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause vm",
            Self::Resume => "resume vm",
            Self::CreateFull => "create full snapshot",
            Self::CreateDiff => "create diff snapshot",
            Self::Load => "load snapshot",
        }
    }

    /// Returns the duration in `times`.
    pub fn time(self, times: &mut OperationTimes) -> &mut u64 {
        match self {
            Self::Pause => &mut times.pause_us,
            Self::Resume => &mut times.resume_us,
            Self::CreateFull => &mut times.create_full_us,
            Self::CreateDiff => &mut times.create_diff_us,
            Self::Load => &mut times.load_us,
        }
    }
}

/// Request in execution, for counters, durations and log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestRecord {
    /// Method.
    pub method: Method,
    /// Path.
    pub path: String,
    /// Start of the execution.
    pub start: Instant,
    /// Operation of the request, if its duration is recorded.
    pub operation: Option<TimedOperation>,
}

/// Request whose operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingRequest {
    /// The request.
    pub record: RequestRecord,
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

    /// Returns the number of dropped log messages.
    fn missed_messages(&self) -> u64;
}

/// Process around a VM.
pub struct Process {
    instance: Instance,
    logger: Box<dyn LogControl>,
    totals: ProcessMetrics,
    metrics: Option<MetricsSchedule>,
    /// Open files of the program that no snapshot may replace.
    kept_files: Vec<OpenFile>,
    pending: Option<PendingRequest>,
    /// Watches the server and the metrics timer.
    epoll: Epoll,
}

/// Metrics file and its timer, which is armed while the guest runs.
struct MetricsSchedule {
    file: MetricsFile,
    timer: TimerFd,
    is_armed: bool,
    /// The line at the start of the VM is written.
    is_started: bool,
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
            totals: ProcessMetrics::default(),
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
        &self.totals.counters
    }

    /// Sets wall time and processor time of the start of the process.
    pub fn set_startup_time(&mut self, wall: Duration, processor: Duration) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.totals.startup_us = [us(wall), us(processor)];
    }

    /// Counts and logs `response` to the request of `record`.
    pub(crate) fn record(&mut self, control: &Control, record: &RequestRecord, response: &Response) {
        let is_accepted = matches!(response.status(), 200 | 204);
        match is_accepted {
            true => self.totals.counters.accepted += 1,
            false => self.totals.counters.refused += 1,
        }
        self.totals
            .requests
            .add(&record.method, &record.path, !is_accepted);
        self.totals.deprecated += u64::from(response.is_deprecated());
        request_log::log_response(response);
        if let Some(operation) = record.operation.filter(|_| is_accepted) {
            let us = OperationTimes::elapsed_us(record.start);
            *operation.time(&mut self.totals.operations) = us;
            let vmm_us = *operation.time(&mut control.operation_times());
            request_log::log_operation(operation.name(), vmm_us, us);
        }
        request_log::log_duration(record.start);
        self.follow_state(control);
    }

    /// Arms the metrics timer while the guest runs. Writes a line when the VM starts.
    pub(crate) fn follow_state(&mut self, control: &Control) {
        let Some(metrics) = &mut self.metrics else {
            return;
        };
        let state = control.state();
        let is_running = state == InstanceState::Running;
        if metrics.is_armed != is_running {
            let period = if is_running { PERIOD } else { Duration::ZERO };
            // Fails only for an invalid time.
            let armed = metrics.timer.reset(period, is_running.then_some(PERIOD));
            metrics.is_armed = is_running && armed.is_ok();
        }
        if state != InstanceState::NotStarted && !std::mem::replace(&mut metrics.is_started, true) {
            self.try_write_metrics(control);
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

    /// Opens the file or FIFO at `path`; the metrics are written there at the start of the VM, and each minute while the guest runs.
    /// Each line has `labels`.
    ///
    /// # Errors
    /// A text for the client if a metrics file is set already, or `path` cannot be opened.
    pub fn write_metrics_to(&mut self, path: &Path, labels: LineLabels) -> Result<(), String> {
        if self.metrics.is_some() {
            return Err("cannot set the metrics file: it is set already, and can be set only once".into());
        }
        let file = MetricsFile::open(path)?.with_labels(labels);
        let timer = self
            .create_timer()
            .map_err(|error| format!("cannot set a timer: {error}"))?;
        self.metrics = Some(MetricsSchedule {
            file,
            timer,
            is_armed: false,
            is_started: false,
        });
        Ok(())
    }

    fn create_timer(&self) -> io::Result<TimerFd> {
        let timer = TimerFd::new()?;
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
        let Some(metrics) = &mut self.metrics else {
            return Ok(());
        };
        self.totals.missed_messages = self.logger.missed_messages();
        metrics.file.write(&control.metrics(), &self.totals)
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
        self.totals.hangups += 1;
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
    fn timer_runs_only_with_metrics_file_and_running_guest() {
        let mut fixture = Fixture::new();
        assert!(fixture.api.process().metrics.is_none());
        std::fs::write(fixture.at("@/metrics"), "").unwrap();
        fixture.expect_no_content("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#);
        let metrics = fixture.api.process_mut().metrics.as_mut().unwrap();
        assert!(!metrics.timer.is_armed().unwrap());
        // An expiry at once, as of a running guest.
        metrics.timer.reset(Duration::from_nanos(1), None).unwrap();
        let mut events = [EpollEvent::default()];
        assert_eq!(fixture.api.process().epoll.wait(-1, &mut events).unwrap(), 1);
        vmm::control::Service::ready(&mut fixture.api, &mut fixture.control);
        assert_eq!(fixture.api.process().epoll.wait(0, &mut events).unwrap(), 0);
        let line = std::fs::read_to_string(fixture.at("@/metrics")).unwrap();
        assert_eq!(line.lines().count(), 1);
    }
}
