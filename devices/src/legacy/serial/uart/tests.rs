use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use snapshot::persist::{Error as PersistError, Persist};

use super::{Serial, SerialOutput, SerialState};
use crate::bus::BusDevice;
use crate::legacy::serial::testing::{pattern, read, read_to_end, small_pipe};
use crate::limiter::Bucket;
use crate::testing::EdgeCounter;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

fn serial() -> (Serial, Arc<EdgeCounter>, File) {
    let edges = Arc::new(EdgeCounter::default());
    let (reader, writer) = small_pipe();
    let output = SerialOutput::new(writer).unwrap();
    (Serial::new(edges.clone(), output).unwrap(), edges, reader)
}

fn inb(serial: &mut Serial, offset: u64) -> u8 {
    let mut value = [0];
    serial.read(offset, &mut value);
    value[0]
}

fn outb(serial: &mut Serial, offset: u64, value: u8) {
    serial.write(offset, &[value]);
}

#[test]
fn polled_input_and_output_need_no_interrupt() {
    let (mut serial, edges, mut reader) = serial();
    for byte in b"hello\n" {
        assert_eq!(inb(&mut serial, LSR), 0x60, "transmitter empty, no data");
        outb(&mut serial, DATA, *byte);
    }
    assert_eq!(read(&mut reader, 6), b"hello\n");
    assert_eq!(serial.enqueue(b"ab"), 2);
    for byte in b"ab" {
        assert_eq!(inb(&mut serial, LSR), 0x61);
        assert_eq!(inb(&mut serial, DATA), *byte);
    }
    assert_eq!(inb(&mut serial, LSR), 0x60);
    assert_eq!(edges.take(), 0, "interrupts are disabled");
}

/// Follows the probe of Linux's 8250 driver (autoconfig in 8250_port.c).
#[test]
fn linux_probe_detects_16550a() {
    let (mut serial, _, _reader) = serial();
    outb(&mut serial, IER, 0);
    assert_eq!(inb(&mut serial, IER) & 0xf, 0);
    outb(&mut serial, IER, 0xf);
    assert_eq!(inb(&mut serial, IER), 0xf);
    outb(&mut serial, IER, 0);
    outb(&mut serial, MCR, 0x1a);
    assert_eq!(inb(&mut serial, MSR) & 0xf0, 0x90, "loopback test");
    outb(&mut serial, MCR, 0x08);
    outb(&mut serial, IIR, 1);
    assert_eq!(inb(&mut serial, IIR) >> 6, 3, "16550A");
    outb(&mut serial, SCR, 0xa5);
    assert_eq!(inb(&mut serial, SCR), 0xa5);
}

#[test]
fn divisor_latch_hides_data_and_interrupt_enable() {
    let (mut serial, edges, reader) = serial();
    outb(&mut serial, LCR, 0x83);
    outb(&mut serial, DATA, 0x01);
    outb(&mut serial, IER, 0x03);
    assert_eq!((inb(&mut serial, DATA), inb(&mut serial, IER)), (1, 3));
    outb(&mut serial, LCR, 0x03);
    assert_eq!(inb(&mut serial, IER), 0);
    assert_eq!(edges.take(), 0);
    drop(serial);
    assert_eq!(read_to_end(reader), b"", "a divisor is no output");
}

#[test]
fn transmitter_interrupt_is_acknowledged_by_read() {
    let (mut serial, edges, _reader) = serial();
    outb(&mut serial, IER, 2);
    assert_eq!(edges.take(), 1, "the transmitter is empty after power-on");
    assert_eq!(inb(&mut serial, IIR), 0xc2);
    assert_eq!(inb(&mut serial, IIR), 0xc1);
    outb(&mut serial, DATA, b'x');
    assert_eq!(edges.take(), 1);
    outb(&mut serial, DATA, b'y');
    assert_eq!(edges.take(), 0, "the first interrupt is not acknowledged");
    assert_eq!(inb(&mut serial, IIR), 0xc2);
}

#[test]
fn received_data_stays_pending_until_read() {
    let (mut serial, edges, _reader) = serial();
    outb(&mut serial, IER, 1);
    assert_eq!(edges.take(), 0);
    serial.enqueue(b"abc");
    assert_eq!(edges.take(), 1);
    for byte in b"abc" {
        assert_eq!(inb(&mut serial, IIR), 0xc4);
        assert_eq!(inb(&mut serial, DATA), *byte);
    }
    assert_eq!(inb(&mut serial, IIR), 0xc1);
    serial.enqueue(b"d");
    assert_eq!(edges.take(), 1);
}

#[test]
fn enabling_interrupt_triggers_for_earlier_data() {
    let (mut serial, edges, _reader) = serial();
    serial.enqueue(b"a");
    assert_eq!(edges.take(), 0);
    outb(&mut serial, IER, 1);
    assert_eq!(edges.take(), 1);
}

#[test]
fn received_data_precedes_empty_transmitter() {
    let (mut serial, edges, _reader) = serial();
    outb(&mut serial, IER, 3);
    serial.enqueue(b"a");
    assert!(edges.take() > 0);
    assert_eq!(inb(&mut serial, IIR), 0xc4);
    let state = serial.save().unwrap();
    let (mut other, ..) = self::serial();
    other.restore(state).unwrap();
    for serial in [&mut serial, &mut other] {
        assert_eq!(inb(serial, IIR), 0xc4);
        assert_eq!(inb(serial, DATA), b'a');
        assert_eq!(inb(serial, IIR), 0xc2);
        assert_eq!(inb(serial, IIR), 0xc1);
    }
}

/// A restored port does the same: its model knows the pending cause.
#[test]
fn sent_byte_causes_no_edge_while_transmitter_is_pending() {
    let (mut serial, edges, _reader) = serial();
    outb(&mut serial, IER, 3);
    serial.enqueue(b"x");
    outb(&mut serial, DATA, b'a');
    assert_eq!(inb(&mut serial, IIR), 0xc4);
    edges.take();
    outb(&mut serial, DATA, b'b');
    assert_eq!(edges.take(), 0);
    assert_eq!(inb(&mut serial, DATA), b'x');
    assert_eq!(inb(&mut serial, IIR), 0xc2);
    outb(&mut serial, DATA, b'c');
    assert_eq!(edges.take(), 1);
}

#[test]
fn disabled_interrupt_is_not_identified() {
    let (mut serial, _, _reader) = serial();
    outb(&mut serial, IER, 3);
    serial.enqueue(b"a");
    assert_eq!(inb(&mut serial, IIR), 0xc4);
    outb(&mut serial, IER, 0);
    assert_eq!(inb(&mut serial, IIR), 0xc1);
}

#[test]
fn fifo_reset_keeps_received_data() {
    let (mut serial, _, _reader) = serial();
    serial.enqueue(b"a");
    outb(&mut serial, IIR, 7);
    assert_eq!(inb(&mut serial, LSR), 0x61);
    assert_eq!(inb(&mut serial, DATA), b'a');
}

#[test]
fn empty_fifo_notifies_after_rejected_input() {
    let (mut serial, _, _reader) = serial();
    let input = pattern(100);
    assert_eq!(serial.enqueue(&input), 64);
    assert_eq!(serial.enqueue(&input[64..]), 0);
    for byte in &input[..64] {
        assert!(serial.input_ready().read().is_err(), "the FIFO is not empty");
        assert_eq!(inb(&mut serial, DATA), *byte);
    }
    assert_eq!(serial.input_ready().read().unwrap(), 1);
    assert_eq!(serial.enqueue(&input[64..]), 36);
    for byte in &input[64..] {
        assert_eq!(inb(&mut serial, DATA), *byte);
    }
    assert!(serial.input_ready().read().is_err(), "no byte was rejected");
    assert_eq!(serial.enqueue(&[]), 0);
    inb(&mut serial, DATA);
    assert!(serial.input_ready().read().is_err(), "no byte was enqueued");
}

#[test]
fn loopback_delays_input() {
    let (mut serial, _, reader) = serial();
    outb(&mut serial, MCR, 0x10);
    assert_eq!(serial.enqueue(b"typed"), 0);
    outb(&mut serial, DATA, b'x');
    assert_eq!(inb(&mut serial, DATA), b'x');
    assert!(serial.input_ready().read().is_err());
    outb(&mut serial, MCR, 0);
    assert_eq!(serial.input_ready().read().unwrap(), 1);
    drop(serial);
    assert_eq!(read_to_end(reader), b"", "loopback prints nothing");
}

#[test]
fn wide_access_reaches_adjacent_registers() {
    let (mut serial, _, mut reader) = serial();
    serial.write(DATA, &[b'a', 0x05]);
    assert_eq!(read(&mut reader, 1), b"a");
    assert_eq!(inb(&mut serial, IER), 0x05);
    let mut all = [0; 4];
    serial.read(LCR, &mut all);
    assert_eq!(all, [0x03, 0x08, 0x60, 0xb0]);
}

#[test]
fn stalled_reader_is_invisible_to_guest() {
    let (mut serial, _, mut reader) = serial();
    for _ in 0..200_000 {
        assert_eq!(inb(&mut serial, LSR), 0x60);
        outb(&mut serial, DATA, b'x');
    }
    let dropped = 200_000 - 4096 - 65_536;
    assert_eq!(serial.output().dropped(), dropped);
    while serial.output_mut().flush() {
        read(&mut reader, 4096);
    }
    assert_eq!(serial.output().dropped(), dropped);
}

#[test]
fn invalid_state_is_rejected() {
    let (mut serial, ..) = serial();
    let good = serial.save().unwrap();
    let bad = [
        SerialState {
            received: vec![0; 65],
            ..good.clone()
        },
        SerialState {
            interrupt_enable: 0x10,
            ..good.clone()
        },
        SerialState {
            interrupt_identification: 0,
            ..good.clone()
        },
        SerialState {
            interrupt_identification: 3,
            ..good.clone()
        },
    ];
    for state in bad {
        let result = serial.restore(state.clone());
        assert!(matches!(result, Err(PersistError::Invalid { .. })), "{state:?}");
    }
    serial.restore(good).unwrap();
}

#[test]
fn restore_triggers_pending_interrupt_and_replaces_state() {
    let (mut before, ..) = serial();
    outb(&mut before, IER, 1);
    before.enqueue(b"abc");
    let (mut after, edges, mut reader) = serial();
    after.enqueue(b"earlier input");
    outb(&mut after, SCR, 7);
    after.restore(before.save().unwrap()).unwrap();
    assert_eq!(edges.take(), 1);
    assert_eq!(inb(&mut after, SCR), 0);
    for byte in b"abc" {
        assert_eq!(inb(&mut after, LSR), 0x61);
        assert_eq!(inb(&mut after, DATA), *byte);
    }
    assert_eq!(inb(&mut after, LSR), 0x60);
    outb(&mut after, DATA, b'o');
    assert_eq!(read(&mut reader, 1), b"o");
}

#[test]
fn bytes_of_both_directions_are_counted() {
    let (mut serial, _, _reader) = serial();
    let recorder = serial.recorder();
    outb(&mut serial, DATA, b'x');
    serial.enqueue(b"ab");
    (0..3).for_each(|_| _ = inb(&mut serial, DATA));
    outb(&mut serial, LCR, 0x83);
    inb(&mut serial, DATA);
    outb(&mut serial, LCR, 0x03);
    let metrics = recorder.metrics();
    assert_eq!((metrics.writes, metrics.reads, metrics.empty_reads), (1, 2, 1));
    assert_eq!((metrics.dropped, metrics.errors, metrics.flushes), (0, 0, 0));
}

#[test]
fn flushes_and_lost_bytes_are_counted() {
    let (mut serial, _, mut reader) = serial();
    let recorder = serial.recorder();
    // Fills the pipe of one page, then the buffer.
    for _ in 0..4096 + 10 {
        outb(&mut serial, DATA, b'x');
    }
    read(&mut reader, 4096);
    serial.output_mut().flush();
    assert_eq!(recorder.metrics().flushes, 1);
    drop(reader);
    scratch::await_hangup(serial.output_mut().as_fd());
    outb(&mut serial, DATA, b'y');
    outb(&mut serial, DATA, b'z');
    let metrics = recorder.metrics();
    assert_eq!((metrics.errors, metrics.dropped, metrics.writes), (1, 2, 4108));
}

#[test]
fn bytes_beyond_limit_are_counted_apart() {
    let (mut serial, _, mut reader) = serial();
    let recorder = serial.recorder();
    serial.output_mut().set_limit(Bucket {
        size: 3,
        refill_time_ms: 1 << 40,
        one_time_burst: 0,
    });
    for byte in *b"abcde" {
        outb(&mut serial, DATA, byte);
        // The port stays ready: a polling guest never waits for the limit.
        assert_eq!(inb(&mut serial, LSR), 0x60);
    }
    assert_eq!(read(&mut reader, 3), b"abc");
    let metrics = recorder.metrics();
    assert_eq!((metrics.writes, metrics.limited, metrics.dropped), (5, 2, 0));
}
