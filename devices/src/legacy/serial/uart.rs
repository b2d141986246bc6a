//! The registers of a 16550, and the bytes on their way to the guest.
//!
//! The register model is `vm_superio`'s. It ignores the FIFO control register, so that input which comes before the
//! guest's driver survives the driver's reset of the FIFOs; its transmitter is always empty, so that a guest that polls
//! never waits. Reading its interrupt identification register forgets all causes at once, and reports two of them as a
//! third one; [`Serial`] puts the data sheet's order of priorities in front.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error as PersistError;
use snapshot::{Persist, Schema};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::output::SerialOutput;
use crate::bus::ByteRegisters;
use crate::interrupt::Interrupt;

/// How many ports the registers take.
pub const LENGTH: u64 = 8;

/// Register offsets.
const INTERRUPT_IDENTIFICATION: u8 = 2;
const MODEM_CONTROL: u8 = 4;

/// Interrupt identification: the FIFOs are there and enabled.
const FIFOS: u8 = 0b1100_0000;
/// Interrupt identification: no cause.
const NONE: u8 = 0b001;
/// Interrupt identification: the transmitter is empty.
const TRANSMITTER_EMPTY: u8 = 0b010;
/// Interrupt identification: data was received.
const RECEIVED: u8 = 0b100;

/// Interrupt enable: data was received.
const ENABLE_RECEIVED: u8 = 0b01;
/// Interrupt enable: the transmitter is empty.
const ENABLE_TRANSMITTER_EMPTY: u8 = 0b10;

/// Modem control: what the port sends comes back in, and nothing else does.
const LOOPBACK: u8 = 0b1_0000;

/// Room for received bytes, of the model in `vm_superio`.
const FIFO: usize = 64;

/// Bits of the interrupt enable register that a 16550 has.
const ENABLE_BITS: u8 = 0b1111;
/// Line status: a received byte is there.
const DATA_READY: u8 = 0b1;
/// Line status: the transmitter is empty, which it always is, because every byte is taken at once.
const LINE_TRANSMITTER_EMPTY: u8 = 0b110_0000;
/// Modem status: the other end is there, ready, and lets us send. Always.
const MODEM_STATUS: u8 = 0b1011_0000;

/// Why there is no serial port.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no eventfd to be had.
    #[error("cannot make the eventfd of the serial input")]
    InputReady {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

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
    fn check(&self) -> Result<(), PersistError> {
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
            line_status: LINE_TRANSMITTER_EMPTY | data_ready,
            modem_control: state.modem_control,
            modem_status: MODEM_STATUS,
            scratch: state.scratch,
            in_buffer: state.received,
        }
    }
}

fn invalid(reason: String) -> PersistError {
    PersistError::Invalid {
        component: SerialState::NAME,
        reason,
    }
}

/// The port's interrupt line.
struct IrqTrigger(Arc<dyn Interrupt>);

impl Trigger for IrqTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

/// Holds the byte that the model sends until the end of the access. The model owns its writer, and is replaced at a
/// restore, which is nothing that [`SerialOutput`] should notice.
#[derive(Default)]
struct Latch(Option<u8>);

impl io::Write for Latch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.first().copied();
        Ok(bytes.len().min(1))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial port: eight registers of a 16550.
///
/// Bytes that the guest sends go to an [`SerialOutput`] within the access. Bytes for the guest come in by
/// [`enqueue`](Self::enqueue).
pub struct Serial {
    model: vm_superio::Serial<IrqTrigger, NoEvents, Latch>,
    interrupt: Arc<dyn Interrupt>,
    output: SerialOutput,
    /// The cause "transmitter empty", while the guest was told of a more urgent one.
    transmitter_empty: bool,
    /// [`enqueue`](Serial::enqueue) had no room for all that it was given.
    refused: bool,
    input_ready: EventFd,
}

impl Serial {
    /// A port as after power-on.
    ///
    /// # Errors
    /// [`Error::InputReady`].
    pub fn new(interrupt: Arc<dyn Interrupt>, output: SerialOutput) -> Result<Self, Error> {
        Ok(Self {
            model: vm_superio::Serial::new(IrqTrigger(interrupt.clone()), Latch::default()),
            interrupt,
            output,
            transmitter_empty: false,
            refused: false,
            input_ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| Error::InputReady { source })?,
        })
    }

    /// Offers `bytes` to the guest and returns how many of them, from the start, have gone in: the FIFO has room for
    /// 64. When not all have, [`input_ready`](Self::input_ready) tells when to come back with the others; until then
    /// there is no use in reading more input, unless for the sake of what it means to the VMM itself.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let taken = self.model.enqueue_raw_bytes(bytes).unwrap_or(0);
        self.refused |= taken < bytes.len();
        taken
    }

    /// Becomes readable once the guest has read all that waited, if [`enqueue`](Self::enqueue) has refused anything
    /// since the last time. The event loop reads it and calls [`enqueue`](Self::enqueue) again.
    pub fn input_ready(&self) -> &EventFd {
        &self.input_ready
    }

    /// Where the bytes of the guest go.
    pub fn output(&self) -> &SerialOutput {
        &self.output
    }

    /// Where the bytes of the guest go, for the event loop to flush.
    pub fn output_mut(&mut self) -> &mut SerialOutput {
        &mut self.output
    }

    /// The interrupt identification register, by the table of priorities in the data sheet: received data is reported
    /// as long as there is some, and hides the empty transmitter, which is reported once and thereby acknowledged.
    fn identify(&mut self) -> u8 {
        let before = self.model.state();
        let latched = self.model.read(INTERRUPT_IDENTIFICATION);
        self.transmitter_empty |= latched & TRANSMITTER_EMPTY != 0;
        self.transmitter_empty &= before.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0;
        if before.interrupt_enable & ENABLE_RECEIVED != 0 && !before.in_buffer.is_empty() {
            FIFOS | RECEIVED
        } else if std::mem::take(&mut self.transmitter_empty) {
            FIFOS | TRANSMITTER_EMPTY
        } else {
            FIFOS | NONE
        }
    }

    /// Tells the event loop that there is room again. Not before the FIFO is empty, so that a guest that reads byte by
    /// byte does not wake it for each.
    fn announce_room(&mut self) {
        if self.refused
            && self.model.fifo_capacity() == FIFO
            && self.model.read(MODEM_CONTROL) & LOOPBACK == 0
        {
            self.refused = false;
            // At most one count for each refusal, so that the counter is far from its limit and the write cannot fail.
            let _ = self.input_ready.write(1);
        }
    }
}

impl ByteRegisters for Serial {
    fn read_register(&mut self, offset: u64) -> u8 {
        let value = match u8::try_from(offset) {
            Ok(INTERRUPT_IDENTIFICATION) => self.identify(),
            Ok(register) => self.model.read(register),
            Err(_) => 0xff,
        };
        self.announce_room();
        value
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        // Neither the wire nor the latch can fail.
        let _ = self.model.write(register, value);
        if let Some(byte) = self.model.writer_mut().0.take() {
            self.output.write(&[byte]);
        }
        self.announce_room();
    }
}

impl Persist for Serial {
    type State = SerialState;

    fn save(&self) -> Result<SerialState, PersistError> {
        let mut state = SerialState::from(self.model.state());
        if self.transmitter_empty {
            state.interrupt_identification &= !NONE;
            state.interrupt_identification |= TRANSMITTER_EMPTY;
        }
        Ok(state)
    }

    /// Raises the interrupt at once when the state has one pending, so the wire must lead somewhere by now. Output that
    /// still waits for its reader stays.
    fn restore(&mut self, state: SerialState) -> Result<(), PersistError> {
        state.check()?;
        let wire = IrqTrigger(self.interrupt.clone());
        self.model = vm_superio::Serial::from_state(&state.into(), wire, NoEvents, Latch::default())
            .map_err(|error| PersistError::Invalid {
                component: "serial",
                reason: error.to_string(),
            })?;
        self.transmitter_empty = false;
        self.announce_room();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
