//! Tests of the interval timer.
//!
//! | module | contents |
//! |---|---|
//! | [`counting`] | modes, transfers and ports |
//! | [`lifetime`] | timerfd, snapshots, arbitrary accesses |

mod counting;
mod lifetime;

use std::sync::Arc;
use std::time::Duration;

use super::{CONTROL_OFFSET, Pit, time_of};
use crate::bus::ByteRegisters;
use crate::testing::{EdgeCounter, ManualClock};

/// Timer with a manual clock.
struct Fixture {
    pit: Pit,
    clock: ManualClock,
    interrupt: Arc<EdgeCounter>,
    /// Ticks since the start. Exact, so that rounding errors do not add up.
    ticks: u64,
    time: Duration,
}

impl Fixture {
    fn new() -> Self {
        let (clock, interrupt) = (ManualClock::default(), Arc::new(EdgeCounter::default()));
        Self {
            pit: Pit::new(interrupt.clone(), Box::new(clock.clone())).unwrap(),
            clock,
            interrupt,
            ticks: 0,
            time: Duration::ZERO,
        }
    }

    fn program(&mut self, counter: u8, control: u8, count: u16) {
        self.pit.write_register(3, counter << 6 | control);
        for byte in count.to_le_bytes() {
            self.pit.write_register(counter.into(), byte);
        }
    }

    fn advance(&mut self, ticks: u64) {
        self.ticks += ticks;
        let at = time_of(self.ticks);
        self.clock.advance(at - self.time);
        self.time = at;
    }

    fn count(&mut self, counter: u8) -> u16 {
        self.pit.write_register(3, counter << 6);
        let low = self.pit.read_register(counter.into());
        u16::from_le_bytes([low, self.pit.read_register(counter.into())])
    }

    fn status(&mut self, counter: u8) -> u8 {
        self.pit.write_register(3, 0xe0 | 2 << counter);
        self.pit.read_register(counter.into())
    }

    fn output(&mut self) -> bool {
        self.pit.read_register(CONTROL_OFFSET) & 0x20 != 0
    }

    fn gate(&mut self, gate: bool) {
        self.pit.write_register(CONTROL_OFFSET, gate.into());
    }

    /// Checks counter 0 and returns the number of interrupts.
    fn pulses(&mut self) -> u32 {
        self.pit.handle_timer();
        self.interrupt.take()
    }

    fn is_armed(&self) -> bool {
        // An expired timerfd counts as disarmed, so that only this direction can be checked.
        assert!(self.pit.armed || !self.pit.timer.is_armed().unwrap());
        self.pit.armed
    }
}
