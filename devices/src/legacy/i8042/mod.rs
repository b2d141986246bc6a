//! The keyboard controller, an i8042 at ports 0x60 (data) and 0x64 (status and commands), by which guests reset the
//! machine, and the keyboard behind it, by which they are asked to end.
//!
//! The keyboard answers its commands and has three keys, Ctrl, Alt and Delete; there is no mouse. The controller answers as
//! far as operating systems probe it: self test, port tests, configuration byte, output port. Its input buffer is never
//! full, so that nobody waits for it. There is an edge of the interrupt for each byte that can be read, if the
//! configuration byte has it so.

mod keyboard;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::ByteRegisters;
use crate::interrupt::Interrupt;
use crate::power::{Power, PowerEvent};
use keyboard::Keyboard;

/// Data port: 1 port.
pub const DATA_PORT: u64 = 0x60;
/// Status and command port: 1 port, a [`Window`](crate::Window) from [`COMMAND_OFFSET`].
pub const COMMAND_PORT: u64 = 0x64;
/// Command that resets the machine.
pub const RESET: u8 = 0xfe;
/// Offset of the command port among the registers of [`I8042`].
pub const COMMAND_OFFSET: u64 = COMMAND_PORT - DATA_PORT;

const DATA_OFFSET: u64 = 0;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;

const CONFIG_KEYBOARD_INTERRUPT: u8 = 0x01;
const CONFIG_SYSTEM: u8 = 0x04;
const CONFIG_KEYBOARD_OFF: u8 = 0x10;
const CONFIG_MOUSE_OFF: u8 = 0x20;
const CONFIG_TRANSLATE: u8 = 0x40;

const SELF_TEST_PASSED: u8 = 0x55;
const KEYBOARD_PORT_WORKS: u8 = 0x00;
/// Clock line stuck high: how a controller without a mouse port answers its test.
const MOUSE_PORT_FAILS: u8 = 0x02;
/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;
/// Output port: reset line high, address line 20 on.
const OUTPUT_PORT: u8 = 0x03;
/// The bit of the output port that is the processor's reset line; it is active low.
const RESET_LINE: u8 = 0x01;

/// State of an [`I8042`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// Byte 0 is the configuration byte.
    memory: [u8; 32],
    /// The controller's own answer, which goes before what the keyboard sends.
    output: Option<u8>,
    /// The command that the next byte on the data port belongs to.
    awaiting: Option<u8>,
    last_was_command: bool,
    keyboard: Keyboard,
}

impl Schema for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u32 = 2;
}

/// The model.
pub struct I8042 {
    power: Arc<Power>,
    interrupt: Arc<dyn Interrupt>,
    state: I8042State,
}

impl I8042 {
    /// A controller as firmware leaves it, which asks `power` for the reset. `interrupt` is edge-triggered.
    pub fn new(power: Arc<Power>, interrupt: Arc<dyn Interrupt>) -> Self {
        let mut memory = [0; 32];
        memory[0] = CONFIG_SYSTEM | CONFIG_TRANSLATE | CONFIG_MOUSE_OFF;
        let state = I8042State {
            memory,
            output: None,
            awaiting: None,
            last_was_command: false,
            keyboard: Keyboard::new(),
        };
        Self {
            power,
            interrupt,
            state,
        }
    }

    /// Presses Ctrl, Alt and Delete and lets go of them. Nothing happens when the guest has turned the keyboard's keys off,
    /// or has not read what was pressed before.
    pub fn press_ctrl_alt_del(&mut self) {
        let translated = self.translates();
        self.change(|device| device.state.keyboard.press_ctrl_alt_del(translated));
    }

    fn translates(&self) -> bool {
        self.state.memory[0] & CONFIG_TRANSLATE != 0
    }

    /// Whether a byte can be read. What the keyboard has sent waits while it is off.
    fn is_full(&self) -> bool {
        let off = self.state.memory[0] & CONFIG_KEYBOARD_OFF != 0;
        self.state.output.is_some() || !off && self.state.keyboard.has_sent()
    }

    fn interrupts(&self) -> bool {
        let wanted = CONFIG_KEYBOARD_INTERRUPT;
        self.is_full() && self.state.memory[0] & (wanted | CONFIG_KEYBOARD_OFF) == wanted
    }

    /// Does what may give the guest something to read, or let it know of that.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.interrupts();
        change(self);
        if !before && self.interrupts() {
            self.interrupt.trigger();
        }
    }

    fn take(&mut self) -> u8 {
        let full = self.is_full();
        let byte = match self.state.output.take() {
            None if full => self.state.keyboard.take(),
            output => output,
        };
        // The next one takes its place, with an edge of its own.
        if full && self.interrupts() {
            self.interrupt.trigger();
        }
        // An empty buffer reads as zero.
        byte.unwrap_or(0)
    }

    fn status(&self) -> u8 {
        let output = if self.is_full() { STATUS_OUTPUT_FULL } else { 0 };
        let command = if self.state.last_was_command {
            STATUS_COMMAND
        } else {
            0
        };
        output | command | self.state.memory[0] & STATUS_SYSTEM | STATUS_UNLOCKED
    }

    fn command(&mut self, command: u8) {
        self.state.last_was_command = true;
        self.state.awaiting = None;
        let config = &mut self.state.memory[0];
        let answer = match command {
            0x20..=0x3f => Some(self.state.memory[usize::from(command & 0x1f)]),
            // Commands with a byte of data: memory, output port, output buffers, mouse.
            0x60..=0x7f | 0xd1..=0xd4 => {
                self.state.awaiting = Some(command);
                None
            }
            0xa9 => Some(MOUSE_PORT_FAILS),
            0xaa => {
                *config |= CONFIG_SYSTEM;
                Some(SELF_TEST_PASSED)
            }
            0xab => Some(KEYBOARD_PORT_WORKS),
            0xad => {
                *config |= CONFIG_KEYBOARD_OFF;
                None
            }
            0xae => {
                *config &= !CONFIG_KEYBOARD_OFF;
                None
            }
            0xc0 => Some(INPUT_PORT),
            0xd0 => Some(OUTPUT_PORT),
            // Pulses the lines of the output port whose bit is clear.
            0xf0..=0xff => {
                self.drive_reset_line(command);
                None
            }
            _ => None,
        };
        if answer.is_some() {
            self.state.output = answer;
        }
    }

    fn data(&mut self, value: u8) {
        self.state.last_was_command = false;
        match self.state.awaiting.take() {
            Some(0x60) => self.state.memory[0] = value | CONFIG_MOUSE_OFF,
            Some(command @ 0x61..=0x7f) => self.state.memory[usize::from(command & 0x1f)] = value,
            Some(0xd1) => self.drive_reset_line(value),
            // A controller without a mouse port answers as if the byte came from the keyboard; Linux gives up on the
            // mouse at once, where no answer would cost it half a second.
            Some(0xd2 | 0xd3) => self.state.output = Some(value),
            // For the mouse, which is not there.
            Some(_) => {}
            None => {
                // To send it, the controller turns the keyboard on.
                self.state.memory[0] &= !CONFIG_KEYBOARD_OFF;
                self.state.keyboard.receive(value, self.translates());
            }
        }
    }

    fn drive_reset_line(&self, lines: u8) {
        if lines & RESET_LINE == 0 {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl ByteRegisters for I8042 {
    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            DATA_OFFSET => self.take(),
            COMMAND_OFFSET => self.status(),
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            DATA_OFFSET => self.change(|device| device.data(value)),
            COMMAND_OFFSET => self.change(|device| device.command(value)),
            _ => {}
        }
    }
}

impl Persist for I8042 {
    type State = I8042State;

    fn save(&self) -> Result<I8042State, Error> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: I8042State) -> Result<(), Error> {
        let takes_data = |command| matches!(command, 0x60..=0x7f | 0xd1..=0xd4);
        let awaiting = state.awaiting.filter(|command| !takes_data(*command));
        let fault = awaiting.map(|command| format!("command {command:#x} takes no data"));
        if let Some(reason) = fault.or_else(|| state.keyboard.invalid_reason()) {
            return Err(Error::Invalid {
                component: I8042State::NAME,
                reason,
            });
        }
        // The edge for what can be read has been given; the interrupt controllers have it in their own state.
        self.state = state;
        Ok(())
    }
}
