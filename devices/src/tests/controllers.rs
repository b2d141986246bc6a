//! Fixtures of the interrupt controllers, alone and combined.

use std::sync::Arc;

use snapshot::Component;

use super::chips::poke;
use super::{Fixture, StateSetup};
use crate::bus::{BusDevice, SharedDevice};
use crate::legacy::ioapic::{Ioapic, Message, MessageSink, Route};
use crate::legacy::pic::{Chip, Pic};
use crate::sync::lock;
use crate::{ExternalInterrupt, SplitIrqchip};

/// Receiver that discards messages and INTR.
struct Discard;

impl MessageSink for Discard {
    fn send(&self, _: Message) {}

    fn replace_routes(&self, _: &[Route]) {}
}

impl ExternalInterrupt for Discard {
    fn raise(&self) {}
}

pub(super) struct IoapicFixture(Ioapic);

/// Writes `value` to `register` of the IOAPIC at `base`.
fn program(device: &mut dyn BusDevice, base: u64, register: u8, value: u32) {
    device.write(base, &u32::from(register).to_le_bytes());
    device.write(base + 0x10, &value.to_le_bytes());
}

impl Fixture for IoapicFixture {
    const TYPES: &'static [&'static str] = &["Ioapic"];
    const REGISTERS: u64 = 0x50;
    const STATES: &'static [StateSetup<Self>] = &[
        ("register selected", |fixture| fixture.0.write(0, &[0x12])),
        ("identifier written", |fixture| {
            program(&mut fixture.0, 0, 0, 0x0500_0000)
        }),
        ("routed", |fixture| program(&mut fixture.0, 0, 0x24, 0x8055)),
        ("in service", |fixture| {
            program(&mut fixture.0, 0, 0x24, 0x8055);
            fixture.0.set_level(10, true);
        }),
        ("in service, deasserted", |fixture| {
            program(&mut fixture.0, 0, 0x24, 0x8055);
            fixture.0.set_level(10, true);
            fixture.0.set_level(10, false);
        }),
        ("asserted and masked", |fixture| {
            program(&mut fixture.0, 0, 0x24, 0x1_0055);
            fixture.0.set_level(10, true);
        }),
    ];

    fn new() -> Self {
        Self(Ioapic::new(Arc::new(Discard)))
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.0)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let [pin, action] = event.to_le_bytes();
        match action & 3 {
            0 => self.0.end_of_interrupt(pin),
            action => self.0.set_level(pin % 32, action == 1),
        }
        self.0.routes().len() as u64
    }
}

/// Writes that initialise both 8259As, with first ports 0 and 2 and vectors from 0x20 and 0x28.
const INITIALISED: [(u64, u8); 8] = [
    (0, 0x11),
    (1, 0x20),
    (1, 0x04),
    (1, 0x01),
    (2, 0x11),
    (3, 0x28),
    (3, 0x02),
    (3, 0x01),
];

pub(super) struct PicFixture(Pic);

impl BusDevice for PicFixture {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = match offset {
                0..2 => self.0.read(Chip::Master, offset),
                2..4 => self.0.read(Chip::Slave, offset - 2),
                4 => self.0.level_triggered(Chip::Master),
                _ => self.0.level_triggered(Chip::Slave),
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            match offset {
                0..2 => self.0.write(Chip::Master, offset, *byte),
                2..4 => self.0.write(Chip::Slave, offset - 2, *byte),
                4 => self.0.set_level_triggered(Chip::Master, *byte),
                _ => self.0.set_level_triggered(Chip::Slave, *byte),
            }
        }
    }
}

impl Fixture for PicFixture {
    const TYPES: &'static [&'static str] = &["Pic"];
    const REGISTERS: u64 = 6;
    const STATES: &'static [StateSetup<Self>] = &[
        ("initialisation incomplete", |fixture| {
            poke(fixture, &INITIALISED[..2])
        }),
        ("initialised", |fixture| poke(fixture, &INITIALISED)),
        ("masked", |fixture| {
            poke(fixture, &INITIALISED);
            poke(fixture, &[(1, 0xfb)]);
        }),
        ("level-triggered", |fixture| poke(fixture, &[(5, 0x08)])),
        ("pending", |fixture| {
            poke(fixture, &INITIALISED);
            fixture.0.set_level(14, true);
        }),
        ("in service, another pending, lines low", |fixture| {
            poke(fixture, &INITIALISED);
            fixture.0.set_level(14, true);
            fixture.0.acknowledge();
            fixture.0.set_level(14, false);
            fixture.0.set_level(1, true);
            fixture.0.set_level(1, false);
        }),
        ("in-service register selected", |fixture| {
            poke(fixture, &INITIALISED);
            poke(fixture, &[(0, 0x0b)]);
        }),
    ];

    fn new() -> Self {
        Self(Pic::new())
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(self)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let [line, action] = event.to_le_bytes();
        match action & 3 {
            0 if self.0.is_pending() => self.0.acknowledge().into(),
            1 => {
                self.0.set_level(line % 16, true);
                0
            }
            2 => {
                self.0.set_level(line % 16, false);
                0
            }
            _ => u64::from(self.0.is_pending()) << 8,
        }
    }
}

pub(super) struct IrqchipFixture(SplitIrqchip);

impl IrqchipFixture {
    /// Returns the device that claims `offset`, and its first offset.
    fn device_at(&self, offset: u64) -> (SharedDevice, u64) {
        match offset {
            0..2 => (self.0.pic_ports(Chip::Master), 0),
            2..4 => (self.0.pic_ports(Chip::Slave), 2),
            4..6 => (self.0.edge_level_ports(), 4),
            _ => (self.0.ioapic_registers(), 6),
        }
    }
}

impl BusDevice for IrqchipFixture {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (device, base) = self.device_at(offset);
        lock(&device).read(offset - base, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (device, base) = self.device_at(offset);
        lock(&device).write(offset - base, data);
    }
}

impl Fixture for IrqchipFixture {
    const TYPES: &'static [&'static str] = &["SplitIrqchip"];
    const REGISTERS: u64 = 6 + 0x50;
    const STATES: &'static [StateSetup<Self>] = &[
        ("initialised", |fixture| poke(fixture, &INITIALISED)),
        ("pending at the 8259A", |fixture| {
            poke(fixture, &INITIALISED);
            fixture.0.line(4).unwrap().trigger();
        }),
        ("in service at the IOAPIC", |fixture| {
            program(fixture, 6, 0x10 + 2 * 11, 0x8055);
            fixture.0.line(11).unwrap().set_level(true);
        }),
    ];

    fn new() -> Self {
        Self(SplitIrqchip::new(Arc::new(Discard), Arc::new(Discard)))
    }

    fn fresh_copy(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(self)
    }

    fn apply_event(&mut self, event: u16) -> u64 {
        let [number, action] = event.to_le_bytes();
        match (action & 3, self.0.line(u32::from(number % 32))) {
            (0, _) => self.0.acknowledge().map_or(0x100, u64::from),
            (1, Some(line)) => {
                line.set_level(true);
                u64::from(self.0.intr())
            }
            (2, Some(line)) => {
                line.set_level(false);
                u64::from(self.0.intr())
            }
            _ => {
                self.0.end_of_interrupt(number);
                u64::from(self.0.intr())
            }
        }
    }
}
