//! A VM of this process from its start to its end: API socket, signals, console, event loop and exit status.

use std::io;
use std::iter;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::http::{HttpLimits, Server};
use api::process::{LogControl as _, LoggerSettings};
use api::{Api, Instance};
use vmm::ErrorChain;
use vmm::boot;
use vmm::config::SerialTarget;
use vmm::control::{
    self, Control, CrashDirectoryError, DebugSettings, FileRole, IdlePolicy, LoadSnapshotError, OpenFile,
    ScaleToZeroConfig, ScaleToZeroError, Service,
};
use vmm::debugger::{self, DebugListener, ListenError};
use vmm::event_loop::{self, ExitReason, FAULT, TRIPLE_FAULT};
use vmm::kvm;
use vmm::memory::bus_error;
use vmm::timeline::{Span, Timeline};
use vmm::vcpu::{Location, StopReason, VcpuError};

use crate::cli::args::firecracker::VERSION;
use crate::cli::args::{DebugArgs, SessionArgs, SuspendArgs};
use crate::cli::hints::{self, OptionSet};
use crate::crash;
use crate::filters::{self, FileRules};
use crate::logging::{ProcessLog, print_message};
use crate::measurement::{self, MeasurementFile};
use crate::process;
use crate::profile::Profile;
use crate::shell::ClientError as ShellError;
use crate::terminal::console;
use crate::timings;

/// Exit status after a suspend.
const SUSPENDED: u8 = 123;
/// Exit status if a disk has changed since the snapshot.
const DRIVE_CHANGED: u8 = 119;

/// Instruction pointer of an x86 processor after reset, Intel SDM volume 3, section 10.1.4.
const RESET_IP: u64 = 0xfff0;

/// Signals that end the VM.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Failure before the guest runs, or of the event loop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be used.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The seccomp filters cannot be used.
    #[error(transparent)]
    Filters(filters::Error),
    /// The initrd cannot be used.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The API socket or the log cannot be opened.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The VM cannot be configured or started.
    #[error(transparent)]
    Start(control::Error),
    /// The snapshot cannot be loaded.
    #[error(transparent)]
    Load(LoadSnapshotError),
    /// The VM cannot be suspended as the options require.
    #[error(transparent)]
    Suspend(Box<ScaleToZeroError>),
    /// No snapshot of a crash can be created.
    #[error(transparent)]
    CrashDirectory(CrashDirectoryError),
    /// The snapshot cannot be loaded into a shell.
    #[error(transparent)]
    Shell(ShellError),
    /// The event loop failed.
    #[error("cannot run the VM")]
    Vm(#[source] event_loop::Error),
    /// The debugger cannot listen.
    #[error(transparent)]
    Listen(ListenError),
    /// The abilities of the host for a debugger cannot be found out.
    #[error("cannot prepare the debugger")]
    Probe(#[source] kvm::Error),
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// The operation.
        operation: &'static str,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// Trace or profile cannot be written.
    #[error(transparent)]
    Measurement(Box<measurement::Error>),
}

impl Error {
    /// Returns the exit status of a command that fails by this error.
    pub fn status(&self) -> u8 {
        match self {
            Self::Load(LoadSnapshotError::Changed(_))
            | Self::Shell(ShellError::Load(LoadSnapshotError::Changed(_))) => DRIVE_CHANGED,
            _ => process::FAILURE,
        }
    }

    /// Returns the error inside of a transparent variant, or else this error.
    pub fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::Image(error) => error,
            Self::Initrd(error) => error,
            Self::Start(error) => error,
            Self::Suspend(error) => error.as_ref(),
            Self::CrashDirectory(error) => error,
            Self::Listen(error) => error,
            Self::Measurement(error) => error.as_ref(),
            Self::Load(error) | Self::Shell(ShellError::Load(error)) => error,
            other => other,
        }
    }
}

/// Failure to start a VM.
pub enum StartError {
    /// The VM cannot be configured or started.
    Start(control::Error),
    /// The snapshot cannot be loaded.
    Load(LoadSnapshotError),
    /// The VM has another use for the file of a measurement.
    Measurement(measurement::Error),
}

impl From<measurement::Error> for Error {
    fn from(error: measurement::Error) -> Self {
        Self::Measurement(Box::new(error))
    }
}

impl From<control::Error> for StartError {
    fn from(error: control::Error) -> Self {
        Self::Start(error)
    }
}

/// Failure to open the API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The log cannot be configured.
    #[error("cannot configure the log: {0}")]
    Log(String),
    /// The API socket cannot be created.
    #[error(transparent)]
    Socket(api::http::Error),
    /// The API cannot be created.
    #[error("cannot serve the API")]
    Service(#[source] api::service::Error),
}

/// Options of the API.
pub struct ApiOptions<'a> {
    /// Path of the API socket, if there is one.
    pub socket: Option<&'a Path>,
    /// Limits of the HTTP server.
    pub limits: HttpLimits,
    /// Name of the VM.
    pub id: &'a str,
    /// Settings of the log.
    pub log: &'a LoggerSettings,
}

impl ApiOptions<'_> {
    /// Opens the API socket and the log.
    ///
    /// # Errors
    /// [`ApiError`] if either cannot be opened.
    pub fn open(self) -> Result<Api, ApiError> {
        // The socket comes first: clients wait for its file, and the kernel queues their connections until they are served.
        let bound = self.socket.map(|path| Server::bind(path, self.limits));
        let server = bound.transpose().map_err(ApiError::Socket)?;
        let mut log = ProcessLog::new(self.id);
        log.configure(self.log).map_err(ApiError::Log)?;
        let instance = Instance {
            id: self.id.to_owned(),
            version: VERSION.into(),
            app_name: "Firecracker".into(),
        };
        Api::new(instance, server, Box::new(log)).map_err(ApiError::Service)
    }
}

/// Returns the options of the API that `session` requires, if it requires any.
fn api_options(session: &SessionArgs) -> Option<ApiOptions<'_>> {
    let required = session.socket.is_some() || session.log != LoggerSettings::default();
    required.then(|| ApiOptions {
        socket: session.socket.as_deref(),
        limits: HttpLimits::default(),
        id: &session.id,
        log: &session.log,
    })
}

/// API, timeline, trace and profile of a VM.
pub struct SessionSetup {
    api: Option<Api>,
    timeline: Arc<Timeline>,
    timings: bool,
    trace: Option<MeasurementFile>,
    profile: Option<MeasurementFile>,
    suspend: SuspendArgs,
    crash_directory: Option<PathBuf>,
    debug: Option<DebugSettings>,
    serial: SerialTarget,
}

impl SessionSetup {
    /// Opens the files and the socket of `session`, and prepares the isolation. Times count from `started_at`. `recorded` is a file that
    /// the VM writes later; `inputs` returns the other files of the VM.
    ///
    /// # Errors
    /// [`Error`] if one of them cannot be opened.
    pub fn prepare(
        session: SessionArgs,
        recorded: Option<&PathBuf>,
        inputs: &dyn Fn() -> Vec<OpenFile>,
        started_at: Instant,
    ) -> Result<Self, Error> {
        let files = FileRules {
            has_clients: session.socket.is_some(),
            has_debugger: session.debug.address.is_some(),
            outputs: session.log.path.iter().chain(recorded).cloned().collect(),
            snapshots: [&session.suspend.directory, &session.crash_directory]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            ..FileRules::default()
        };
        filters::set_up(&session.isolation, files).map_err(Error::Filters)?;
        let debug = open_debugger(&session.debug)?;
        let recorded = session.timings || session.trace.is_some() || api_options(&session).is_some();
        let mut timeline = Timeline::new(started_at, recorded);
        if session.profile.path.is_some() {
            timeline = timeline.with_sampler(session.profile.settings(session.trace.is_some()));
        }
        let setup = Self::prepare_with(session, inputs, Arc::new(timeline))?;
        Ok(Self { debug, ..setup })
    }

    /// Opens the files and the socket of `session`, for a VM with `timeline` and `inputs`.
    ///
    /// # Errors
    /// As of [`prepare`](Self::prepare).
    pub fn prepare_with(
        session: SessionArgs,
        inputs: &dyn Fn() -> Vec<OpenFile>,
        timeline: Arc<Timeline>,
    ) -> Result<Self, Error> {
        // Before the guest runs: a wrong path must not cost a run. Before signals are blocked: opening a FIFO may block.
        let [trace, profile] = match session.trace.is_some() || session.profile.path.is_some() {
            true => open_measurements(&session, inputs())?,
            false => [None, None],
        };
        let mut api = api_options(&session).map(open_api).transpose()?;
        if let Some(api) = &mut api {
            let files = [&trace, &profile].into_iter().flatten();
            let files = files.filter_map(|file| file.open_file().cloned());
            files.for_each(|file| api.keep_file(file));
        }
        Ok(Self {
            api,
            timeline,
            timings: session.timings,
            trace,
            profile,
            suspend: session.suspend,
            crash_directory: session.crash_directory,
            debug: None,
            serial: session.serial,
        })
    }

    /// Returns the timeline of the VM.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Starts a VM by `start`, runs it to its end, and writes the measurements. Returns the exit status. `exec` is the processor
    /// time of the process before its first measurement; `options` are those of the command.
    ///
    /// # Errors
    /// [`Error`] if the VM cannot start, the event loop fails, or trace or profile would be written to another file of it.
    pub fn run(
        self,
        exec: Duration,
        options: OptionSet,
        start: impl FnOnce(&mut Control) -> Result<(), StartError>,
    ) -> Result<u8, Error> {
        let control = new_control(&self.timeline);
        let finished = self.wait(exec, control, None, start)?;
        Ok(finished.status(options))
    }

    /// Runs the VM of `control` as [`run`](Self::run) does, at most until the end of the connection `owner`.
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn wait(
        self,
        exec: Duration,
        mut control: Control,
        owner: Option<BorrowedFd<'_>>,
        start: impl FnOnce(&mut Control) -> Result<(), StartError>,
    ) -> Result<Finished, Error> {
        set_suspend(&mut control, self.suspend).map_err(|error| Error::Suspend(Box::new(error)))?;
        set_crash_directory(&mut control, self.crash_directory.as_deref())?;
        if self.serial != SerialTarget::Stdio {
            open_console(&mut control, self.serial)?;
        }
        if let Some(debug) = self.debug {
            control.set_debugger(debug);
        }
        let start = |control: &mut Control| {
            start(control)?;
            let files = [&self.trace, &self.profile].into_iter().flatten();
            let emptied = files.into_iter().try_for_each(|file| file.empty(control));
            emptied.map_err(StartError::Measurement)
        };
        let ended = start_and_wait(control, self.api, owner, start)?;
        let spans = self.timeline.spans();
        if self.timings {
            print_message(timings::table(exec, &spans).trim_end());
            print_message(&format!(
                "unclaimed accesses: {} to ports, {} to addresses",
                ended.ports, ended.addresses
            ));
        }
        let mut is_written = true;
        if let (Some(file), Some(profile)) = (self.profile, &ended.profile) {
            is_written = report(write_profile(file, profile));
        }
        if let Some(file) = self.trace {
            is_written &= report(write_measured_trace(file, exec, &spans, ended.profile.as_ref()));
        }
        Ok(Finished {
            reason: ended.reason,
            is_written,
        })
    }
}

/// End of a VM whose measurements have been written, or cannot be.
pub struct Finished {
    /// Reason for the end.
    pub reason: ExitReason,
    is_written: bool,
}

impl Finished {
    /// Returns the exit status, and prints a message as [`exit_status`] does. Without a measurement that was to be written, a success
    /// is a failure.
    pub fn status(&self, options: OptionSet) -> u8 {
        match exit_status(&self.reason, options) {
            process::SUCCESS if !self.is_written => process::FAILURE,
            status => status,
        }
    }
}

/// Sets the directory for a snapshot of a crash, if there is one.
///
/// # Errors
/// [`Error::CrashDirectory`]
pub fn set_crash_directory(control: &mut Control, directory: Option<&Path>) -> Result<(), Error> {
    let set = directory.map_or(Ok(()), |directory| control.set_crash_directory(directory));
    set.map_err(Error::CrashDirectory)
}

/// Opens the other end of the guest's serial port, and names a pseudoterminal.
#[inline(never)]
fn open_console(control: &mut Control, target: SerialTarget) -> Result<(), Error> {
    control.set_serial(target, None).map_err(Error::Start)?;
    if let Some(path) = control.console_name().and_then(|name| name.strip_prefix("pty:")) {
        print_message(&format!("the serial console is at {path}"));
    }
    Ok(())
}

/// Listens for gdb, and finds out which means of debugging work: before the process loses the rights for both.
fn open_debugger(args: &DebugArgs) -> Result<Option<DebugSettings>, Error> {
    let Some(address) = &args.address else {
        return Ok(None);
    };
    let listener = DebugListener::bind(address, args.is_public).map_err(Error::Listen)?;
    let abilities = debugger::probe().map_err(Error::Probe)?;
    print_message(&format!("gdb can attach: target remote {listener}"));
    Ok(Some(DebugSettings {
        listener,
        is_running: args.is_running,
        abilities,
    }))
}

/// Applies the options of the suspend.
fn set_suspend(control: &mut Control, args: SuspendArgs) -> Result<(), ScaleToZeroError> {
    if args == SuspendArgs::default() {
        return Ok(());
    }
    if let Some(directory) = &args.directory {
        control.set_suspend_directory(directory)?;
    }
    let default = ScaleToZeroConfig::default();
    control.set_scale_to_zero(ScaleToZeroConfig {
        policy: match args.idle_after {
            Some(_) => IdlePolicy::Idle,
            None => IdlePolicy::Off,
        },
        cooldown: args.idle_after.unwrap_or(default.cooldown),
        max_cpu_percent: args.max_cpu_percent.unwrap_or(default.max_cpu_percent),
        is_stateful: !args.is_stateless,
        files: None,
    })
}

/// Opens the API with signals blocked: a signal must not end the process between the creation of the socket and its removal.
fn open_api(options: ApiOptions<'_>) -> Result<Api, Error> {
    block_signals()?;
    options.open().map_err(|error| Error::Api(Box::new(error)))
}

/// Opens the files of trace and profile. None is another file of the session, or one of the `others`.
#[inline(never)]
fn open_measurements(
    session: &SessionArgs,
    mut others: Vec<OpenFile>,
) -> Result<[Option<MeasurementFile>; 2], Error> {
    let log = session.log.path.as_deref();
    others.extend(log.and_then(|path| OpenFile::at(FileRole::Log, path)));
    if let SerialTarget::File(path) = &session.serial {
        others.extend(OpenFile::at(FileRole::Serial, path));
    }
    let mut open = |role, path: &Option<PathBuf>| {
        let file = path.as_deref();
        let file = file.map(|path| MeasurementFile::open(role, path, &others));
        let file = file.transpose()?;
        others.extend(file.as_ref().and_then(MeasurementFile::open_file).cloned());
        Ok::<_, measurement::Error>(file)
    };
    let trace = open(FileRole::Trace, &session.trace)?;
    Ok([trace, open(FileRole::Profile, &session.profile.path)?])
}

/// Prints the error of a measurement. Returns true if there is none.
fn report(written: Result<(), measurement::Error>) -> bool {
    if let Err(error) = &written {
        print_message(&hints::describe(error, OptionSet::None));
    }
    written.is_ok()
}

/// Writes the profile and prints a summary of it.
#[inline(never)]
fn write_profile(file: MeasurementFile, profile: &Profile) -> Result<(), measurement::Error> {
    let path = file.path().display().to_string();
    file.write(|out| profile.write_folded(out))?;
    print_message(&format!("profile in {path}: {}", profile.summary()));
    Ok(())
}

/// Writes a trace, with the samples of `profile` beside the phases.
#[inline(never)]
fn write_measured_trace(
    file: MeasurementFile,
    exec: Duration,
    spans: &[Span],
    profile: Option<&Profile>,
) -> Result<(), measurement::Error> {
    let Some(profile) = profile else {
        return file.write(|out| timings::write_trace(out, exec, spans, &mut iter::empty()));
    };
    let (mut events, dropped) = profile.events(exec);
    file.write(|out| timings::write_trace(out, exec, spans, &mut events))?;
    if dropped > 0 {
        print_message(&format!(
            "warning: the trace lacks {dropped} samples or slices, which exceed its limits; the profile has them"
        ));
    }
    Ok(())
}

/// End of a VM.
pub struct Ended {
    /// Reason.
    pub reason: ExitReason,
    /// Number of unclaimed accesses to ports. A guest that does not find its devices has many.
    ports: u64,
    /// Number of unclaimed accesses to addresses.
    addresses: u64,
    profile: Option<Profile>,
}

/// Returns a VM without configuration, with stdin and stdout as its serial console.
pub fn new_control(timeline: &Arc<Timeline>) -> Control {
    Control::new(Box::new(|| Ok(console::open()?)), timeline.clone())
}

/// Starts the VM of `control` by `start`, and runs it to its end. Serves `api` meanwhile. The end of the connection `owner` ends it.
///
/// # Errors
/// [`Error`] if the VM cannot start or the event loop fails.
pub fn start_and_wait(
    mut control: Control,
    mut api: Option<Api>,
    owner: Option<BorrowedFd<'_>>,
    start: impl FnOnce(&mut Control) -> Result<(), StartError>,
) -> Result<Ended, Error> {
    // Before any thread starts: threads inherit the mask, and the event loop must receive the signals.
    let signals = block_signals()?;
    bus_error::set_exit_status(FAULT);
    start(&mut control).map_err(|error| match error {
        StartError::Start(error) => Error::Start(error),
        StartError::Load(error) => Error::Load(error),
        StartError::Measurement(error) => error.into(),
    })?;
    let service = api.as_mut().map(|api| api as &mut dyn Service);
    let mut reason = event_loop::run(&mut control, service, &signals, owner).map_err(Error::Vm)?;
    if let Some(api) = &mut api {
        api.finish(&control);
    }
    crash::report(&mut control, &mut reason);
    let profile = Profile::take(&control);
    let (ports, addresses) = shut_down(control);
    Ok(Ended {
        reason,
        ports,
        addresses,
        profile,
    })
}

/// Blocks the signals that end a VM and returns them. They stay pending until the event loop reads them.
///
/// # Errors
/// [`Error::System`] if the mask cannot be changed.
pub fn block_signals() -> Result<Vec<libc::c_int>, Error> {
    let signals = event_loop::not_ignored(&SIGNALS);
    event_loop::block_signals(&signals).map_err(|source| Error::System {
        operation: "block signals",
        source,
    })?;
    Ok(signals)
}

/// Shuts the VM down, warns of dropped serial output, and returns the numbers of unclaimed accesses to ports and addresses.
///
/// Must run before the process exits. At exit, a thread of KVM may be the last user of the address space, and then waits some
/// 20 ms for an RCU grace period.
pub fn shut_down(mut control: Control) -> (u64, u64) {
    let Some(vm) = control.vm_mut() else { return (0, 0) };
    if let Some(report) = vm.finish_output() {
        print_message(&format!("warning: {}", ErrorChain(&report)));
    }
    vm.machine().unclaimed()
}

/// Prints the backtrace of a crash, if one is known.
fn print_backtrace(at: Option<&Location>) {
    if let Some(text) = at.and_then(|at| at.backtrace.as_ref()) {
        print_message(text);
    }
}

/// Returns the exit status for `end`, and prints a message unless the guest or the user caused it.
pub fn exit_status(end: &ExitReason, options: OptionSet) -> u8 {
    match end {
        ExitReason::User | ExitReason::Guest(StopReason::Killed) => process::SUCCESS,
        ExitReason::Guest(StopReason::Power(event)) => event.exit_status(),
        ExitReason::Guest(StopReason::CpuShutdown { at }) => {
            // On AMD, KVM resets the vCPU, whose state is undefined after a shutdown (APM volume 2, section 15.14.3).
            let place = if at.ip == RESET_IP {
                String::new()
            } else {
                format!(" at {}", at.place())
            };
            print_message(&format!(
                "the guest stopped{place}: triple fault, an exception during the delivery of a double fault"
            ));
            print_backtrace(Some(at));
            TRIPLE_FAULT
        }
        ExitReason::Guest(StopReason::Fault(fault)) => {
            print_message(&hints::describe(fault, options));
            print_backtrace(fault.location());
            match fault {
                // The guest has not run.
                VcpuError::Prepare { .. } | VcpuError::Restrict { .. } | VcpuError::Sample { .. } => {
                    process::FAILURE
                }
                _ => FAULT,
            }
        }
        ExitReason::Signal(signal) => process::exit_by_signal(*signal),
        ExitReason::Disconnected => {
            print_message("the VM ends: the client that has started it has ended");
            process::FAILURE
        }
        ExitReason::Suspended => SUSPENDED,
        ExitReason::Failed => {
            print_message("cannot continue without a VM: the snapshot was not loaded");
            process::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use vmm::event_loop::ExitReason;
    use vmm::vcpu::{StopReason, VcpuError};

    use super::exit_status;
    use crate::cli::hints::OptionSet;
    use crate::process;

    #[test]
    fn vcpu_that_cannot_be_restricted_is_a_failed_start() {
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        let fault = VcpuError::Restrict { id: 0, source };
        let end = ExitReason::Guest(StopReason::Fault(fault));
        assert_eq!(exit_status(&end, OptionSet::Run), process::FAILURE);
    }
}
