//! The registers of a 16550 and its queue of received bytes.
//!
//! The register model is `vm_superio::Serial`. It ignores the FIFO control register: input that arrives before the
//! guest's driver survives the driver's reset of the FIFOs. Its transmitter is always empty, so that a polling guest
//! never waits.
//!
//! A read of the model's interrupt identification register clears all causes, and the model reports two causes as a
//! third one. [`Serial`] implements the priorities of the data sheet in front of it.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error as PersistError;
use snapshot::{Persist, Schema};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::output::{OutputRecorder, SerialOutput};
use super::pl011::{Pl011, Pl011State};
use crate::bus::ByteRegisters;
use crate::counter::Counter;
use crate::interrupt::Interrupt;
use crate::sync::lock;

/// Number of ports.
pub const LENGTH: u64 = 8;

/// Offset of the data register, and of the divisor latch while the latter is accessible.
const DATA: u8 = 0;
/// Offset of the interrupt identification register.
const INTERRUPT_IDENTIFICATION: u8 = 2;
/// Offset of the modem control register.
const MODEM_CONTROL: u8 = 4;

/// Interrupt identification: FIFOs present and enabled.
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

/// Line control: offsets 0 and 1 are the divisor latch.
const DIVISOR_LATCH_ACCESS: u8 = 0b1000_0000;
/// Offset of the line control register.
const LINE_CONTROL: u8 = 3;

/// Modem control: the port receives its own output and nothing else.
const LOOPBACK: u8 = 0b1_0000;

/// Capacity of the receive FIFO of `vm_superio::Serial`.
const FIFO_SIZE: usize = 64;

/// Bits of the interrupt enable register that a 16550 has.
const ENABLE_BITS: u8 = 0b1111;
/// Line status: a received byte is available.
const DATA_READY: u8 = 0b1;
/// Line status: the transmitter is empty. Always set, because the port sends every byte at once.
const LINE_TRANSMITTER_EMPTY: u8 = 0b110_0000;
/// Modem status: carrier detect, data set ready and clear to send. Always set.
const MODEM_STATUS: u8 = 0b1011_0000;

/// Failure to create a serial port.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `eventfd` failed.
    #[error("cannot create the eventfd of the serial input")]
    InputReady {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// State of a [`Serial`]: its registers, by their names in the 16550 data sheet.
///
/// Line and modem status follow from the other registers. Buffered output belongs to the host and is not part of the
/// state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, least significant byte.
    pub divisor_low: u8,
    /// Divisor latch, most significant byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Latched causes: 1 for none, or the sum of 2 (transmitter empty) and 4 (data received).
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Received bytes that the guest has not read, oldest first, at most 64.
    pub received: Vec<u8>,
}

impl Schema for SerialState {
    const NAME: &'static str = "serial";
    const VERSION: u32 = 1;
}

impl SerialState {
    fn check(&self) -> Result<(), PersistError> {
        if self.received.len() > FIFO_SIZE {
            return Err(invalid(format!(
                "{} received bytes exceed the FIFO of {FIFO_SIZE}",
                self.received.len()
            )));
        }
        if self.interrupt_enable & !ENABLE_BITS != 0 {
            return Err(invalid(format!(
                "interrupt enable register {:#x} has bits outside {ENABLE_BITS:#x}",
                self.interrupt_enable
            )));
        }
        if !matches!(self.interrupt_identification, 1 | 2 | 4 | 6) {
            return Err(invalid(format!(
                "interrupt identification {:#x} is not 1, 2, 4 or 6",
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
struct IrqTrigger {
    line: Arc<dyn Interrupt>,
    /// The line is high, so that a further cause is no edge.
    is_high: Cell<bool>,
}

impl IrqTrigger {
    fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            line,
            is_high: Cell::new(false),
        }
    }
}

impl Trigger for IrqTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if !self.is_high.get() {
            self.line.trigger();
        }
        Ok(())
    }
}

/// Byte that the model has sent during the access.
///
/// The model owns its writer, and a restore replaces the model: [`SerialOutput`] must outlive it.
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

/// Register model of a serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SerialModel {
    /// Eight registers of a 16550.
    #[default]
    Uart16550,
    /// Registers of a PL011.
    Pl011,
}

/// Registers of a 16550.
struct Uart16550 {
    model: vm_superio::Serial<IrqTrigger, NoEvents, Latch>,
    interrupt: Arc<dyn Interrupt>,
}

/// Registers of a [`SerialModel`].
enum Registers {
    Uart16550(Uart16550),
    Pl011(Pl011),
}

/// A serial port with the registers of a [`SerialModel`].
///
/// The port writes bytes that the guest sends to a [`SerialOutput`] within the access. [`enqueue`](Self::enqueue)
/// adds bytes for the guest.
pub struct Serial {
    registers: Registers,
    output: SerialOutput,
    /// [`enqueue`](Serial::enqueue) has not accepted all bytes since the last notification.
    rejected: bool,
    input_ready: EventFd,
    recorder: Arc<SerialRecorder>,
}

/// Counters of a serial port since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SerialMetrics {
    /// Received bytes that the guest has read.
    pub reads: u64,
    /// Reads of the data register without a received byte.
    pub empty_reads: u64,
    /// Bytes that the guest has sent.
    pub writes: u64,
    /// Sent bytes that were dropped for any reason but the rate limit.
    pub dropped: u64,
    /// Sent bytes beyond the rate limit, which were dropped.
    pub limited: u64,
    /// Failed writes of the output.
    pub errors: u64,
    /// Writes of buffered output.
    pub flushes: u64,
}

/// Recorder of [`SerialMetrics`]. The port writes it under its lock; any thread reads it without.
#[derive(Debug, Default)]
pub struct SerialRecorder {
    reads: Counter,
    empty_reads: Counter,
    writes: Counter,
    output: Arc<OutputRecorder>,
}

impl SerialRecorder {
    /// Returns the metrics.
    pub fn metrics(&self) -> SerialMetrics {
        SerialMetrics {
            reads: self.reads.get(),
            empty_reads: self.empty_reads.get(),
            writes: self.writes.get(),
            dropped: self.output.dropped.get(),
            limited: self.output.limited.get(),
            errors: self.output.errors.get(),
            flushes: self.output.flushes.get(),
        }
    }
}

impl Uart16550 {
    fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            model: vm_superio::Serial::new(IrqTrigger::new(interrupt.clone()), Latch::default()),
            interrupt,
        }
    }

    /// Reads the interrupt identification register by the priorities of the data sheet ("Interrupt Control Functions").
    ///
    /// Received data is pending until the guest has read it, and hides the empty transmitter. A report of the empty
    /// transmitter acknowledges it.
    fn read_interrupt_identification(&mut self) -> u8 {
        let before = self.model.state();
        let latched = self.model.read(INTERRUPT_IDENTIFICATION);
        let is_transmitter_empty =
            latched & TRANSMITTER_EMPTY != 0 && before.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0;
        if before.interrupt_enable & ENABLE_RECEIVED != 0 && !before.in_buffer.is_empty() {
            if is_transmitter_empty {
                self.latch_transmitter_empty();
            }
            FIFOS | RECEIVED
        } else if is_transmitter_empty {
            FIFOS | TRANSMITTER_EMPTY
        } else {
            FIFOS | NONE
        }
    }

    /// Latches the cause "transmitter empty", which is pending behind received data, without an edge: the guest has not seen it.
    fn latch_transmitter_empty(&mut self) {
        let mut state = self.model.state();
        state.interrupt_identification = TRANSMITTER_EMPTY;
        let line = IrqTrigger::new(self.interrupt.clone());
        line.is_high.set(true);
        // Cannot fail: the FIFO is that of the model, and an edge is no error.
        if let Ok(model) = vm_superio::Serial::from_state(&state, line, NoEvents, Latch::default()) {
            self.model = model;
        }
        self.model.interrupt_evt().is_high.set(false);
    }

    /// Reads the data register. The second value is true after the read of a received byte, and false after a read without one.
    fn read_data(&mut self) -> (u8, Option<bool>) {
        let before = self.model.fifo_capacity();
        let is_latch = self.model.read(LINE_CONTROL) & DIVISOR_LATCH_ACCESS != 0;
        let value = self.model.read(DATA);
        let is_read = self.model.fifo_capacity() > before;
        (value, (is_read || !is_latch).then_some(is_read))
    }

    fn read(&mut self, offset: u64) -> (u8, Option<bool>) {
        match u8::try_from(offset) {
            Ok(INTERRUPT_IDENTIFICATION) => (self.read_interrupt_identification(), None),
            Ok(DATA) => self.read_data(),
            Ok(register) => (self.model.read(register), None),
            Err(_) => (0xff, None),
        }
    }

    fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        // Neither the interrupt line nor the latch can fail.
        let _ = self.model.write(u8::try_from(offset).ok()?, value);
        self.model.writer_mut().0.take()
    }

    /// Returns true if sent bytes are received.
    fn is_in_loopback(&mut self) -> bool {
        self.model.read(MODEM_CONTROL) & LOOPBACK != 0
    }

    fn restore(&mut self, state: SerialState) -> Result<(), PersistError> {
        state.check()?;
        let line = IrqTrigger::new(self.interrupt.clone());
        self.model = vm_superio::Serial::from_state(&state.into(), line, NoEvents, Latch::default())
            .map_err(|error| invalid(error.to_string()))?;
        Ok(())
    }
}

impl Serial {
    /// Creates a 16550 with the registers as after power-on.
    ///
    /// # Errors
    /// [`Error::InputReady`] if `eventfd` fails.
    pub fn new(interrupt: Arc<dyn Interrupt>, output: SerialOutput) -> Result<Self, Error> {
        Self::with_model(SerialModel::Uart16550, interrupt, output)
    }

    /// Creates a port with the registers of `model` as after power-on.
    ///
    /// # Errors
    /// [`Error::InputReady`] if `eventfd` fails.
    pub fn with_model(
        model: SerialModel,
        interrupt: Arc<dyn Interrupt>,
        output: SerialOutput,
    ) -> Result<Self, Error> {
        Ok(Self {
            registers: match model {
                SerialModel::Uart16550 => Registers::Uart16550(Uart16550::new(interrupt)),
                SerialModel::Pl011 => Registers::Pl011(Pl011::new(interrupt)),
            },
            recorder: Arc::new(SerialRecorder {
                output: output.recorder(),
                ..SerialRecorder::default()
            }),
            output,
            rejected: false,
            input_ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(|source| Error::InputReady { source })?,
        })
    }

    /// Adds `bytes` to the receive FIFO, which holds 64, or 32 in a PL011. Returns the number of accepted bytes.
    ///
    /// If the FIFO does not accept all bytes, [`input_ready`](Self::input_ready) becomes readable when the caller can
    /// add the others. Until then the caller needs no more input for the guest.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let accepted = match &mut self.registers {
            // The only possible error is a full FIFO, which accepts no byte.
            Registers::Uart16550(uart) => uart.model.enqueue_raw_bytes(bytes).unwrap_or(0),
            Registers::Pl011(pl011) => pl011.enqueue(bytes),
        };
        self.rejected |= accepted < bytes.len();
        accepted
    }

    /// Returns the eventfd that becomes readable when the guest has emptied the FIFO after [`enqueue`](Self::enqueue)
    /// rejected bytes. The event loop reads it and calls [`enqueue`](Self::enqueue) again.
    pub fn input_ready(&self) -> &EventFd {
        &self.input_ready
    }

    /// Returns the recorder of the metrics, for threads that read them without the lock of the port.
    pub fn recorder(&self) -> Arc<SerialRecorder> {
        Arc::clone(&self.recorder)
    }

    /// Returns the output of the port.
    pub fn output(&self) -> &SerialOutput {
        &self.output
    }

    /// Returns the output of the port, mutable for the event loop, which flushes it.
    pub fn output_mut(&mut self) -> &mut SerialOutput {
        &mut self.output
    }

    /// Returns true if the receive FIFO is empty and receives input.
    fn has_room(&mut self) -> bool {
        match &mut self.registers {
            Registers::Uart16550(uart) => uart.model.fifo_capacity() == FIFO_SIZE && !uart.is_in_loopback(),
            Registers::Pl011(pl011) => pl011.received().next().is_none() && !pl011.is_in_loopback(),
        }
    }

    /// Notifies the event loop that the FIFO has room again. Waits for an empty FIFO: a guest that reads byte by byte
    /// would otherwise wake the event loop for each.
    fn notify_room(&mut self) {
        if self.rejected && self.has_room() {
            self.rejected = false;
            // At most one count per rejection: the counter stays far below its limit, so that the write cannot fail.
            let _ = self.input_ready.write(1);
        }
    }
}

impl ByteRegisters for Serial {
    fn read_register(&mut self, offset: u64) -> u8 {
        let (value, is_read) = match &mut self.registers {
            Registers::Uart16550(uart) => uart.read(offset),
            Registers::Pl011(pl011) => pl011.read(offset),
        };
        match is_read {
            Some(true) => self.recorder.reads.add(1),
            Some(false) => self.recorder.empty_reads.add(1),
            None => {}
        }
        self.notify_room();
        value
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let sent = match &mut self.registers {
            Registers::Uart16550(uart) => uart.write(offset, value),
            Registers::Pl011(pl011) => pl011.write(offset, value),
        };
        if let Some(byte) = sent {
            self.recorder.writes.add(1);
            self.output.write(&[byte]);
        }
        self.notify_room();
    }
}

impl Persist for Serial {
    type State = SerialState;

    /// Returns the state of a 16550. That of a PL011 consists of the received bytes; [`Pl011Registers`] has the rest.
    fn save(&self) -> Result<SerialState, PersistError> {
        Ok(match &self.registers {
            Registers::Uart16550(uart) => uart.model.state().into(),
            Registers::Pl011(pl011) => SerialState {
                divisor_low: 0,
                divisor_high: 0,
                interrupt_enable: 0,
                interrupt_identification: NONE,
                line_control: 0,
                modem_control: 0,
                scratch: 0,
                received: pl011.received().collect(),
            },
        })
    }

    /// Restores the registers and triggers a pending interrupt at once: the interrupt controller must already exist.
    /// Keeps buffered output.
    fn restore(&mut self, state: SerialState) -> Result<(), PersistError> {
        match &mut self.registers {
            Registers::Uart16550(uart) => uart.restore(state)?,
            Registers::Pl011(pl011) => pl011.set_received(state.received)?,
        }
        self.notify_room();
        Ok(())
    }
}

/// Registers of the PL011 of a serial port, as a component of a snapshot besides the [`Serial`], which is restored before.
pub struct Pl011Registers(pub Arc<Mutex<Serial>>);

impl Persist for Pl011Registers {
    type State = Pl011State;

    fn save(&self) -> Result<Pl011State, PersistError> {
        match &lock(&self.0).registers {
            Registers::Pl011(pl011) => Ok(pl011.state()),
            Registers::Uart16550(_) => Err(not_a_pl011()),
        }
    }

    fn restore(&mut self, state: Pl011State) -> Result<(), PersistError> {
        match &mut lock(&self.0).registers {
            Registers::Pl011(pl011) => pl011.restore(state),
            Registers::Uart16550(_) => Err(not_a_pl011()),
        }
    }
}

fn not_a_pl011() -> PersistError {
    PersistError::Invalid {
        component: Pl011State::NAME,
        reason: "the serial port is a 16550".into(),
    }
}

#[cfg(test)]
mod tests;
