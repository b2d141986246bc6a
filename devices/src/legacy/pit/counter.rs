use serde::{Deserialize, Serialize};

/// How bytes of the count are transferred, by the number in the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Transfer {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

/// One counter of an 8254.
///
/// It is never ticked: its value and its output follow from the ticks since it was started. `now` is in ticks of the
/// clock that all counters share. A mode is 0 to 5.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counter {
    mode: u8,
    transfer: Transfer,
    bcd: bool,
    gate: bool,
    /// The count, 1 to 65,536, once one has been written since the control word.
    count: Option<u32>,
    /// First byte of a count whose second one is missing.
    first_byte: Option<u8>,
    /// Whether the next byte read is the second of two.
    second_byte: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// Whether it has been started: by a count, or by the gate in modes 1 and 5.
    started: bool,
    /// Ticks that it had counted at `since`.
    counted: u64,
    /// When it last began to count, in ticks of the clock; `None` while it does not.
    since: Option<u64>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            transfer: Transfer::LowThenHigh,
            bcd: false,
            gate,
            count: None,
            first_byte: None,
            second_byte: false,
            latched_count: None,
            latched_status: None,
            started: false,
            counted: 0,
            since: None,
        }
    }

    /// Which value a guest could not have brought about, if any. `runs` tells whether the saved counter counted.
    pub(super) fn invalid_reason(&self, runs: bool) -> Option<String> {
        if self.since.is_some() {
            return Some("a time of another host's clock".to_owned());
        }
        if self.mode > 5 {
            return Some(format!("mode {}, not 0 to 5", self.mode));
        }
        let largest = self.modulus();
        if let Some(count) = self.count.filter(|count| *count == 0 || *count > largest) {
            return Some(format!("count {count}, not 1 to {largest}"));
        }
        if (self.started && self.count.is_none()) || (runs && !self.started) {
            return Some("a counter that counts without a count or a trigger".to_owned());
        }
        None
    }

    /// The same counter, stopped, and whether it was running. What is saved knows nothing of this host's clock.
    pub(super) fn frozen(&self, now: u64) -> (Self, bool) {
        let mut frozen = self.clone();
        frozen.pause(now);
        (frozen, self.since.is_some())
    }

    /// Counts on from `now`.
    pub(super) fn run_from(&mut self, now: u64) {
        self.since = Some(now);
    }

    #[cfg(test)]
    pub(super) fn set_counted(&mut self, ticks: u64) {
        self.counted = ticks;
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    /// Sets the gate. A rising edge triggers modes 1 and 5 and restarts modes 2 and 3; a low gate stops the others.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            0 | 4 if rising && self.started => self.since = Some(now),
            0 | 4 | 2 | 3 if falling => self.pause(now),
            1 | 2 | 3 | 5 if rising && self.count.is_some() => self.start(now),
            _ => {}
        }
    }

    /// Takes a control word: bits 4 and 5 transfer, 1 to 3 mode, 0 BCD. It stops until a count is written.
    pub(super) fn set_control(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            // Modes 6 and 7 are 2 and 3 with a bit that is not looked at.
            mode: if mode > 5 { mode - 4 } else { mode },
            transfer: match control >> 4 & 3 {
                1 => Transfer::Low,
                2 => Transfer::High,
                _ => Transfer::LowThenHigh,
            },
            bcd: control & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    /// Takes a byte of the count. Returns whether the count is complete.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        let written = match (self.transfer, self.first_byte.take()) {
            (Transfer::Low, _) => u16::from_le_bytes([value, 0]),
            (Transfer::High, _) => u16::from_le_bytes([0, value]),
            (Transfer::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Transfer::LowThenHigh, None) => {
                self.first_byte = Some(value);
                return false;
            }
        };
        let count = match self.bcd {
            true => from_bcd(written) % self.modulus(),
            false => written.into(),
        };
        self.count = Some(if count == 0 { self.modulus() } else { count });
        if !matches!(self.mode, 1 | 5) {
            self.start(now);
        } else if !self.started {
            // A count alone does not trigger these modes, and leaves a running one-shot alone but for its length.
            self.counted = 0;
        }
        true
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.value(now))
            .to_le_bytes();
        let (byte, last) = match (self.transfer, self.second_byte) {
            (Transfer::Low, _) => (low, true),
            (Transfer::High, _) => (high, true),
            (Transfer::LowThenHigh, false) => (low, false),
            (Transfer::LowThenHigh, true) => (high, true),
        };
        self.second_byte = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    /// Keeps the count for reading; one that is kept already stays.
    pub(super) fn latch_count(&mut self, now: u64) {
        let value = self.value(now);
        self.latched_count.get_or_insert(value);
    }

    /// Keeps the status for reading; one that is kept already stays.
    pub(super) fn latch_status(&mut self, now: u64) {
        let output = u8::from(self.output(now)) << 7;
        let null_count = u8::from(self.count.is_none()) << 6;
        let transfer = match self.transfer {
            Transfer::Low => 0x10,
            Transfer::High => 0x20,
            Transfer::LowThenHigh => 0x30,
        };
        let status = output | null_count | transfer | self.mode << 1 | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// The output pin.
    pub(super) fn output(&self, now: u64) -> bool {
        let Some(count) = self.count.filter(|_| self.started) else {
            return self.mode != 0;
        };
        let ticks = self.ticks(now);
        match self.mode {
            0 | 1 => ticks >= u64::from(count),
            2 | 3 if self.since.is_none() => true,
            2 => ticks % period(count) != period(count) - 1,
            3 => ticks % period(count) < period(count).div_ceil(2),
            _ => ticks != u64::from(count),
        }
    }

    /// Rising edges of the output since it was started.
    pub(super) fn edges(&self, now: u64) -> u64 {
        let Some(count) = self.count.filter(|_| self.started) else {
            return 0;
        };
        let ticks = self.ticks(now);
        match self.mode {
            0 | 1 => u64::from(ticks >= u64::from(count)),
            2 | 3 => ticks / period(count),
            _ => u64::from(ticks > u64::from(count)),
        }
    }

    /// In how many ticks the output rises next, if it does without being told to.
    pub(super) fn until_edge(&self, now: u64) -> Option<u64> {
        let count = self.count.filter(|_| self.since.is_some())?;
        let ticks = self.ticks(now);
        match self.mode {
            0 | 1 => u64::from(count).checked_sub(ticks),
            2 | 3 => Some(period(count) - ticks % period(count)),
            _ => (u64::from(count) + 1).checked_sub(ticks),
        }
        .filter(|distance| *distance != 0)
    }

    fn start(&mut self, now: u64) {
        self.started = true;
        self.counted = 0;
        self.since = (self.gate || matches!(self.mode, 1 | 5)).then_some(now);
    }

    fn pause(&mut self, now: u64) {
        self.counted = self.ticks(now);
        self.since = None;
    }

    fn ticks(&self, now: u64) -> u64 {
        let running = self.since.map_or(0, |since| now.saturating_sub(since));
        self.counted.saturating_add(running)
    }

    /// The counting element as it is read.
    fn value(&self, now: u64) -> u16 {
        let Some(count) = self.count else {
            return 0;
        };
        let ticks = self.ticks(now);
        let modulus = u64::from(self.modulus());
        let value = match self.mode {
            2 => period(count) - ticks % period(count),
            3 => square_wave_value(period(count), ticks % period(count)),
            _ => u64::from(count) + modulus - ticks % modulus,
        } % modulus;
        match self.bcd {
            true => to_bcd(value),
            false => u16::try_from(value).unwrap_or(0),
        }
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }
}

/// Period in modes 2 and 3, where the data sheet forbids a count of 1.
fn period(count: u32) -> u64 {
    u64::from(count.max(2))
}

/// Mode 3 counts down by two, twice a period; for an odd period the first half is one tick longer.
fn square_wave_value(period: u64, ticks: u64) -> u64 {
    let even = period & !1;
    let first_half = period.div_ceil(2);
    match ticks.checked_sub(first_half) {
        Some(ticks) => even - 2 * ticks,
        None => even - 2 * ticks.min(even / 2),
    }
}

/// Digits above 9 count as what they are.
fn from_bcd(value: u16) -> u32 {
    [12, 8, 4, 0]
        .iter()
        .fold(0, |sum, shift| sum * 10 + u32::from(value >> shift & 0xf))
}

fn to_bcd(value: u64) -> u16 {
    let digits = [1000, 100, 10, 1].map(|weight| value / weight % 10);
    let packed = digits.iter().fold(0, |packed, digit| packed << 4 | digit);
    u16::try_from(packed).unwrap_or(0)
}
