//! The interrupt controllers, one by one and together.

use std::sync::Arc;

use snapshot::Component;

use super::chips::poke;
use super::{Bench, Stage};
use crate::bus::{BusDevice, SharedDevice};
use crate::ioapic::{Ioapic, Message, MessageSink, Route};
use crate::pic::{Chip, Pic};
use crate::sync::lock;
use crate::{ExternalInterrupt, SplitIrqchip};

/// Where messages and INTR of the interrupt controllers go.
struct Nowhere;

impl MessageSink for Nowhere {
    fn send(&self, _: Message) {}

    fn routes_changed(&self, _: &[Route]) {}
}

impl ExternalInterrupt for Nowhere {
    fn raise(&self) {}
}

pub(super) struct IoapicBench(Ioapic);

/// Writes `value` to `register` of an IOAPIC whose registers begin at `base`.
fn program(device: &mut dyn BusDevice, base: u64, register: u8, value: u32) {
    device.write(base, &u32::from(register).to_le_bytes());
    device.write(base + 0x10, &value.to_le_bytes());
}

impl Bench for IoapicBench {
    const OF: &'static [&'static str] = &["Ioapic"];
    const REGISTERS: u64 = 0x50;
    const STAGES: &'static [Stage<Self>] = &[
        ("selected", |bench| bench.0.write(0, &[0x12])),
        ("named", |bench| program(&mut bench.0, 0, 0, 0x0500_0000)),
        ("routed", |bench| program(&mut bench.0, 0, 0x24, 0x8055)),
        ("in service", |bench| {
            program(&mut bench.0, 0, 0x24, 0x8055);
            bench.0.set_level(10, true);
        }),
        ("in service and low again", |bench| {
            program(&mut bench.0, 0, 0x24, 0x8055);
            bench.0.set_level(10, true);
            bench.0.set_level(10, false);
        }),
        ("high and masked", |bench| {
            program(&mut bench.0, 0, 0x24, 0x1_0055);
            bench.0.set_level(10, true);
        }),
    ];

    fn new() -> Self {
        Self(Ioapic::new(Arc::new(Nowhere)))
    }

    fn another(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(&mut self.0)
    }

    fn happens(&mut self, what: u16) -> u64 {
        let [pin, action] = what.to_le_bytes();
        match action & 3 {
            0 => self.0.end_of_interrupt(pin),
            action => self.0.set_level(pin % 32, action == 1),
        }
        self.0.routes().len() as u64
    }
}

/// What initialises both 8259As: their first ports are 0 and 2; vectors from 0x20 and 0x28.
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

pub(super) struct PicBench(Pic);

impl BusDevice for PicBench {
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

impl Bench for PicBench {
    const OF: &'static [&'static str] = &["Pic"];
    const REGISTERS: u64 = 6;
    const STAGES: &'static [Stage<Self>] = &[
        ("half initialised", |bench| poke(bench, &INITIALISED[..2])),
        ("initialised", |bench| poke(bench, &INITIALISED)),
        ("masked", |bench| {
            poke(bench, &INITIALISED);
            poke(bench, &[(1, 0xfb)]);
        }),
        ("level-triggered", |bench| poke(bench, &[(5, 0x08)])),
        ("pending", |bench| {
            poke(bench, &INITIALISED);
            bench.0.set_level(14, true);
        }),
        ("in service, another pending, lines low", |bench| {
            poke(bench, &INITIALISED);
            bench.0.set_level(14, true);
            bench.0.acknowledge();
            bench.0.set_level(14, false);
            bench.0.set_level(1, true);
            bench.0.set_level(1, false);
        }),
        ("asked for what is in service", |bench| {
            poke(bench, &INITIALISED);
            poke(bench, &[(0, 0x0b)]);
        }),
    ];

    fn new() -> Self {
        Self(Pic::new())
    }

    fn another(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(self)
    }

    fn happens(&mut self, what: u16) -> u64 {
        let [line, action] = what.to_le_bytes();
        match action & 3 {
            0 if self.0.pending() => self.0.acknowledge().into(),
            1 => {
                self.0.set_level(line % 16, true);
                0
            }
            2 => {
                self.0.set_level(line % 16, false);
                0
            }
            _ => u64::from(self.0.pending()) << 8,
        }
    }
}

pub(super) struct IrqchipBench(SplitIrqchip);

impl IrqchipBench {
    /// The device that claims `offset`, and where it begins.
    fn face(&self, offset: u64) -> (SharedDevice, u64) {
        match offset {
            0..2 => (self.0.pic_ports(Chip::Master), 0),
            2..4 => (self.0.pic_ports(Chip::Slave), 2),
            4..6 => (self.0.edge_level_ports(), 4),
            _ => (self.0.ioapic_window(), 6),
        }
    }
}

impl BusDevice for IrqchipBench {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (face, base) = self.face(offset);
        lock(&face).read(offset - base, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (face, base) = self.face(offset);
        lock(&face).write(offset - base, data);
    }
}

impl Bench for IrqchipBench {
    const OF: &'static [&'static str] = &["SplitIrqchip"];
    const REGISTERS: u64 = 6 + 0x50;
    const STAGES: &'static [Stage<Self>] = &[
        ("initialised", |bench| poke(bench, &INITIALISED)),
        ("pending at the 8259A", |bench| {
            poke(bench, &INITIALISED);
            bench.0.line(4).unwrap().trigger();
        }),
        ("in service at the IOAPIC", |bench| {
            program(bench, 6, 0x10 + 2 * 11, 0x8055);
            bench.0.line(11).unwrap().set_level(true);
        }),
    ];

    fn new() -> Self {
        Self(SplitIrqchip::new(Arc::new(Nowhere), Arc::new(Nowhere)))
    }

    fn another(&self) -> Self {
        Self::new()
    }

    fn component(&mut self) -> &mut dyn Component {
        &mut self.0
    }

    fn registers(&mut self) -> Option<&mut dyn BusDevice> {
        Some(self)
    }

    fn happens(&mut self, what: u16) -> u64 {
        let [line, action] = what.to_le_bytes();
        match (action & 3, self.0.line(u32::from(line % 32))) {
            (0, _) => self.0.acknowledge().map_or(0x100, u64::from),
            (1, Some(wire)) => {
                wire.set_level(true);
                u64::from(self.0.intr())
            }
            (2, Some(wire)) => {
                wire.set_level(false);
                u64::from(self.0.intr())
            }
            _ => {
                self.0.end_of_interrupt(line);
                u64::from(self.0.intr())
            }
        }
    }
}
