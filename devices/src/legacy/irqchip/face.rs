use std::sync::Arc;

use super::SharedChips;
use crate::bus::{BusDevice, ByteRegisters};
use crate::pic::Chip;

/// The ports of one 8259A.
pub(super) struct PicPorts {
    pub(super) shared: Arc<SharedChips>,
    pub(super) chip: Chip,
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
pub(super) struct EdgeLevelPorts {
    pub(super) shared: Arc<SharedChips>,
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
pub(super) struct IoapicWindow {
    pub(super) shared: Arc<SharedChips>,
}

impl BusDevice for IoapicWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.shared.with(|chips| chips.ioapic.read(offset, data));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.shared.with(|chips| chips.ioapic.write(offset, data));
    }
}
