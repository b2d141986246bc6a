//! `mayfly run`: from an image to its end, in one line.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Api;
use devices::PowerEvent;
use vmm::ErrorChain;
use vmm::arch::{Native, Platform};
use vmm::boot::{self, Image, Initrd};
use vmm::control::{self, Control, LoadSnapshotError, Service};
use vmm::event_loop::{self, ExitReason};
use vmm::timeline::{Lane, Span, Timeline};
use vmm::vcpu::StopReason;

use crate::cli::args::{RestoreArgs, RunArgs, SessionArgs};
use crate::logging::print_message;
use crate::process;
use crate::serve::{self, ApiOptions};
use crate::terminal::console;
use crate::timings;

/// The guest's processor shut down.
const TRIPLE_FAULT: u8 = 120;
/// KVM could not go on with the guest.
const FAULT: u8 = 121;

/// Instruction pointer of a processor after its reset.
const RESET_IP: u64 = 0xfff0;

/// Signals that end the VM at once.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Why an image could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be used.
    #[error(transparent)]
    Image(boot::image::Error),
    /// The initrd cannot be used.
    #[error(transparent)]
    Initrd(boot::initrd::Error),
    /// The control socket or the log cannot be had.
    #[error(transparent)]
    Front(Box<serve::Error>),
    /// The machine cannot be made or booted.
    #[error(transparent)]
    Start(control::Error),
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Thaw(LoadSnapshotError),
    /// The VM could not be watched.
    #[error("cannot run the machine")]
    Vm(#[source] event_loop::Error),
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The trace could not be written.
    #[error("cannot write the trace to {}", path.display())]
    Trace {
        /// Where to.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Processor time that this process has used.
pub fn process_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Boots an image and stays until it ends. `exec` is the processor time that was used before `origin`.
///
/// # Errors
/// [`Error`] when the guest did not run at all.
pub fn run(run: RunArgs, origin: Instant, exec: Duration) -> Result<u8, Error> {
    let watch = SessionSetup::prepare(run.session, origin)?;
    let image = watch
        .timeline
        .measure(Lane::Main, "open image", || {
            Image::open(&run.config.kernel, Native::ARCHITECTURE)
        })
        .map_err(Error::Image)?;
    let initrd = run
        .config
        .initrd
        .as_deref()
        .map(Initrd::open)
        .transpose()
        .map_err(Error::Initrd)?;
    let config = run.config;
    run_vm(watch, exec, |control| {
        control.configure(config, image, initrd)?;
        control.start()?;
        Ok(())
    })
}

/// Makes a VM of a snapshot and stays until it ends. `exec` is the processor time that was used before `origin`.
///
/// # Errors
/// [`Error`] when the guest did not run at all.
pub fn restore(restore: RestoreArgs, origin: Instant, exec: Duration) -> Result<u8, Error> {
    let watch = SessionSetup::prepare(restore.session, origin)?;
    run_vm(watch, exec, |control| {
        control.load_snapshot(&restore.thaw).map_err(StartError::Thaw)
    })
}

/// What a VM is watched by: the way to it from outside, if one is wanted, and what records its start.
struct SessionSetup {
    api: Option<Api>,
    timeline: Arc<Timeline>,
    timings: bool,
    trace: Option<Trace>,
}

impl SessionSetup {
    fn prepare(session: SessionArgs, origin: Instant) -> Result<Self, Error> {
        // Before the guest runs, so that it does not run in vain; and while signals still end the process, for a FIFO may keep
        // this waiting.
        let trace = session.trace.clone().map(Trace::create).transpose()?;
        let api = session.front().map(open).transpose()?;
        let timings = session.timings;
        let recorded = timings || trace.is_some() || api.is_some();
        Ok(Self {
            api,
            timeline: Arc::new(Timeline::new(origin, recorded)),
            timings,
            trace,
        })
    }
}

/// Begins a VM, stays until it ends, and tells what the user wants to know.
fn run_vm(
    watch: SessionSetup,
    exec: Duration,
    begin: impl FnOnce(&mut Control) -> Result<(), StartError>,
) -> Result<u8, Error> {
    let (end, unclaimed) = start_and_wait(&watch.timeline, watch.api, begin)?;
    let spans = watch.timeline.spans();
    if watch.timings {
        print_message(timings::table(exec, &spans).trim_end());
        let Unclaimed { ports, addresses } = unclaimed;
        print_message(&format!(
            "accesses that no device claimed: {ports} to ports, {addresses} to addresses"
        ));
    }
    if let Some(trace) = watch.trace {
        trace.write(exec, &spans)?;
    }
    Ok(exit_status(&end))
}

/// Why a VM did not begin.
pub enum StartError {
    /// It could not be started.
    Start(control::Error),
    /// It could not be restored.
    Thaw(LoadSnapshotError),
}

impl From<control::Error> for StartError {
    fn from(error: control::Error) -> Self {
        Self::Start(error)
    }
}

/// Opens the way to the VM from outside, with the signals blocked that would leave its socket behind.
fn open(front: ApiOptions<'_>) -> Result<Api, Error> {
    block_signals()?;
    front.open().map_err(|error| Error::Front(Box::new(error)))
}

/// A trace that is to be written.
struct Trace {
    path: PathBuf,
    file: File,
}

impl Trace {
    fn create(path: PathBuf) -> Result<Self, Error> {
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Trace { path, source }),
        }
    }

    fn write(mut self, exec: Duration, spans: &[Span]) -> Result<(), Error> {
        let written = self.file.write_all(timings::trace(exec, spans).as_bytes());
        written.map_err(|source| Error::Trace {
            path: self.path,
            source,
        })
    }
}

/// How often the guest touched what is not there, which is worth knowing when it does not find its devices.
pub struct Unclaimed {
    ports: u64,
    addresses: u64,
}

/// Lets `begin` start a VM with this process's stdin and stdout as its serial console, and stays until it ends. Meanwhile
/// `api` is served, if there is one.
///
/// # Errors
/// [`Error`]
pub fn start_and_wait(
    timeline: &Arc<Timeline>,
    mut api: Option<Api>,
    begin: impl FnOnce(&mut Control) -> Result<(), StartError>,
) -> Result<(ExitReason, Unclaimed), Error> {
    // Before any thread starts, so that all of them leave the signals to the event loop.
    let signals = block_signals()?;
    let mut control = Control::new(Box::new(|| Ok(console::open()?)), timeline.clone());
    begin(&mut control).map_err(|failure| match failure {
        StartError::Start(error) => Error::Start(error),
        StartError::Thaw(error) => Error::Thaw(error),
    })?;
    let service = api.as_mut().map(|api| api as &mut dyn Service);
    let end = event_loop::run(&mut control, service, &signals).map_err(Error::Vm)?;
    if let Some(api) = &mut api {
        api.finish(&control);
    }
    let (ports, addresses) = shut_down(control);
    Ok((end, Unclaimed { ports, addresses }))
}

/// Blocks the signals that end a VM, so that they wait for the event loop, and returns them.
///
/// # Errors
/// [`Error::System`]
pub fn block_signals() -> Result<Vec<libc::c_int>, Error> {
    let signals = event_loop::not_ignored(&SIGNALS);
    event_loop::block_signals(&signals).map_err(|source| Error::System {
        operation: "block signals",
        source,
    })?;
    Ok(signals)
}

/// Says what the guest's output has lost, if it has, and takes the VM apart while the process is whole: at the end of a process
/// KVM's own thread may be the last that holds the address space, and then waits some 20 ms for a grace period.
/// Returns the accesses that no device claimed.
pub fn shut_down(mut control: Control) -> (u64, u64) {
    let Some(vm) = control.vm_mut() else { return (0, 0) };
    if let Some(report) = vm.finish_output() {
        print_message(&format!("warning: {}", ErrorChain(&report)));
    }
    vm.machine().unclaimed()
}

/// The exit status that `end` deserves, with a word on it where it was not the guest's or the user's will.
pub fn exit_status(end: &ExitReason) -> u8 {
    match end {
        ExitReason::User | ExitReason::Guest(StopReason::Power(PowerEvent::Off | PowerEvent::Reset)) => {
            process::SUCCESS
        }
        ExitReason::Guest(StopReason::Power(PowerEvent::Exit(code))) => status(*code),
        ExitReason::Guest(StopReason::TripleFault { ip }) => {
            // Processors of AMD are reset by then, and this is where they would begin.
            let place = if *ip == RESET_IP {
                String::new()
            } else {
                format!(" at {ip:#x}")
            };
            print_message(&format!(
                "the guest's processor shut down{place}: a fault in the handling of a fault (triple fault)"
            ));
            TRIPLE_FAULT
        }
        ExitReason::Guest(StopReason::Fault(fault)) => {
            print_message(&ErrorChain(fault).to_string());
            FAULT
        }
        ExitReason::Signal(signal) => exit_by_signal(*signal),
        ExitReason::Failed => {
            print_message("there is no VM without its snapshot");
            process::FAILURE
        }
    }
}

/// The guest's code as an exit status, which has 8 bits. No failure becomes a success by that.
fn status(code: u32) -> u8 {
    match code.to_le_bytes()[0] {
        0 if code != 0 => u8::MAX,
        status => status,
    }
}

/// Ends this process by `signal`, so that whoever waits for it sees what happened.
fn exit_by_signal(signal: libc::c_int) -> u8 {
    // SAFETY: the default action is a valid one for a signal that was caught by a descriptor only.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    event_loop::unblock_signal(signal);
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(signal) };
    // Reached only when the signal's default action is not to end the process.
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn no_failure_becomes_a_success() {
        for (code, expected) in [
            (0, 0),
            (1, 1),
            (255, 255),
            (256, 255),
            (0x101, 1),
            (u32::MAX, 255),
            (0x8000_0000, 255),
        ] {
            assert_eq!(status(code), expected, "{code:#x}");
        }
    }
}
