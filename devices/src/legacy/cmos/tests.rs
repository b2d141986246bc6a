use std::time::Duration;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use snapshot::Persist;

use super::{Cmos, MemorySize, TimeRegisters};
use crate::bus::ByteRegisters;
use crate::clock::{Clock, WallClock};
use crate::testing::{ManualClock, accesses, check_round_trip, replay};

const GIB: u64 = 1 << 30;
const SIZE: MemorySize = MemorySize {
    below_4_gib: 128 << 20,
    above_4_gib: 0,
};

/// 2024-02-29, a Thursday, 23:59:58.
const LEAP_DAY: Duration = Duration::from_secs(1_709_251_198);

fn cmos() -> (Cmos, ManualClock) {
    let clock = ManualClock::default();
    clock.advance(LEAP_DAY);
    (Cmos::new(SIZE, Box::new(clock.clone())), clock)
}

fn read(cmos: &mut Cmos, register: u8) -> u8 {
    cmos.write_register(0, register);
    cmos.read_register(1)
}

fn write(cmos: &mut Cmos, register: u8, value: u8) {
    cmos.write_register(0, register);
    cmos.write_register(1, value);
}

/// Reads century, year, month, day, day of the week, hours, minutes and seconds.
fn time(cmos: &mut Cmos) -> [u8; 8] {
    [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|register| read(cmos, register))
}

#[test]
fn time_follows_host_in_format_of_register_b() {
    let (mut cmos, clock) = cmos();
    assert_eq!(read(&mut cmos, 0x0b), 0x02);
    assert_eq!(
        time(&mut cmos),
        [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58],
        "BCD"
    );
    write(&mut cmos, 0x0b, 0x06);
    assert_eq!(time(&mut cmos), [20, 24, 2, 29, 5, 23, 59, 58], "binary");
    write(&mut cmos, 0x0b, 0x00);
    assert_eq!(read(&mut cmos, 0x04), 0x91, "11 in the evening");
    clock.advance(Duration::from_secs(2));
    assert_eq!(read(&mut cmos, 0x04), 0x12, "midnight");
    write(&mut cmos, 0x0b, 0x02);
    assert_eq!(time(&mut cmos), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
    clock.advance(Duration::from_secs(12 * 3600));
    write(&mut cmos, 0x0b, 0x00);
    assert_eq!(read(&mut cmos, 0x04), 0x92, "noon");
}

#[test]
fn update_in_progress_only_at_end_of_second() {
    let (mut cmos, clock) = cmos();
    assert_eq!(read(&mut cmos, 0x0a), 0x26);
    clock.advance(Duration::from_nanos(999_755_999));
    assert_eq!(read(&mut cmos, 0x0a), 0x26);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(read(&mut cmos, 0x0a), 0xa6);
    write(&mut cmos, 0x0b, 0x82);
    assert_eq!(read(&mut cmos, 0x0a), 0x26, "a stopped clock is not updated");
    write(&mut cmos, 0x0b, 0x02);
    clock.advance(Duration::from_nanos(244_000));
    write(&mut cmos, 0x0a, 0xff);
    assert_eq!(read(&mut cmos, 0x0a), 0x7f);
    assert_eq!(read(&mut cmos, 0x0c), 0);
    assert_eq!(read(&mut cmos, 0x0d), 0x80);
}

#[test]
fn set_time_continues() {
    let (mut cmos, clock) = cmos();
    // Linux stops the clock and writes register by register.
    write(&mut cmos, 0x0b, 0x82);
    for (register, value) in [
        (0x32, 0x19),
        (0x09, 0x99),
        (0x08, 0x12),
        (0x07, 0x31),
        (0x04, 0x23),
        (0x02, 0x59),
        (0x00, 0x30),
    ] {
        write(&mut cmos, register, value);
    }
    clock.advance(Duration::from_secs(100));
    assert_eq!(read(&mut cmos, 0x00), 0x30, "the clock is stopped");
    write(&mut cmos, 0x0b, 0x02);
    clock.advance(Duration::from_secs(30));
    assert_eq!(time(&mut cmos), [0x20, 0, 1, 1, 7, 0, 0, 0]);
    write(&mut cmos, 0x04, 0x15);
    assert_eq!(read(&mut cmos, 0x04), 0x15, "a running clock can be set");
    write(&mut cmos, 0x0b, 0x00);
    write(&mut cmos, 0x04, 0x12);
    write(&mut cmos, 0x0b, 0x02);
    assert_eq!(read(&mut cmos, 0x04), 0, "12 in the morning is midnight");
}

#[test]
fn memory_size_is_in_cmos_registers() {
    let bytes = |size, registers: &[u8]| -> Vec<u8> {
        let mut cmos = Cmos::new(size, Box::new(ManualClock::default()));
        registers
            .iter()
            .map(|register| read(&mut cmos, *register))
            .collect()
    };
    let registers = [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35, 0x5b, 0x5c, 0x5d];
    assert_eq!(
        bytes(SIZE, &registers),
        [0x80, 0x02, 0xff, 0xff, 0xff, 0xff, 0x00, 0x07, 0, 0, 0]
    );
    let small = MemorySize {
        below_4_gib: 8 << 20,
        above_4_gib: 0,
    };
    assert_eq!(
        bytes(small, &registers),
        [0x80, 0x02, 0x00, 0x1c, 0x00, 0x1c, 0, 0, 0, 0, 0]
    );
    let large = MemorySize {
        below_4_gib: 0xd000_0000,
        above_4_gib: 61 * GIB + (3 << 16),
    };
    assert_eq!(bytes(large, &registers[6..]), [0x00, 0xcf, 0x03, 0x40, 0x0f]);
    let huge = MemorySize {
        below_4_gib: u64::MAX,
        above_4_gib: u64::MAX,
    };
    assert_eq!(bytes(huge, &registers[6..]), [0xff; 5]);
}

#[test]
fn other_registers_store_writes() {
    let (mut cmos, _) = cmos();
    for register in [0x01, 0x0e, 0x33, 0x34, 0x7f] {
        write(&mut cmos, register | 0x80, 0x5a);
        assert_eq!(read(&mut cmos, register), 0x5a);
    }
    assert_eq!(cmos.read_register(0), 0xff);
}

#[test]
fn wall_clock_is_after_2020() {
    // Requires a host with a set clock.
    assert!(WallClock.now() > Duration::from_secs(1_577_836_800));
}

#[test]
fn state_round_trips_and_time_continues() {
    let (mut original, _) = cmos();
    write(&mut original, 0x02, 0x00);
    write(&mut original, 0x40, 0x77);

    let (mut restored, clock) = cmos();
    clock.advance(Duration::from_secs(60));
    restored.restore(original.save().unwrap()).unwrap();
    assert_eq!(read(&mut restored, 0x40), 0x77);
    assert_eq!(read(&mut restored, 0x02), 0x01);
}

#[test]
fn invalid_state_is_rejected() {
    let (mut stopped, _) = cmos();
    write(&mut stopped, 0x0b, 0x82);
    let good = stopped.save().unwrap();
    let mut length = good.clone();
    length.memory.push(0);
    let mut index = good.clone();
    index.index = 0x80;
    let mut running = good.clone();
    running.stopped = None;
    let mut month = good;
    month.stopped.as_mut().unwrap().month = 13;
    for state in [length, index, running, month] {
        assert!(cmos().0.restore(state).is_err());
    }
}

proptest! {
    #[test]
    fn seconds_give_registers_in_range(seconds in any::<i64>()) {
        let time = TimeRegisters::from_unix(seconds);
        prop_assert_eq!(time, time.clamped());
        prop_assert_eq!(TimeRegisters::from_unix(time.civil_time().to_unix()), time);
    }

    #[test]
    fn clamped_registers_are_a_date(bytes in any::<[u8; 7]>()) {
        let [second, minute, hour, day, month, year, century] = bytes;
        let time = TimeRegisters { second, minute, hour, day, month, year, century }.clamped();
        let (first, last) = (-62_167_219_200, 253_402_300_799);
        prop_assert!((first..=last + 86_400).contains(&time.civil_time().to_unix()));
    }

    #[test]
    fn any_access_is_safe(
        steps in proptest::collection::vec(any::<(u8, u8, u32)>(), 0..64),
        list in accesses(2),
        offset in any::<i64>(),
    ) {
        let (mut cmos, clock) = cmos();
        cmos.state.offset = offset;
        for (register, value, time) in steps {
            write(&mut cmos, register, value);
            clock.advance(Duration::from_micros(time.into()));
            read_all_registers(&mut cmos);
        }
        replay(&mut cmos, &list);
        check_round_trip(&cmos, || self::cmos().0);
    }
}

fn read_all_registers(cmos: &mut Cmos) {
    for register in 0..0x80 {
        read(cmos, register);
    }
}
