use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::{any, proptest};
use snapshot::Persist;
use vmm_sys_util::poll::PollContext;

use super::Fixture;
use crate::bus::{BusDevice, ByteRegisters};
use crate::clock::MonotonicClock;
use crate::legacy::pit::{CONTROL_OFFSET, MIN_PERIOD, Pit};
use crate::testing::{Access, EdgeCounter, accesses, check_round_trip, replay};

#[test]
fn timer_is_armed_once_counter_0_has_count() {
    let mut timer = Fixture::new();
    assert!(!timer.is_armed());
    timer.program(2, 0x30, 1000);
    timer.pit.write_register(3, 0x34);
    assert_eq!(timer.status(0), 0x80 | 0x40 | 0x34, "null count");
    timer.pit.write_register(0, 1);
    assert!(!timer.is_armed(), "the count is incomplete");
    timer.pit.write_register(0, 1);
    assert!(timer.is_armed());
    timer.pit.write_register(3, 0x30);
    assert!(!timer.is_armed(), "a control word stops the counter");
}

#[test]
fn time_within_period_survives_snapshot() {
    let mut timer = Fixture::new();
    timer.gate(true);
    timer.program(2, 0x36, 5000);
    timer.program(0, 0x34, 4773);
    timer.advance(4773 + 1000);

    let mut restored = Fixture::new();
    restored.advance(123_456);
    restored.pit.restore(timer.pit.save().unwrap()).unwrap();
    assert!(restored.is_armed());
    assert_eq!(restored.count(0), 3773);
    assert_eq!(restored.pulses(), 1, "the unchecked edge");
    restored.advance(3772);
    assert_eq!(restored.pulses(), 0);
    restored.advance(1);
    assert_eq!(restored.pulses(), 1);

    timer.pit.restore(Fixture::new().pit.save().unwrap()).unwrap();
    assert!(!timer.is_armed(), "the restore must disarm the timer");
}

#[test]
fn invalid_state_is_rejected() {
    let mut timer = Fixture::new();
    timer.program(0, 0x34, 4773);
    let good = timer.pit.save().unwrap();
    let mut edges = good.clone();
    edges.reported_edges = 1;
    let mut running = good.clone();
    running.counters[1].runs = true;
    let mut gate = good.clone();
    gate.counters[0].counter.set_gate(false, 0);
    let mut since = good;
    since.counters[0].counter.continue_at(0);
    for state in [edges, running, gate, since] {
        assert!(Fixture::new().pit.restore(state).is_err());
    }
}

#[test]
fn checks_are_at_least_min_period_apart() {
    let mut timer = Fixture::new();
    for control in [0x30, 0x34, 0x36] {
        for count in [1, 2, 118] {
            timer.program(0, control, count);
            timer.advance(500);
            assert_eq!(timer.pulses(), 1, "{control:#x} {count}");
            // Neither the next edge nor a new count advances the next check.
            timer.program(0, control, count);
            assert_eq!(timer.pit.delay(), Some(MIN_PERIOD), "{control:#x} {count}");
            timer.advance(500);
            timer.pulses();
        }
    }
    timer.program(0, 0x34, 1193);
    timer.advance(1192);
    assert!(timer.pit.delay().unwrap() <= MIN_PERIOD);
}

#[test]
fn timerfd_is_readable_until_check() {
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
    pit.handle_timer();
    assert_eq!(interrupt.take(), 1);
    assert!(!is_readable(Duration::ZERO));
    pit.handle_timer();
    assert_eq!(interrupt.take(), 0);
}

proptest! {
    #[test]
    fn any_access_is_safe(steps in proptest::collection::vec((accesses(4), any::<u8>(), any::<u32>()), 0..8)) {
        let mut timer = Fixture::new();
        for (list, control, nanoseconds) in steps {
            replay(&mut timer.pit, &list);
            replay(&mut timer.pit, &[Access::Write { offset: CONTROL_OFFSET, data: vec![control] }]);
            timer.pit.read(CONTROL_OFFSET, &mut [0]);
            timer.clock.advance(Duration::from_nanos(nanoseconds.into()));
            timer.pit.handle_timer();
        }
        check_round_trip(&timer.pit, || Fixture::new().pit);
    }

    #[test]
    fn any_saved_tick_count_is_safe(list in accesses(4), counted in any::<u64>()) {
        let mut timer = Fixture::new();
        replay(&mut timer.pit, &list);
        let mut state = timer.pit.save().unwrap();
        state.reported_edges = 0;
        for stopped in &mut state.counters {
            stopped.counter.set_counted(counted);
        }
        timer.pit.restore(state).unwrap();
        timer.clock.advance(Duration::from_secs(1));
        timer.pit.handle_timer();
        replay(&mut timer.pit, &list);
    }
}
