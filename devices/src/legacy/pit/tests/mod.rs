mod counting;
mod lifetime;

use std::sync::Arc;
use std::time::Duration;

use super::{CONTROL_OFFSET, Pit, time_of};
use crate::bus::ByteRegisters;
use crate::testing::{EdgeCounter, ManualClock};

/// A timer on a clock that stands still.
struct Bench {
    pit: Pit,
    clock: ManualClock,
    interrupt: Arc<EdgeCounter>,
    /// Ticks since the start, so that rounding does not add up.
    ticks: u64,
    shown: Duration,
}

impl Bench {
    fn new() -> Self {
        let (clock, interrupt) = (ManualClock::default(), Arc::new(EdgeCounter::default()));
        Self {
            pit: Pit::new(interrupt.clone(), Box::new(clock.clone())).unwrap(),
            clock,
            interrupt,
            ticks: 0,
            shown: Duration::ZERO,
        }
    }

    fn program(&mut self, counter: u8, control: u8, count: u16) {
        self.pit.write_register(3, counter << 6 | control);
        for byte in count.to_le_bytes() {
            self.pit.write_register(counter.into(), byte);
        }
    }

    fn pass(&mut self, ticks: u64) {
        self.ticks += ticks;
        let at = time_of(self.ticks);
        self.clock.advance(at - self.shown);
        self.shown = at;
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

    /// Pulses that counter 0 gives when it is looked at now.
    fn pulses(&mut self) -> u32 {
        self.pit.expired();
        self.interrupt.take()
    }

    fn is_armed(&self) -> bool {
        // One that has expired meanwhile counts as disarmed, so that only the other direction says something.
        assert!(self.pit.armed || !self.pit.timer.is_armed().unwrap());
        self.pit.armed
    }
}
