mod writer;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any, proptest};

use super::{CAPACITY, Error, FLUSH, SerialOutput};
use crate::legacy::serial::testing::{named_pipe, pattern, read, small_pipe, terminal};

/// Long enough never to be reached by a test that passes.
const LONG: Duration = Duration::from_secs(600);

/// Reads what is in the pipe, which must be of [`small_pipe`]'s size or less.
fn take(reader: &mut File) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let length = reader.read(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn print(output: &mut SerialOutput, bytes: &[u8]) {
    for byte in bytes {
        output.write(std::slice::from_ref(byte));
    }
}

#[test]
fn a_byte_goes_out_at_once() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    output.write(b"a");
    assert_eq!(read(&mut reader, 1), b"a");
    assert!(output.notify().read().is_err(), "there is nothing to flush");
    assert_eq!(output.waiting.capacity(), 0, "no buffer before it is needed");
    assert!(!output.flush());
}

#[test]
fn nothing_is_lost_while_the_reader_reads() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    let sent = pattern(1 << 20);
    let mut received = Vec::new();
    for piece in sent.chunks(20_000) {
        print(&mut output, piece);
        while output.flush() {
            received.extend(take(&mut reader));
        }
    }
    drop(output);
    reader.read_to_end(&mut received).unwrap();
    assert!(received == sent);
}

#[test]
fn a_stalled_reader_costs_the_oldest_bytes_that_wait() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    let sent = pattern(4096 + 1000 + CAPACITY);
    print(&mut output, &sent[..4096]);
    assert!(output.notify().read().is_err());
    print(&mut output, &sent[4096..]);
    assert_eq!(output.notify().read().unwrap(), 1, "once, not for every byte");
    assert_eq!(output.dropped(), 1000);
    assert_eq!(output.waiting.len(), CAPACITY);
    assert!(output.report().is_none(), "not while the reader stalls");

    assert!(output.flush(), "no room yet");
    let mut received = Vec::new();
    while output.flush() {
        received.extend(take(&mut reader));
    }
    let report = output.report().unwrap();
    assert!(matches!(report, Error::Overflow { bytes: 1000 }), "{report}");
    assert!(output.report().is_none(), "once");
    received.extend(take(&mut reader));
    output.write(b"!");
    drop(output);
    reader.read_to_end(&mut received).unwrap();
    assert!(received[..4096] == sent[..4096]);
    assert!(received[4096..4096 + CAPACITY] == sent[5096..]);
    assert_eq!(&received[4096 + CAPACITY..], b"!");
}

#[test]
fn a_second_stall_is_a_second_report() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    for stall in 1..=2 {
        print(&mut output, &pattern(4096 + CAPACITY + stall));
        assert_eq!(output.notify().read().unwrap(), 1);
        while output.flush() {
            take(&mut reader);
        }
        let report = output.report().unwrap();
        assert!(matches!(report, Error::Overflow { bytes } if bytes == stall as u64));
        take(&mut reader);
    }
    assert_eq!(output.dropped(), 3);
}

#[test]
fn one_flush_is_bounded() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let mut output = SerialOutput::new(writer.into()).unwrap();
    let mut sent = 0;
    while output.waiting.len() < CAPACITY {
        output.write(&[0; 4096]);
        sent += 4096;
    }
    read(&mut &reader, sent - CAPACITY);
    assert!(output.flush());
    assert_eq!(output.waiting.len(), CAPACITY - FLUSH);
}

#[test]
fn a_reader_that_goes_away_is_said_once() {
    for (reader, writer) in [small_pipe(), named_pipe(), terminal()] {
        let mut output = SerialOutput::new(writer).unwrap();
        output.write(b"a");
        drop(reader);
        print(&mut output, b"bcd");
        assert_eq!(output.dropped(), 3);
        assert_eq!(output.notify().read().unwrap(), 1);
        assert!(!output.flush());
        let report = output.report().unwrap();
        assert!(matches!(report, Error::Broken { .. }), "{report}");
        print(&mut output, b"e");
        output.finish(LONG);
        assert_eq!(output.dropped(), 4);
        assert!(output.report().is_none());
    }
}

#[test]
fn a_reader_that_goes_away_while_bytes_wait_takes_them_along() {
    let (reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    print(&mut output, &pattern(4096 + 10));
    drop(reader);
    output.finish(LONG);
    assert_eq!(output.dropped(), 10);
    assert!(matches!(output.report(), Some(Error::Broken { .. })));
}

#[test]
fn a_full_disk_is_said_once() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut output = SerialOutput::new(full.into()).unwrap();
    print(&mut output, b"abc");
    assert_eq!(output.dropped(), 3);
    let report = output.report().unwrap();
    assert!(
        matches!(&report, Error::Broken { source } if source.raw_os_error() == Some(libc::ENOSPC)),
        "{report:?}"
    );
    assert!(output.report().is_none());
}

#[test]
fn the_last_bytes_reach_a_reader_that_reads() {
    for (mut reader, writer) in [small_pipe(), named_pipe()] {
        let mut output = SerialOutput::new(writer).unwrap();
        let sent = pattern(CAPACITY);
        print(&mut output, &sent);
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        output.finish(LONG);
        assert_eq!(output.dropped(), 0);
        drop(output);
        assert!(reading.join().unwrap() == sent);
    }
}

#[test]
fn the_end_may_take_longer_than_a_slow_reader_is_waited_for() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    print(&mut output, &pattern(CAPACITY));
    let reading = std::thread::spawn(move || read(&mut reader, CAPACITY));
    // A third of our patience goes by from each look at the clock to the next.
    let mut clock = Instant::now();
    output.finish_by(LONG, || {
        clock += LONG / 3;
        clock
    });
    assert_eq!(output.dropped(), 0);
    reading.join().unwrap();
}

#[test]
fn the_last_bytes_reach_a_terminal() {
    let (mut master, slave) = terminal();
    let mut output = SerialOutput::new(slave).unwrap();
    let sent = vec![b'x'; CAPACITY];
    print(&mut output, &sent);
    assert!(!output.waiting.is_empty(), "or this tests nothing");
    let reading = std::thread::spawn(move || read(&mut master, CAPACITY));
    output.finish(LONG);
    assert!(reading.join().unwrap() == sent);
    assert_eq!(output.dropped(), 0);
}

#[test]
fn the_end_does_not_wait_for_a_stalled_reader() {
    let (_reader, writer) = small_pipe();
    for patience in [Duration::ZERO, Duration::from_millis(5)] {
        let mut output = SerialOutput::new(writer.try_clone().unwrap()).unwrap();
        output.write(&[0; 4096 + 7]);
        let waiting = output.waiting.len() as u64;
        assert!(waiting >= 7);
        output.finish(patience);
        assert_eq!(output.dropped(), waiting);
        assert!(matches!(output.report(), Some(Error::Overflow { bytes }) if bytes == waiting));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is printed and read in whatever order, the reader gets all but what was counted as dropped, in order.
    #[test]
    fn what_is_read_and_what_was_dropped_is_all(
        steps in proptest::collection::vec((0_u32..10_000, any::<bool>()), 1..30),
    ) {
        let (mut reader, writer) = small_pipe();
        let mut output = SerialOutput::new(writer).unwrap();
        let (mut sent, mut received) = (0_u32, Vec::new());
        for (count, reads) in steps {
            for number in sent..sent + count {
                output.write(&number.to_le_bytes());
            }
            sent += count;
            // What waits does so because the pipe is full.
            if reads && output.flush() {
                received.extend(take(&mut reader));
            }
        }
        while output.flush() {
            received.extend(take(&mut reader));
        }
        let dropped = output.dropped();
        drop(output);
        reader.read_to_end(&mut received).unwrap();
        assert_eq!(received.len() as u64 + dropped, u64::from(sent) * 4);
        let numbers = received.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        let numbers: Vec<u32> = numbers.collect();
        assert!(numbers.is_sorted(), "out of order");
        assert!(dropped > 0 || numbers.iter().copied().eq(0..sent));
    }
}
