//! The real-time clock and CMOS memory of an MC146818 at ports 0x70 (index) and 0x71 (data).
//!
//! The time is the host's in UTC plus the offset that the guest has set. Update in progress (bit 7 of register A) is
//! set for the last 244 us of each second, and clear while register B stops the clock. A guest that reads the bit as
//! clear has at least 244 us to read a consistent time.
//!
//! There are no alarms and no periodic interrupts. The alarm registers and the enable bits of register B only store
//! values, and register C reads as zero. The day of the week follows from the date.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};

use crate::bus::ByteRegisters;
use crate::civil_time::CivilTime;
use crate::clock::Clock;

/// First of 2 ports.
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
/// Start of the update in nanoseconds of a second (data sheet, "Update Cycle").
const UPDATE_START: u32 = 1_000_000_000 - 244_000;

/// Register B: stops the clock.
const SET: u8 = 0x80;
/// Register B: binary values instead of BCD.
const BINARY: u8 = 0x04;
/// Register B: 24-hour mode.
const HOURS_24: u8 = 0x02;
/// Hour register in 12-hour mode: afternoon.
const AFTERNOON: u8 = 0x80;

/// Register A: the time base runs at 32,768 Hz with a periodic rate of 1,024 Hz.
const A_AFTER_RESET: u8 = 0x26;
/// Register D: RAM and time are valid.
const D_VALUE: u8 = 0x80;

const BYTES: usize = 128;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Size of guest memory in bytes, which registers 0x15 to 0x18, 0x30, 0x31, 0x34, 0x35 and 0x5b to 0x5d report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize {
    /// From address 0 to the hole below 4 GiB.
    pub below_4_gib: u64,
    /// From 4 GiB upwards.
    pub above_4_gib: u64,
}

/// Time registers: a [`CivilTime`] with the year in two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TimeRegisters {
    /// 0 to 59.
    second: u8,
    /// 0 to 59.
    minute: u8,
    /// 0 to 23.
    hour: u8,
    /// 1 to 31.
    day: u8,
    /// 1 to 12.
    month: u8,
    /// 0 to 99.
    year: u8,
    /// 0 to 99.
    century: u8,
}

impl TimeRegisters {
    fn from_unix(seconds: i64) -> Self {
        let time = CivilTime::from_unix(seconds);
        // The year is at most 9999.
        let [century, year] =
            [time.year / 100, time.year % 100].map(|part| u8::try_from(part).unwrap_or(u8::MAX));
        Self {
            second: time.second,
            minute: time.minute,
            hour: time.hour,
            day: time.day,
            month: time.month,
            year,
            century,
        }
    }

    fn civil_time(self) -> CivilTime {
        CivilTime {
            year: u16::from(self.century) * 100 + u16::from(self.year),
            month: self.month,
            day: self.day,
            hour: self.hour,
            minute: self.minute,
            second: self.second,
        }
    }

    /// Returns a copy with every register clamped to its range.
    fn clamped(self) -> Self {
        Self {
            second: self.second.min(59),
            minute: self.minute.min(59),
            hour: self.hour.min(23),
            day: self.day.clamp(1, 31),
            month: self.month.clamp(1, 12),
            year: self.year.min(99),
            century: self.century.min(99),
        }
    }
}

/// State of a [`Cmos`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    index: u8,
    /// Values of all registers that store writes.
    memory: Vec<u8>,
    /// Offset of the guest's time from the host's, in seconds.
    offset: i64,
    /// Time registers while register B stops the clock.
    stopped: Option<TimeRegisters>,
}

impl Schema for CmosState {
    const NAME: &'static str = "cmos";
    const VERSION: u32 = 1;
}

/// Real-time clock and CMOS memory.
pub struct Cmos {
    clock: Box<dyn Clock>,
    state: CmosState,
}

impl Cmos {
    /// Creates a model in BCD and 24-hour mode. `clock` supplies the UTC time since 1970, `size` the memory registers.
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
            offset: 0,
            stopped: None,
        };
        Self { clock, state }
    }

    /// Returns the host time in seconds since 1970.
    fn host_seconds(&self) -> i64 {
        i64::try_from(self.clock.now().as_secs()).unwrap_or(i64::MAX)
    }

    fn now(&self) -> TimeRegisters {
        match self.state.stopped {
            Some(time) => time,
            None => TimeRegisters::from_unix(self.host_seconds().saturating_add(self.state.offset)),
        }
    }

    fn set_time(&mut self, time: TimeRegisters) {
        let time = time.clamped();
        match &mut self.state.stopped {
            Some(stopped) => *stopped = time,
            None => {
                let seconds = time.civil_time().to_unix();
                self.state.offset = seconds.saturating_sub(self.host_seconds());
            }
        }
    }

    fn stored(&self, register: u8) -> u8 {
        self.state.memory[usize::from(register) % BYTES]
    }

    fn is_control_set(&self, bit: u8) -> bool {
        self.stored(B) & bit != 0
    }

    fn read_data(&self) -> u8 {
        let now = self.now();
        match self.state.index {
            SECONDS => self.encode(now.second),
            MINUTES => self.encode(now.minute),
            HOURS => self.encode_hour(now.hour),
            WEEKDAY => now.civil_time().weekday(),
            DAY => self.encode(now.day),
            MONTH => self.encode(now.month),
            YEAR => self.encode(now.year),
            CENTURY => self.encode(now.century),
            A => self.stored(A) | self.update_in_progress(),
            C => 0,
            D => D_VALUE,
            register => self.stored(register),
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
            A => return self.store(value & !UPDATE_IN_PROGRESS),
            _ => return self.store(value),
        }
        self.set_time(time);
    }

    /// Stores `value` in the selected register.
    fn store(&mut self, value: u8) {
        let index = usize::from(self.state.index) % BYTES;
        self.state.memory[index] = value;
    }

    /// Writes register B. A restarted clock continues from the time in the registers.
    fn write_control(&mut self, value: u8) {
        self.store(value);
        if value & SET != 0 {
            self.state.stopped = Some(self.now());
        } else if let Some(time) = self.state.stopped.take() {
            self.set_time(time);
        }
    }

    fn update_in_progress(&self) -> u8 {
        match self.clock.now().subsec_nanos() >= UPDATE_START && !self.is_control_set(SET) {
            true => UPDATE_IN_PROGRESS,
            false => 0,
        }
    }

    fn encode(&self, value: u8) -> u8 {
        match self.is_control_set(BINARY) {
            true => value,
            false => ((value / 10) << 4) | (value % 10),
        }
    }

    /// Decodes a time register. The caller clamps values out of range.
    fn decode(&self, value: u8) -> u8 {
        match self.is_control_set(BINARY) {
            true => value,
            false => (value >> 4) * 10 + (value & 0x0f),
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.is_control_set(HOURS_24) {
            return self.encode(hour);
        }
        let afternoon = if hour < 12 { 0 } else { AFTERNOON };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.is_control_set(HOURS_24) {
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
            // The index register is write-only.
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            // Bit 7 masks the NMI, which no device raises.
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

    /// Restores the registers. The time continues with the clock of the restoring host.
    fn restore(&mut self, state: CmosState) -> Result<(), Error> {
        let invalid = |reason| {
            Err(Error::Invalid {
                component: CmosState::NAME,
                reason,
            })
        };
        if state.memory.len() != BYTES {
            return invalid(format!(
                "{} bytes of CMOS memory instead of {BYTES}",
                state.memory.len()
            ));
        }
        if usize::from(state.index) >= BYTES {
            return invalid(format!("index {:#x} is beyond {BYTES} registers", state.index));
        }
        let is_stopped = state.memory[usize::from(B)] & SET != 0;
        if state.stopped.is_some() != is_stopped {
            return invalid("register B and the stopped time contradict each other".to_owned());
        }
        if let Some(stopped) = state.stopped.filter(|stopped| *stopped != stopped.clamped()) {
            return invalid(format!("{stopped:?} is out of range"));
        }
        self.state = state;
        Ok(())
    }
}
