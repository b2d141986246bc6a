//! The pair of 8259A interrupt controllers of a PC: ports 0x20 and 0x21 (master), 0xa0 and 0xa1 (slave), and the
//! edge/level control registers at 0x4d0 and 0x4d1.
//!
//! A pure model: lines in, INTR and vectors out. What differs from the 8259A data sheet:
//!
//! - An edge-triggered request stays until it is acknowledged, also when its line falls first, so that a pulse is never
//!   lost and never becomes a spurious interrupt.
//! - Edge or level is chosen by the edge/level control registers alone, as on every chipset since the EISA ones; LTIM in
//!   ICW1 and the wiring in ICW3 are ignored, and so are buffered mode and the MCS-80 mode of ICW4.
//! - All inputs are masked before the first initialisation, as firmware leaves them.

mod controller;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use controller::{CASCADE, Controller};

/// First port of the master: 2 ports.
pub const MASTER_PORT: u64 = 0x20;
/// First port of the slave: 2 ports.
pub const SLAVE_PORT: u64 = 0xa0;
/// Edge/level control registers of master and slave: 2 ports.
pub const EDGE_LEVEL_PORT: u64 = 0x4d0;

/// Input that an acknowledge cycle answers for when its request has gone.
const SPURIOUS: u8 = 7;

/// One of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chip {
    /// Lines 0 to 7.
    Master,
    /// Lines 8 to 15, through line 2 of the master.
    Slave,
}

impl Chip {
    /// Inputs that may be level-triggered: not those of timer, keyboard and cascade, nor of clock and coprocessor.
    fn level_capable(self) -> u8 {
        match self {
            Self::Master => 0xf8,
            Self::Slave => 0xde,
        }
    }
}

/// State of a [`Pic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    master: Controller,
    slave: Controller,
}

impl Schema for PicState {
    const NAME: &'static str = "pic";
    const VERSION: u32 = 1;
}

/// The pair.
#[derive(Debug)]
pub struct Pic {
    state: PicState,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// A pair with all lines masked and low.
    pub fn new() -> Self {
        Self {
            state: PicState {
                master: Controller::new(Chip::Master),
                slave: Controller::new(Chip::Slave),
            },
        }
    }

    /// Sets the level of `line`, 0 to 15. Line 2 is the cascade, and others do not exist: both are ignored.
    pub fn set_level(&mut self, line: u8, asserted: bool) {
        match line {
            CASCADE | 16.. => return,
            0..8 => self.state.master.set_line(line, asserted),
            8..16 => self.state.slave.set_line(line - 8, asserted),
        }
        self.cascade();
    }

    /// INTR: whether an interrupt waits for [`Self::acknowledge`].
    pub fn pending(&self) -> bool {
        self.state.master.pending().is_some()
    }

    /// The processor's acknowledge cycle: takes the pending interrupt into service and returns its vector.
    ///
    /// When its request has gone meanwhile, this is the vector of line 7, or of line 15 when it was the slave's, and
    /// that line is not in service (data sheet, "Interrupt sequence").
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.state.master.acknowledge() {
            Some(CASCADE) => {
                let input = self.state.slave.acknowledge();
                self.state.slave.vector(input.unwrap_or(SPURIOUS))
            }
            input => self.state.master.vector(input.unwrap_or(SPURIOUS)),
        };
        self.cascade();
        vector
    }

    /// Reads port `offset` (0 or 1) of `chip`. In poll mode this acknowledges an interrupt.
    pub fn read(&mut self, chip: Chip, offset: u64) -> u8 {
        let value = self.chip(chip).read(offset);
        self.cascade();
        value
    }

    /// Writes port `offset` (0 or 1) of `chip`.
    pub fn write(&mut self, chip: Chip, offset: u64, value: u8) {
        self.chip(chip).write(offset, value);
        self.cascade();
    }

    /// The edge/level control register of `chip`: a bit is set where a line is level-triggered.
    pub fn level_triggered(&self, chip: Chip) -> u8 {
        match chip {
            Chip::Master => self.state.master.level_triggered(),
            Chip::Slave => self.state.slave.level_triggered(),
        }
    }

    /// Writes the edge/level control register of `chip`. Lines 0, 1, 2, 8 and 13 stay edge-triggered.
    pub fn set_level_triggered(&mut self, chip: Chip, value: u8) {
        self.chip(chip).set_level_triggered(value);
        self.cascade();
    }

    fn chip(&mut self, chip: Chip) -> &mut Controller {
        match chip {
            Chip::Master => &mut self.state.master,
            Chip::Slave => &mut self.state.slave,
        }
    }

    /// The wire from the slave's INT to the master.
    fn cascade(&mut self) {
        let asserted = self.state.slave.pending().is_some();
        self.state.master.set_line(CASCADE, asserted);
    }
}

impl Persist for Pic {
    type State = PicState;

    fn save(&self) -> Result<PicState, Error> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: PicState) -> Result<(), Error> {
        let fault = state.master.invalid_reason(Chip::Master);
        if let Some(reason) = fault.or_else(|| state.slave.invalid_reason(Chip::Slave)) {
            return Err(Error::Invalid {
                component: PicState::NAME,
                reason,
            });
        }
        self.state = state;
        self.cascade();
        Ok(())
    }
}
