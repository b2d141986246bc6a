//! The half of a split interrupt controller that is in user space: the pair of 8259As and the IOAPIC. The local APICs
//! are in the kernel.
//!
//! | line | 8259A input | IOAPIC pin |
//! |---|---|---|
//! | 0 (the timer) | 0 | 2, as the interrupt source override of every PC's ACPI tables says |
//! | 1, 3 to 15 | the same | the same |
//! | 16 to 23 | - | the same |
//! | 2 | the cascade, no line | taken by line 0 |
//!
//! INTR of the 8259As goes to the local APICs' LINT0 (the first processor's takes it as ExtINT), not to IOAPIC pin 0.
//!
//! Locks: lines may be set from several threads; one mutex guards both controllers. [`MessageSink`] is called with it
//! held, [`ExternalInterrupt`] never.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::{self, BusBuilder, BusDevice, ByteRegisters, SharedDevice};
use crate::interrupt::Interrupt;
use crate::ioapic::{self, Ioapic, IoapicState, MessageSink};
use crate::pic::{self, Chip, Pic, PicState};
use crate::sync::lock;

/// Where INTR of the 8259As leads.
pub trait ExternalInterrupt: Send + Sync {
    /// INTR has risen: makes the first vCPU look at [`SplitIrqchip::intr`] soon. Called on whatever thread made it rise,
    /// with no lock of the interrupt controller held.
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
    fn with<R>(&self, action: impl FnOnce(&mut Chips) -> R) -> R {
        let mut chips = lock(&self.chips);
        let result = action(&mut chips);
        let intr = chips.pic.pending();
        // Stored under the lock, so that the flag follows INTR in the order of its changes.
        let before = self.intr.swap(intr, Ordering::SeqCst);
        drop(chips);
        if intr && !before {
            self.external.raise();
        }
        result
    }
}

/// Both controllers and their wiring. Clones are the same interrupt controller.
#[derive(Clone)]
pub struct SplitIrqchip {
    shared: Arc<SharedChips>,
}

impl SplitIrqchip {
    /// Controllers as after reset, with every line low. IOAPIC messages go to `sink`; `external` is told when INTR rises.
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

    /// The wire of line `gsi`; `None` for 2 and from 24 on, which no device can have. Each line is for one device: wires
    /// of the same line do not add up.
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

    /// INTR of the 8259As, without a lock: what the first vCPU checks before it enters the guest. While it is true and
    /// the guest takes interrupts, the vCPU injects the vector of [`Self::acknowledge`].
    pub fn intr(&self) -> bool {
        self.shared.intr.load(Ordering::SeqCst)
    }

    /// The processor's acknowledge cycle: the vector to inject, or `None` when INTR has fallen meanwhile. INTR may be
    /// high again at once.
    pub fn acknowledge(&self) -> Option<u8> {
        self.shared
            .with(|chips| chips.pic.pending().then(|| chips.pic.acknowledge()))
    }

    /// Takes the end of interrupt `vector` from a local APIC (KVM_EXIT_IOAPIC_EOI).
    pub fn end_of_interrupt(&self, vector: u8) {
        self.shared.with(|chips| chips.ioapic.end_of_interrupt(vector));
    }

    /// Puts the 8259As and their edge/level control registers on the port bus, and the IOAPIC at `ioapic_base` on the
    /// memory bus.
    ///
    /// # Errors
    /// When another device claims one of their addresses.
    pub fn attach(
        &self,
        ports: &mut BusBuilder,
        memory: &mut BusBuilder,
        ioapic_base: u64,
    ) -> Result<(), bus::Error> {
        ports.claim("pic", pic::MASTER_PORT, 2, self.pic_ports(Chip::Master))?;
        ports.claim("pic", pic::SLAVE_PORT, 2, self.pic_ports(Chip::Slave))?;
        ports.claim("elcr", pic::EDGE_LEVEL_PORT, 2, self.edge_level_ports())?;
        memory.claim("ioapic", ioapic_base, ioapic::WINDOW_LENGTH, self.ioapic_window())
    }

    /// The two ports of `chip`.
    pub fn pic_ports(&self, chip: Chip) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(PicPorts { shared, chip }))
    }

    /// The two edge/level control registers.
    pub fn edge_level_ports(&self) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(EdgeLevelPorts { shared }))
    }

    /// The register window of the IOAPIC, of [`ioapic::WINDOW_LENGTH`] bytes.
    pub fn ioapic_window(&self) -> SharedDevice {
        let shared = self.shared.clone();
        Arc::new(Mutex::new(IoapicWindow { shared }))
    }
}

struct IrqLine {
    shared: Arc<SharedChips>,
    input: Option<u8>,
    pin: u8,
}

impl IrqLine {
    fn drive(&self, chips: &mut Chips, asserted: bool) {
        if let Some(input) = self.input {
            chips.pic.set_level(input, asserted);
        }
        chips.ioapic.set_level(self.pin, asserted);
    }
}

impl Interrupt for IrqLine {
    fn set_level(&self, asserted: bool) {
        self.shared.with(|chips| self.drive(chips, asserted));
    }

    fn trigger(&self) {
        self.shared.with(|chips| {
            self.drive(chips, true);
            self.drive(chips, false);
        });
    }
}

/// The ports of one 8259A.
struct PicPorts {
    shared: Arc<SharedChips>,
    chip: Chip,
}

impl ByteRegisters for PicPorts {
    fn read_register(&mut self, offset: u64) -> u8 {
        self.shared.with(|chips| chips.pic.read(self.chip, offset))
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.shared
            .with(|chips| chips.pic.write(self.chip, offset, value));
    }
}

/// The edge/level control registers of both 8259As.
struct EdgeLevelPorts {
    shared: Arc<SharedChips>,
}

impl ByteRegisters for EdgeLevelPorts {
    fn read_register(&mut self, offset: u64) -> u8 {
        self.shared
            .with(|chips| chips.pic.level_triggered(chip_at(offset)))
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        self.shared
            .with(|chips| chips.pic.set_level_triggered(chip_at(offset), value));
    }
}

fn chip_at(offset: u64) -> Chip {
    match offset {
        0 => Chip::Master,
        _ => Chip::Slave,
    }
}

/// The register window of the IOAPIC.
struct IoapicWindow {
    shared: Arc<SharedChips>,
}

impl BusDevice for IoapicWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.shared.with(|chips| chips.ioapic.read(offset, data));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.shared.with(|chips| chips.ioapic.write(offset, data));
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
        self.shared.with(|chips| {
            chips.pic.restore(state.pic)?;
            chips.ioapic.restore(state.ioapic)
        })
    }
}
