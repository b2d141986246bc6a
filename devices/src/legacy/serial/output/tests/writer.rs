//! Tests of [`NonblockingWriter`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::{Method, NonblockingWriter};
use crate::legacy::serial::testing::{named_pipe, pattern, read, small_pipe, terminal};

fn status_flags(file: BorrowedFd<'_>) -> i32 {
    // SAFETY: the call takes no pointer.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
}

/// Writes chunks of `chunk` bytes until the file is full, and returns the number of written bytes.
fn fill(writer: &mut NonblockingWriter, chunk: usize, max: usize) -> usize {
    let bytes = pattern(chunk);
    let mut total = 0;
    loop {
        match writer.write(&bytes) {
            Ok(count) => total += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return total;
            }
        }
        assert!(total <= max, "{total} bytes were written without a reader");
    }
}

/// Checks writes to a file whose reader stalls, then reads.
fn check_stall(reader: &mut (impl Read + AsFd), file: OwnedFd, chunk: usize) {
    let before = status_flags(file.as_fd());
    let mut writer = NonblockingWriter::new(file).unwrap();
    let total = fill(&mut writer, chunk, 1 << 20);
    assert!(total > 0);
    assert!(!writer.wait(Duration::ZERO).unwrap(), "a full file is writable");
    read(reader, total);
    assert!(
        writer.wait(Duration::ZERO).unwrap(),
        "an empty file is not writable"
    );
    assert_eq!(writer.write(b"x").unwrap(), 1);
    assert_eq!(read(reader, 1), b"x");
    assert_eq!(
        status_flags(writer.as_fd()),
        before,
        "the file description is shared"
    );
    assert_eq!(before & libc::O_NONBLOCK, 0);
}

#[test]
fn full_pipe_does_not_block() {
    for chunk in [1, 1000, 4096, 5000] {
        let (mut reader, writer) = small_pipe();
        check_stall(&mut reader, writer, chunk);
    }
}

#[test]
fn full_fifo_does_not_block() {
    for chunk in [1, 1000, 4096, 5000] {
        let (mut reader, writer) = named_pipe();
        check_stall(&mut reader, writer, chunk);
    }
}

#[test]
fn full_pipe_does_not_block_without_nowait() {
    let (mut reader, writer) = small_pipe();
    let mut writer = NonblockingWriter::new(writer).unwrap();
    writer.method = Method::Poll(4096);
    // The kernel reports room in whole pages: a page in use has none.
    assert_eq!(fill(&mut writer, 1, 4096), 1);
    read(&mut reader, 1);
    assert_eq!(fill(&mut writer, 5000, 4096), 4096);
}

#[test]
fn full_socket_does_not_block() {
    for chunk in [1, 4096] {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        check_stall(&mut reader, writer.into(), chunk);
    }
}

#[test]
fn full_terminal_does_not_block() {
    for bytes in [b"x", b"\n"] {
        let (_master, slave) = terminal();
        let mut writer = NonblockingWriter::new(slave).unwrap();
        assert_eq!(writer.method, Method::Poll(1));
        let mut total = 0;
        while writer.write(bytes).is_ok() {
            total += 1;
            assert!(total <= 1 << 20, "the terminal never fills");
        }
        assert!(total > 0);
        assert!(!writer.wait(Duration::ZERO).unwrap(), "a full file is writable");
    }
}

#[test]
fn terminal_accepts_one_character_per_write() {
    let (mut master, slave) = terminal();
    let mut writer = NonblockingWriter::new(slave).unwrap();
    assert_eq!(writer.write(b"\nx").unwrap(), 1);
    assert_eq!(writer.write(b"x").unwrap(), 1);
    assert_eq!(read(&mut master, 3), b"\r\nx");
}

#[test]
fn regular_file_accepts_full_chunks() {
    // SAFETY: the name is a valid C string.
    let file = unsafe { libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: memfd_create has just returned this descriptor, which has no other owner.
    let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(file) };
    let mut writer = NonblockingWriter::new(file.try_clone().unwrap().into()).unwrap();
    assert_eq!(writer.method, Method::Plain);
    assert_eq!(writer.write(&pattern(5000)).unwrap(), 4096);
    assert_eq!(writer.write(b"end").unwrap(), 3);
    let mut bytes = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"end");
}

#[test]
fn null_discards_and_full_device_fails() {
    let open = |name| File::options().write(true).open(name).unwrap();
    let mut null = NonblockingWriter::new(open("/dev/null").into()).unwrap();
    assert_eq!(null.method, Method::Discard);
    assert_eq!(null.write(&pattern(5000)).unwrap(), 5000);
    let mut full = NonblockingWriter::new(open("/dev/full").into()).unwrap();
    let error = full.write(b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn closed_reader_is_error() {
    // The test harness ignores SIGPIPE.
    let (reader, writer) = small_pipe();
    drop(reader);
    scratch::await_hangup(writer.as_fd());
    let mut pipe = NonblockingWriter::new(writer).unwrap();
    assert!(pipe.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(pipe.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));

    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    scratch::await_hangup(writer.as_fd());
    let mut socket = NonblockingWriter::new(writer.into()).unwrap();
    assert!(socket.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(socket.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));

    let (master, slave) = terminal();
    drop(master);
    scratch::await_hangup(slave.as_fd());
    let mut terminal = NonblockingWriter::new(slave).unwrap();
    assert!(terminal.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(terminal.write(b"x").unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn read_only_file_is_error() {
    let (reader, _writer) = small_pipe();
    let mut writer = NonblockingWriter::new(OwnedFd::from(reader)).unwrap();
    assert_eq!(writer.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
}
