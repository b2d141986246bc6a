//! The interval timer: an 8254 at ports 0x40 to 0x43, and system control port 0x61 with gate and output of counter 2.
//!
//! The model computes counts from a clock instead of ticking: an idle timer costs nothing, and an unprogrammed timer
//! never arms its timerfd. Differences from the data sheet:
//!
//! - A count takes effect when it is written, not one tick later. In modes 2 and 3, the new period starts at once, not
//!   after the current one.
//! - Counter 0 triggers its interrupt for each rising edge of its output. Several edges between two checks trigger one
//!   interrupt, because the interrupt controller of a PC latches only one.
//! - The host checks for edges at most once per [`MIN_PERIOD`], so that a guest cannot keep the host busy.
//! - Bits 2 and 3 of port 0x61 (parity and channel check) read as zero.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapshot::persist::Error;
use snapshot::{Persist, Schema};
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::ByteRegisters;
use crate::clock::Clock;
use crate::interrupt::Interrupt;

/// First of the 4 ports of the counters.
pub const PORT: u64 = 0x40;
/// System control port (1 port), an [`OffsetDevice`](crate::OffsetDevice) from [`CONTROL_OFFSET`].
pub const CONTROL_PORT: u64 = 0x61;
/// Offset of the system control port among the registers of [`Pit`].
pub const CONTROL_OFFSET: u64 = CONTROL_PORT - PORT;
/// Minimum time between two checks of counter 0.
pub const MIN_PERIOD: Duration = Duration::from_micros(100);

const CONTROL_WORD: u64 = 3;

/// Input frequency of all counters, in Hz.
const FREQUENCY: u128 = 1_193_182;
const NANOSECONDS: u128 = 1_000_000_000;

/// Ticks between two memory refreshes, by the setting of counter 1 on a PC.
const REFRESH_TICKS: u64 = 18;

/// Bytes of the count per transfer, by the number in the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Transfer {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

/// One counter of an 8254.
///
/// Value and output follow from the ticks since its start. `now` is in ticks of the clock that all counters share. A
/// mode is 0 to 5.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    mode: u8,
    transfer: Transfer,
    bcd: bool,
    gate: bool,
    /// Count, 1 to 65,536, if the guest has written one since the control word.
    count: Option<u32>,
    /// First byte of an incomplete count.
    first_byte: Option<u8>,
    /// The next read returns the second of two bytes.
    second_byte: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// Set once a count, or the gate in modes 1 and 5, has started the counter.
    started: bool,
    /// Ticks counted before `since`.
    counted: u64,
    /// Start or last continuation, in ticks of the clock; `None` while the counter is stopped.
    since: Option<u64>,
}

impl Counter {
    fn new(gate: bool) -> Self {
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

    /// Returns the reason why a saved state is invalid, or `None` if it is valid. `runs` means that the saved counter
    /// was counting.
    fn invalid_reason(&self, runs: bool) -> Option<String> {
        if self.since.is_some() {
            return Some("counter has a time of another host's clock".to_owned());
        }
        if self.mode > 5 {
            return Some(format!("counter mode {} is not 0 to 5", self.mode));
        }
        let max = self.modulus();
        if let Some(count) = self.count.filter(|count| *count == 0 || *count > max) {
            return Some(format!("count {count} is not 1 to {max}"));
        }
        if (self.started && self.count.is_none()) || (runs && !self.started) {
            return Some("counter runs without a count or a trigger".to_owned());
        }
        None
    }

    /// Returns a stopped copy, independent of the host's clock, and true if the counter is counting.
    fn stopped(&self, now: u64) -> (Self, bool) {
        let mut stopped = self.clone();
        stopped.pause(now);
        (stopped, self.since.is_some())
    }

    /// Continues to count at `now`.
    fn continue_at(&mut self, now: u64) {
        self.since = Some(now);
    }

    #[cfg(test)]
    fn set_counted(&mut self, ticks: u64) {
        self.counted = ticks;
    }

    fn gate(&self) -> bool {
        self.gate
    }

    /// Sets the gate. A rising edge triggers modes 1 and 5 and restarts modes 2 and 3; a low gate stops the others.
    fn set_gate(&mut self, gate: bool, now: u64) {
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

    /// Writes the control word: transfer in bits 4 and 5, mode in bits 1 to 3, BCD in bit 0. Stops the counter until
    /// the next count.
    fn set_control(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            // Modes 6 and 7 are 2 and 3: the data sheet defines their upper bit as "don't care".
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

    /// Writes a byte of the count. Returns true if the count is complete.
    fn write(&mut self, value: u8, now: u64) -> bool {
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
            // A count alone does not trigger these modes. It changes only the length of a running one-shot.
            self.counted = 0;
        }
        true
    }

    fn read(&mut self, now: u64) -> u8 {
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

    /// Latches the count for the next read, unless a count is already latched.
    fn latch_count(&mut self, now: u64) {
        let value = self.value(now);
        self.latched_count.get_or_insert(value);
    }

    /// Latches the status for the next read, unless a status is already latched.
    fn latch_status(&mut self, now: u64) {
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

    /// Returns the level of the output pin.
    fn output(&self, now: u64) -> bool {
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

    /// Returns the number of rising edges of the output since the start.
    fn edges(&self, now: u64) -> u64 {
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

    /// Returns the ticks to the next rising edge of the output, if there is one without further writes.
    fn ticks_to_edge(&self, now: u64) -> Option<u64> {
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

    /// Returns the counting element in read format.
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

/// Returns the period in modes 2 and 3, where the data sheet forbids a count of 1.
fn period(count: u32) -> u64 {
    u64::from(count.max(2))
}

/// Returns the value in mode 3, which counts down by two, twice per period. The first half of an odd period is one tick
/// longer.
fn square_wave_value(period: u64, ticks: u64) -> u64 {
    let even = period & !1;
    let first_half = period.div_ceil(2);
    match ticks.checked_sub(first_half) {
        Some(ticks) => even - 2 * ticks,
        None => even - 2 * ticks.min(even / 2),
    }
}

/// Decodes BCD. Digits above 9 keep their value.
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

/// Saved counter: stopped, with its running state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoppedCounter {
    counter: Counter,
    runs: bool,
}

/// State of a [`Pit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    counters: [StoppedCounter; 3],
    reported_edges: u64,
    speaker: bool,
}

impl Schema for PitState {
    const NAME: &'static str = "pit";
    const VERSION: u32 = 1;
}

/// Interval timer. The event loop calls [`Self::handle_timer`] when its file descriptor is readable.
pub struct Pit {
    counters: [Counter; 3],
    /// Edges of counter 0 that its interrupt has reported.
    reported_edges: u64,
    /// Time of the last check of counter 0, if any.
    checked_at: Option<Duration>,
    speaker: bool,
    interrupt: Arc<dyn Interrupt>,
    clock: Box<dyn Clock>,
    timer: TimerFd,
    armed: bool,
}

impl Pit {
    /// Creates an unprogrammed timer whose counter 0 triggers `interrupt`. `clock` must be monotonic.
    ///
    /// # Errors
    /// Fails if `timerfd_create` fails.
    pub fn new(interrupt: Arc<dyn Interrupt>, clock: Box<dyn Clock>) -> io::Result<Self> {
        Ok(Self {
            counters: [true, true, false].map(Counter::new),
            reported_edges: 0,
            checked_at: None,
            speaker: false,
            interrupt,
            clock,
            timer: TimerFd::new()?,
            armed: false,
        })
    }

    /// Checks counter 0: triggers its interrupt if the output has risen, and arms the timerfd for the next edge.
    ///
    /// An early call has no effect. The method does not read the timerfd: the read would block if a vCPU has programmed
    /// the counter in the meantime. Arming a timerfd also makes it unreadable.
    pub fn handle_timer(&mut self) {
        let now = self.clock.now();
        self.checked_at = Some(now);
        let edges = self.counters[0].edges(ticks_at(now));
        if edges > self.reported_edges {
            self.reported_edges = edges;
            self.interrupt.trigger();
        }
        self.arm();
    }

    /// Returns the time to the next check of counter 0. Never zero, which would disarm the timerfd.
    fn delay(&self) -> Option<Duration> {
        let now = self.clock.now();
        let ticks = ticks_at(now);
        let counter = &self.counters[0];
        // Relative to the last check: programming the counter must not advance the next check.
        let since = self
            .checked_at
            .map_or(MIN_PERIOD, |checked_at| now.saturating_sub(checked_at));
        let min = MIN_PERIOD.saturating_sub(since).max(Duration::from_nanos(1));
        if counter.edges(ticks) > self.reported_edges {
            return Some(min);
        }
        let edge = ticks.saturating_add(counter.ticks_to_edge(ticks)?);
        Some(time_of(edge).saturating_sub(now).max(min))
    }

    /// Arms the timerfd for the next edge of counter 0, or disarms it.
    fn arm(&mut self) {
        let delay = self.delay();
        // `timerfd_settime` fails only for an invalid time, and every period of a counter is valid.
        match delay {
            Some(delay) => {
                let _ = self.timer.reset(delay, None);
            }
            None if self.armed => {
                let _ = self.timer.clear();
            }
            None => {}
        }
        self.armed = delay.is_some();
    }

    fn now(&self) -> u64 {
        ticks_at(self.clock.now())
    }

    /// Handles a new mode or count of counter 0: discards edges of the old one.
    fn restart_counter_0(&mut self) {
        self.reported_edges = 0;
        self.arm();
    }

    fn write_control_word(&mut self, value: u8, now: u64) {
        let selected = usize::from(value >> 6);
        match self.counters.get_mut(selected) {
            // Counter latch command.
            Some(counter) if value & 0x30 == 0 => counter.latch_count(now),
            Some(counter) => {
                counter.set_control(value);
                if selected == 0 {
                    self.restart_counter_0();
                }
            }
            None => self.read_back(value, now),
        }
    }

    /// Handles the read-back command: counters in bits 1 to 3; bit 5 clear latches counts, bit 4 clear latches status.
    fn read_back(&mut self, value: u8, now: u64) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(now);
            }
            if value & 0x10 == 0 {
                counter.latch_status(now);
            }
        }
    }

    fn read_control_port(&self, now: u64) -> u8 {
        let counter = &self.counters[2];
        u8::from(counter.gate())
            | u8::from(self.speaker) << 1
            | u8::from(now / REFRESH_TICKS % 2 == 1) << 4
            | u8::from(counter.output(now)) << 5
    }
}

/// Returns the ticks of the counters' clock at `time`.
fn ticks_at(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * FREQUENCY / NANOSECONDS).unwrap_or(u64::MAX)
}

/// Returns the earliest time at which `ticks` have passed.
fn time_of(ticks: u64) -> Duration {
    let nanoseconds = (u128::from(ticks) * NANOSECONDS).div_ceil(FREQUENCY);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl ByteRegisters for Pit {
    fn read_register(&mut self, offset: u64) -> u8 {
        let now = self.now();
        match offset {
            0 => self.counters[0].read(now),
            1 => self.counters[1].read(now),
            2 => self.counters[2].read(now),
            CONTROL_OFFSET => self.read_control_port(now),
            // The control word is write-only.
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let now = self.now();
        match offset {
            0 if self.counters[0].write(value, now) => self.restart_counter_0(),
            1 => _ = self.counters[1].write(value, now),
            2 => _ = self.counters[2].write(value, now),
            CONTROL_WORD => self.write_control_word(value, now),
            CONTROL_OFFSET => {
                self.counters[2].set_gate(value & 1 != 0, now);
                self.speaker = value & 2 != 0;
            }
            _ => {}
        }
    }
}

impl AsRawFd for Pit {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Persist for Pit {
    type State = PitState;

    fn save(&self) -> Result<PitState, Error> {
        let now = self.now();
        let counters = self.counters.each_ref().map(|counter| {
            let (counter, runs) = counter.stopped(now);
            StoppedCounter { counter, runs }
        });
        Ok(PitState {
            counters,
            reported_edges: self.reported_edges,
            speaker: self.speaker,
        })
    }

    /// Restores the counters, which continue from their saved values, and arms the timerfd.
    fn restore(&mut self, state: PitState) -> Result<(), Error> {
        let invalid = |reason| {
            Err(Error::Invalid {
                component: PitState::NAME,
                reason,
            })
        };
        let now = self.now();
        let mut counters = state.counters.clone();
        for StoppedCounter { counter, runs } in &mut counters {
            if let Some(reason) = counter.invalid_reason(*runs) {
                return invalid(reason);
            }
            if *runs {
                counter.continue_at(now);
            }
        }
        let counters = counters.map(|stopped| stopped.counter);
        let edges = counters[0].edges(now);
        if state.reported_edges > edges {
            return invalid(format!(
                "{} reported edges exceed {edges} edges",
                state.reported_edges
            ));
        }
        if !counters[0].gate() || !counters[1].gate() {
            return invalid("gate 0 or 1 is low; both are always high".to_owned());
        }
        self.counters = counters;
        self.reported_edges = state.reported_edges;
        self.speaker = state.speaker;
        self.arm();
        Ok(())
    }
}
