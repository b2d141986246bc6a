use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Fixture;
use crate::bus::OffsetDevice;
use crate::bus::{BusBuilder, ByteRegisters};
use crate::legacy::pit::{CONTROL_OFFSET, CONTROL_PORT, PORT, time_of};

#[test]
fn mode_2_interrupts_once_per_check() {
    // Setting of Linux at 250 Hz.
    let mut timer = Fixture::new();
    timer.program(0, 0x34, 4773);
    assert_eq!(timer.pulses(), 0);
    timer.advance(4772);
    assert_eq!(timer.count(0), 1);
    assert_eq!(timer.status(0), 0x34, "the output is low for the last tick");
    assert_eq!(timer.pulses(), 0);
    timer.advance(1);
    assert_eq!(timer.count(0), 4773);
    assert_eq!(timer.status(0), 0x80 | 0x34);
    assert_eq!(timer.pulses(), 1);
    assert_eq!(timer.pulses(), 0);
    timer.advance(5 * 4773 + 1);
    assert_eq!(timer.pulses(), 1);
    timer.advance(4772);
    assert_eq!(timer.pulses(), 1, "the phase is kept");
    assert!(timer.is_armed());
}

#[test]
fn mode_0_interrupts_once() {
    // Setting of Unikraft, and of Linux in one-shot mode.
    let mut timer = Fixture::new();
    timer.program(0, 0x30, 1193);
    assert_eq!(timer.status(0), 0x30);
    timer.advance(1192);
    assert_eq!(timer.count(0), 1);
    assert_eq!(timer.pulses(), 0);
    timer.advance(1);
    assert_eq!(timer.pulses(), 1);
    assert!(!timer.is_armed());
    timer.advance(10);
    assert_eq!(timer.count(0), 0xfff6, "the counter wraps around");
    assert_eq!(timer.status(0), 0xb0);
    assert_eq!(timer.pulses(), 0);
    for byte in [2, 0] {
        timer.pit.write_register(0, byte);
    }
    timer.advance(2);
    assert_eq!(timer.pulses(), 1, "a new count restarts the counter");
}

#[test]
fn mode_3_is_square_wave() {
    for (period, values) in [(6, vec![6, 4, 2, 6, 4, 2, 6]), (5, vec![4, 2, 0, 4, 2, 4, 2])] {
        let mut timer = Fixture::new();
        timer.gate(true);
        timer.program(2, 0x36, period);
        for (tick, value) in (0..).zip(values) {
            assert_eq!(timer.count(2), value, "period {period}, tick {tick}");
            assert_eq!(
                timer.output(),
                tick % period < period.div_ceil(2),
                "period {period}, tick {tick}"
            );
            timer.advance(1);
        }
    }
    let mut timer = Fixture::new();
    timer.program(0, 0x36, 0);
    timer.advance(65_535);
    assert_eq!(timer.pulses(), 0);
    timer.advance(1);
    assert_eq!(timer.pulses(), 1, "a count of 0 is 65,536");
}

#[test]
fn mode_4_is_low_for_one_tick() {
    let mut timer = Fixture::new();
    timer.program(0, 0x38, 100);
    timer.advance(99);
    assert_eq!(timer.status(0), 0xb8);
    timer.advance(1);
    assert_eq!((timer.status(0), timer.pulses()), (0x38, 0));
    timer.advance(1);
    assert_eq!((timer.status(0), timer.pulses()), (0xb8, 1));
    assert!(!timer.is_armed());
}

#[test]
fn gate_of_counter_2_stops_or_triggers() {
    let mut timer = Fixture::new();
    // Calibration of Linux and Unikraft: high gate, mode 0, wait for bit 5 of port 0x61.
    timer.gate(true);
    timer.program(2, 0x30, 59_659);
    timer.advance(59_000);
    timer.gate(false);
    timer.advance(5000);
    assert_eq!(timer.count(2), 659);
    assert!(!timer.output());
    timer.gate(true);
    timer.advance(658);
    assert!(!timer.output());
    timer.advance(1);
    assert!(timer.output());
    assert_eq!(timer.pit.read_register(CONTROL_OFFSET) & 0xcf, 0x01);

    timer.gate(false);
    timer.program(2, 0x32, 10);
    assert!(timer.output(), "a one-shot waits for its trigger");
    timer.gate(true);
    assert!(!timer.output());
    timer.advance(5);
    timer.gate(false);
    timer.gate(true);
    timer.advance(9);
    assert!(!timer.output(), "the gate triggers again");
    timer.advance(1);
    assert!(timer.output());

    timer.program(2, 0x34, 10);
    timer.advance(9);
    assert!(!timer.output());
    timer.gate(false);
    assert!(timer.output(), "a low gate sets the output");
    timer.gate(true);
    assert_eq!(timer.count(2), 10);
}

#[test]
fn latched_value_stays_until_read() {
    let mut timer = Fixture::new();
    timer.program(0, 0x34, 1000);
    timer.pit.write_register(3, 0xc2);
    timer.advance(100);
    timer.pit.write_register(3, 0x00);
    assert_eq!(timer.pit.read_register(0), 0xb4, "status first");
    assert_eq!(timer.pit.read_register(0), 0xe8);
    timer.advance(100);
    assert_eq!(timer.pit.read_register(0), 0x03);
    assert_eq!(timer.pit.read_register(0), 0x20, "the current count, 800");
    assert_eq!(timer.pit.read_register(0), 0x03);
    assert_eq!(timer.pit.read_register(3), 0xff);
}

#[test]
fn one_byte_transfers_and_bcd() {
    let mut timer = Fixture::new();
    timer.pit.write_register(3, 0x14);
    timer.pit.write_register(0, 0x50);
    assert_eq!(timer.pit.read_register(0), 0x50);
    assert_eq!(timer.pit.read_register(0), 0x50);
    timer.pit.write_register(3, 0x24);
    timer.pit.write_register(0, 0x12);
    assert_eq!(timer.pit.read_register(0), 0x12);
    timer.advance(0x1200);
    assert_eq!(timer.pulses(), 1);

    timer.program(0, 0x31, 0x1234);
    timer.advance(235);
    assert_eq!(timer.count(0), 0x0999);
    timer.program(0, 0x31, 0);
    timer.advance(1);
    assert_eq!(timer.count(0), 0x9999);
    timer.program(0, 0x31, 0xffff);
    timer.count(0);
}

#[test]
fn counters_run_at_1193182_hz() {
    let mut timer = Fixture::new();
    timer.program(0, 0x36, 0);
    timer.clock.advance(Duration::from_secs(3600));
    let passed = 1_193_182 * 3600;
    assert_eq!(timer.pit.now(), passed);
    assert_eq!(u64::from(timer.count(0)), 65_536 - passed * 2 % 65_536);
    let next = 65_536 - passed % 65_536;
    assert_eq!(timer.pulses(), 1);
    assert_eq!(timer.pit.delay(), Some(time_of(next)));
}

#[test]
fn refresh_bit_toggles_with_time() {
    let mut timer = Fixture::new();
    let mut toggles = 0;
    let mut before = 0;
    for _ in 0..1000 {
        let refresh = timer.pit.read_register(CONTROL_OFFSET) & 0x10;
        toggles += u32::from(refresh != before);
        before = refresh;
        timer.clock.advance(Duration::from_micros(1));
    }
    assert_eq!(toggles, 66, "one in 15.1 us");
}

#[test]
fn registers_are_at_their_ports() {
    let timer = Fixture::new();
    let pit = Arc::new(Mutex::new(timer.pit));
    let mut builder = BusBuilder::new();
    builder.claim("pit", PORT, 4, pit.clone()).unwrap();
    let control = Arc::new(Mutex::new(OffsetDevice::new(pit, CONTROL_OFFSET)));
    builder.claim("pit", CONTROL_PORT, 1, control).unwrap();
    let bus = builder.build();
    bus.write(0x61, &[0xff]);
    bus.write(0x43, &[0x92]);
    bus.write(0x42, &[7]);
    let mut data = [0; 2];
    bus.read(0x61, &mut data[..1]);
    bus.read(0x42, &mut data[1..]);
    assert_eq!(data, [0x23, 7]);
}
