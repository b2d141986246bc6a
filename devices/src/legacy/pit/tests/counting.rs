use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Bench;
use crate::bus::OffsetDevice;
use crate::bus::{BusBuilder, ByteRegisters};
use crate::pit::{CONTROL_OFFSET, CONTROL_PORT, PORT, time_of};

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
    assert_eq!(bench.pit.delay(), Some(time_of(next)));
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
    let window = Arc::new(Mutex::new(OffsetDevice::new(pit, CONTROL_OFFSET)));
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
