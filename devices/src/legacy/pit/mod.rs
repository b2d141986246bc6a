//! The interval timer: an 8254 at ports 0x40 to 0x43, and the system control port 0x61 with the gate and the output of
//! its counter 2.
//!
//! Counting is computed from a clock, never ticked: an idle timer costs nothing, and one that was never programmed has
//! never armed its timerfd. What differs from the data sheet:
//!
//! - A count takes effect when it is written, not one tick later, and in modes 2 and 3 it starts a new period at once
//!   instead of after the current one.
//! - Counter 0 gives one pulse to its interrupt for each rising edge of its output. Edges that nobody looked at are one
//!   pulse together, as on hardware, where the interrupt controller latches one.
//! - Edges are looked at no more often than every [`MIN_PERIOD`], so that a guest cannot keep the host busy.
//! - Bits 2 and 3 of port 0x61 (parity and channel check) read as zero.

mod counter;
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
use counter::Counter;

/// First port of the counters: 4 ports.
pub const PORT: u64 = 0x40;
/// The system control port: 1 port, a [`Window`](crate::Window) from [`CONTROL_OFFSET`].
pub const CONTROL_PORT: u64 = 0x61;
/// Offset of the system control port among the registers of [`Pit`].
pub const CONTROL_OFFSET: u64 = CONTROL_PORT - PORT;
/// How often the host wakes up at most for counter 0.
pub const MIN_PERIOD: Duration = Duration::from_micros(100);

const CONTROL_WORD: u64 = 3;

/// Input frequency of all counters, in Hz.
const FREQUENCY: u128 = 1_193_182;
const NANOSECONDS: u128 = 1_000_000_000;

/// Ticks between two memory refreshes: what counter 1 is set to on a PC.
const REFRESH: u64 = 18;

/// A counter, stopped, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoppedCounter {
    counter: Counter,
    runs: bool,
}

/// State of a [`Pit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    counters: [StoppedCounter; 3],
    seen: u64,
    speaker: bool,
}

impl Schema for PitState {
    const NAME: &'static str = "pit";
    const VERSION: u32 = 1;
}

/// The model. Its file descriptor is readable when [`Self::expired`] is to be called.
pub struct Pit {
    counters: [Counter; 3],
    /// Edges of counter 0 that its interrupt has been given.
    seen: u64,
    /// When counter 0 was looked at last, if ever.
    looked: Option<Duration>,
    speaker: bool,
    interrupt: Arc<dyn Interrupt>,
    clock: Box<dyn Clock>,
    timer: TimerFd,
    armed: bool,
}

impl Pit {
    /// A timer that nobody has programmed, whose counter 0 drives `interrupt`. `clock` must not go back.
    ///
    /// # Errors
    /// The kernel's answer when no timerfd can be made.
    pub fn new(interrupt: Arc<dyn Interrupt>, clock: Box<dyn Clock>) -> io::Result<Self> {
        Ok(Self {
            counters: [true, true, false].map(Counter::new),
            seen: 0,
            looked: None,
            speaker: false,
            interrupt,
            clock,
            timer: TimerFd::new()?,
            armed: false,
        })
    }

    /// Looks at counter 0: gives its interrupt a pulse if the output has risen, and sets the timerfd for the next edge.
    ///
    /// Calling it too early does nothing. It does not read the timerfd, which would block when a vCPU has reprogrammed
    /// the counter meanwhile: setting a timerfd also makes it unreadable.
    pub fn expired(&mut self) {
        let now = self.clock.now();
        self.looked = Some(now);
        let edges = self.counters[0].edges(ticks_at(now));
        if edges > self.seen {
            self.seen = edges;
            self.interrupt.trigger();
        }
        self.arm();
    }

    /// When to look at counter 0 again; never zero, which would disarm the timerfd.
    fn delay(&self) -> Option<Duration> {
        let now = self.clock.now();
        let ticks = ticks_at(now);
        let counter = &self.counters[0];
        // Since the last look, so that programming the counter anew does not bring the next one nearer.
        let since = self
            .looked
            .map_or(MIN_PERIOD, |looked| now.saturating_sub(looked));
        let shortest = MIN_PERIOD.saturating_sub(since).max(Duration::from_nanos(1));
        if counter.edges(ticks) > self.seen {
            return Some(shortest);
        }
        let edge = ticks.saturating_add(counter.until_edge(ticks)?);
        Some(time_of(edge).saturating_sub(now).max(shortest))
    }

    /// Sets the timerfd for the next edge of counter 0, or for none.
    fn arm(&mut self) {
        let delay = self.delay();
        // Setting a timerfd fails only for what is not a time, which no period of a counter is.
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

    /// Counter 0 has a new mode or count: edges of the old one are past.
    fn counter_0_changed(&mut self) {
        self.seen = 0;
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
                    self.counter_0_changed();
                }
            }
            None => self.read_back(value, now),
        }
    }

    /// The read-back command: counters in bits 1 to 3, count unless bit 5, status unless bit 4.
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
            | u8::from(now / REFRESH % 2 == 1) << 4
            | u8::from(counter.output(now)) << 5
    }
}

/// Ticks of the counters' clock at `time`.
fn ticks_at(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * FREQUENCY / NANOSECONDS).unwrap_or(u64::MAX)
}

/// The first time at which `ticks` have passed.
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
            // The control word can only be written.
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let now = self.now();
        match offset {
            0 if self.counters[0].write(value, now) => self.counter_0_changed(),
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
            let (counter, runs) = counter.frozen(now);
            StoppedCounter { counter, runs }
        });
        Ok(PitState {
            counters,
            seen: self.seen,
            speaker: self.speaker,
        })
    }

    /// Counts on from where the state was saved, and sets the timerfd.
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
                counter.run_from(now);
            }
        }
        let counters = counters.map(|stopped| stopped.counter);
        let edges = counters[0].edges(now);
        if state.seen > edges {
            return invalid(format!("{} edges seen of {edges}", state.seen));
        }
        if !counters[0].gate() || !counters[1].gate() {
            return invalid("gate 0 or 1 is low, which are wired high".to_owned());
        }
        self.counters = counters;
        self.seen = state.seen;
        self.speaker = state.speaker;
        self.arm();
        Ok(())
    }
}
