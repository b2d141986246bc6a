//! What is kept of the serial port in a snapshot.

use serde::{Deserialize, Serialize};
use snapshot::Schema;
use snapshot::persist::Error;

/// Room for received bytes, of the model in `vm_superio`.
pub(super) const FIFO: usize = 64;

/// Bits of the interrupt enable register that a 16550 has.
const ENABLE_BITS: u8 = 0b1111;
/// Line status: a received byte is there.
const DATA_READY: u8 = 0b1;
/// Line status: the transmitter is empty, which it always is, because every byte is taken at once.
const TRANSMITTER_EMPTY: u8 = 0b110_0000;
/// Modem status: the other end is there, ready, and lets us send. Always.
const MODEM_STATUS: u8 = 0b1011_0000;

/// The registers of the serial port, in the terms of the 16550 data sheet. Line and modem status are not among them, as
/// they follow from the rest. Output that waits for its reader belongs to the host and is not part of it either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, least significant byte.
    pub divisor_low: u8,
    /// Divisor latch, most significant byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Causes that are latched: 1 for none, or the sum of 2 (transmitter empty) and 4 (data received).
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Received bytes that the guest has not read yet, oldest first, 64 at most.
    pub received: Vec<u8>,
}

impl Schema for SerialState {
    const NAME: &'static str = "serial";
    const VERSION: u32 = 1;
}

impl SerialState {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.received.len() > FIFO {
            return Err(invalid(format!(
                "{} received bytes, where {FIFO} have room",
                self.received.len()
            )));
        }
        if self.interrupt_enable & !ENABLE_BITS != 0 {
            return Err(invalid(format!(
                "interrupt enable register {:#x}",
                self.interrupt_enable
            )));
        }
        if !matches!(self.interrupt_identification, 1 | 2 | 4 | 6) {
            return Err(invalid(format!(
                "interrupt identification {:#x}",
                self.interrupt_identification
            )));
        }
        Ok(())
    }
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }
}

impl From<SerialState> for vm_superio::SerialState {
    fn from(state: SerialState) -> Self {
        let data_ready = if state.received.is_empty() { 0 } else { DATA_READY };
        Self {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: TRANSMITTER_EMPTY | data_ready,
            modem_control: state.modem_control,
            modem_status: MODEM_STATUS,
            scratch: state.scratch,
            in_buffer: state.received,
        }
    }
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: SerialState::NAME,
        reason,
    }
}
