//! The clock and memory of an MC146818 at ports 0x70 (index) and 0x71 (data).
//!
//! The time is that of the host in UTC, plus what a guest has set it ahead. Update in progress (bit 7 of register A) is
//! set for the last 244 us of each second, so that one who sees it clear has that long to read a consistent time; it is
//! always clear while register B stops the clock. There are no alarms and no periodic interrupts: the alarm registers and
//! the enable bits of register B are kept, and register C reads as zero. The day of the week follows from the date.

mod calendar;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::ByteRegisters;
use crate::clock::Clock;

pub use calendar::Calendar;

/// First port: 2 ports.
pub const PORT: u64 = 0x70;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Nanoseconds of a second before the update begins (data sheet, "Update Cycle").
const UPDATE_FROM: u32 = 1_000_000_000 - 244_000;

/// Register B: the clock stands still while it is set.
const SET: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Bit of the hour in 12-hour mode.
const AFTERNOON: u8 = 0x80;

/// The time base runs, at 32,768 Hz with a periodic rate of 1,024 Hz.
const A_AFTER_RESET: u8 = 0x26;
/// Valid RAM and time.
const D_VALUE: u8 = 0x80;

const BYTES: usize = 128;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How much memory the guest has, in bytes; told by registers 0x15 to 0x18, 0x30, 0x31, 0x34, 0x35 and 0x5b to 0x5d.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize {
    /// From address 0 up to the hole below 4 GiB.
    pub below_4_gib: u64,
    /// From 4 GiB on.
    pub above_4_gib: u64,
}

/// State of a [`Cmos`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    index: u8,
    /// All registers that are kept as they were written.
    memory: Vec<u8>,
    /// Seconds that the guest's time is ahead of the host's.
    ahead: i64,
    /// The time at which register B stopped the clock.
    stopped: Option<Calendar>,
}

impl Schema for CmosState {
    const NAME: &'static str = "cmos";
    const VERSION: u32 = 1;
}

/// The model.
pub struct Cmos {
    clock: Box<dyn Clock>,
    state: CmosState,
}

impl Cmos {
    /// A clock that shows the time of `clock` (since 1970, UTC), in BCD and 24 hours, of a machine with `size` of memory.
    pub fn new(size: MemorySize, clock: Box<dyn Clock>) -> Self {
        let mut memory = vec![0; BYTES];
        memory[usize::from(A)] = A_AFTER_RESET;
        memory[usize::from(B)] = HOURS_24;
        let conventional = size.below_4_gib.min(640 * KIB) / KIB;
        let extended = (size.below_4_gib.saturating_sub(MIB) / KIB).min(0xffff);
        let above_16_mib = (size.below_4_gib.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff);
        let above_4_gib = (size.above_4_gib / (64 * KIB)).min(0xff_ffff);
        for (register, length, value) in [
            (0x15, 2, conventional),
            (0x17, 2, extended),
            (0x30, 2, extended),
            (0x34, 2, above_16_mib),
            (0x5b, 3, above_4_gib),
        ] {
            memory[register..register + length].copy_from_slice(&value.to_le_bytes()[..length]);
        }
        let state = CmosState {
            index: 0,
            memory,
            ahead: 0,
            stopped: None,
        };
        Self { clock, state }
    }

    /// Seconds since 1970 on the host.
    fn host_seconds(&self) -> i64 {
        i64::try_from(self.clock.now().as_secs()).unwrap_or(i64::MAX)
    }

    fn now(&self) -> Calendar {
        match self.state.stopped {
            Some(calendar) => calendar,
            None => Calendar::at(self.host_seconds().saturating_add(self.state.ahead)),
        }
    }

    fn set_time(&mut self, calendar: Calendar) {
        let calendar = calendar.clamped();
        match &mut self.state.stopped {
            Some(stopped) => *stopped = calendar,
            None => self.state.ahead = calendar.seconds().saturating_sub(self.host_seconds()),
        }
    }

    fn kept(&self, register: u8) -> u8 {
        self.state.memory[usize::from(register) % BYTES]
    }

    fn control(&self, bit: u8) -> bool {
        self.kept(B) & bit != 0
    }

    fn read_data(&self) -> u8 {
        let now = self.now();
        match self.state.index {
            SECONDS => self.encode(now.second),
            MINUTES => self.encode(now.minute),
            HOURS => self.encode_hour(now.hour),
            WEEKDAY => now.weekday(),
            DAY => self.encode(now.day),
            MONTH => self.encode(now.month),
            YEAR => self.encode(now.year),
            CENTURY => self.encode(now.century),
            A => self.kept(A) | self.update_in_progress(),
            C => 0,
            D => D_VALUE,
            register => self.kept(register),
        }
    }

    fn write_data(&mut self, value: u8) {
        let mut time = self.now();
        match self.state.index {
            SECONDS => time.second = self.decode(value),
            MINUTES => time.minute = self.decode(value),
            HOURS => time.hour = self.decode_hour(value),
            DAY => time.day = self.decode(value),
            MONTH => time.month = self.decode(value),
            YEAR => time.year = self.decode(value),
            CENTURY => time.century = self.decode(value),
            B => return self.write_control(value),
            WEEKDAY | C | D => return,
            A => return self.keep(value & !UPDATE_IN_PROGRESS),
            _ => return self.keep(value),
        }
        self.set_time(time);
    }

    /// Keeps what was written to the register at the index.
    fn keep(&mut self, value: u8) {
        let index = usize::from(self.state.index) % BYTES;
        self.state.memory[index] = value;
    }

    /// Register B. A clock that is let go runs from the time that was written while it stood still.
    fn write_control(&mut self, value: u8) {
        self.keep(value);
        if value & SET != 0 {
            self.state.stopped = Some(self.now());
        } else if let Some(time) = self.state.stopped.take() {
            self.set_time(time);
        }
    }

    fn update_in_progress(&self) -> u8 {
        match self.clock.now().subsec_nanos() >= UPDATE_FROM && !self.control(SET) {
            true => UPDATE_IN_PROGRESS,
            false => 0,
        }
    }

    fn encode(&self, value: u8) -> u8 {
        match self.control(BINARY) {
            true => value,
            false => ((value / 10) << 4) | (value % 10),
        }
    }

    /// Values out of range come back as such, to be clamped.
    fn decode(&self, value: u8) -> u8 {
        match self.control(BINARY) {
            true => value,
            false => (value >> 4) * 10 + (value & 0x0f),
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.control(HOURS_24) {
            return self.encode(hour);
        }
        let afternoon = if hour < 12 { 0 } else { AFTERNOON };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.control(HOURS_24) {
            return self.decode(value);
        }
        let afternoon = if value & AFTERNOON == 0 { 0 } else { 12 };
        self.decode(value & !AFTERNOON) % 12 + afternoon
    }
}

impl ByteRegisters for Cmos {
    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            1 => self.read_data(),
            // The index can only be written.
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            // Bit 7 masks the NMI, of which there is none.
            0 => self.state.index = value & 0x7f,
            1 => self.write_data(value),
            _ => {}
        }
    }
}

impl Persist for Cmos {
    type State = CmosState;

    fn save(&self) -> Result<CmosState, Error> {
        Ok(self.state.clone())
    }

    /// The time goes on with the clock of the host that it is restored on.
    fn restore(&mut self, state: CmosState) -> Result<(), Error> {
        let invalid = |reason| {
            Err(Error::Invalid {
                component: CmosState::NAME,
                reason,
            })
        };
        if state.memory.len() != BYTES {
            return invalid(format!("{} bytes of memory, not {BYTES}", state.memory.len()));
        }
        if usize::from(state.index) >= BYTES {
            return invalid(format!("index {:#x}", state.index));
        }
        let stops = state.memory[usize::from(B)] & SET != 0;
        if state.stopped.is_some() != stops {
            return invalid("register B and the clock disagree on whether it runs".to_owned());
        }
        if let Some(stopped) = state.stopped.filter(|stopped| *stopped != stopped.clamped()) {
            return invalid(format!("time {stopped:?}"));
        }
        self.state = state;
        Ok(())
    }
}
