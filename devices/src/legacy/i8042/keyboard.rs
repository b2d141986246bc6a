//! The AT keyboard behind the controller: what it answers, and the keys that are pressed on it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

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
pub(super) struct Keyboard {
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
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            awaiting: None,
            scanning: true,
            set: 2,
        }
    }

    /// Whether something is to be read.
    pub(super) fn has_sent(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the next byte to be read.
    pub(super) fn take(&mut self) -> Option<u8> {
        self.queue.pop_front()
    }

    /// Takes a byte from the controller, which translates what is answered if `translated`.
    pub(super) fn receive(&mut self, byte: u8, translated: bool) {
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
    pub(super) fn press_ctrl_alt_del(&mut self, translated: bool) {
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
    pub(super) fn invalid_reason(&self) -> Option<String> {
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
    pub(super) fn spoiled(queue: usize, set: u8, awaiting: Option<u8>) -> Self {
        Self {
            queue: vec![0; queue].into(),
            awaiting,
            scanning: true,
            set,
        }
    }
}
