//! The event loop: the guest's input and output, its timers, signals, and the ends of vCPUs.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::lock;
use devices::serial::Serial;
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::eventfd::EventFd;

use super::input::{Input, Read, Verdict};
use super::{Console, End, Error, OUTPUT_PATIENCE};
use crate::machine::Machine;

use super::signals::Signals;

const VCPU: u32 = 0;
const SIGNAL: u32 = 1;
const INPUT: u32 = 2;
const INPUT_ROOM: u32 = 3;
const OUTPUT_BLOCKED: u32 = 4;
const OUTPUT: u32 = 5;
const FIRST_SOURCE: u32 = 16;

/// Runs until the VM is over.
pub(super) fn run(machine: &Machine, console: Console<'_>) -> Result<End, Error> {
    let system = |operation| move |source| Error::System { operation, source };
    let signals = Signals::new(console.signals).map_err(system("make a signalfd"))?;
    let serial = machine.serial().clone();
    let (input_room, output_blocked) = {
        let serial = lock(&serial);
        let clone = |event: &EventFd| event.try_clone().map_err(system("duplicate an eventfd"));
        (clone(serial.input_ready())?, clone(serial.output().notify())?)
    };
    let owner = Owner {
        machine,
        signals,
        input: console.input.map(|file| Input::new(file, console.filter)),
        input_watched: false,
        input_room,
        output_blocked,
        output_watched: false,
        serial,
        end: None,
    };
    let mut events = EventManager::new().map_err(Error::Events)?;
    let id = events.add_subscriber(owner);
    let mut watch = |patience| next_end(&mut events, id, patience);
    let end = loop {
        if let Some(end) = watch(None)? {
            break end;
        }
    };
    // What the guest printed last is still waited for, as long as its reader reads; signals and the user end that too.
    if matches!(end, End::Guest(_)) {
        machine.stop();
        if let Some(earlier) = drain(machine, &mut watch)? {
            return Ok(earlier);
        }
    }
    Ok(end)
}

/// Waits for events, at most as long as `patience` in milliseconds, and returns why the VM is over, if it is.
fn next_end(
    events: &mut EventManager<Owner<'_>>,
    id: SubscriberId,
    patience: Option<i32>,
) -> Result<Option<End>, Error> {
    // Minus one waits for ever.
    events
        .run_with_timeout(patience.unwrap_or(-1))
        .map_err(Error::Events)?;
    let owner = events.subscriber_mut(id).map_err(Error::Events)?;
    owner.end.take().transpose()
}

/// Lets the reader of the guest's output take what waits for it, until it makes no progress for [`OUTPUT_PATIENCE`].
fn drain(
    machine: &Machine,
    watch: &mut impl FnMut(Option<i32>) -> Result<Option<End>, Error>,
) -> Result<Option<End>, Error> {
    let waiting = || lock(machine.serial()).output().waiting();
    let mut left = waiting();
    let mut progress = Instant::now();
    while left > 0 && progress.elapsed() < OUTPUT_PATIENCE {
        let patience = OUTPUT_PATIENCE.saturating_sub(progress.elapsed());
        let end = watch(Some(i32::try_from(patience.as_millis()).unwrap_or(i32::MAX)))?;
        if let Some(end @ (End::User | End::Signal(_))) = end {
            return Ok(Some(end));
        }
        let now_left = waiting();
        if now_left < left {
            progress = Instant::now();
        }
        left = now_left;
    }
    Ok(None)
}

struct Owner<'a> {
    machine: &'a Machine,
    signals: Signals,
    input: Option<Input<'a>>,
    input_watched: bool,
    input_room: EventFd,
    output_blocked: EventFd,
    output_watched: bool,
    serial: Arc<Mutex<Serial>>,
    end: Option<Result<End, Error>>,
}

impl MutEventSubscriber for Owner<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fixed = [
            (self.machine.reported().as_raw_fd(), VCPU),
            (self.signals.as_raw_fd(), SIGNAL),
            (self.input_room.as_raw_fd(), INPUT_ROOM),
            (self.output_blocked.as_raw_fd(), OUTPUT_BLOCKED),
        ];
        for (file, data) in fixed {
            self.watch(ops, file, data, EventSet::IN);
        }
        for (data, source) in (FIRST_SOURCE..).zip(self.machine.sources()) {
            let source = lock(source);
            let set = if source.is_edge() {
                EventSet::IN | EventSet::EDGE_TRIGGERED
            } else {
                EventSet::IN
            };
            self.watch(ops, source.descriptor(), data, set);
        }
        self.pump_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            VCPU => {
                let _ = self.machine.reported().read();
                self.finish(self.machine.report().map(|ending| Ok(End::Guest(ending))));
            }
            SIGNAL => {
                let signal = self.signals.read();
                self.finish(signal.map(|signal| Ok(End::Signal(signal))));
            }
            INPUT => self.read_input(ops),
            INPUT_ROOM => {
                let _ = self.input_room.read();
                self.pump_input(ops);
            }
            OUTPUT_BLOCKED => {
                let _ = self.output_blocked.read();
                self.flush_output(ops);
            }
            OUTPUT => self.flush_output(ops),
            data => {
                let index = usize::try_from(data - FIRST_SOURCE).unwrap_or(usize::MAX);
                if let Some(source) = self.machine.sources().get(index) {
                    lock(source).ready();
                }
            }
        }
    }
}

impl Owner<'_> {
    /// Watches one of the machine's own descriptors. Going on deaf would be worse than ending when that fails.
    fn watch(&mut self, ops: &mut EventOps<'_>, file: RawFd, data: u32, set: EventSet) {
        if let Err(error) = ops.add(Events::with_data_raw(file, data, set)) {
            self.finish(Some(Err(Error::Events(error))));
        }
    }

    /// What comes first counts.
    fn finish(&mut self, end: Option<Result<End, Error>>) {
        if self.end.is_none() {
            self.end = end;
        }
    }

    fn read_input(&mut self, ops: &mut EventOps<'_>) {
        match self.input.as_mut().map(Input::read) {
            Some(Read::Bytes(Verdict::End)) => self.finish(Some(Ok(End::User))),
            Some(Read::Closed) => self.close_input(ops),
            _ => {}
        }
        self.pump_input(ops);
    }

    /// Moves input on towards the guest, and watches the file for more exactly while more is wanted.
    fn pump_input(&mut self, ops: &mut EventOps<'_>) {
        loop {
            let Some(input) = &mut self.input else { return };
            input.deliver(|bytes| lock(&self.serial).enqueue(bytes));
            let wanted = input.wants_more();
            let watched = Events::with_data_raw(input.file().as_raw_fd(), INPUT, EventSet::IN);
            match (wanted, self.input_watched) {
                (true, false) => match ops.add(watched) {
                    Ok(()) => self.input_watched = true,
                    // A regular file cannot be watched, because it is always ready.
                    Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                        match input.read() {
                            Read::Bytes(_) => continue,
                            Read::Nothing | Read::Closed => self.input = None,
                        }
                    }
                    Err(error) => self.finish(Some(Err(Error::Events(error)))),
                },
                (false, true) => {
                    let _ = ops.remove(watched);
                    self.input_watched = false;
                }
                _ => {}
            }
            return;
        }
    }

    fn close_input(&mut self, ops: &mut EventOps<'_>) {
        if let Some(input) = self.input.take()
            && self.input_watched
        {
            let _ = ops.remove(Events::with_data_raw(
                input.file().as_raw_fd(),
                INPUT,
                EventSet::IN,
            ));
            self.input_watched = false;
        }
    }

    fn flush_output(&mut self, ops: &mut EventOps<'_>) {
        let mut serial = lock(&self.serial);
        let output = serial.output_mut();
        let more = output.flush();
        let file = output.as_fd().as_raw_fd();
        let report = output.report();
        drop(serial);
        if let Some(report) = report {
            log::warn!("{}", crate::Chain(&report));
        }
        let watched = Events::with_data_raw(file, OUTPUT, EventSet::OUT);
        if more && !self.output_watched {
            self.watch(ops, file, OUTPUT, EventSet::OUT);
        } else if !more && self.output_watched {
            let _ = ops.remove(watched);
        }
        self.output_watched = more;
    }
}
