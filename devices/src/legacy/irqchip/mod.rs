//! The userspace part of a split irqchip: the pair of 8259As and the IOAPIC. The local APICs are in the kernel.
//!
//! | GSI | 8259A input | IOAPIC pin |
//! |---|---|---|
//! | 0 (timer) | 0 | 2, by the interrupt source override of the ACPI tables |
//! | 1, 3 to 15 | the same | the same |
//! | 16 to 23 | - | the same |
//! | 2 | cascade, no interrupt line | used by GSI 0 |
//!
//! INTR of the 8259As is connected to LINT0 of the local APICs, not to IOAPIC pin 0. The first vCPU accepts it as
//! ExtINT.
//!
//! Locks: any thread can set a line; one mutex guards both controllers. The model calls [`MessageSink`] with the mutex
//! held and [`ExternalInterrupt`] without it.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::{self, BusBuilder, BusDevice, ByteRegisters, SharedDevice};
use crate::interrupt::Interrupt;
use crate::legacy::ioapic::{self, Ioapic, IoapicState, MessageSink};
use crate::legacy::pic::{self, Chip, Pic, PicState};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;

/// Receiver of INTR of the 8259As.
pub trait ExternalInterrupt: Send + Sync {
    /// Handles a rising edge of INTR: the first vCPU must check [`SplitIrqchip::intr`] soon. Runs on the thread that
    /// caused the edge, without the lock of the interrupt controller.
    fn raise(&self);
}

struct Chips {
    pic: Pic,
    ioapic: Ioapic,
}

struct SharedChips {
    chips: Mutex<Chips>,
    intr: AtomicBool,
    external: Arc<dyn ExternalInterrupt>,
}

impl SharedChips {
    fn access<R>(&self, action: impl FnOnce(&mut Chips) -> R) -> R {
        let mut chips = lock(&self.chips);
        let result = action(&mut chips);
        let intr = chips.pic.is_pending();
        // Stored under the lock, so that the flag changes in the order of INTR. Relaxed: the flag passes no data, because the vCPU takes
        // the lock to acknowledge, and the full barrier of the kick orders the flag before it.
        let before = self.intr.swap(intr, Ordering::Relaxed);
        drop(chips);
        if intr && !before {
            self.external.raise();
        }
        result
    }
}

/// 8259As and IOAPIC with their interrupt lines. Clones share the controllers.
#[derive(Clone)]
pub struct SplitIrqchip {
    shared: Arc<SharedChips>,
}

impl SplitIrqchip {
    /// Creates controllers as after reset, with every line low. IOAPIC messages go to `sink`, rising edges of INTR to
    /// `external`.
    pub fn new(sink: Arc<dyn MessageSink>, external: Arc<dyn ExternalInterrupt>) -> Self {
        let chips = Chips {
            pic: Pic::new(),
            ioapic: Ioapic::new(sink),
        };
        Self {
            shared: Arc::new(SharedChips {
                chips: Mutex::new(chips),
                intr: AtomicBool::new(false),
                external,
            }),
        }
    }

    /// Returns the interrupt line `gsi`, or `None` for 2 and from 24 upwards, which have no line.
    ///
    /// Devices cannot share a line: the last level wins.
    pub fn line(&self, gsi: u32) -> Option<Arc<dyn Interrupt>> {
        let line = u8::try_from(gsi).ok().filter(|line| *line < ioapic::PINS)?;
        let (input, pin) = match line {
            0 => (Some(0), 2),
            2 => return None,
            1..16 => (Some(line), line),
            _ => (None, line),
        };
        let shared = self.shared.clone();
        Some(Arc::new(IrqLine { shared, input, pin }))
    }

    /// Sends one edge to `pin` of the IOAPIC alone. Without effect on a masked pin, and from pin 24 upwards.
    pub fn trigger_ioapic(&self, pin: u8) {
        self.shared.access(|chips| {
            chips.ioapic.set_level(pin, true);
            chips.ioapic.set_level(pin, false);
        });
    }

    /// Returns the level of INTR of the 8259As, without a lock.
    ///
    /// The first vCPU checks it before each guest entry. While it is true and the guest accepts interrupts, the vCPU
    /// injects the vector of [`Self::acknowledge`].
    pub fn intr(&self) -> bool {
        self.shared.intr.load(Ordering::Relaxed)
    }

    /// Performs the processor's acknowledge cycle. Returns the vector to inject, or `None` if INTR is low.
    ///
    /// INTR may be high again on return.
    pub fn acknowledge(&self) -> Option<u8> {
        self.shared
            .access(|chips| chips.pic.is_pending().then(|| chips.pic.acknowledge()))
    }

    /// Handles the end of interrupt `vector` of a local APIC (KVM_EXIT_IOAPIC_EOI).
    pub fn end_of_interrupt(&self, vector: u8) {
        self.shared.access(|chips| chips.ioapic.end_of_interrupt(vector));
    }

    /// Attaches the 8259As with their edge/level control registers to the port bus, and the IOAPIC at `ioapic_base` to
    /// the memory bus.
    ///
    /// # Errors
    /// Fails if another device claims one of their addresses.
    pub fn attach(
        &self,
        ports: &mut BusBuilder,
        memory: &mut BusBuilder,
        ioapic_base: u64,
    ) -> Result<(), bus::Error> {
        ports.claim("pic", pic::MASTER_PORT, 2, self.pic_ports(Chip::Master))?;
        ports.claim("pic", pic::SLAVE_PORT, 2, self.pic_ports(Chip::Slave))?;
        ports.claim("elcr", pic::EDGE_LEVEL_PORT, 2, self.edge_level_ports())?;
        memory.claim(
            "ioapic",
            ioapic_base,
            ioapic::REGISTERS_LENGTH,
            self.ioapic_registers(),
        )
    }

    /// Returns the device for the two ports of `chip`.
    pub fn pic_ports(&self, chip: Chip) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(PicPorts { shared, chip }))
    }

    /// Returns the device for the two edge/level control registers.
    pub fn edge_level_ports(&self) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(EdgeLevelPorts { shared }))
    }

    /// Returns the device for the registers of the IOAPIC, [`ioapic::REGISTERS_LENGTH`] bytes.
    pub fn ioapic_registers(&self) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(IoapicRegisters { shared }))
    }
}

/// Interrupt line of one GSI.
struct IrqLine {
    shared: Arc<SharedChips>,
    input: Option<u8>,
    pin: u8,
}

impl IrqLine {
    fn set_inputs(&self, chips: &mut Chips, asserted: bool) {
        if let Some(input) = self.input {
            chips.pic.set_level(input, asserted);
        }
        chips.ioapic.set_level(self.pin, asserted);
    }
}

impl Interrupt for IrqLine {
    fn set_level(&self, asserted: bool) {
        self.shared.access(|chips| self.set_inputs(chips, asserted));
    }

    fn trigger(&self) {
        self.shared.access(|chips| {
            self.set_inputs(chips, true);
            self.set_inputs(chips, false);
        });
    }
}

/// Ports of one 8259A.
struct PicPorts {
    shared: Arc<SharedChips>,
    chip: Chip,
}

impl ByteRegisters for PicPorts {
    fn read_register(&mut self, offset: u64) -> u8 {
        self.shared.access(|chips| chips.pic.read(self.chip, offset))
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.shared
            .access(|chips| chips.pic.write(self.chip, offset, value));
    }
}

/// Edge/level control registers of both 8259As.
struct EdgeLevelPorts {
    shared: Arc<SharedChips>,
}

impl ByteRegisters for EdgeLevelPorts {
    fn read_register(&mut self, offset: u64) -> u8 {
        self.shared
            .access(|chips| chips.pic.level_triggered(chip_at(offset)))
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.shared
            .access(|chips| chips.pic.set_level_triggered(chip_at(offset), value));
    }
}

fn chip_at(offset: u64) -> Chip {
    match offset {
        0 => Chip::Master,
        _ => Chip::Slave,
    }
}

/// Registers of the IOAPIC.
struct IoapicRegisters {
    shared: Arc<SharedChips>,
}

impl BusDevice for IoapicRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.shared.access(|chips| chips.ioapic.read(offset, data));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.shared.access(|chips| chips.ioapic.write(offset, data));
    }
}

/// State of a [`SplitIrqchip`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitIrqchipState {
    pic: PicState,
    ioapic: IoapicState,
}

impl Schema for SplitIrqchipState {
    const NAME: &'static str = "split-irqchip";
    const VERSION: u32 = 1;
}

impl Persist for SplitIrqchip {
    type State = SplitIrqchipState;

    fn save(&self) -> Result<SplitIrqchipState, Error> {
        let chips = lock(&self.shared.chips);
        Ok(SplitIrqchipState {
            pic: chips.pic.save()?,
            ioapic: chips.ioapic.save()?,
        })
    }

    fn restore(&mut self, state: SplitIrqchipState) -> Result<(), Error> {
        self.shared.access(|chips| {
            chips.pic.restore(state.pic)?;
            chips.ioapic.restore(state.ioapic)
        })
    }
}
