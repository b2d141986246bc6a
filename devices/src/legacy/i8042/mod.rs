//! The keyboard controller, an i8042 at ports 0x60 (data) and 0x64 (status and commands), and its keyboard.
//!
//! Guests reset the machine through the controller. The VMM presses Ctrl+Alt+Del on the keyboard to request a shutdown.
//!
//! The keyboard implements its commands and has three keys: Ctrl, Alt and Delete. There is no mouse. The controller
//! implements the commands that operating systems probe: self-test, port tests, configuration byte, output port. Its
//! input buffer is never full, so that no guest waits for it. If the configuration byte enables the interrupt, each
//! readable byte triggers it once.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::ByteRegisters;
use crate::counter::Counter;
use crate::interrupt::Interrupt;
use crate::legacy::power::{Power, PowerEvent};

/// Data port (1 port).
pub const DATA_PORT: u64 = 0x60;
/// Status and command port (1 port), an [`OffsetDevice`](crate::OffsetDevice) from [`COMMAND_OFFSET`].
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
const KEYBOARD_PORT_OK: u8 = 0x00;
/// Clock line stuck high: test result of a controller without a mouse port.
const MOUSE_PORT_FAILED: u8 = 0x02;
/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;
/// Output port: reset line high, address line 20 on.
const OUTPUT_PORT: u8 = 0x03;
/// Output port: the processor's reset line, active low.
const RESET_LINE: u8 = 0x01;

/// Maximum number of unread scan code bytes, as in a real keyboard.
const MAX_CODES: usize = 16;
/// Maximum number of unread bytes of any kind: responses fit behind a full buffer of scan codes.
const MAX_BYTES: usize = 24;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// Identity of an AT keyboard. Translation turns the second byte into 0x41.
const IDENTITY: [u8; 2] = [0xab, 0x83];
const TRANSLATED_IDENTITY: [u8; 2] = [0xab, 0x41];
/// Numbers of the scan code sets after translation.
const TRANSLATED_SETS: [u8; 3] = [0x43, 0x41, 0x3f];
/// Lowest command; lower bytes are data.
const MIN_COMMAND: u8 = 0xed;

/// Scan codes of set 1: make codes of Ctrl, Alt and Delete (an extended key), then break codes in reverse order.
const CTRL_ALT_DEL_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
/// The same in set 2.
const CTRL_ALT_DEL_2: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// The AT keyboard behind the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Keyboard {
    /// Sent bytes that the guest has not read.
    queue: VecDeque<u8>,
    /// Command whose data byte is next.
    awaiting: Option<u8>,
    /// Scanning is enabled: the keyboard sends keys.
    scanning: bool,
    /// Number of the scan code set, 1 or 2.
    set: u8,
}

impl Keyboard {
    /// Creates a keyboard in its power-on state: scanning, in set 2.
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            awaiting: None,
            scanning: true,
            set: 2,
        }
    }

    /// Returns true if there are unread bytes.
    fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Removes and returns the next unread byte.
    fn pop(&mut self) -> Option<u8> {
        self.queue.pop_front()
    }

    /// Handles a byte from the controller. `translated` means that the controller translates the response.
    fn receive(&mut self, byte: u8, translated: bool) {
        match self.awaiting.take() {
            Some(command) if byte < MIN_COMMAND => self.handle_data(command, byte, translated),
            _ => self.handle_command(byte, translated),
        }
    }

    fn handle_command(&mut self, command: u8, translated: bool) {
        match command {
            // Reset: drops unread bytes.
            0xff => {
                *self = Self::new();
                self.respond(&[ACKNOWLEDGE, TEST_PASSED]);
            }
            // Set defaults; 0xf5 also disables scanning.
            0xf6 | 0xf5 => {
                *self = Self::new();
                self.scanning = command == 0xf6;
                self.respond(&[ACKNOWLEDGE]);
            }
            0xf4 => {
                self.scanning = true;
                self.respond(&[ACKNOWLEDGE]);
            }
            0xf2 => {
                let identity = if translated { TRANSLATED_IDENTITY } else { IDENTITY };
                self.respond(&[ACKNOWLEDGE, identity[0], identity[1]]);
            }
            // Set LEDs, scan code set, rate: a data byte follows.
            0xed | 0xf0 | 0xf3 => {
                self.awaiting = Some(command);
                self.respond(&[ACKNOWLEDGE]);
            }
            // Key types of set 3: no effect, because this keyboard never holds a key.
            0xf7..=0xfa => self.respond(&[ACKNOWLEDGE]),
            0xee => self.respond(&[ECHO]),
            _ => self.respond(&[RESEND]),
        }
    }

    fn handle_data(&mut self, command: u8, byte: u8, translated: bool) {
        match (command, byte) {
            (0xf0, 0) => {
                let set = match translated {
                    true => TRANSLATED_SETS[usize::from(self.set - 1)],
                    false => self.set,
                };
                self.respond(&[ACKNOWLEDGE, set]);
            }
            (0xf0, 1 | 2) => {
                self.set = byte;
                self.respond(&[ACKNOWLEDGE]);
            }
            (0xf0, _) => self.respond(&[RESEND]),
            _ => self.respond(&[ACKNOWLEDGE]),
        }
    }

    /// Queues `response`, truncated to the room in the queue.
    fn respond(&mut self, response: &[u8]) {
        let room = MAX_BYTES - self.queue.len().min(MAX_BYTES);
        self.queue.extend(response.iter().take(room));
    }

    /// Presses and releases Ctrl+Alt+Del.
    ///
    /// Has no effect if scanning is disabled or the queue has no room for all codes: a partial sequence would leave a
    /// key pressed.
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

    /// Returns the reason why a saved state is invalid, or `None` if it is valid.
    fn invalid_reason(&self) -> Option<String> {
        if self.queue.len() > MAX_BYTES {
            return Some(format!(
                "{} unread bytes of the keyboard exceed its buffer of {MAX_BYTES}",
                self.queue.len()
            ));
        }
        if ![1, 2].contains(&self.set) {
            return Some(format!("scan code set {} is not 1 or 2", self.set));
        }
        let command = self
            .awaiting
            .filter(|command| ![0xed, 0xf0, 0xf3].contains(command))?;
        Some(format!("keyboard command {command:#x} has no data byte"))
    }

    /// Creates a keyboard with possibly invalid state.
    #[cfg(test)]
    fn with_state(queue: usize, set: u8, awaiting: Option<u8>) -> Self {
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
    /// The controller's own response, which precedes the keyboard's bytes.
    output: Option<u8>,
    /// Command whose data byte is next.
    awaiting: Option<u8>,
    last_was_command: bool,
    keyboard: Keyboard,
}

impl Schema for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u32 = 2;
}

/// Counters of an [`I8042`] since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct I8042Metrics {
    /// Reads of a register.
    pub reads: u64,
    /// Writes of a register.
    pub writes: u64,
    /// Requests for a reset.
    pub resets: u64,
}

/// Recorder of [`I8042Metrics`]. The controller writes it under its lock; any thread reads it without.
#[derive(Debug, Default)]
pub struct I8042Recorder {
    reads: Counter,
    writes: Counter,
    resets: Counter,
}

impl I8042Recorder {
    /// Returns the metrics.
    pub fn metrics(&self) -> I8042Metrics {
        I8042Metrics {
            reads: self.reads.get(),
            writes: self.writes.get(),
            resets: self.resets.get(),
        }
    }
}

/// Keyboard controller with keyboard.
pub struct I8042 {
    power: Arc<Power>,
    interrupt: Arc<dyn Interrupt>,
    state: I8042State,
    recorder: Arc<I8042Recorder>,
}

impl I8042 {
    /// Creates a controller as firmware leaves it. It requests resets from `power`; `interrupt` is edge-triggered.
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
            recorder: Arc::default(),
        }
    }

    /// Returns the recorder of the metrics, for threads that read them without the lock of the controller.
    pub fn recorder(&self) -> Arc<I8042Recorder> {
        Arc::clone(&self.recorder)
    }

    /// Presses and releases Ctrl+Alt+Del. Has no effect if the guest has disabled scanning or has not read earlier
    /// keys.
    pub fn press_ctrl_alt_del(&mut self) {
        let translated = self.is_translated();
        self.update(|device| device.state.keyboard.press_ctrl_alt_del(translated));
    }

    fn is_translated(&self) -> bool {
        self.state.memory[0] & CONFIG_TRANSLATE != 0
    }

    /// Returns true if a byte can be read. Bytes of a disabled keyboard stay in its queue.
    fn is_full(&self) -> bool {
        let disabled = self.state.memory[0] & CONFIG_KEYBOARD_OFF != 0;
        self.state.output.is_some() || !disabled && self.state.keyboard.has_output()
    }

    fn is_interrupt_asserted(&self) -> bool {
        let enabled = CONFIG_KEYBOARD_INTERRUPT;
        self.is_full() && self.state.memory[0] & (enabled | CONFIG_KEYBOARD_OFF) == enabled
    }

    /// Applies `action`, and triggers the interrupt if it makes a byte readable or enables the interrupt.
    fn update(&mut self, action: impl FnOnce(&mut Self)) {
        let before = self.is_interrupt_asserted();
        action(self);
        if !before && self.is_interrupt_asserted() {
            self.interrupt.trigger();
        }
    }

    fn read_output(&mut self) -> u8 {
        let full = self.is_full();
        let byte = match self.state.output.take() {
            None if full => self.state.keyboard.pop(),
            output => output,
        };
        // Each byte triggers the interrupt: the next one is readable now.
        if full && self.is_interrupt_asserted() {
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

    fn handle_command(&mut self, command: u8) {
        self.state.last_was_command = true;
        self.state.awaiting = None;
        let config = &mut self.state.memory[0];
        let response = match command {
            0x20..=0x3f => Some(self.state.memory[usize::from(command & 0x1f)]),
            // Commands with a data byte: memory, output port, output buffers, mouse.
            0x60..=0x7f | 0xd1..=0xd4 => {
                self.state.awaiting = Some(command);
                None
            }
            0xa9 => Some(MOUSE_PORT_FAILED),
            0xaa => {
                *config |= CONFIG_SYSTEM;
                Some(SELF_TEST_PASSED)
            }
            0xab => Some(KEYBOARD_PORT_OK),
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
            // Pulses the lines of the output port whose bits are clear.
            0xf0..=0xff => {
                self.drive_reset_line(command);
                None
            }
            _ => None,
        };
        if response.is_some() {
            self.state.output = response;
        }
    }

    fn handle_data(&mut self, value: u8) {
        self.state.last_was_command = false;
        match self.state.awaiting.take() {
            Some(0x60) => self.state.memory[0] = value | CONFIG_MOUSE_OFF,
            Some(command @ 0x61..=0x7f) => self.state.memory[usize::from(command & 0x1f)] = value,
            Some(0xd1) => self.drive_reset_line(value),
            // Without a mouse port, the byte comes back as a keyboard byte, which ends the probe of Linux for a mouse.
            // Without a response, Linux would wait half a second.
            Some(0xd2 | 0xd3) => self.state.output = Some(value),
            // Data for the absent mouse.
            Some(_) => {}
            None => {
                // The controller enables the keyboard before it sends the byte.
                self.state.memory[0] &= !CONFIG_KEYBOARD_OFF;
                self.state.keyboard.receive(value, self.is_translated());
            }
        }
    }

    fn drive_reset_line(&self, lines: u8) {
        if lines & RESET_LINE == 0 {
            self.recorder.resets.add(1);
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl ByteRegisters for I8042 {
    fn read_register(&mut self, offset: u64) -> u8 {
        self.recorder.reads.add(1);
        match offset {
            DATA_OFFSET => self.read_output(),
            COMMAND_OFFSET => self.status(),
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.recorder.writes.add(1);
        match offset {
            DATA_OFFSET => self.update(|device| device.handle_data(value)),
            COMMAND_OFFSET => self.update(|device| device.handle_command(value)),
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
        let has_data = |command| matches!(command, 0x60..=0x7f | 0xd1..=0xd4);
        let awaiting = state.awaiting.filter(|command| !has_data(*command));
        let reason = awaiting.map(|command| format!("controller command {command:#x} has no data byte"));
        if let Some(reason) = reason.or_else(|| state.keyboard.invalid_reason()) {
            return Err(Error::Invalid {
                component: I8042State::NAME,
                reason,
            });
        }
        // No edge for readable bytes: the state of the interrupt controllers includes it.
        self.state = state;
        Ok(())
    }
}
