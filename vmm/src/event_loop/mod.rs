//! Event loop of the thread that owns the VM: console, device events, API requests, signals, and stop reasons of vCPUs.
//!
//! ```text
//! run ── watches signals and the service
//!   │
//! the VM exists ── watches vCPUs, devices and console too; while paused, neither devices nor piped input
//!   │
//! a vCPU, a signal or the user ends the VM ── waits for the reader of the output, if a vCPU ended it
//! ```

mod console;
mod error;
mod input;
mod leftover;
mod signals;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use devices::lock;
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::timerfd::TimerFd;

use crate::arch::SharedSource;
use crate::control::{CancelReason, Control, Service};
use crate::machine::Machine;
use crate::vcpu::StopReason;
use crate::vm::{Recording, Vm};
use console::{ConsoleIo, ConsoleStatus, INPUT, OUTPUT};

pub use error::Error;
pub use leftover::release_startup_memory;
pub use signals::{
    SignalFd, block as block_signals, ignore_output_signals, not_ignored, unblock as unblock_signal,
};

/// Exit status after a triple fault.
pub const TRIPLE_FAULT: u8 = 120;
/// Exit status after a failure of KVM, and after a truncation of a file that is mapped as guest memory.
pub const FAULT: u8 = 121;

/// Time without progress of the reader of the output, after which the end of the VM no longer waits for it.
pub const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Reason for the end of a VM.
#[derive(Debug)]
pub enum ExitReason {
    /// A vCPU stopped.
    Guest(StopReason),
    /// The user ended the VM at the console.
    User,
    /// A signal ended the VM.
    Signal(libc::c_int),
    /// The VM is suspended.
    Suspended,
    /// A snapshot could not be loaded.
    Failed,
    /// The client that owns the VM has closed its connection.
    Disconnected,
}

// Tokens of the watched descriptors. The console has those from INPUT to OUTPUT.
const VCPU: u32 = 0;
const SIGNAL: u32 = 1;
const SERVICE: u32 = 2;
const RECORDING: u32 = 7;
const OPERATION: u32 = 8;
const OWNER: u32 = 9;
const IDLE: u32 = 10;
/// Backends of interfaces while the VM suspends.
const WAKE: u32 = 11;
/// Requests of the debugger.
const DEBUGGER: u32 = 12;
/// Token of the first event source of the machine; the others follow in order.
const FIRST_SOURCE: u32 = 16;

/// Runs the event loop for `service`, and for the VM of `control` once it has been started, until the VM ends. One of `signals`, which
/// must be blocked in every thread, ends it too, and so does the end of the connection `owner`, on which nothing must arrive.
///
/// # Errors
/// [`Error`]
pub fn run<'a>(
    control: &'a mut Control,
    service: Option<&'a mut dyn Service>,
    signals: &[libc::c_int],
    owner: Option<BorrowedFd<'a>>,
) -> Result<ExitReason, Error> {
    let signals = SignalFd::new(signals).map_err(|source| Error::System {
        operation: "create a signalfd",
        source,
    })?;
    let event_loop = EventLoop {
        control,
        service,
        signals,
        owner,
        console: None,
        watching: false,
        watches_operations: false,
        watches_debugger: false,
        idle_timer: None,
        wake_descriptors: Vec::new(),
        exit: None,
    };
    let mut events = EventManager::new().map_err(Error::Events)?;
    let id = events.add_subscriber(event_loop);
    let ended = process_until_exit(&mut events, id);
    let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
    // After an error too: a merge must not be cut off.
    event_loop.control.end_operation();
    event_loop.end_recording();
    let reason = ended?;
    if let ExitReason::Guest(reason) = &reason
        && reason.location().is_some()
    {
        event_loop.control.save_crash();
    }
    let status = debugger_status(&reason, event_loop.control.has_plain_crash_status());
    event_loop.control.end_debugger(status);
    // Otherwise the last output of the guest, such as a panic message, would be lost. A signal or the user ends the wait.
    if matches!(reason, ExitReason::Guest(_) | ExitReason::Suspended) {
        event_loop.machine().map(Machine::stop);
        let drained = drain_output(&mut events, id);
        // A request may have begun an operation meanwhile.
        let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
        event_loop.control.end_operation();
        return match reason {
            // The snapshot is complete, whatever ends the wait.
            ExitReason::Suspended => drained.map(|_| reason),
            _ => Ok(drained?.unwrap_or(reason)),
        };
    }
    Ok(reason)
}

/// Returns the reason for the end of a VM whose vCPU has stopped.
fn exit_reason(reason: StopReason) -> ExitReason {
    match reason {
        StopReason::Killed => ExitReason::User,
        reason => ExitReason::Guest(reason),
    }
}

/// Returns the exit status that gdb shows: that of the process. A crash has status 1 if `is_plain`.
fn debugger_status(reason: &ExitReason, is_plain: bool) -> u8 {
    match reason {
        ExitReason::Guest(StopReason::Power(event)) => event.exit_status(),
        ExitReason::Guest(StopReason::CpuShutdown { .. } | StopReason::Fault(_)) if is_plain => 1,
        ExitReason::Guest(StopReason::CpuShutdown { .. }) => TRIPLE_FAULT,
        ExitReason::Guest(StopReason::Fault(_)) => FAULT,
        _ => 0,
    }
}

/// Processes events until the VM ends. Returns the reason.
fn process_until_exit(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
) -> Result<ExitReason, Error> {
    // The initialization may have ended the VM, and then watches too little for another event to end the wait.
    let mut exit = take_exit(events, id)?;
    loop {
        if let Some(reason) = exit {
            return Ok(reason);
        }
        let timeout = if prefetch(events, id)? {
            Some(Duration::ZERO)
        } else {
            retry_output(events, id)?
        };
        exit = poll(events, id, timeout)?;
    }
}

/// Prefetches one chunk of the working set, about 100 us, between two polls, unless an operation reads memory. Returns true while
/// chunks remain.
fn prefetch(events: &mut EventManager<EventLoop<'_>>, id: SubscriberId) -> Result<bool, Error> {
    let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
    let control = &mut event_loop.control;
    Ok(!control.is_busy() && control.vm_mut().is_some_and(Vm::prefetch_chunk))
}

/// Requests a due attempt to write output to a full disk. Returns the time until it is due.
fn retry_output(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
) -> Result<Option<Duration>, Error> {
    let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
    Ok(event_loop.console.as_mut().and_then(ConsoleIo::retry_output))
}

/// Waits for events at most `timeout`, or without limit, and processes them. Returns the exit reason once the VM has ended.
fn poll(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
    timeout: Option<Duration>,
) -> Result<Option<ExitReason>, Error> {
    // epoll_wait(2): -1 waits without limit. Rounded up: zero for a rest below 1 ms would become a busy loop.
    let timeout_ms = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    events.run_with_timeout(timeout_ms).map_err(Error::Events)?;
    take_exit(events, id)
}

/// Takes the exit reason, if the VM has ended.
fn take_exit(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
) -> Result<Option<ExitReason>, Error> {
    let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
    event_loop.exit.take().transpose()
}

/// Waits until the reader has taken the guest's output, or has made no progress for [`OUTPUT_TIMEOUT`]. Returns the exit reason if a
/// signal or the user ends the wait.
fn drain_output(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
) -> Result<Option<ExitReason>, Error> {
    let mut pending = pending_output(events, id)?;
    if pending > 0 {
        // Otherwise the thread of a disk would not report its end.
        let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
        event_loop
            .console
            .as_ref()
            .inspect(|console| console.request_flush());
    }
    let mut progress_at = Instant::now();
    while pending > 0 && progress_at.elapsed() < OUTPUT_TIMEOUT {
        let timeout = OUTPUT_TIMEOUT.saturating_sub(progress_at.elapsed());
        let reason = poll(events, id, Some(timeout))?;
        if let Some(reason @ (ExitReason::User | ExitReason::Signal(_) | ExitReason::Disconnected)) = reason {
            return Ok(Some(reason));
        }
        let left = pending_output(events, id)?;
        if left < pending {
            progress_at = Instant::now();
        }
        pending = left;
    }
    Ok(None)
}

/// Returns the bytes of output that the reader has not taken. Those for a full disk do not count: it has no reader.
fn pending_output(events: &mut EventManager<EventLoop<'_>>, id: SubscriberId) -> Result<usize, Error> {
    let event_loop = events.subscriber_mut(id).map_err(Error::Events)?;
    let serial = event_loop.machine().map(Machine::serial);
    Ok(serial.map_or(0, |serial| {
        let serial = lock(serial);
        let output = serial.output();
        if output.is_full() {
            0
        } else {
            output.buffered_bytes()
        }
    }))
}

struct EventLoop<'a> {
    control: &'a mut Control,
    service: Option<&'a mut dyn Service>,
    signals: SignalFd,
    owner: Option<BorrowedFd<'a>>,
    /// Set once the VM exists.
    console: Option<ConsoleIo>,
    /// The events of the VM's devices are watched.
    watching: bool,
    /// The ends of operations are watched.
    watches_operations: bool,
    /// The requests of the debugger are watched.
    watches_debugger: bool,
    /// Timer of the search for an idle guest. `None` before the first one.
    idle_timer: Option<TimerFd>,
    /// Watched backends while the VM suspends.
    wake_descriptors: Vec<RawFd>,
    exit: Option<Result<ExitReason, Error>>,
}

impl MutEventSubscriber for EventLoop<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch(ops, self.signals.as_raw_fd(), SIGNAL, EventSet::IN);
        if let Some(service) = &self.service {
            self.watch(ops, service.descriptor(), SERVICE, EventSet::IN);
        }
        if let Some(owner) = &self.owner {
            self.watch(ops, owner.as_raw_fd(), OWNER, EventSet::IN);
        }
        self.update_watches(ops);
        self.check_idle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            VCPU => {
                let reason = self.machine().and_then(|machine| {
                    let _ = machine.stop_event().read();
                    machine.take_stop_reason()
                });
                self.set_exit(reason.map(|reason| Ok(exit_reason(reason))));
            }
            SIGNAL => self.handle_signal(),
            OWNER => self.set_exit(Some(Ok(ExitReason::Disconnected))),
            SERVICE => {
                if let Some(service) = &mut self.service {
                    service.ready(self.control);
                }
                self.handle_changes(ops);
            }
            OPERATION => {
                if let Some(ended) = self.control.operation_ended() {
                    let _ = ended.read();
                }
                if let Some(result) = self.control.finish_operation()
                    && let Some(service) = &mut self.service
                {
                    service.finish_operation(self.control, result);
                }
                self.handle_changes(ops);
            }
            DEBUGGER => {
                self.control.handle_debugger();
                self.handle_changes(ops);
            }
            // Sets the timer again, which takes back its event.
            IDLE => self.handle_changes(ops),
            WAKE => {
                // After the commit the frame stays in the backend.
                let _ = self.control.cancel_suspend(CancelReason::Frame);
                self.watch_frames(ops, Vec::new());
            }
            RECORDING => {
                let vm = self.control.vm_mut();
                // An event of the same poll may have paused or ended the recording.
                if let Some(vm) = vm.filter(|vm| vm.recording().is_some_and(Recording::is_due)) {
                    vm.end_begun_recording();
                }
            }
            token @ INPUT..=OUTPUT => {
                let status = self.console.as_mut().map(|console| console.ready(token, ops));
                self.handle_console(status);
            }
            token => {
                let index = usize::try_from(token - FIRST_SOURCE).unwrap_or(usize::MAX);
                let source = self
                    .machine()
                    .and_then(|machine| machine.event_sources().get(index));
                if let Some(source) = source {
                    lock(source).ready();
                }
            }
        }
    }
}

impl EventLoop<'_> {
    fn machine(&self) -> Option<&Machine> {
        self.control.vm().map(Vm::machine)
    }

    /// Handles the changes that a request or the end of an operation may have made.
    fn handle_changes(&mut self, ops: &mut EventOps<'_>) {
        if self.control.has_failed() {
            return self.set_exit(Some(Ok(ExitReason::Failed)));
        }
        self.check_idle(ops);
        if self.control.is_suspended() {
            return self.set_exit(Some(Ok(ExitReason::Suspended)));
        }
        if let Some(ended) = self.control.operation_ended().map(AsRawFd::as_raw_fd)
            && !std::mem::replace(&mut self.watches_operations, true)
        {
            self.watch(ops, ended, OPERATION, EventSet::IN);
        }
        let is_suspending = self.control.is_suspending();
        if !is_suspending {
            // Before the devices watch them again.
            self.watch_frames(ops, Vec::new());
        }
        self.update_watches(ops);
        if is_suspending && self.wake_descriptors.is_empty() {
            let descriptors = self.control.suspend_wake_descriptors();
            self.watch_frames(ops, descriptors);
        }
    }

    /// Searches for an idle guest, and sets the timer of the next search.
    fn check_idle(&mut self, ops: &mut EventOps<'_>) {
        let next = self.control.check_idle();
        if next.is_some() && self.idle_timer.is_none() {
            match TimerFd::new() {
                Ok(timer) => {
                    self.watch(ops, timer.as_raw_fd(), IDLE, EventSet::IN);
                    self.idle_timer = Some(timer);
                }
                Err(error) => log::warn!("cannot find out if the guest is idle: {error}; raise ulimit -n"),
            }
        }
        if let Some(timer) = &mut self.idle_timer {
            // Fails only for an invalid time. Zero disarms it.
            let _ = timer.reset(next.unwrap_or_default(), None);
        }
    }

    /// Watches `descriptors` in place of those before, without an event for a descriptor that cannot be watched.
    fn watch_frames(&mut self, ops: &mut EventOps<'_>, descriptors: Vec<RawFd>) {
        for descriptor in std::mem::replace(&mut self.wake_descriptors, descriptors) {
            let _ = ops.remove(Events::with_data_raw(descriptor, WAKE, EventSet::IN));
        }
        for descriptor in &self.wake_descriptors {
            let _ = ops.add(Events::with_data_raw(*descriptor, WAKE, EventSet::IN));
        }
    }

    /// Watches the descriptors that the state of the VM requires, after a possible change.
    fn update_watches(&mut self, ops: &mut EventOps<'_>) {
        if let Some(requests) = self.control.debugger_event().map(AsRawFd::as_raw_fd)
            && !std::mem::replace(&mut self.watches_debugger, true)
        {
            self.watch(ops, requests, DEBUGGER, EventSet::IN);
        }
        let Some(vm) = self.control.vm_mut() else { return };
        let running = !vm.is_paused();
        let is_new = self.console.is_none();
        if is_new {
            match ConsoleIo::new(vm) {
                Ok(console) => self.attach(console, ops),
                Err(error) => return self.set_exit(Some(Err(error))),
            }
            // Both a start and a load have finished here.
            release_startup_memory();
        }
        let changed = running != std::mem::replace(&mut self.watching, running);
        if changed {
            let sources = self
                .machine()
                .map(Machine::event_sources)
                .unwrap_or_default()
                .to_vec();
            for (token, source) in (FIRST_SOURCE..).zip(&sources) {
                self.watch_source(ops, source, token, running);
            }
        }
        if changed || is_new {
            let console = self.console.as_mut();
            let status = console.map(|console| console.hold_input(!running, ops));
            self.handle_console(status);
        }
    }

    /// Watches the descriptors that stay watched while the VM is paused.
    fn attach(&mut self, console: ConsoleIo, ops: &mut EventOps<'_>) {
        let stop_event = self.machine().map(|machine| machine.stop_event().as_raw_fd());
        let recording = self
            .control
            .vm()
            .and_then(Vm::recording)
            .map(Recording::descriptor);
        let fixed = stop_event
            .map(|file| (file, VCPU))
            .into_iter()
            .chain(recording.map(|file| (file, RECORDING)))
            .chain(console.descriptors());
        for (file, token) in fixed {
            self.watch(ops, file, token, EventSet::IN);
        }
        self.console = Some(console);
    }

    /// Starts to watch `source`, or stops to watch it.
    fn watch_source(&mut self, ops: &mut EventOps<'_>, source: &SharedSource, token: u32, watched: bool) {
        let source = lock(source);
        let set = if source.is_edge() {
            EventSet::IN | EventSet::EDGE_TRIGGERED
        } else {
            EventSet::IN
        };
        let file = source.descriptor();
        drop(source);
        if watched {
            self.watch(ops, file, token, set);
        } else {
            let _ = ops.remove(Events::with_data_raw(file, token, set));
        }
    }

    /// Watches a descriptor. A failure ends the VM, which would never react to the descriptor.
    fn watch(&mut self, ops: &mut EventOps<'_>, file: RawFd, token: u32, set: EventSet) {
        if let Err(error) = ops.add(Events::with_data_raw(file, token, set)) {
            self.set_exit(Some(Err(Error::Events(error))));
        }
    }

    /// Ends the recording of a working set, if there is one.
    fn end_recording(&mut self) {
        if let Some(vm) = self.control.vm_mut() {
            vm.end_recording();
        }
    }

    /// Sets the exit reason, unless there is one already.
    fn set_exit(&mut self, exit: Option<Result<ExitReason, Error>>) {
        if self.exit.is_none() {
            self.exit = exit;
        }
    }

    fn handle_console(&mut self, status: Option<ConsoleStatus>) {
        match status {
            Some(ConsoleStatus::End) => self.set_exit(Some(Ok(ExitReason::User))),
            Some(ConsoleStatus::Failed(error)) => self.set_exit(Some(Err(error))),
            Some(ConsoleStatus::Continue) | None => {}
        }
    }

    fn handle_signal(&mut self) {
        // A signal that arrives with the guest's exit stays unread; it ends the output drain.
        if self.exit.is_some() {
            return;
        }
        let Some(signal) = self.signals.read() else { return };
        let service = self.service.as_mut();
        if signal == libc::SIGHUP && service.is_some_and(|service| service.reopen_logs()) {
            return;
        }
        self.set_exit(Some(Ok(ExitReason::Signal(signal))));
    }
}
