use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::{any, proptest};
use snapshot::Persist;
use vmm_sys_util::poll::PollContext;

use super::{CONTROL_OFFSET, CONTROL_PORT, PORT, Pit, SHORTEST_PERIOD};
use crate::bus::{BusBuilder, BusDevice, ByteRegisters};
use crate::clock::MonotonicClock;
use crate::testing::{Access, EdgeCounter, ManualClock, accesses, comes_back, replay, survives_a_snapshot};
use crate::window::Window;

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
        let at = super::time_of(self.ticks);
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

#[test]
fn nothing_is_armed_before_counter_0_has_a_count() {
    let mut bench = Bench::new();
    assert!(!bench.is_armed());
    bench.program(2, 0x30, 1000);
    bench.pit.write_register(3, 0x34);
    assert_eq!(bench.status(0), 0x80 | 0x40 | 0x34, "null count");
    bench.pit.write_register(0, 1);
    assert!(!bench.is_armed(), "half a count");
    bench.pit.write_register(0, 1);
    assert!(bench.is_armed());
    bench.pit.write_register(3, 0x30);
    assert!(!bench.is_armed(), "a control word stops the counter");
}

#[test]
fn mode_2_gives_a_pulse_each_period_and_one_for_all_that_were_missed() {
    // Linux at 250 Hz.
    let mut bench = Bench::new();
    bench.program(0, 0x34, 4773);
    assert_eq!(bench.pulses(), 0);
    bench.pass(4772);
    assert_eq!(bench.count(0), 1);
    assert_eq!(bench.status(0), 0x34, "low for the last tick");
    assert_eq!(bench.pulses(), 0);
    bench.pass(1);
    assert_eq!(bench.count(0), 4773);
    assert_eq!(bench.status(0), 0x80 | 0x34);
    assert_eq!(bench.pulses(), 1);
    assert_eq!(bench.pulses(), 0);
    bench.pass(5 * 4773 + 1);
    assert_eq!(bench.pulses(), 1);
    bench.pass(4772);
    assert_eq!(bench.pulses(), 1, "the phase is kept");
    assert!(bench.is_armed());
}

#[test]
fn mode_0_gives_one_pulse() {
    // Unikraft and Linux in one-shot mode.
    let mut bench = Bench::new();
    bench.program(0, 0x30, 1193);
    assert_eq!(bench.status(0), 0x30);
    bench.pass(1192);
    assert_eq!(bench.count(0), 1);
    assert_eq!(bench.pulses(), 0);
    bench.pass(1);
    assert_eq!(bench.pulses(), 1);
    assert!(!bench.is_armed());
    bench.pass(10);
    assert_eq!(bench.count(0), 0xfff6, "it counts on");
    assert_eq!(bench.status(0), 0xb0);
    assert_eq!(bench.pulses(), 0);
    for byte in [2, 0] {
        bench.pit.write_register(0, byte);
    }
    bench.pass(2);
    assert_eq!(bench.pulses(), 1, "a new count starts it again");
}

#[test]
fn mode_3_is_a_square_wave() {
    for (period, values) in [(6, vec![6, 4, 2, 6, 4, 2, 6]), (5, vec![4, 2, 0, 4, 2, 4, 2])] {
        let mut bench = Bench::new();
        bench.gate(true);
        bench.program(2, 0x36, period);
        for (tick, value) in (0..).zip(values) {
            assert_eq!(bench.count(2), value, "period {period}, tick {tick}");
            assert_eq!(
                bench.output(),
                tick % period < period.div_ceil(2),
                "period {period}, tick {tick}"
            );
            bench.pass(1);
        }
    }
    let mut bench = Bench::new();
    bench.program(0, 0x36, 0);
    bench.pass(65_535);
    assert_eq!(bench.pulses(), 0);
    bench.pass(1);
    assert_eq!(bench.pulses(), 1, "a count of 0 is 65,536");
}

#[test]
fn mode_4_is_low_for_one_tick() {
    let mut bench = Bench::new();
    bench.program(0, 0x38, 100);
    bench.pass(99);
    assert_eq!(bench.status(0), 0xb8);
    bench.pass(1);
    assert_eq!((bench.status(0), bench.pulses()), (0x38, 0));
    bench.pass(1);
    assert_eq!((bench.status(0), bench.pulses()), (0xb8, 1));
    assert!(!bench.is_armed());
}

#[test]
fn the_gate_of_counter_2_stops_or_triggers() {
    let mut bench = Bench::new();
    // Calibration as Linux and Unikraft do it: gate up, mode 0, wait for bit 5 of port 0x61.
    bench.gate(true);
    bench.program(2, 0x30, 59_659);
    bench.pass(59_000);
    bench.gate(false);
    bench.pass(5000);
    assert_eq!(bench.count(2), 659);
    assert!(!bench.output());
    bench.gate(true);
    bench.pass(658);
    assert!(!bench.output());
    bench.pass(1);
    assert!(bench.output());
    assert_eq!(bench.pit.read_register(CONTROL_OFFSET) & 0xcf, 0x01);

    bench.gate(false);
    bench.program(2, 0x32, 10);
    assert!(bench.output(), "a one-shot waits for its trigger");
    bench.gate(true);
    assert!(!bench.output());
    bench.pass(5);
    bench.gate(false);
    bench.gate(true);
    bench.pass(9);
    assert!(!bench.output(), "triggered again");
    bench.pass(1);
    assert!(bench.output());

    bench.program(2, 0x34, 10);
    bench.pass(9);
    assert!(!bench.output());
    bench.gate(false);
    assert!(bench.output(), "a low gate sets the output");
    bench.gate(true);
    assert_eq!(bench.count(2), 10);
}

#[test]
fn latched_values_stay_until_they_are_read() {
    let mut bench = Bench::new();
    bench.program(0, 0x34, 1000);
    bench.pit.write_register(3, 0xc2);
    bench.pass(100);
    bench.pit.write_register(3, 0x00);
    assert_eq!(bench.pit.read_register(0), 0xb4, "status first");
    assert_eq!(bench.pit.read_register(0), 0xe8);
    bench.pass(100);
    assert_eq!(bench.pit.read_register(0), 0x03);
    assert_eq!(bench.pit.read_register(0), 0x20, "the count itself, 800");
    assert_eq!(bench.pit.read_register(0), 0x03);
    assert_eq!(bench.pit.read_register(3), 0xff);
}

#[test]
fn transfers_of_one_byte_and_bcd() {
    let mut bench = Bench::new();
    bench.pit.write_register(3, 0x14);
    bench.pit.write_register(0, 0x50);
    assert_eq!(bench.pit.read_register(0), 0x50);
    assert_eq!(bench.pit.read_register(0), 0x50);
    bench.pit.write_register(3, 0x24);
    bench.pit.write_register(0, 0x12);
    assert_eq!(bench.pit.read_register(0), 0x12);
    bench.pass(0x1200);
    assert_eq!(bench.pulses(), 1);

    bench.program(0, 0x31, 0x1234);
    bench.pass(235);
    assert_eq!(bench.count(0), 0x0999);
    bench.program(0, 0x31, 0);
    bench.pass(1);
    assert_eq!(bench.count(0), 0x9999);
    bench.program(0, 0x31, 0xffff);
    bench.count(0);
}

#[test]
fn counters_run_at_1193182_hz() {
    let mut bench = Bench::new();
    bench.program(0, 0x36, 0);
    bench.clock.advance(Duration::from_secs(3600));
    let passed = 1_193_182 * 3600;
    assert_eq!(bench.pit.now(), passed);
    assert_eq!(u64::from(bench.count(0)), 65_536 - passed * 2 % 65_536);
    let next = 65_536 - passed % 65_536;
    assert_eq!(bench.pulses(), 1);
    assert_eq!(bench.pit.delay(), Some(super::time_of(next)));
}

#[test]
fn the_refresh_bit_toggles_with_time() {
    let mut bench = Bench::new();
    let mut toggles = 0;
    let mut before = 0;
    for _ in 0..1000 {
        let refresh = bench.pit.read_register(CONTROL_OFFSET) & 0x10;
        toggles += u32::from(refresh != before);
        before = refresh;
        bench.clock.advance(Duration::from_micros(1));
    }
    assert_eq!(toggles, 66, "one in 15.1 us");
}

#[test]
fn registers_are_at_their_ports() {
    let bench = Bench::new();
    let pit = Arc::new(Mutex::new(bench.pit));
    let mut builder = BusBuilder::new();
    builder.claim("pit", PORT, 4, pit.clone()).unwrap();
    let window = Arc::new(Mutex::new(Window::new(pit, CONTROL_OFFSET)));
    builder.claim("pit", CONTROL_PORT, 1, window).unwrap();
    let bus = builder.build();
    bus.write(0x61, &[0xff]);
    bus.write(0x43, &[0x92]);
    bus.write(0x42, &[7]);
    let mut data = [0; 2];
    bus.read(0x61, &mut data[..1]);
    bus.read(0x42, &mut data[1..]);
    assert_eq!(data, [0x23, 7]);
}

#[test]
fn the_time_within_a_period_survives_a_snapshot() {
    let mut bench = Bench::new();
    bench.gate(true);
    bench.program(2, 0x36, 5000);
    bench.program(0, 0x34, 4773);
    bench.pass(4773 + 1000);
    survives_a_snapshot(&bench.pit, || Bench::new().pit);

    let mut restored = Bench::new();
    restored.pass(123_456);
    restored.pit.restore(bench.pit.save().unwrap()).unwrap();
    assert!(restored.is_armed());
    assert_eq!(restored.count(0), 3773);
    assert_eq!(restored.pulses(), 1, "the edge that was not looked at");
    restored.pass(3772);
    assert_eq!(restored.pulses(), 0);
    restored.pass(1);
    assert_eq!(restored.pulses(), 1);

    bench.pit.restore(Bench::new().pit.save().unwrap()).unwrap();
    assert!(!bench.is_armed(), "an earlier life");
}

#[test]
fn impossible_states_are_refused() {
    let mut bench = Bench::new();
    bench.program(0, 0x34, 4773);
    let good = bench.pit.save().unwrap();
    let mut seen = good.clone();
    seen.seen = 1;
    let mut running = good.clone();
    running.counters[1].runs = true;
    let mut gate = good.clone();
    gate.counters[0].counter.set_gate(false, 0);
    let mut since = good;
    since.counters[0].counter.run_from(0);
    for state in [seen, running, gate, since] {
        assert!(Bench::new().pit.restore(state).is_err());
    }
}

#[test]
fn short_periods_do_not_keep_the_host_busy() {
    let mut bench = Bench::new();
    for control in [0x34, 0x36] {
        for count in [1, 2, 118] {
            bench.program(0, control, count);
            assert_eq!(bench.pit.delay(), Some(SHORTEST_PERIOD));
            bench.pass(500);
            assert_eq!(bench.pit.delay(), Some(SHORTEST_PERIOD));
            assert_eq!(bench.pulses(), 1);
        }
        bench.program(0, control, 1193);
        bench.pass(1192);
        assert!(bench.pit.delay().unwrap() < Duration::from_micros(1));
    }
}

#[test]
fn the_descriptor_becomes_readable_and_a_look_makes_it_unreadable() {
    let interrupt = Arc::new(EdgeCounter::default());
    let mut pit = Pit::new(interrupt.clone(), Box::new(MonotonicClock::new())).unwrap();
    let poll = PollContext::new().unwrap();
    poll.add(&pit, 0_u32).unwrap();
    let is_readable = |limit| poll.wait_timeout(limit).unwrap().iter_readable().count() != 0;
    assert!(!is_readable(Duration::ZERO));
    for byte in [0x30, 0, 4] {
        pit.write_register(if byte == 0x30 { 3 } else { 0 }, byte);
    }
    assert!(is_readable(Duration::from_secs(60)));
    pit.expired();
    assert_eq!(interrupt.take(), 1);
    assert!(!is_readable(Duration::ZERO));
    pit.expired();
    assert_eq!(interrupt.take(), 0);
}

proptest! {
    #[test]
    fn nothing_a_guest_does_breaks_it(steps in proptest::collection::vec((accesses(4), any::<u8>(), any::<u32>()), 0..8)) {
        let mut bench = Bench::new();
        for (list, control, nanoseconds) in steps {
            replay(&mut bench.pit, &list);
            replay(&mut bench.pit, &[Access::Write { offset: CONTROL_OFFSET, data: vec![control] }]);
            bench.pit.read(CONTROL_OFFSET, &mut [0]);
            bench.clock.advance(Duration::from_nanos(nanoseconds.into()));
            bench.pit.expired();
        }
        comes_back(&bench.pit, || Bench::new().pit);
    }

    #[test]
    fn any_saved_time_can_be_counted_on_from(list in accesses(4), counted in any::<u64>()) {
        let mut bench = Bench::new();
        replay(&mut bench.pit, &list);
        let mut state = bench.pit.save().unwrap();
        state.seen = 0;
        for stopped in &mut state.counters {
            stopped.counter.set_counted(counted);
        }
        bench.pit.restore(state).unwrap();
        bench.clock.advance(Duration::from_secs(1));
        bench.pit.expired();
        replay(&mut bench.pit, &list);
    }
}
