//! The IOAPIC: an 82093AA with 24 pins and version 0x20, which adds the end-of-interrupt register.
//!
//! The registers are IOREGSEL at 0x00, IOWIN at 0x10 and EOI at 0x40, all 32 bits wide. IOREGSEL also accepts one-byte
//! writes. The model ignores other narrow writes and all other offsets, which read as zero.
//!
//! A pure model: inputs are pins, outputs are messages. A pin is asserted or deasserted, independent of polarity: the
//! model stores the polarity bit without effect. An edge on a masked pin is lost (data sheet, "Interrupt Mask").

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::BusDevice;

/// Number of pins.
pub const PINS: u8 = 24;
/// Length of the register range in bytes.
pub const REGISTERS_LENGTH: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
/// Version in the version register and in the boot data: an IOAPIC with an end-of-interrupt register.
pub const MODEL: u8 = 0x20;
const ARBITRATION: u8 = 0x02;
const REDIRECTION_TABLE: u8 = 0x10;

const DELIVERY_SHIFT: u32 = 8;
const LOWEST_PRIORITY: u64 = 1;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// Delivery status (bit 12) and remote IRR (bit 14) are read-only; bits 17 to 55 are reserved.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// First valid vector; a local APIC rejects lower ones (Intel SDM volume 3, "Valid Interrupt Vectors").
const MIN_VECTOR: u64 = 0x10;

/// Interrupt message to the local APICs, in the format of an MSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// 0xfee0_0000; destination in bits 12 to 19, destination mode (1 is logical) in bit 2.
    pub address: u64,
    /// Vector in bits 0 to 7, delivery mode in bits 8 to 10, assert in bit 14, level trigger in bit 15.
    pub data: u32,
}

impl Message {
    /// Returns the message of an edge at a pin, whose entry of the redirection table has the register `bits`. `None` if the entry is
    /// masked or level-triggered, or its vector is invalid.
    pub fn of_edge(bits: u64) -> Option<Self> {
        let entry = Entry(bits);
        entry
            .message()
            .filter(|_| !entry.is_masked() && !entry.is_level())
    }
}

/// Destination of the interrupts of one pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Pin, equal to the GSI.
    pub pin: u32,
    /// Message for an interrupt of the pin.
    pub message: Message,
}

/// Connection from the IOAPIC to the local APICs.
///
/// The IOAPIC calls both methods with the lock of the interrupt controller held, so that messages and routes stay in
/// order. They must not call the interrupt controller.
pub trait MessageSink: Send + Sync {
    /// Delivers one interrupt.
    fn send(&self, message: Message);

    /// Replaces all routes. The IOAPIC calls it only if a route changes, before the first message after the change.
    fn replace_routes(&self, routes: &[Route]);
}

/// One entry of the redirection table, in register format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64);

impl Entry {
    /// Entry after reset: masked.
    const RESET: Self = Self(MASKED);

    fn bits(self) -> u64 {
        self.0
    }

    /// Writes the entry. Keeps remote IRR of a level-triggered entry; an edge-triggered entry has none. Operating
    /// systems switch to edge and back to clear it.
    fn set_bits(&mut self, bits: u64) {
        self.0 = (bits & WRITABLE) | (self.0 & REMOTE_IRR);
        if !self.is_level() {
            self.0 &= !REMOTE_IRR;
        }
    }

    /// Returns true if a guest can produce this entry.
    fn is_valid(self) -> bool {
        self.0 & !(WRITABLE | REMOTE_IRR) == 0 && (self.is_level() || !self.remote_irr())
    }

    fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Returns true if each message of the pin requires an end of interrupt. Only fixed and lowest-priority interrupts
    /// have one; all other delivery modes count as edge-triggered (data sheet, "Delivery Mode").
    fn is_level(self) -> bool {
        self.0 & LEVEL != 0 && self.is_vectored()
    }

    fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    fn set_remote_irr(&mut self, set: bool) {
        match set {
            true => self.0 |= REMOTE_IRR,
            false => self.0 &= !REMOTE_IRR,
        }
    }

    /// Returns the message of the pin, masked or not; `None` if the vector is invalid.
    fn message(self) -> Option<Message> {
        let vector = u64::from(self.vector());
        if self.is_vectored() && vector < MIN_VECTOR {
            return None;
        }
        let destination = self.0 >> DESTINATION_SHIFT;
        let mode = u64::from(self.0 & LOGICAL != 0);
        // Level-triggered messages also set "assert" in bit 14, the position of remote IRR in an entry.
        let level = match self.is_level() {
            true => LEVEL | 1 << 14,
            false => 0,
        };
        let data = vector | self.delivery() << DELIVERY_SHIFT | level;
        Some(Message {
            address: 0xfee0_0000 | destination << 12 | mode << 2,
            data: u32::try_from(data).ok()?,
        })
    }

    /// Returns the route of the pin, if it has one.
    ///
    /// A masked edge-triggered pin has none. A masked level-triggered pin keeps its route: its last interrupt may be in
    /// service. KVM reports the end of an interrupt only while a route has its vector.
    fn route(self) -> Option<Message> {
        self.message().filter(|_| self.is_level() || !self.is_masked())
    }

    fn delivery(self) -> u64 {
        self.0 >> DELIVERY_SHIFT & 7
    }

    fn is_vectored(self) -> bool {
        self.delivery() <= LOWEST_PRIORITY
    }
}

/// State of an [`Ioapic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    id: u8,
    select: u8,
    /// Bit n: pin n is asserted.
    asserted: u32,
    entries: [Entry; PINS as usize],
}

impl Schema for IoapicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 1;
}

/// IOAPIC.
pub struct Ioapic {
    sink: Arc<dyn MessageSink>,
    state: IoapicState,
}

impl Ioapic {
    /// Creates an IOAPIC with identifier 0 and all pins masked. It sends messages to `sink`.
    pub fn new(sink: Arc<dyn MessageSink>) -> Self {
        let state = IoapicState {
            id: 0,
            select: 0,
            asserted: 0,
            entries: [Entry::RESET; PINS as usize],
        };
        Self { sink, state }
    }

    /// Sets the level of `pin`, 0 to 23. Ignores other pins.
    pub fn set_level(&mut self, pin: u8, asserted: bool) {
        let Some(entry) = self.state.entries.get(usize::from(pin)) else {
            return;
        };
        let bit = 1 << pin;
        let rising = asserted && self.state.asserted & bit == 0;
        match asserted {
            true => self.state.asserted |= bit,
            false => self.state.asserted &= !bit,
        }
        if !rising {
            return;
        }
        if entry.is_level() {
            self.deliver_level(pin);
        } else if !entry.is_masked() {
            self.send(*entry);
        }
    }

    /// Handles the end of interrupt `vector` of a local APIC: asserted level-triggered pins with that vector send it
    /// again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.state.entries[usize::from(pin)];
            if entry.vector() == vector && entry.remote_irr() {
                entry.set_remote_irr(false);
                self.deliver_level(pin);
            }
        }
    }

    /// Returns the message of `pin`; `None` if the pin is masked and edge-triggered, or its vector is invalid.
    ///
    /// A masked level-triggered pin keeps its route: the end of its last interrupt may be outstanding.
    pub fn route(&self, pin: u8) -> Option<Message> {
        self.state.entries.get(usize::from(pin))?.route()
    }

    /// Returns the routes of all pins that have one, in the order of pins.
    pub fn routes(&self) -> Vec<Route> {
        (0..PINS)
            .filter_map(|pin| {
                let message = self.route(pin)?;
                Some(Route {
                    pin: pin.into(),
                    message,
                })
            })
            .collect()
    }

    fn send(&self, entry: Entry) {
        if let Some(message) = entry.message() {
            self.sink.send(message);
        }
    }

    /// Sends the message of a level-triggered pin if the pin is asserted and has no interrupt in service.
    fn deliver_level(&mut self, pin: u8) {
        let entry = &mut self.state.entries[usize::from(pin)];
        let asserted = self.state.asserted & 1 << pin != 0;
        let ready = entry.is_level() && !entry.is_masked() && !entry.remote_irr();
        if !asserted || !ready || entry.message().is_none() {
            return;
        }
        entry.set_remote_irr(true);
        let entry = *entry;
        self.send(entry);
    }

    fn read_selected(&self) -> u32 {
        match self.state.select {
            ID | ARBITRATION => u32::from(self.state.id) << 24,
            VERSION => u32::from(PINS - 1) << 16 | u32::from(MODEL),
            select => self.entry_half(select).unwrap_or(0),
        }
    }

    fn write_selected(&mut self, value: u32) {
        let select = self.state.select;
        if select == ID {
            self.state.id = value.to_be_bytes()[0] & 0x0f;
            return;
        }
        let Some((pin, high)) = entry_position(select) else {
            return;
        };
        let entry = &mut self.state.entries[usize::from(pin)];
        let before = entry.route();
        let bits = match high {
            true => u64::from(value) << 32 | entry.bits() & 0xffff_ffff,
            false => entry.bits() & !0xffff_ffff | u64::from(value),
        };
        entry.set_bits(bits);
        // KVM must have the route before the first message with its vector: it reports the end of routed vectors only.
        if entry.route() != before {
            self.sink.replace_routes(&self.routes());
        }
        self.deliver_level(pin);
    }

    fn entry_half(&self, select: u8) -> Option<u32> {
        let (pin, high) = entry_position(select)?;
        let bits = self.state.entries[usize::from(pin)].bits();
        let half = if high { bits >> 32 } else { bits & 0xffff_ffff };
        u32::try_from(half).ok()
    }
}

/// Returns pin and half (true is the upper one) of the redirection entry at register `select`.
fn entry_position(select: u8) -> Option<(u8, bool)> {
    let index = select.checked_sub(REDIRECTION_TABLE)?;
    (index < PINS * 2).then_some((index / 2, index % 2 == 1))
}

impl BusDevice for Ioapic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.state.select.into(),
            IOWIN => self.read_selected(),
            _ => 0,
        };
        data.fill(0);
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (IOREGSEL, [select, ..]) => self.state.select = *select,
            (IOWIN, [a, b, c, d, ..]) => self.write_selected(u32::from_le_bytes([*a, *b, *c, *d])),
            (EOI, [vector, _, _, _, ..]) => self.end_of_interrupt(*vector),
            _ => {}
        }
    }
}

impl Persist for Ioapic {
    type State = IoapicState;

    fn save(&self) -> Result<IoapicState, Error> {
        Ok(self.state.clone())
    }

    /// Restores the registers and reports changed routes to the sink.
    ///
    /// Sends no message: the state of the local APICs includes the messages sent before the save.
    fn restore(&mut self, state: IoapicState) -> Result<(), Error> {
        let invalid = |reason| {
            Err(Error::Invalid {
                component: IoapicState::NAME,
                reason,
            })
        };
        if state.id > 0x0f {
            return invalid(format!("identifier {:#x} is above 0xf", state.id));
        }
        if state.asserted >> PINS != 0 {
            return invalid(format!(
                "asserted pins {:#x} are beyond the {PINS} pins",
                state.asserted
            ));
        }
        if let Some(entry) = state.entries.iter().find(|entry| !entry.is_valid()) {
            return invalid(format!(
                "redirection entry {:#x} has reserved bits, or remote IRR without level trigger",
                entry.bits()
            ));
        }
        let before = self.routes();
        self.state = state;
        let routes = self.routes();
        if routes != before {
            self.sink.replace_routes(&routes);
        }
        Ok(())
    }
}
