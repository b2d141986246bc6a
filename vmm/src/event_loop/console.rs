//! Transfer between the guest's serial port and the console.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::lock;
use devices::serial::{Serial, output};
use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use super::error::Error;
use super::input::{Input, Read};
use crate::vm::{InputAction, Vm};

/// Token: the input is readable.
pub const INPUT: u32 = 3;
/// Token: the serial port has room for input.
pub const INPUT_ROOM: u32 = 4;
/// Token: the output has begun to buffer.
pub const OUTPUT_BLOCKED: u32 = 5;
/// Token: the output is writable.
pub const OUTPUT: u32 = 6;

/// Result of a console event.
#[derive(Debug)]
pub enum ConsoleStatus {
    /// The VM continues.
    Continue,
    /// The user ends the VM.
    End,
    /// A descriptor of the console cannot be watched.
    Failed(Error),
}

/// Console of a VM, with its descriptors in the event loop.
pub struct ConsoleIo {
    input: Option<Input>,
    input_watched: bool,
    /// The guest is paused and gets no input.
    held: bool,
    input_room: EventFd,
    output_blocked: EventFd,
    output_watched: bool,
    /// Time of the next attempt to write to a full disk.
    retry_at: Option<Instant>,
    serial: Arc<Mutex<Serial>>,
}

impl ConsoleIo {
    /// Takes the console of `vm`. Watches no descriptor yet.
    pub fn new(vm: &mut Vm) -> Result<Self, Error> {
        let input = vm.take_input().map(Input::new);
        let serial = vm.machine().serial().clone();
        let (input_room, output_blocked) = {
            let serial = lock(&serial);
            let clone = |event: &EventFd| {
                event.try_clone().map_err(|source| Error::System {
                    operation: "duplicate an eventfd",
                    source,
                })
            };
            (
                clone(serial.input_ready())?,
                clone(serial.output().flush_needed())?,
            )
        };
        Ok(Self {
            input,
            input_watched: false,
            held: false,
            input_room,
            output_blocked,
            output_watched: false,
            retry_at: None,
            serial,
        })
    }

    /// Returns the descriptors that are always watched, with their tokens.
    pub fn descriptors(&self) -> [(RawFd, u32); 2] {
        [
            (self.input_room.as_raw_fd(), INPUT_ROOM),
            (self.output_blocked.as_raw_fd(), OUTPUT_BLOCKED),
        ]
    }

    /// Handles the event of `token`.
    pub fn ready(&mut self, token: u32, ops: &mut EventOps<'_>) -> ConsoleStatus {
        match token {
            INPUT => {
                let read = self.input.as_mut().map(Input::read);
                match read {
                    Some(Read::Bytes(InputAction::End)) => return ConsoleStatus::End,
                    Some(Read::Closed) => self.close_input(ops),
                    _ => {}
                }
                self.pass_input(ops)
            }
            INPUT_ROOM => {
                let _ = self.input_room.read();
                self.pass_input(ops)
            }
            OUTPUT_BLOCKED => {
                let _ = self.output_blocked.read();
                self.flush_output(ops)
            }
            _ => self.flush_output(ops),
        }
    }

    /// Requests a flush of the output if its next attempt is due. Returns the time until then if it is not.
    pub fn retry_output(&mut self) -> Option<Duration> {
        let left = self.retry_at?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.retry_at = None;
        self.request_flush();
        None
    }

    /// Requests a flush of the output by the event loop.
    pub fn request_flush(&self) {
        // The counter stays far below its limit, so that the write cannot fail.
        let _ = self.output_blocked.write(1);
    }

    /// Holds or continues the input. Held input stays in its file. A terminal is read nevertheless, for its escape keys.
    pub fn hold_input(&mut self, held: bool, ops: &mut EventOps<'_>) -> ConsoleStatus {
        self.held = held;
        self.pass_input(ops)
    }

    /// Passes pending input to the serial port. Watches the file only while it must be read: epoll is level-triggered.
    fn pass_input(&mut self, ops: &mut EventOps<'_>) -> ConsoleStatus {
        loop {
            let Some(input) = &mut self.input else {
                return ConsoleStatus::Continue;
            };
            if !self.held {
                input.deliver(|bytes| lock(&self.serial).enqueue(bytes));
            }
            let needs_read = input.needs_read(self.held);
            let watched = Events::with_data_raw(input.file().as_raw_fd(), INPUT, EventSet::IN);
            match (needs_read, self.input_watched) {
                (true, false) => match ops.add(watched) {
                    Ok(()) => self.input_watched = true,
                    // epoll rejects regular files, which are always readable.
                    Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                        match input.read_regular() {
                            Read::Bytes(_) => continue,
                            Read::Nothing | Read::Closed => self.input = None,
                        }
                    }
                    Err(error) => return ConsoleStatus::Failed(Error::Events(error)),
                },
                (false, true) => self.unwatch_input(ops),
                _ => {}
            }
            return ConsoleStatus::Continue;
        }
    }

    fn unwatch_input(&mut self, ops: &mut EventOps<'_>) {
        if let Some(input) = &self.input
            && std::mem::take(&mut self.input_watched)
        {
            let file = input.file().as_raw_fd();
            let _ = ops.remove(Events::with_data_raw(file, INPUT, EventSet::IN));
        }
    }

    fn close_input(&mut self, ops: &mut EventOps<'_>) {
        self.unwatch_input(ops);
        self.input = None;
    }

    fn flush_output(&mut self, ops: &mut EventOps<'_>) -> ConsoleStatus {
        let mut serial = lock(&self.serial);
        let output = serial.output_mut();
        let more = output.flush();
        let retry = output.is_full().then_some(output::RETRY_INTERVAL);
        let file = output.as_fd().as_raw_fd();
        let report = output.report();
        drop(serial);
        if let Some(report) = report {
            log::warn!("{}", crate::ErrorChain(&report));
        }
        self.retry_at = retry.map(|interval| Instant::now() + interval);
        let watched = Events::with_data_raw(file, OUTPUT, EventSet::OUT);
        match (more, self.output_watched) {
            (true, false) => match ops.add(watched) {
                Ok(()) => self.output_watched = true,
                // epoll rejects regular files, which are always writable.
                Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                    self.request_flush()
                }
                Err(error) => return ConsoleStatus::Failed(Error::Events(error)),
            },
            (false, true) => {
                let _ = ops.remove(watched);
                self.output_watched = false;
            }
            _ => {}
        }
        ConsoleStatus::Continue
    }
}
