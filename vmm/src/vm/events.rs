//! The event loop: the guest's input and output, its timers, its owner's wishes, signals, and the ends of vCPUs.
//!
//! ```text
//! run ── signals and the service are watched
//!   │
//! the VM is there ── its sources and its console too; while it is paused, of these only the output and a terminal's keys
//!   │
//! a vCPU, a signal or the user ends it ── what the guest printed last is still waited for
//! ```

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use devices::lock;
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use super::console::{ConsoleIo, ConsoleStatus, INPUT, OUTPUT};
use super::leftover;
use super::recording::Recording;
use super::signals::SignalFd;
use super::{Error, ExitReason, OUTPUT_TIMEOUT, Vm};
use crate::arch::SharedSource;
use crate::control::{Control, Service};
use crate::machine::Machine;

const VCPU: u32 = 0;
const SIGNAL: u32 = 1;
const SERVICE: u32 = 2;
const RECORDING: u32 = 7;
const FIRST_SOURCE: u32 = 16;

/// Serves `service`, and the VM of `control` once it has been started, until the VM is over. `signals`, which must be blocked in every
/// thread, end it too.
///
/// # Errors
/// [`Error`]
pub fn run<'a>(
    control: &'a mut Control,
    service: Option<&'a mut dyn Service>,
    signals: &[libc::c_int],
) -> Result<ExitReason, Error> {
    let signals = SignalFd::new(signals).map_err(|source| Error::System {
        operation: "make a signalfd",
        source,
    })?;
    let owner = EventLoop {
        control,
        service,
        signals,
        console: None,
        watching: false,
        end: None,
    };
    let mut events = EventManager::new().map_err(Error::Events)?;
    let id = events.add_subscriber(owner);
    let end = loop {
        let patience = prepare(&mut events, id)?.then_some(0);
        if let Some(end) = next_end(&mut events, id, patience)? {
            break end;
        }
    };
    let owner = events.subscriber_mut(id).map_err(Error::Events)?;
    owner.end_recording();
    // What the guest printed last is still waited for, as long as its reader reads; signals and the user end that too.
    if matches!(end, ExitReason::Guest(_)) {
        let owner = events.subscriber_mut(id).map_err(Error::Events)?;
        owner.machine().map(Machine::stop);
        if let Some(earlier) = drain(&mut events, id)? {
            return Ok(earlier);
        }
    }
    Ok(end)
}

/// Makes a piece of the guest's memory ready, which takes some 100 us, between one look at the events and the next; whether there
/// is more to be made ready.
fn prepare(events: &mut EventManager<EventLoop<'_>>, id: SubscriberId) -> Result<bool, Error> {
    let owner = events.subscriber_mut(id).map_err(Error::Events)?;
    Ok(owner.control.vm_mut().is_some_and(Vm::prefetch_chunk))
}

/// Waits for events, at most as long as `patience` in milliseconds, and returns why the VM is over, if it is.
fn next_end(
    events: &mut EventManager<EventLoop<'_>>,
    id: SubscriberId,
    patience: Option<i32>,
) -> Result<Option<ExitReason>, Error> {
    // Minus one waits for ever.
    events
        .run_with_timeout(patience.unwrap_or(-1))
        .map_err(Error::Events)?;
    let owner = events.subscriber_mut(id).map_err(Error::Events)?;
    owner.end.take().transpose()
}

/// Lets the reader of the guest's output take what waits for it, until it makes no progress for [`OUTPUT_TIMEOUT`].
fn drain(events: &mut EventManager<EventLoop<'_>>, id: SubscriberId) -> Result<Option<ExitReason>, Error> {
    let mut left = waiting(events, id)?;
    let mut progress = Instant::now();
    while left > 0 && progress.elapsed() < OUTPUT_TIMEOUT {
        let patience = OUTPUT_TIMEOUT.saturating_sub(progress.elapsed());
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let end = next_end(events, id, Some(patience))?;
        if let Some(end @ (ExitReason::User | ExitReason::Signal(_))) = end {
            return Ok(Some(end));
        }
        let now_left = waiting(events, id)?;
        if now_left < left {
            progress = Instant::now();
        }
        left = now_left;
    }
    Ok(None)
}

/// Bytes that the guest has printed and nobody has taken.
fn waiting(events: &mut EventManager<EventLoop<'_>>, id: SubscriberId) -> Result<usize, Error> {
    let owner = events.subscriber_mut(id).map_err(Error::Events)?;
    let serial = owner.machine().map(Machine::serial);
    Ok(serial.map_or(0, |serial| lock(serial).output().waiting()))
}

struct EventLoop<'a> {
    control: &'a mut Control,
    service: Option<&'a mut dyn Service>,
    signals: SignalFd,
    /// There since the VM is.
    console: Option<ConsoleIo>,
    /// Whether the VM's sources are watched.
    watching: bool,
    end: Option<Result<ExitReason, Error>>,
}

impl MutEventSubscriber for EventLoop<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch(ops, self.signals.as_raw_fd(), SIGNAL, EventSet::IN);
        if let Some(service) = &self.service {
            self.watch(ops, service.descriptor(), SERVICE, EventSet::IN);
        }
        self.follow(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            VCPU => {
                let ending = self.machine().and_then(|machine| {
                    let _ = machine.stop_event().read();
                    machine.take_stop_reason()
                });
                self.finish(ending.map(|ending| Ok(ExitReason::Guest(ending))));
            }
            SIGNAL => self.signal(),
            SERVICE => {
                if let Some(service) = &mut self.service {
                    service.ready(self.control);
                }
                if self.control.has_failed() {
                    return self.finish(Some(Ok(ExitReason::Failed)));
                }
                self.follow(ops);
            }
            RECORDING => {
                let vm = self.control.vm_mut();
                // It may have been paused or ended by an event that came with this one.
                if let Some(vm) = vm.filter(|vm| vm.recording().is_some_and(Recording::is_due)) {
                    vm.stop_recording();
                }
            }
            token @ INPUT..=OUTPUT => {
                let look = self.console.as_mut().map(|console| console.ready(token, ops));
                self.handle_console(look);
            }
            data => {
                let index = usize::try_from(data - FIRST_SOURCE).unwrap_or(usize::MAX);
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

    /// Watches what the VM's state, which may just have changed, calls for.
    fn follow(&mut self, ops: &mut EventOps<'_>) {
        let Some(vm) = self.control.vm_mut() else { return };
        let running = !vm.is_paused();
        let is_new = self.console.is_none();
        if is_new {
            match ConsoleIo::new(vm) {
                Ok(console) => self.attach(console, ops),
                Err(error) => return self.finish(Some(Err(error))),
            }
            // However it was started, that is over.
            leftover::release_startup_memory();
        }
        let changed = running != std::mem::replace(&mut self.watching, running);
        if changed {
            let sources = self
                .machine()
                .map(Machine::event_sources)
                .unwrap_or_default()
                .to_vec();
            for (data, source) in (FIRST_SOURCE..).zip(&sources) {
                self.watch_source(ops, source, data, running);
            }
        }
        if changed || is_new {
            let console = self.console.as_mut();
            let look = console.map(|console| console.hold_input(!running, ops));
            self.handle_console(look);
        }
    }

    /// Watches what is watched even while the VM is paused.
    fn attach(&mut self, console: ConsoleIo, ops: &mut EventOps<'_>) {
        let reported = self.machine().map(|machine| machine.stop_event().as_raw_fd());
        let recording = self
            .control
            .vm()
            .and_then(Vm::recording)
            .map(Recording::descriptor);
        let fixed = reported
            .map(|file| (file, VCPU))
            .into_iter()
            .chain(recording.map(|file| (file, RECORDING)))
            .chain(console.descriptors());
        for (file, data) in fixed {
            self.watch(ops, file, data, EventSet::IN);
        }
        self.console = Some(console);
    }

    fn watch_source(&mut self, ops: &mut EventOps<'_>, source: &SharedSource, data: u32, wanted: bool) {
        let source = lock(source);
        let set = if source.is_edge() {
            EventSet::IN | EventSet::EDGE_TRIGGERED
        } else {
            EventSet::IN
        };
        let file = source.descriptor();
        drop(source);
        if wanted {
            self.watch(ops, file, data, set);
        } else {
            let _ = ops.remove(Events::with_data_raw(file, data, set));
        }
    }

    /// Watches one of the loop's own descriptors. Going on deaf would be worse than ending when that fails.
    fn watch(&mut self, ops: &mut EventOps<'_>, file: RawFd, data: u32, set: EventSet) {
        if let Err(error) = ops.add(Events::with_data_raw(file, data, set)) {
            self.finish(Some(Err(Error::Events(error))));
        }
    }

    /// A guest that ends before all of its time is up is recorded until then.
    fn end_recording(&mut self) {
        if let Some(vm) = self.control.vm_mut() {
            vm.end_recording();
        }
    }

    /// What comes first counts.
    fn finish(&mut self, end: Option<Result<ExitReason, Error>>) {
        if self.end.is_none() {
            self.end = end;
        }
    }

    fn handle_console(&mut self, look: Option<ConsoleStatus>) {
        match look {
            Some(ConsoleStatus::End) => self.finish(Some(Ok(ExitReason::User))),
            Some(ConsoleStatus::Failed(error)) => self.finish(Some(Err(error))),
            Some(ConsoleStatus::Continue) | None => {}
        }
    }

    fn signal(&mut self) {
        // One that came together with the guest's end is left to the wait for what the guest has printed, which it ends.
        if self.end.is_some() {
            return;
        }
        let Some(signal) = self.signals.read() else { return };
        let service = self.service.as_mut();
        if signal == libc::SIGHUP && service.is_some_and(|service| service.reopen_logs()) {
            return;
        }
        self.finish(Some(Ok(ExitReason::Signal(signal))));
    }
}
