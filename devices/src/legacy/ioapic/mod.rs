//! The IOAPIC: an 82093AA with 24 pins, version 0x20, which adds the end-of-interrupt register.
//!
//! Its window has IOREGSEL at 0x00, IOWIN at 0x10 and EOI at 0x40, all 32 bits wide. IOREGSEL is also taken as a byte;
//! other narrow writes and everything else in the window are ignored, and read as zero.
//!
//! A pure model: pins in, messages out. A pin is asserted or not, whatever voltage that may be: the polarity bit is kept
//! and read back, but inverts nothing. An edge on a masked pin is lost (data sheet, "Interrupt Mask").

mod entry;
mod message;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::BusDevice;
use entry::Entry;
pub use message::{Message, MessageSink, Route};

/// Number of pins.
pub const PINS: u8 = 24;
/// Length of the register window, in bytes.
pub const WINDOW_LENGTH: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
/// What the version register says, and tables that describe the machine: with an end-of-interrupt register.
pub const MODEL: u8 = 0x20;
const ARBITRATION: u8 = 0x02;
const REDIRECTION_TABLE: u8 = 0x10;

/// State of an [`Ioapic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    id: u8,
    select: u8,
    /// Bit n is set while pin n is asserted.
    asserted: u32,
    entries: [Entry; PINS as usize],
}

impl Schema for IoapicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 1;
}

/// The model.
pub struct Ioapic {
    sink: Arc<dyn MessageSink>,
    state: IoapicState,
}

impl Ioapic {
    /// An IOAPIC with identifier 0 and all pins masked, which sends to `sink`.
    pub fn new(sink: Arc<dyn MessageSink>) -> Self {
        let state = IoapicState {
            id: 0,
            select: 0,
            asserted: 0,
            entries: [Entry::RESET; PINS as usize],
        };
        Self { sink, state }
    }

    /// Sets the level of `pin`, 0 to 23; others are ignored.
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

    /// Takes the end of interrupt `vector` from a local APIC: level-triggered pins with that vector that are still
    /// asserted send it again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.state.entries[usize::from(pin)];
            if entry.vector() == vector && entry.remote_irr() {
                entry.set_remote_irr(false);
                self.deliver_level(pin);
            }
        }
    }

    /// Where interrupts of `pin` go: `None` when it is masked or has no valid vector. A masked level-triggered pin keeps
    /// its route, since the end of its last interrupt may still be to come.
    pub fn route(&self, pin: u8) -> Option<Message> {
        self.state.entries.get(usize::from(pin))?.route()
    }

    /// The routes of all pins that have one, in the order of pins.
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

    /// Sends the message of a level-triggered pin if it is asserted and none is under way.
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

    fn register(&self) -> u32 {
        match self.state.select {
            ID | ARBITRATION => u32::from(self.state.id) << 24,
            VERSION => u32::from(PINS - 1) << 16 | u32::from(MODEL),
            select => self.entry_half(select).unwrap_or(0),
        }
    }

    fn set_register(&mut self, value: u32) {
        let select = self.state.select;
        if select == ID {
            self.state.id = value.to_be_bytes()[0] & 0x0f;
            return;
        }
        let Some((pin, high)) = table_place(select) else {
            return;
        };
        let entry = &mut self.state.entries[usize::from(pin)];
        let before = entry.route();
        let bits = match high {
            true => u64::from(value) << 32 | entry.bits() & 0xffff_ffff,
            false => entry.bits() & !0xffff_ffff | u64::from(value),
        };
        entry.set_bits(bits);
        // KVM must know the vector before it sees the first message with it, or the end of it would go unreported.
        if entry.route() != before {
            self.sink.routes_changed(&self.routes());
        }
        self.deliver_level(pin);
    }

    fn entry_half(&self, select: u8) -> Option<u32> {
        let (pin, high) = table_place(select)?;
        let bits = self.state.entries[usize::from(pin)].bits();
        let half = if high { bits >> 32 } else { bits & 0xffff_ffff };
        u32::try_from(half).ok()
    }
}

/// Pin and half (true is the upper one) of the redirection entry at register `select`.
fn table_place(select: u8) -> Option<(u8, bool)> {
    let place = select.checked_sub(REDIRECTION_TABLE)?;
    (place < PINS * 2).then_some((place / 2, place % 2 == 1))
}

impl BusDevice for Ioapic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.state.select.into(),
            IOWIN => self.register(),
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
            (IOWIN, [a, b, c, d, ..]) => self.set_register(u32::from_le_bytes([*a, *b, *c, *d])),
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

    /// Sends no message: what was under way when the state was saved is in the local APICs. Tells the sink of routes
    /// that differ from the present ones.
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
                "pins {:#x} are asserted, but there are {PINS}",
                state.asserted
            ));
        }
        if let Some(entry) = state.entries.iter().find(|entry| !entry.is_valid()) {
            return invalid(format!("redirection entry {:#x}", entry.bits()));
        }
        let before = self.routes();
        self.state = state;
        let routes = self.routes();
        if routes != before {
            self.sink.routes_changed(&routes);
        }
        Ok(())
    }
}
