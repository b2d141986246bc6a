//! The keyboard controller, an i8042 at ports 0x60 (data) and 0x64 (status and commands), by which guests reset the
//! machine, and the keyboard behind it, by which they are asked to end.
//!
//! The keyboard answers its commands and has three keys, Ctrl, Alt and Delete; there is no mouse. The controller answers as
//! far as operating systems probe it: self test, port tests, configuration byte, output port. Its input buffer is never
//! full, so that nobody waits for it. There is an edge of the interrupt for each byte that can be read, if the
//! configuration byte has it so.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::ByteRegisters;
use crate::interrupt::Interrupt;
use crate::power::{Power, PowerEvent};

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

/// Bytes of scan codes that wait to be read; a real keyboard has a buffer of this size.
const MAX_CODES: usize = 16;
/// Bytes of any kind that wait to be read: answers find room also behind a full buffer of scan codes.
const MAX_BYTES: usize = 24;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// What an AT keyboard says that it is. Translation makes 0x41 of the second byte.
const IDENTITY: [u8; 2] = [0xab, 0x83];
const TRANSLATED_IDENTITY: [u8; 2] = [0xab, 0x41];
/// Translation makes 0x43, 0x41 and 0x3f of the numbers of the scan code sets.
const TRANSLATED_SETS: [u8; 3] = [0x43, 0x41, 0x3f];
/// The lowest command; bytes below are data.
const FIRST_COMMAND: u8 = 0xed;

/// Make codes of Ctrl, Alt and Delete, which is an extended key, and their break codes in the reverse order.
const CTRL_ALT_DEL_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
const CTRL_ALT_DEL_2: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// State of a keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Keyboard {
    /// What it has sent and nobody has read.
    queue: VecDeque<u8>,
    /// The command that the next byte belongs to.
    awaiting: Option<u8>,
    /// Whether keys are sent.
    scanning: bool,
    /// Number of the scan code set, 1 or 2.
    set: u8,
}

impl Keyboard {
    /// A keyboard that was just switched on: it sends keys, in set 2.
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            awaiting: None,
            scanning: true,
            set: 2,
        }
    }

    /// Whether something is to be read.
    fn has_sent(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the next byte to be read.
    fn take(&mut self) -> Option<u8> {
        self.queue.pop_front()
    }

    /// Takes a byte from the controller, which translates what is answered if `translated`.
    fn receive(&mut self, byte: u8, translated: bool) {
        match self.awaiting.take() {
            Some(command) if byte < FIRST_COMMAND => self.data(command, byte, translated),
            _ => self.command(byte, translated),
        }
    }

    fn command(&mut self, command: u8, translated: bool) {
        match command {
            // Reset: what was not read is lost.
            0xff => {
                *self = Self::new();
                self.answer(&[ACKNOWLEDGE, TEST_PASSED]);
            }
            // Defaults, with and without keys.
            0xf6 | 0xf5 => {
                *self = Self::new();
                self.scanning = command == 0xf6;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf4 => {
                self.scanning = true;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf2 => {
                let identity = if translated { TRANSLATED_IDENTITY } else { IDENTITY };
                self.answer(&[ACKNOWLEDGE, identity[0], identity[1]]);
            }
            // LEDs, scan code set, rate: with a byte of data.
            0xed | 0xf0 | 0xf3 => {
                self.awaiting = Some(command);
                self.answer(&[ACKNOWLEDGE]);
            }
            // All keys repeat, or make, or break: of set 3 only, and no key of it is held for long.
            0xf7..=0xfa => self.answer(&[ACKNOWLEDGE]),
            0xee => self.answer(&[ECHO]),
            _ => self.answer(&[RESEND]),
        }
    }

    fn data(&mut self, command: u8, byte: u8, translated: bool) {
        match (command, byte) {
            (0xf0, 0) => {
                let set = match translated {
                    true => TRANSLATED_SETS[usize::from(self.set - 1)],
                    false => self.set,
                };
                self.answer(&[ACKNOWLEDGE, set]);
            }
            (0xf0, 1 | 2) => {
                self.set = byte;
                self.answer(&[ACKNOWLEDGE]);
            }
            (0xf0, _) => self.answer(&[RESEND]),
            _ => self.answer(&[ACKNOWLEDGE]),
        }
    }

    /// Queues an answer, or as much of it as there is room for.
    fn answer(&mut self, answer: &[u8]) {
        let room = MAX_BYTES - self.queue.len().min(MAX_BYTES);
        self.queue.extend(answer.iter().take(room));
    }

    /// Presses Ctrl, Alt and Delete, and lets go of them. It is all or nothing, so that no key stays down: nothing when
    /// there is no room, or when keys are not to be sent.
    fn press_ctrl_alt_del(&mut self, translated: bool) {
        let codes: &[u8] = if translated || self.set == 1 {
            &CTRL_ALT_DEL_1
        } else {
            &CTRL_ALT_DEL_2
        };
        if self.scanning && self.queue.len() + codes.len() <= MAX_CODES {
            self.queue.extend(codes);
        }
    }

    /// What a saved state has wrong, if anything.
    fn invalid_reason(&self) -> Option<String> {
        if self.queue.len() > MAX_BYTES {
            return Some(format!("{} bytes wait where {MAX_BYTES} fit", self.queue.len()));
        }
        if ![1, 2].contains(&self.set) {
            return Some(format!("there is no scan code set {}", self.set));
        }
        let command = self
            .awaiting
            .filter(|command| ![0xed, 0xf0, 0xf3].contains(command))?;
        Some(format!("the keyboard's command {command:#x} takes no data"))
    }

    /// For a state that no keyboard has.
    #[cfg(test)]
    fn spoiled(queue: usize, set: u8, awaiting: Option<u8>) -> Self {
        Self {
            queue: vec![0; queue].into(),
            awaiting,
            scanning: true,
            set,
        }
    }
}

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
