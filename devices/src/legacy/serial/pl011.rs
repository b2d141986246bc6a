//! The registers of a PL011 and its queue of received bytes: Arm DDI 0183, chapter 3.
//!
//! The transmitter is always empty, so that a polling guest never waits. Received bytes are pending from the first one on, whatever
//! the trigger level. The port works without an enable bit: early consoles set none. An access of several bytes acts as accesses to
//! each of them, because no register has side effects in two of its bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error as PersistError;

use crate::interrupt::Interrupt;

/// Length of the registers in bytes.
pub const LENGTH: u64 = 0x1000;

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const LOW_POWER_COUNTER: u64 = 0x20;
const INTEGER_DIVISOR: u64 = 0x24;
const FRACTIONAL_DIVISOR: u64 = 0x28;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const FIFO_LEVEL: u64 = 0x34;
const INTERRUPT_MASK: u64 = 0x38;
const RAW_INTERRUPT: u64 = 0x3c;
const MASKED_INTERRUPT: u64 = 0x40;
const INTERRUPT_CLEAR: u64 = 0x44;
const DMA_CONTROL: u64 = 0x48;
/// First identification register. Each has 8 bits.
const IDENTIFICATION: u64 = 0xfe0;
/// Identification of a PL011 and of a PrimeCell component.
const IDENTIFICATION_VALUES: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Clear to send, data set ready and carrier detect.
const MODEM_FLAGS: u16 = 0b111;
const RECEIVE_EMPTY: u16 = 1 << 4;
const RECEIVE_FULL: u16 = 1 << 6;
const TRANSMIT_EMPTY: u16 = 1 << 7;

/// Interrupt: received data.
const RECEIVED: u16 = 1 << 4;
/// Interrupt: the transmitter is empty.
const TRANSMITTED: u16 = 1 << 5;
/// All interrupts.
const INTERRUPTS: u16 = 0x7ff;

/// Control: the port receives its own output and nothing else.
const LOOPBACK: u16 = 1 << 7;

/// Capacity of the receive FIFO of revision r1p5.
pub(super) const FIFO_SIZE: usize = 32;

/// Registers of a PL011 that keep a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl011State {
    low_power_counter: u16,
    integer_divisor: u16,
    fractional_divisor: u16,
    line_control: u16,
    control: u16,
    fifo_level: u16,
    interrupt_mask: u16,
    raw_interrupt: u16,
    dma_control: u16,
}

impl Schema for Pl011State {
    const NAME: &'static str = "pl011";
    const VERSION: u32 = 1;
}

impl Pl011State {
    /// Values after reset.
    const RESET: Self = Self {
        low_power_counter: 0,
        integer_divisor: 0,
        fractional_divisor: 0,
        line_control: 0,
        control: 0x300,
        fifo_level: 0x12,
        interrupt_mask: 0,
        raw_interrupt: 0,
        dma_control: 0,
    };

    /// Returns the register at `offset` with the mask of its bits, if it keeps the values that a guest writes.
    fn stored(&mut self, offset: u64) -> Option<(&mut u16, u16)> {
        Some(match offset {
            LOW_POWER_COUNTER => (&mut self.low_power_counter, 0xff),
            INTEGER_DIVISOR => (&mut self.integer_divisor, 0xffff),
            FRACTIONAL_DIVISOR => (&mut self.fractional_divisor, 0x3f),
            LINE_CONTROL => (&mut self.line_control, 0xff),
            CONTROL => (&mut self.control, 0xff87),
            FIFO_LEVEL => (&mut self.fifo_level, 0x3f),
            INTERRUPT_MASK => (&mut self.interrupt_mask, INTERRUPTS),
            DMA_CONTROL => (&mut self.dma_control, 0x7),
            _ => return None,
        })
    }
}

/// Registers of a PL011.
pub(super) struct Pl011 {
    state: Pl011State,
    received: VecDeque<u8>,
    line: Arc<dyn Interrupt>,
    is_asserted: bool,
}

impl Pl011 {
    /// Creates the registers as after reset.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            state: Pl011State::RESET,
            received: VecDeque::new(),
            line,
            is_asserted: false,
        }
    }

    /// Adds `bytes` to the FIFO. Returns the number of accepted bytes.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        if self.is_in_loopback() {
            return 0;
        }
        let accepted = bytes.len().min(FIFO_SIZE - self.received.len());
        bytes[..accepted].iter().for_each(|byte| self.receive(*byte));
        self.update_line();
        accepted
    }

    fn receive(&mut self, byte: u8) {
        if self.received.len() < FIFO_SIZE {
            self.received.push_back(byte);
            self.state.raw_interrupt |= RECEIVED;
        }
    }

    /// Returns true if the port receives its own output.
    pub fn is_in_loopback(&self) -> bool {
        self.state.control & LOOPBACK != 0
    }

    /// Returns the received bytes, oldest first.
    pub fn received(&self) -> impl Iterator<Item = u8> + '_ {
        self.received.iter().copied()
    }

    /// Reads the byte at `offset`. The second value is true after the read of a received byte, and false after a read of the data
    /// register without one.
    pub fn read(&mut self, offset: u64) -> (u8, Option<bool>) {
        if offset == DATA {
            let byte = self.received.pop_front();
            if self.received.is_empty() {
                self.state.raw_interrupt &= !RECEIVED;
                self.update_line();
            }
            return (byte.unwrap_or(0), Some(byte.is_some()));
        }
        let [low, high] = self.register(offset & !3).to_le_bytes();
        let value = match offset & 3 {
            0 => low,
            1 => high,
            _ => 0,
        };
        (value, None)
    }

    fn register(&mut self, offset: u64) -> u16 {
        match offset {
            FLAGS => self.flags(),
            RAW_INTERRUPT => self.state.raw_interrupt,
            MASKED_INTERRUPT => self.state.raw_interrupt & self.state.interrupt_mask,
            IDENTIFICATION.. => {
                let number = usize::try_from((offset - IDENTIFICATION) / 4).ok();
                let value = number.and_then(|number| IDENTIFICATION_VALUES.get(number));
                value.copied().unwrap_or(0).into()
            }
            _ => self.state.stored(offset).map_or(0, |(value, _)| *value),
        }
    }

    fn flags(&self) -> u16 {
        let received = match self.received.len() {
            0 => RECEIVE_EMPTY,
            FIFO_SIZE => RECEIVE_FULL,
            _ => 0,
        };
        MODEM_FLAGS | TRANSMIT_EMPTY | received
    }

    /// Writes the byte at `offset`. Returns a byte that the guest sends.
    pub fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        let shift = match offset & 3 {
            0 => 0,
            1 => 8,
            _ => return None,
        };
        let (bits, kept) = (u16::from(value) << shift, !(0xff << shift));
        let mut sent = None;
        match offset & !3 {
            DATA if shift == 0 => {
                self.state.raw_interrupt |= TRANSMITTED;
                match self.is_in_loopback() {
                    true => self.receive(value),
                    false => sent = Some(value),
                }
            }
            INTERRUPT_CLEAR => self.state.raw_interrupt &= !bits,
            register => {
                if let Some((stored, mask)) = self.state.stored(register) {
                    *stored = (*stored & kept | bits) & mask;
                }
            }
        }
        self.update_line();
        sent
    }

    fn update_line(&mut self) {
        let is_asserted = self.state.raw_interrupt & self.state.interrupt_mask != 0;
        if is_asserted != self.is_asserted {
            self.is_asserted = is_asserted;
            self.line.set_level(is_asserted);
        }
    }

    /// Returns the registers.
    pub fn state(&self) -> Pl011State {
        self.state.clone()
    }

    /// Replaces the received bytes.
    pub fn set_received(&mut self, received: Vec<u8>) -> Result<(), PersistError> {
        if received.len() > FIFO_SIZE {
            return Err(PersistError::Invalid {
                component: Pl011State::NAME,
                reason: format!("{} received bytes exceed the FIFO of {FIFO_SIZE}", received.len()),
            });
        }
        self.received = received.into();
        Ok(())
    }

    /// Replaces the registers, and sets the interrupt line.
    pub fn restore(&mut self, mut state: Pl011State) -> Result<(), PersistError> {
        let mut offsets = (LOW_POWER_COUNTER..=DMA_CONTROL).step_by(4);
        let is_invalid = |offset: &u64| {
            state
                .stored(*offset)
                .is_some_and(|(value, mask)| *value & !mask != 0)
        };
        if let Some(offset) = offsets.find(is_invalid) {
            return Err(PersistError::Invalid {
                component: Pl011State::NAME,
                reason: format!("register {offset:#x} has bits that a PL011 lacks"),
            });
        }
        state.raw_interrupt &= INTERRUPTS;
        self.state = state;
        self.update_line();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
