//! The console of a VM that runs, as the event loop serves it.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use devices::lock;
use devices::serial::Serial;
use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use super::input::{Input, InputAction, Read};
use super::{Error, Vm};

/// The input has something to read.
pub const INPUT: u32 = 3;
/// The serial port has room for input.
pub const INPUT_ROOM: u32 = 4;
/// The output has begun to hold something back.
pub const OUTPUT_BLOCKED: u32 = 5;
/// The output's reader takes more.
pub const OUTPUT: u32 = 6;

/// What a look at the console has come to.
#[derive(Debug)]
pub enum ConsoleStatus {
    /// The VM goes on.
    Continue,
    /// The user wants it to end.
    End,
    /// The loop has gone deaf.
    Failed(Error),
}

/// The guest's serial port between the process's input and output.
pub struct ConsoleIo {
    input: Option<Input>,
    input_watched: bool,
    /// Whether the guest gets no input, because it is paused.
    held: bool,
    input_room: EventFd,
    output_blocked: EventFd,
    output_watched: bool,
    serial: Arc<Mutex<Serial>>,
}

impl ConsoleIo {
    pub fn new(vm: &mut Vm) -> Result<Self, Error> {
        let input = vm.take_input();
        let serial = vm.machine().serial().clone();
        let (input_room, output_blocked) = {
            let serial = lock(&serial);
            let clone = |event: &EventFd| {
                event.try_clone().map_err(|source| Error::System {
                    operation: "duplicate an eventfd",
                    source,
                })
            };
            (clone(serial.input_ready())?, clone(serial.output().notify())?)
        };
        Ok(Self {
            input,
            input_watched: false,
            held: false,
            input_room,
            output_blocked,
            output_watched: false,
            serial,
        })
    }

    /// Descriptors to be watched from the beginning to the end, with their tokens.
    pub fn descriptors(&self) -> [(RawFd, u32); 2] {
        [
            (self.input_room.as_raw_fd(), INPUT_ROOM),
            (self.output_blocked.as_raw_fd(), OUTPUT_BLOCKED),
        ]
    }

    /// Serves what `token` stands for.
    pub fn ready(&mut self, token: u32, ops: &mut EventOps<'_>) -> ConsoleStatus {
        match token {
            INPUT => {
                let read = self.input.as_mut().map(Input::read);
                match read {
                    Some(Read::Bytes(InputAction::End)) => return ConsoleStatus::End,
                    Some(Read::Closed) => self.close_input(ops),
                    _ => {}
                }
                self.pump_input(ops)
            }
            INPUT_ROOM => {
                let _ = self.input_room.read();
                self.pump_input(ops)
            }
            OUTPUT_BLOCKED => {
                let _ = self.output_blocked.read();
                self.flush_output(ops)
            }
            _ => self.flush_output(ops),
        }
    }

    /// Has input wait while the guest is paused, in its file as far as that can be, or lets it flow again.
    pub fn hold_input(&mut self, held: bool, ops: &mut EventOps<'_>) -> ConsoleStatus {
        self.held = held;
        self.pump_input(ops)
    }

    /// Moves input on towards the guest, and watches the file for more exactly while more is wanted.
    fn pump_input(&mut self, ops: &mut EventOps<'_>) -> ConsoleStatus {
        loop {
            let Some(input) = &mut self.input else {
                return ConsoleStatus::Continue;
            };
            if !self.held {
                input.deliver(|bytes| lock(&self.serial).enqueue(bytes));
            }
            let wanted = input.wants_more(self.held);
            let watched = Events::with_data_raw(input.file().as_raw_fd(), INPUT, EventSet::IN);
            match (wanted, self.input_watched) {
                (true, false) => match ops.add(watched) {
                    Ok(()) => self.input_watched = true,
                    // A regular file cannot be watched, because it is always ready.
                    Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                        match input.read_regular() {
                            Read::Bytes(_) => continue,
                            Read::Nothing | Read::Closed => self.input = None,
                        }
                    }
                    Err(error) => return ConsoleStatus::Failed(Error::Events(error)),
                },
                (false, true) => self.ignore_input(ops),
                _ => {}
            }
            return ConsoleStatus::Continue;
        }
    }

    fn ignore_input(&mut self, ops: &mut EventOps<'_>) {
        if let Some(input) = &self.input
            && std::mem::take(&mut self.input_watched)
        {
            let file = input.file().as_raw_fd();
            let _ = ops.remove(Events::with_data_raw(file, INPUT, EventSet::IN));
        }
    }

    fn close_input(&mut self, ops: &mut EventOps<'_>) {
        self.ignore_input(ops);
        self.input = None;
    }

    fn flush_output(&mut self, ops: &mut EventOps<'_>) -> ConsoleStatus {
        let mut serial = lock(&self.serial);
        let output = serial.output_mut();
        let more = output.flush();
        let file = output.as_fd().as_raw_fd();
        let report = output.report();
        drop(serial);
        if let Some(report) = report {
            log::warn!("{}", crate::ErrorChain(&report));
        }
        let watched = Events::with_data_raw(file, OUTPUT, EventSet::OUT);
        if more && !self.output_watched {
            if let Err(error) = ops.add(watched) {
                return ConsoleStatus::Failed(Error::Events(error));
            }
        } else if !more && self.output_watched {
            let _ = ops.remove(watched);
        }
        self.output_watched = more;
        ConsoleStatus::Continue
    }
}
