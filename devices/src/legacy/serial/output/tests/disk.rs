//! Tests of the thread for a disk. A pipe whose reader stalls stands for a disk that does not answer.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use super::super::{CAPACITY, Error, Method, SerialOutput};
use super::{LONG, print, replace_file};
use crate::legacy::serial::testing::{pattern, read, read_to_end, small_pipe};

/// Returns an output that treats `file` as one on a disk without support of RWF_NOWAIT.
pub fn on_disk(file: OwnedFd) -> SerialOutput {
    let mut output = SerialOutput::new(file).unwrap();
    output.writer.method = Method::Disk;
    output.writer.lacks_nowait = true;
    output.writer.ended = Some(output.flush_needed.clone());
    output
}

/// Waits until the output requests a flush, and flushes.
pub fn flush_at_end(output: &mut SerialOutput) {
    let mut poll = libc::pollfd {
        fd: output.flush_needed().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout = i32::try_from(scratch::TIMEOUT.as_millis()).unwrap();
    // SAFETY: the call accesses one `pollfd`, which outlives it.
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
    assert_eq!(ready, 1, "the output does not report the end of a write");
    assert!(!output.flush(), "a disk is not watched");
}

#[test]
fn stuck_disk_blocks_neither_write_nor_flush() {
    let (mut reader, writer) = small_pipe();
    let mut output = on_disk(writer);
    let sent = pattern(3 * CAPACITY);
    print(&mut output, &sent);
    assert!(!output.flush());
    let dropped = usize::try_from(output.dropped()).unwrap();
    // The thread may have written up to a page, which the pipe takes.
    assert!(dropped > 0 && output.buffered_bytes() + 4096 >= CAPACITY);
    assert!(output.report().is_none());

    // The disk answers again: oldest and newest bytes reach it, in order.
    let reading = std::thread::spawn(move || read(&mut reader, sent.len() - dropped));
    while output.buffered_bytes() > 0 {
        flush_at_end(&mut output);
    }
    let received = scratch::join(reading);
    let sent = pattern(3 * CAPACITY);
    let kept = received.iter().zip(&sent).take_while(|(a, b)| a == b).count();
    assert!(received[kept..] == sent[kept + dropped..]);
    let report = output.report();
    assert!(
        matches!(&report, Some(Error::Overflow { bytes }) if *bytes == dropped as u64),
        "{report:?}"
    );
}

#[test]
fn bytes_reach_disk_without_flush() {
    let (mut reader, writer) = small_pipe();
    let mut output = on_disk(writer);
    output.write(b"a");
    assert_eq!(read(&mut reader, 1), b"a");
}

#[test]
fn full_disk_is_retried() {
    let mut output = on_disk(File::options().write(true).open("/dev/full").unwrap().into());
    print(&mut output, b"abc");
    flush_at_end(&mut output);
    assert!(output.is_full());
    assert!(
        matches!(output.report(), Some(Error::Full { source }) if source.raw_os_error() == Some(libc::ENOSPC))
    );
    let (mut reader, writer) = small_pipe();
    replace_file(&output, &writer);
    drop(writer);
    assert!(!output.flush(), "the write is repeated");
    while output.buffered_bytes() > 0 {
        flush_at_end(&mut output);
    }
    assert!(!output.is_full());
    assert_eq!(read(&mut reader, 3), b"abc");
    assert_eq!(output.dropped(), 0);
}

#[test]
fn discard_writes_to_disk_that_answers() {
    let (reader, writer) = small_pipe();
    let mut output = on_disk(writer);
    let sent = pattern(CAPACITY);
    print(&mut output, &sent);
    let reading = std::thread::spawn(move || read_to_end(reader));
    // With a limit that a busy host does not reach.
    output.finish(LONG);
    assert_eq!((output.buffered_bytes(), output.dropped()), (0, 0));
    drop(output);
    assert!(scratch::join(reading) == sent);
}

#[test]
fn discard_does_not_wait_for_stuck_disk() {
    let (_reader, writer) = small_pipe();
    let mut output = on_disk(writer);
    print(&mut output, &pattern(CAPACITY));
    output.discard();
    assert_eq!(output.buffered_bytes(), 0);
    let dropped = output.dropped();
    assert!(dropped > 0);
    assert!(matches!(output.report(), Some(Error::Overflow { bytes }) if bytes == dropped));
}

#[test]
fn only_files_on_disks_have_a_thread() {
    let directory = scratch::Directory::new();
    let file = File::create(directory.path("file")).unwrap();
    let memory = super::super::Medium::of(&file) == super::super::Medium::Memory;
    let expected = if memory { Method::Plain } else { Method::Disk };
    let mut output = SerialOutput::new(file.into()).unwrap();
    assert_eq!(output.writer.method, expected);
    output.write(b"abc");
    output.finish(LONG);
    assert_eq!(std::fs::read(directory.path("file")).unwrap(), b"abc");
    let (_reader, writer) = small_pipe();
    assert_eq!(SerialOutput::new(writer).unwrap().writer.method, Method::NoWait);
}
