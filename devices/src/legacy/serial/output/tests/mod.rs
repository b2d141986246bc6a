//! Tests of the output; those of its writer are in [`writer`], those with a thread for a disk in [`disk`].

mod disk;
mod writer;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any, proptest};
use scratch::Limited;

use super::{CAPACITY, Error, MAX_FLUSH, SerialOutput};
use crate::legacy::serial::testing::{named_pipe, pattern, read, small_pipe, terminal};
use crate::limiter::Bucket;

/// Timeout that only a failed test reaches.
const LONG: Duration = Duration::from_secs(600);

/// Reads the bytes in a pipe of [`small_pipe`]'s capacity or less.
fn read_available(reader: &mut File) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let length = Limited(reader).read(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn print(output: &mut SerialOutput, bytes: &[u8]) {
    for byte in bytes {
        output.write(std::slice::from_ref(byte));
    }
}

#[test]
fn byte_is_written_at_once() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    output.write(b"a");
    assert_eq!(read(&mut reader, 1), b"a");
    assert!(output.flush_needed().read().is_err(), "no byte is buffered");
    assert_eq!(output.buffer.capacity(), 0, "no buffer before the first stall");
    assert!(!output.flush());
}

#[test]
fn first_write_is_read_without_output() {
    let mut output = SerialOutput::new(File::open("/dev/null").unwrap().into()).unwrap();
    let first_write = output.first_write();
    assert_eq!(first_write.get(), None);
    output.write(b"a");
    let time = *first_write.get().unwrap();
    output.write(b"b");
    assert_eq!(first_write.get(), Some(&time));
}

#[test]
fn active_reader_receives_everything() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    let sent = pattern(1 << 20);
    let mut received = Vec::new();
    for chunk in sent.chunks(20_000) {
        print(&mut output, chunk);
        while output.flush() {
            received.extend(read_available(&mut reader));
        }
    }
    drop(output);
    Limited(&mut reader).read_to_end(&mut received).unwrap();
    assert!(received == sent);
}

#[test]
fn stalled_reader_drops_oldest_buffered_bytes() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    let sent = pattern(4096 + 1000 + CAPACITY);
    print(&mut output, &sent[..4096]);
    assert!(output.flush_needed().read().is_err());
    print(&mut output, &sent[4096..]);
    assert_eq!(
        output.flush_needed().read().unwrap(),
        1,
        "one notification, not one per byte"
    );
    assert_eq!(output.dropped(), 1000);
    assert_eq!(output.buffer.len(), CAPACITY);
    assert!(output.report().is_none(), "no report while the reader stalls");

    assert!(output.flush(), "the pipe is full");
    let mut received = Vec::new();
    while output.flush() {
        received.extend(read_available(&mut reader));
    }
    let report = output.report().unwrap();
    assert!(matches!(report, Error::Overflow { bytes: 1000 }), "{report}");
    assert!(output.report().is_none(), "one report");
    received.extend(read_available(&mut reader));
    output.write(b"!");
    drop(output);
    Limited(&mut reader).read_to_end(&mut received).unwrap();
    assert!(received[..4096] == sent[..4096]);
    assert!(received[4096..4096 + CAPACITY] == sent[5096..]);
    assert_eq!(&received[4096 + CAPACITY..], b"!");
}

/// Time to fill a bucket, in milliseconds, within which no test ends.
const NEVER: u64 = 1 << 40;

fn limit(size: u64, refill_time_ms: u64) -> Bucket {
    Bucket {
        size,
        refill_time_ms,
        one_time_burst: 2,
    }
}

#[test]
fn bytes_beyond_limit_are_dropped() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    output.set_limit(limit(3, NEVER));
    print(&mut output, b"abcd");
    output.write(b"efg");
    assert_eq!(output.recorder.limited.get(), 2);
    assert_eq!((output.dropped(), output.buffered_bytes()), (0, 0));
    assert!(output.report().is_none(), "the user has requested the loss");
    assert!(
        output.flush_needed().read().is_err(),
        "the event loop has nothing to do"
    );

    output.set_limit(limit(0, 0));
    output.write(b"hi");
    drop(output);
    let mut received = Vec::new();
    Limited(&mut reader).read_to_end(&mut received).unwrap();
    assert_eq!(received, b"abcdehi");
}

#[test]
fn limited_output_continues_once_bucket_refills() {
    let (_reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    output.set_limit(limit(1, 1));
    let mut sent = 0;
    scratch::wait_until("more bytes than the bucket holds", || {
        output.write(b"a");
        sent += 1;
        sent - output.recorder.limited.get() > 10
    });
}

#[test]
fn each_stall_is_reported() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    for stall in 1..=2 {
        print(&mut output, &pattern(4096 + CAPACITY + stall));
        assert_eq!(output.flush_needed().read().unwrap(), 1);
        while output.flush() {
            read_available(&mut reader);
        }
        let report = output.report().unwrap();
        assert!(matches!(report, Error::Overflow { bytes } if bytes == stall as u64));
        read_available(&mut reader);
    }
    assert_eq!(output.dropped(), 3);
}

#[test]
fn flush_size_is_bounded() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let mut output = SerialOutput::new(writer.into()).unwrap();
    let mut sent = 0;
    while output.buffer.len() < CAPACITY {
        output.write(&[0; 4096]);
        sent += 4096;
    }
    read(&mut &reader, sent - CAPACITY);
    assert!(output.flush());
    assert_eq!(output.buffer.len(), CAPACITY - MAX_FLUSH);
}

#[test]
fn closed_reader_is_reported_once() {
    for (reader, writer) in [small_pipe(), named_pipe(), terminal()] {
        let mut output = SerialOutput::new(writer).unwrap();
        output.write(b"a");
        drop(reader);
        scratch::await_hangup(output.as_fd());
        print(&mut output, b"bcd");
        assert_eq!(output.dropped(), 3);
        assert_eq!(output.flush_needed().read().unwrap(), 1);
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
fn closed_reader_drops_buffered_bytes() {
    let (reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    print(&mut output, &pattern(4096 + 10));
    drop(reader);
    scratch::await_hangup(output.as_fd());
    output.finish(LONG);
    assert_eq!(output.dropped(), 10);
    assert!(matches!(output.report(), Some(Error::Broken { .. })));
}

/// Returns an output to a full disk.
fn full_output() -> SerialOutput {
    let full = File::options().write(true).open("/dev/full").unwrap();
    SerialOutput::new(full.into()).unwrap()
}

/// Replaces the file behind `output`: the disk has space again.
fn replace_file(output: &SerialOutput, file: &impl AsRawFd) {
    // SAFETY: the call takes no pointer; both descriptors are open, and the first one keeps its owner.
    let replaced = unsafe { libc::dup2(file.as_raw_fd(), output.as_fd().as_raw_fd()) };
    assert!(replaced >= 0);
}

#[test]
fn full_disk_is_reported_once() {
    let mut output = full_output();
    print(&mut output, b"abc");
    assert_eq!(output.flush_needed().read().unwrap(), 1);
    for attempt in 0..3 {
        assert!(!output.flush(), "the file is not watched");
        assert!(output.is_full());
        let report = output.report();
        if attempt > 0 {
            assert!(report.is_none(), "{report:?}");
            continue;
        }
        assert!(
            matches!(&report, Some(Error::Full { source }) if source.raw_os_error() == Some(libc::ENOSPC)),
            "{report:?}"
        );
    }
    assert_eq!((output.dropped(), output.buffered_bytes()), (0, 3));
}

#[test]
fn output_continues_once_disk_has_space() {
    let mut output = full_output();
    let sent = pattern(CAPACITY + 10);
    print(&mut output, &sent);
    assert!(!output.flush());
    assert!(matches!(output.report(), Some(Error::Full { .. })));

    let (mut reader, writer) = small_pipe();
    replace_file(&output, &writer);
    drop(writer);
    let mut received = Vec::new();
    while output.flush() {
        received.extend(read_available(&mut reader));
    }
    assert!(!output.is_full());
    assert!(matches!(output.report(), Some(Error::Overflow { bytes: 10 })));
    received.extend(read_available(&mut reader));
    assert!(received == sent[10..]);

    replace_file(&output, &File::options().write(true).open("/dev/full").unwrap());
    print(&mut output, b"a");
    assert!(!output.flush());
    assert!(
        matches!(output.report(), Some(Error::Full { .. })),
        "each lack of space is reported"
    );
}

/// A write to an address without a page fails with EIO, as a write to a failed disk does.
#[test]
fn output_continues_once_disk_works() {
    let failing = File::options().write(true).open("/proc/self/mem").unwrap();
    let mut output = SerialOutput::new(failing.into()).unwrap();
    print(&mut output, b"abc");
    disk::flush_at_end(&mut output);
    assert!(output.is_full());
    let report = output.report();
    assert!(
        matches!(&report, Some(Error::Full { source }) if source.raw_os_error() == Some(libc::EIO)),
        "{report:?}"
    );
    let (mut reader, writer) = small_pipe();
    replace_file(&output, &writer);
    drop(writer);
    assert!(!output.flush() && !output.is_full());
    while output.buffered_bytes() > 0 {
        disk::flush_at_end(&mut output);
    }
    assert_eq!(read_available(&mut reader), b"abc");
    assert_eq!(output.dropped(), 0);
}

#[test]
fn errors_that_the_user_can_repair_are_retried() {
    let (_reader, writer) = small_pipe();
    let pipe = SerialOutput::new(writer).unwrap();
    let file = SerialOutput::new(File::open("/proc/self/mem").unwrap().into()).unwrap();
    for (number, in_file, in_pipe) in [
        (libc::ENOSPC, true, true),
        (libc::EDQUOT, true, true),
        (libc::EFBIG, true, true),
        (libc::EIO, true, false),
        (libc::ENOMEM, true, false),
        (libc::EPIPE, false, false),
        (libc::EBADF, false, false),
    ] {
        let error = std::io::Error::from_raw_os_error(number);
        assert_eq!(
            file.writer.repairable(&error),
            in_file.then_some(number),
            "{error}"
        );
        assert_eq!(
            pipe.writer.repairable(&error),
            in_pipe.then_some(number),
            "{error}"
        );
    }
}

#[test]
fn finish_does_not_wait_for_space() {
    let mut output = full_output();
    print(&mut output, b"abc");
    output.finish(LONG);
    assert_eq!(output.dropped(), 3);
    assert!(matches!(output.report(), Some(Error::Broken { .. })));
}

#[test]
fn finish_writes_everything_to_active_reader() {
    for (mut reader, writer) in [small_pipe(), named_pipe()] {
        let mut output = SerialOutput::new(writer).unwrap();
        let sent = pattern(CAPACITY);
        print(&mut output, &sent);
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            Limited(&mut reader).read_to_end(&mut received).unwrap();
            received
        });
        output.finish(LONG);
        assert_eq!(output.dropped(), 0);
        drop(output);
        assert!(scratch::join(reading) == sent);
    }
}

#[test]
fn finish_exceeds_timeout_while_reader_progresses() {
    let (mut reader, writer) = small_pipe();
    let mut output = SerialOutput::new(writer).unwrap();
    print(&mut output, &pattern(CAPACITY));
    let reading = std::thread::spawn(move || read(&mut reader, CAPACITY));
    // A third of the timeout passes between two reads of the clock.
    let mut clock = Instant::now();
    output.finish_by(LONG, || {
        clock += LONG / 3;
        clock
    });
    assert_eq!(output.dropped(), 0);
    scratch::join(reading);
}

#[test]
fn finish_writes_everything_to_terminal() {
    let (mut master, slave) = terminal();
    let mut output = SerialOutput::new(slave).unwrap();
    let sent = vec![b'x'; CAPACITY];
    print(&mut output, &sent);
    assert!(!output.buffer.is_empty(), "the test needs buffered bytes");
    let reading = std::thread::spawn(move || read(&mut master, CAPACITY));
    output.finish(LONG);
    assert!(scratch::join(reading) == sent);
    assert_eq!(output.dropped(), 0);
}

#[test]
fn finish_times_out_for_stalled_reader() {
    let (_reader, writer) = small_pipe();
    for timeout in [Duration::ZERO, Duration::from_millis(5)] {
        let mut output = SerialOutput::new(writer.try_clone().unwrap()).unwrap();
        output.write(&[0; 4096 + 7]);
        let buffered = output.buffer.len() as u64;
        assert!(buffered >= 7);
        output.finish(timeout);
        assert_eq!(output.dropped(), buffered);
        assert!(matches!(output.report(), Some(Error::Overflow { bytes }) if bytes == buffered));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// In any order of writes and reads, the reader receives all bytes except the dropped ones, in order.
    #[test]
    fn read_and_dropped_bytes_add_up(
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
            // Bytes are buffered only while the pipe is full.
            if reads && output.flush() {
                received.extend(read_available(&mut reader));
            }
        }
        while output.flush() {
            received.extend(read_available(&mut reader));
        }
        let dropped = output.dropped();
        drop(output);
        Limited(&mut reader).read_to_end(&mut received).unwrap();
        assert_eq!(received.len() as u64 + dropped, u64::from(sent) * 4);
        let numbers = received.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
        let numbers: Vec<u32> = numbers.collect();
        assert!(numbers.is_sorted(), "out of order");
        assert!(dropped > 0 || numbers.iter().copied().eq(0..sent));
    }
}
