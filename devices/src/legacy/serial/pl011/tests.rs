use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::proptest;
use snapshot::Persist;

use super::{
    CONTROL, DATA, FLAGS, INTERRUPT_CLEAR, INTERRUPT_MASK, LENGTH, LOOPBACK, MASKED_INTERRUPT, Pl011State,
    RAW_INTERRUPT, RECEIVED, TRANSMITTED,
};
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::legacy::serial::testing::{read, small_pipe};
use crate::legacy::serial::{Pl011Registers, Serial, SerialModel, SerialOutput};
use crate::sync::lock;
use crate::testing::{accesses, check_round_trip, replay};

#[derive(Default)]
struct Line(AtomicBool);

impl Interrupt for Line {
    fn set_level(&self, asserted: bool) {
        self.0.store(asserted, Ordering::Relaxed);
    }
}

impl Line {
    fn level(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn serial() -> (Serial, Arc<Line>, File) {
    let line = Arc::new(Line::default());
    let (reader, writer) = small_pipe();
    let output = SerialOutput::new(writer).unwrap();
    let serial = Serial::with_model(SerialModel::Pl011, line.clone(), output).unwrap();
    (serial, line, reader)
}

fn read32(serial: &mut Serial, offset: u64) -> u32 {
    let mut value = [0xff; 4];
    serial.read(offset, &mut value);
    u32::from_le_bytes(value)
}

fn write32(serial: &mut Serial, offset: u64, value: impl Into<u32>) {
    serial.write(offset, &value.into().to_le_bytes());
}

#[test]
fn polled_input_and_output_need_no_interrupt() {
    let (mut serial, line, mut reader) = serial();
    for byte in b"hello\n" {
        assert_eq!(read32(&mut serial, FLAGS), 0x97, "transmitter and receiver empty");
        serial.write(DATA, &[*byte]);
    }
    write32(&mut serial, DATA, u32::from(b'!'));
    assert_eq!(read(&mut reader, 7), b"hello\n!");
    assert_eq!(serial.enqueue(b"ab"), 2);
    assert_eq!(read32(&mut serial, FLAGS), 0x87);
    assert_eq!(read32(&mut serial, DATA), u32::from(b'a'));
    let mut byte = [0];
    serial.read(DATA, &mut byte);
    assert_eq!((byte, read32(&mut serial, FLAGS)), (*b"b", 0x97));
    assert!(!line.level());
    let metrics = serial.recorder().metrics();
    assert_eq!((metrics.reads, metrics.writes, metrics.empty_reads), (2, 7, 0));
    assert_eq!(read32(&mut serial, DATA), 0);
    assert_eq!(serial.recorder().metrics().empty_reads, 1);
}

#[test]
fn received_data_asserts_line_until_read() {
    let (mut serial, line, _reader) = serial();
    serial.enqueue(b"ab");
    assert!(!line.level(), "masked");
    write32(&mut serial, INTERRUPT_MASK, RECEIVED);
    assert!(line.level());
    assert_eq!(read32(&mut serial, MASKED_INTERRUPT), u32::from(RECEIVED));
    read32(&mut serial, DATA);
    assert!(line.level());
    read32(&mut serial, DATA);
    assert!(!line.level());
    assert_eq!(read32(&mut serial, RAW_INTERRUPT), 0);
}

#[test]
fn sent_data_asserts_line_until_cleared() {
    let (mut serial, line, _reader) = serial();
    write32(&mut serial, INTERRUPT_MASK, TRANSMITTED);
    assert!(!line.level());
    serial.write(DATA, b"x");
    assert!(line.level());
    write32(&mut serial, INTERRUPT_CLEAR, 0x7ff_u32);
    assert!(!line.level());
}

#[test]
fn full_fifo_accepts_rest_when_empty() {
    let (mut serial, _, _reader) = serial();
    assert_eq!(serial.enqueue(&[1; 40]), 32);
    assert_eq!(read32(&mut serial, FLAGS), 0xc7);
    for _ in 0..31 {
        read32(&mut serial, DATA);
    }
    assert!(serial.input_ready().read().is_err());
    read32(&mut serial, DATA);
    assert_eq!(serial.input_ready().read().unwrap(), 1);
}

#[test]
fn loopback_receives_own_output_only() {
    let (mut serial, _, _reader) = serial();
    write32(&mut serial, CONTROL, LOOPBACK);
    assert_eq!(serial.enqueue(b"a"), 0);
    serial.write(DATA, b"x");
    assert_eq!(read32(&mut serial, DATA), u32::from(b'x'));
}

#[test]
fn identification_is_that_of_a_pl011() {
    let (mut serial, _, _reader) = serial();
    let identification: Vec<_> = (0xfe0..0x1000)
        .step_by(4)
        .map(|offset| read32(&mut serial, offset))
        .collect();
    assert_eq!(identification, [0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn registers_keep_their_bits() {
    let (mut serial, _, _reader) = serial();
    assert_eq!(
        (read32(&mut serial, CONTROL), read32(&mut serial, 0x34)),
        (0x300, 0x12)
    );
    for (offset, bits) in [(0x24, 0xffff), (0x28, 0x3f), (0x2c, 0xff), (0x38, 0x7ff)] {
        write32(&mut serial, offset, 0xffff_ffff_u32);
        assert_eq!(read32(&mut serial, offset), bits, "{offset:#x}");
        serial.write(offset + 1, &[0]);
        assert_eq!(read32(&mut serial, offset), bits & 0xff, "{offset:#x}");
    }
}

#[test]
fn state_round_trips_with_interrupt() {
    let (mut first, _, _reader) = serial();
    write32(&mut first, INTERRUPT_MASK, RECEIVED);
    first.enqueue(b"abc");
    let (mut second, line, _reader) = serial();
    second.restore(first.save().unwrap()).unwrap();
    let (first, second) = (Arc::new(Mutex::new(first)), Arc::new(Mutex::new(second)));
    let state = Pl011Registers(first).save().unwrap();
    Pl011Registers(second.clone()).restore(state).unwrap();
    assert!(line.level());
    assert_eq!(read32(&mut lock(&second), DATA), u32::from(b'a'));
    let fresh = || Pl011Registers(Arc::new(Mutex::new(serial().0)));
    check_round_trip(&Pl011Registers(second), fresh);
}

#[test]
fn invalid_states_are_rejected() {
    let (serial, _, _reader) = serial();
    let mut registers = Pl011Registers(Arc::new(Mutex::new(serial)));
    let state = Pl011State {
        fractional_divisor: 0x40,
        ..Pl011State::RESET
    };
    let error = registers.restore(state).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot restore pl011: register 0x28 has bits that a PL011 lacks"
    );
    let mut state = lock(&registers.0).save().unwrap();
    state.received = vec![0; 33];
    let error = lock(&registers.0).restore(state).unwrap_err().to_string();
    assert!(error.contains("33 received bytes"), "{error}");
}

proptest! {
    #[test]
    fn any_access_is_safe(accesses in accesses(LENGTH)) {
        let (mut serial, _, _reader) = serial();
        replay(&mut serial, &accesses);
    }
}
