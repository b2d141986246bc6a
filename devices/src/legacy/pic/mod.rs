//! The pair of 8259A interrupt controllers of a PC: ports 0x20 and 0x21 (master), 0xa0 and 0xa1 (slave), and the
//! edge/level control registers at 0x4d0 and 0x4d1.
//!
//! A pure model: inputs are interrupt lines, outputs are INTR and vectors. Differences from the 8259A data sheet:
//!
//! - An edge-triggered request stays until its acknowledgement, even if its line falls first: a pulse is never lost and
//!   never becomes a spurious interrupt.
//! - The edge/level control registers alone select the trigger mode, as on every chipset since EISA. The model ignores
//!   LTIM in ICW1, the wiring in ICW3, and buffered mode and MCS-80 mode in ICW4.
//! - All inputs are masked before the first initialisation, as firmware leaves them.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

/// First of the 2 ports of the master.
pub const MASTER_PORT: u64 = 0x20;
/// First of the 2 ports of the slave.
pub const SLAVE_PORT: u64 = 0xa0;
/// Edge/level control registers of master and slave, 1 port each.
pub const EDGE_LEVEL_PORT: u64 = 0x4d0;

/// Input of a spurious interrupt: an acknowledge cycle without a request.
const SPURIOUS: u8 = 7;

/// Input of the master that is connected to the INT output of the slave.
const CASCADE: u8 = 2;

/// Bit that distinguishes ICW1 from the other words at the even address.
const ICW1: u8 = 0x10;
/// Bit that distinguishes OCW3 from OCW2.
const OCW3: u8 = 0x08;

/// One controller of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chip {
    /// Lines 0 to 7.
    Master,
    /// Lines 8 to 15, through line 2 of the master.
    Slave,
}

impl Chip {
    /// Returns the inputs that can be level-triggered: all except timer, keyboard, cascade, clock and coprocessor.
    fn level_capable(self) -> u8 {
        match self {
            Self::Master => 0xf8,
            Self::Slave => 0xde,
        }
    }
}

/// Next initialisation command word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Awaiting {
    Nothing,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A, with inputs 0 to 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    chip: Chip,
    /// Asserted inputs.
    lines: u8,
    /// Edge-triggered inputs with a rising edge since their last acknowledgement.
    latched: u8,
    /// The edge/level control register of the chipset.
    level_triggered: u8,
    mask: u8,
    in_service: u8,
    vector_base: u8,
    /// Input of lowest priority. The next input, modulo 8, has the highest.
    lowest: u8,
    awaiting: Awaiting,
    single: bool,
    icw4_needed: bool,
    special_fully_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Controller {
    /// Creates a controller with all inputs masked, as firmware leaves it for an operating system.
    fn new(chip: Chip) -> Self {
        Self {
            chip,
            lines: 0,
            latched: 0,
            level_triggered: 0,
            mask: 0xff,
            in_service: 0,
            vector_base: 0,
            lowest: 7,
            awaiting: Awaiting::Nothing,
            single: false,
            icw4_needed: false,
            special_fully_nested: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
        }
    }

    /// Returns the reason why the state is invalid for `chip`, or `None` if it is valid.
    fn invalid_reason(&self, chip: Chip) -> Option<String> {
        if self.chip != chip {
            return Some(format!("controller is {:?} instead of {chip:?}", self.chip));
        }
        if self.lowest > 7 {
            return Some(format!("lowest priority {} is not an input, 0 to 7", self.lowest));
        }
        if self.vector_base & 7 != 0 {
            return Some(format!(
                "vector base {:#x} is not a multiple of 8",
                self.vector_base
            ));
        }
        if self.level_triggered & !chip.level_capable() != 0 {
            return Some(format!(
                "level-triggered inputs {:#x} include inputs that are always edge-triggered",
                self.level_triggered
            ));
        }
        if self.latched & self.level_inputs() != 0 {
            return Some(format!(
                "latched edges {:#x} include level-triggered inputs",
                self.latched
            ));
        }
        None
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << (input & 7);
        if !asserted {
            self.lines &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.latched |= bit & !self.level_inputs();
        }
    }

    /// Returns the input for which INT is asserted.
    fn pending_input(&self) -> Option<u8> {
        if self.awaiting != Awaiting::Nothing {
            return None;
        }
        let rank = self.highest_rank(self.requests() & !self.mask)?;
        let input = self.input_at(rank);
        let Some(serving) = self.highest_rank(self.blocking()) else {
            return Some(input);
        };
        // Special fully nested mode: a higher input of the slave in service may interrupt it.
        let nested = self.special_fully_nested && self.chip == Chip::Master && input == CASCADE;
        (rank < serving || (rank == serving && nested)).then_some(input)
    }

    /// Performs the acknowledge cycle: moves the pending input into service and returns it.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.pending_input()?;
        self.latched &= !(1 << input);
        if !self.auto_eoi {
            self.in_service |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
        Some(input)
    }

    fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    fn read(&mut self, offset: u64) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.acknowledge().map_or(0, |input| 0x80 | input);
        }
        match (offset, self.read_in_service) {
            (0, false) => self.requests(),
            (0, true) => self.in_service,
            _ => self.mask,
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        match (offset, self.awaiting) {
            (0, _) if value & ICW1 != 0 => self.write_icw1(value),
            (0, _) if value & OCW3 != 0 => self.write_ocw3(value),
            (0, _) => self.write_ocw2(value),
            (_, Awaiting::Nothing) => self.mask = value,
            (_, Awaiting::Icw2) => {
                self.vector_base = value & 0xf8;
                self.awaiting = match (self.single, self.icw4_needed) {
                    (false, _) => Awaiting::Icw3,
                    (true, true) => Awaiting::Icw4,
                    (true, false) => Awaiting::Nothing,
                };
            }
            // ICW3 describes the cascade, which is fixed on a PC.
            (_, Awaiting::Icw3) => {
                self.awaiting = match self.icw4_needed {
                    true => Awaiting::Icw4,
                    false => Awaiting::Nothing,
                };
            }
            (_, Awaiting::Icw4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.awaiting = Awaiting::Nothing;
            }
        }
    }

    fn level_triggered(&self) -> u8 {
        self.level_triggered
    }

    fn set_level_triggered(&mut self, value: u8) {
        self.level_triggered = value & self.chip.level_capable();
        self.latched &= !self.level_inputs();
    }

    /// Returns the level-triggered inputs.
    ///
    /// They always include the cascade: on hardware, INT of the slave falls and rises between the two acknowledge
    /// cycles of the bus. The model combines both cycles in one step, so an edge-triggered master would miss the edge.
    fn level_inputs(&self) -> u8 {
        match self.chip {
            Chip::Master => self.level_triggered | 1 << CASCADE,
            Chip::Slave => self.level_triggered,
        }
    }

    /// Returns the interrupt request register.
    fn requests(&self) -> u8 {
        self.latched | (self.lines & self.level_inputs())
    }

    /// Returns the inputs in service that block inputs of lower priority. In special mask mode, masked inputs do not
    /// block.
    fn blocking(&self) -> u8 {
        match self.special_mask {
            true => self.in_service & !self.mask,
            false => self.in_service,
        }
    }

    /// Returns the rank of the input of highest priority in `inputs`; 0 is the highest rank.
    fn highest_rank(&self, inputs: u8) -> Option<u8> {
        let ranks = inputs.rotate_right(u32::from(self.lowest) + 1);
        (0..8).find(|rank| ranks & 1 << rank != 0)
    }

    fn input_at(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// Writes ICW1. Ignores LTIM (bit 3), as chipsets with edge/level control registers do.
    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level_triggered: self.level_triggered,
            vector_base: self.vector_base,
            mask: 0,
            single: value & 0x02 != 0,
            icw4_needed: value & 0x01 != 0,
            awaiting: Awaiting::Icw2,
            ..Self::new(self.chip)
        };
    }

    /// Writes OCW3.
    fn write_ocw3(&mut self, value: u8) {
        match value & 0x60 {
            0x40 => self.special_mask = false,
            0x60 => self.special_mask = true,
            _ => {}
        }
        match value & 0x07 {
            0x04..=0x07 => self.poll = true,
            0x02 => self.read_in_service = false,
            0x03 => self.read_in_service = true,
            _ => {}
        }
    }

    /// Writes OCW2.
    fn write_ocw2(&mut self, value: u8) {
        let rotate = value & 0x80 != 0;
        let level = value & 0x07;
        match value & 0x60 {
            0x00 => self.rotate_on_auto_eoi = rotate,
            0x20 => {
                let Some(rank) = self.highest_rank(self.blocking()) else {
                    return;
                };
                self.end_interrupt(self.input_at(rank), rotate);
            }
            0x60 => self.end_interrupt(level, rotate),
            _ if rotate => self.lowest = level,
            _ => {}
        }
    }

    fn end_interrupt(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.lowest = input;
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

/// Pair of 8259As.
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
    /// Creates a pair with all lines masked and low.
    pub fn new() -> Self {
        Self {
            state: PicState {
                master: Controller::new(Chip::Master),
                slave: Controller::new(Chip::Slave),
            },
        }
    }

    /// Sets the level of `line`, 0 to 15. Ignores line 2, the cascade, and lines that do not exist.
    pub fn set_level(&mut self, line: u8, asserted: bool) {
        match line {
            CASCADE | 16.. => return,
            0..8 => self.state.master.set_line(line, asserted),
            8..16 => self.state.slave.set_line(line - 8, asserted),
        }
        self.update_cascade();
    }

    /// Returns the level of INTR: true if an interrupt is pending for [`Self::acknowledge`].
    pub fn is_pending(&self) -> bool {
        self.state.master.pending_input().is_some()
    }

    /// Performs the processor's acknowledge cycle: moves the pending interrupt into service and returns its vector.
    ///
    /// Without a pending request, returns the spurious vector of line 7, or of line 15 if the slave has lost its
    /// request. A spurious interrupt is not in service (data sheet, "Interrupt sequence").
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.state.master.acknowledge() {
            Some(CASCADE) => {
                let input = self.state.slave.acknowledge();
                self.state.slave.vector(input.unwrap_or(SPURIOUS))
            }
            input => self.state.master.vector(input.unwrap_or(SPURIOUS)),
        };
        self.update_cascade();
        vector
    }

    /// Reads port `offset` (0 or 1) of `chip`. In poll mode, the read acknowledges an interrupt.
    pub fn read(&mut self, chip: Chip, offset: u64) -> u8 {
        let value = self.chip(chip).read(offset);
        self.update_cascade();
        value
    }

    /// Writes port `offset` (0 or 1) of `chip`.
    pub fn write(&mut self, chip: Chip, offset: u64, value: u8) {
        self.chip(chip).write(offset, value);
        self.update_cascade();
    }

    /// Returns the edge/level control register of `chip`. A set bit means level-triggered.
    pub fn level_triggered(&self, chip: Chip) -> u8 {
        match chip {
            Chip::Master => self.state.master.level_triggered(),
            Chip::Slave => self.state.slave.level_triggered(),
        }
    }

    /// Writes the edge/level control register of `chip`. Lines 0, 1, 2, 8 and 13 stay edge-triggered.
    pub fn set_level_triggered(&mut self, chip: Chip, value: u8) {
        self.chip(chip).set_level_triggered(value);
        self.update_cascade();
    }

    fn chip(&mut self, chip: Chip) -> &mut Controller {
        match chip {
            Chip::Master => &mut self.state.master,
            Chip::Slave => &mut self.state.slave,
        }
    }

    /// Propagates INT of the slave to the master.
    fn update_cascade(&mut self) {
        let asserted = self.state.slave.pending_input().is_some();
        self.state.master.set_line(CASCADE, asserted);
    }
}

impl Persist for Pic {
    type State = PicState;

    fn save(&self) -> Result<PicState, Error> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: PicState) -> Result<(), Error> {
        let reason = state.master.invalid_reason(Chip::Master);
        if let Some(reason) = reason.or_else(|| state.slave.invalid_reason(Chip::Slave)) {
            return Err(Error::Invalid {
                component: PicState::NAME,
                reason,
            });
        }
        self.state = state;
        self.update_cascade();
        Ok(())
    }
}
