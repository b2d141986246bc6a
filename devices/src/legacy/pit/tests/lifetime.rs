use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::{any, proptest};
use snapshot::Persist;
use vmm_sys_util::poll::PollContext;

use super::Bench;
use crate::bus::{BusDevice, ByteRegisters};
use crate::clock::MonotonicClock;
use crate::pit::{CONTROL_OFFSET, MIN_PERIOD, Pit};
use crate::testing::{Access, EdgeCounter, accesses, check_round_trip, replay};

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
fn the_time_within_a_period_survives_a_snapshot() {
    let mut bench = Bench::new();
    bench.gate(true);
    bench.program(2, 0x36, 5000);
    bench.program(0, 0x34, 4773);
    bench.pass(4773 + 1000);

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
fn looks_are_never_closer_than_the_shortest_period() {
    let mut bench = Bench::new();
    for control in [0x30, 0x34, 0x36] {
        for count in [1, 2, 118] {
            bench.program(0, control, count);
            bench.pass(500);
            assert_eq!(bench.pulses(), 1, "{control:#x} {count}");
            // Neither the next edge nor a new count brings the next look nearer.
            bench.program(0, control, count);
            assert_eq!(bench.pit.delay(), Some(MIN_PERIOD), "{control:#x} {count}");
            bench.pass(500);
            bench.pulses();
        }
    }
    bench.program(0, 0x34, 1193);
    bench.pass(1192);
    assert!(bench.pit.delay().unwrap() <= MIN_PERIOD);
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
        check_round_trip(&bench.pit, || Bench::new().pit);
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
