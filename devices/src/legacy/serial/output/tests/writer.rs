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

/// Writes in pieces of `piece` until nothing more goes in, and returns how much has.
fn fill(sink: &mut NonblockingWriter, piece: usize, most: usize) -> usize {
    let bytes = pattern(piece);
    let mut total = 0;
    loop {
        match sink.write(&bytes) {
            Ok(count) => total += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return total;
            }
        }
        assert!(total <= most, "nobody reads, and yet {total} bytes went in");
    }
}

/// Everything that has to hold for a file with a reader that stalls, then reads.
fn check_stall(reader: &mut impl Read, writer: OwnedFd, piece: usize) {
    let before = status_flags(writer.as_fd());
    let mut sink = NonblockingWriter::new(writer).unwrap();
    let total = fill(&mut sink, piece, 1 << 20);
    assert!(total > 0);
    assert!(!sink.wait(Duration::ZERO).unwrap(), "full, and yet ready");
    read(reader, total);
    assert!(sink.wait(Duration::ZERO).unwrap(), "empty, and yet not ready");
    assert_eq!(sink.write(b"x").unwrap(), 1);
    assert_eq!(read(reader, 1), b"x");
    assert_eq!(status_flags(sink.as_fd()), before, "others share these flags");
    assert_eq!(before & libc::O_NONBLOCK, 0);
}

#[test]
fn a_full_pipe_does_not_block() {
    for piece in [1, 1000, 4096, 5000] {
        let (mut reader, writer) = small_pipe();
        check_stall(&mut reader, writer, piece);
    }
}

#[test]
fn a_full_named_pipe_does_not_block() {
    for piece in [1, 1000, 4096, 5000] {
        let (mut reader, writer) = named_pipe();
        check_stall(&mut reader, writer, piece);
    }
}

#[test]
fn without_nowait_a_full_pipe_does_not_block() {
    let (mut reader, writer) = small_pipe();
    let mut sink = NonblockingWriter::new(writer).unwrap();
    sink.method = Method::Poll(4096);
    // The kernel reports room by whole pages: the rest of the only page, used or not, counts for nothing.
    assert_eq!(fill(&mut sink, 1, 4096), 1);
    read(&mut reader, 1);
    assert_eq!(fill(&mut sink, 5000, 4096), 4096);
}

#[test]
fn a_full_socket_does_not_block() {
    for piece in [1, 4096] {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        check_stall(&mut reader, writer.into(), piece);
    }
}

#[test]
fn a_full_terminal_does_not_block() {
    for bytes in [b"x", b"\n"] {
        let (_master, slave) = terminal();
        let mut sink = NonblockingWriter::new(slave).unwrap();
        assert_eq!(sink.method, Method::Poll(1));
        let mut total = 0;
        while sink.write(bytes).is_ok() {
            total += 1;
            assert!(total <= 1 << 20, "nobody reads");
        }
        assert!(total > 0);
        assert!(!sink.wait(Duration::ZERO).unwrap(), "full, and yet ready");
    }
}

#[test]
fn a_terminal_gets_one_character_a_write() {
    let (mut master, slave) = terminal();
    let mut sink = NonblockingWriter::new(slave).unwrap();
    assert_eq!(sink.write(b"\nx").unwrap(), 1);
    assert_eq!(sink.write(b"x").unwrap(), 1);
    assert_eq!(read(&mut master, 3), b"\r\nx");
}

#[test]
fn a_regular_file_takes_everything() {
    // SAFETY: the name is a valid C string.
    let file = unsafe { libc::memfd_create(c"sink".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: memfd_create has just made this descriptor for us.
    let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(file) };
    let mut sink = NonblockingWriter::new(file.try_clone().unwrap().into()).unwrap();
    assert_eq!(sink.method, Method::Plain);
    assert_eq!(sink.write(&pattern(5000)).unwrap(), 4096);
    assert_eq!(sink.write(b"end").unwrap(), 3);
    let mut bytes = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"end");
}

#[test]
fn devices() {
    let open = |name| File::options().write(true).open(name).unwrap();
    let mut null = NonblockingWriter::new(open("/dev/null").into()).unwrap();
    assert_eq!(null.method, Method::Discard);
    assert_eq!(null.write(&pattern(5000)).unwrap(), 5000);
    let mut full = NonblockingWriter::new(open("/dev/full").into()).unwrap();
    let error = full.write(b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_reader_that_has_gone_is_an_error() {
    // The test harness ignores SIGPIPE, as main does.
    let (reader, writer) = small_pipe();
    drop(reader);
    let mut pipe = NonblockingWriter::new(writer).unwrap();
    assert!(pipe.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(pipe.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));

    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let mut socket = NonblockingWriter::new(writer.into()).unwrap();
    assert!(socket.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(socket.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));

    let (master, slave) = terminal();
    drop(master);
    let mut terminal = NonblockingWriter::new(slave).unwrap();
    assert!(terminal.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(terminal.write(b"x").unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() {
    let (reader, _writer) = small_pipe();
    let mut sink = NonblockingWriter::new(OwnedFd::from(reader)).unwrap();
    assert_eq!(sink.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
}
