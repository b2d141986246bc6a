use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use scratch::Directory;

use super::{BACKLOG, Fixture, READABLE, WRITABLE, packet, received, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{OFFLOADS, STATUS};
use crate::virtio::net::stream::{Error, connect_within};
use crate::virtio::net::{Backend, HEADER, Link, MAX_FRAME, Stream};
use crate::virtio::testing::Buffer;

/// Limit that only a failed test reaches.
const LIMIT: Duration = Duration::from_secs(60);

fn stream() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
    (Stream::new(ours).unwrap(), theirs)
}

fn fixture(queue_size: u16) -> (Fixture, UnixStream) {
    let (stream, theirs) = stream();
    let fixture = Fixture::new(setup(Box::new(stream)), STATUS, [16, queue_size]);
    (fixture, theirs)
}

/// Ends the connection. A drop would leave it open while a child of another test has a duplicate of the descriptor.
fn disconnect(theirs: &UnixStream) {
    theirs.shutdown(Shutdown::Both).unwrap();
}

/// Returns the frame of `packet` with its length prefix.
fn framed(packet: &[u8]) -> Vec<u8> {
    let frame = &packet[HEADER..];
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

pub(super) fn is_up(fixture: &Fixture) -> bool {
    let mut status = [0];
    fixture.net.read_config(6, &mut status);
    status == [1]
}

#[test]
fn frames_in_chunks_are_received() {
    for chunk_size in [1, 3, 4, 5, 100, 1 << 20] {
        let (mut fixture, mut theirs) = fixture(16);
        assert_eq!(fixture.net.features() & OFFLOADS, 0);
        let packets = [packet(1, 60), packet(2, 1), packet(3, 1500)];
        let buffers: Vec<u64> = packets.iter().map(|_| fixture.add_buffer(2000)).collect();
        let bytes: Vec<u8> = packets.iter().flat_map(|packet| framed(packet)).collect();
        for chunk in bytes.chunks(chunk_size) {
            theirs.write_all(chunk).unwrap();
            fixture.net.process_event(READABLE);
        }
        assert_eq!(fixture.used(0), [72, 13, 1512]);
        for (address, packet) in buffers.iter().zip(&packets) {
            assert_eq!(fixture.driver.read(*address, packet.len()), received(packet, 1));
        }
        assert!(is_up(&fixture));
    }
}

#[test]
fn sent_frames_have_length_prefix() {
    let (mut fixture, mut theirs) = fixture(16);
    let packets = [packet(1, 60), packet(2, 1500), packet(3, MAX_FRAME)];
    for packet in &packets {
        fixture.add_packet(packet);
        fixture.net.notify(1);
        let mut bytes = vec![0; packet.len() - HEADER + 4];
        theirs.read_exact(&mut bytes).unwrap();
        assert!(bytes == framed(packet));
    }
    assert_eq!(fixture.used(1).len(), 3);
}

#[test]
fn full_socket_loses_no_frame() {
    // Lengths that do not divide the socket buffer, so that it accepts parts of frames.
    for length in [14, 999, 40_001] {
        let (mut fixture, mut theirs) = fixture(16);
        theirs.set_nonblocking(true).unwrap();
        let (mut expected, mut read) = (Vec::new(), Vec::new());
        let address = fixture.memory(HEADER + length);
        for seed in 0..250 {
            let packet = packet(seed, length);
            expected.extend(framed(&packet));
            fixture.driver.write(address, &packet);
            let buffer = Buffer::readable(address, u32::try_from(packet.len()).unwrap());
            fixture.driver.queues[1].add(&[buffer]);
            fixture.net.notify(1);
            // Reuses the memory, as a driver does after its packet is used.
            while fixture.used(1).is_empty() {
                assert!(
                    theirs.read_to_end(&mut read).is_err(),
                    "the drained socket is open"
                );
                fixture.await_event(WRITABLE);
            }
        }
        for _ in 0..10 {
            assert!(theirs.read_to_end(&mut read).is_err());
            fixture.process_pending(WRITABLE);
        }
        assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
        assert!(is_up(&fixture));
    }
}

#[test]
fn closed_connection_loses_link_once() {
    let (mut fixture, theirs) = fixture(16);
    fixture.add_buffer(1000);
    disconnect(&theirs);
    fixture.net.process_event(READABLE);
    assert!(!is_up(&fixture));
    assert_eq!(fixture.line.take(), 1);
    fixture.net.process_event(READABLE);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    fixture.net.process_event(BACKLOG);
    assert_eq!(
        fixture.used(1).len(),
        1,
        "a packet that cannot be sent is dropped"
    );
    assert_eq!(fixture.net.metrics().transmit.errors, 1);
    assert_eq!(fixture.line.take(), 1);
}

#[test]
fn send_error_loses_link() {
    let (mut fixture, theirs) = fixture(16);
    disconnect(&theirs);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    assert!(!is_up(&fixture));
    assert_eq!(fixture.used(1).len(), 1);
}

#[test]
fn invalid_length_loses_link() {
    for length in [0, u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
        let (mut fixture, mut theirs) = fixture(16);
        fixture.add_buffer(1000);
        theirs.write_all(&length.to_be_bytes()).unwrap();
        fixture.net.process_event(READABLE);
        assert!(!is_up(&fixture));
        assert!(fixture.used(0).is_empty());
    }
}

#[test]
fn connect_without_listener_fails() {
    let error = Stream::connect(Path::new("/nowhere/net.socket")).err().unwrap();
    assert!(matches!(error, Error::Connect { .. }));
    assert!(
        error
            .to_string()
            .contains("passt --socket \"/nowhere/net.socket\"")
    );
}

#[test]
fn connect_to_full_backlog_times_out() {
    let directory = Directory::new();
    let path = directory.path("net.socket");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    // With a backlog of 0, the kernel still queues one connection.
    let _first = UnixStream::connect(&path).unwrap();
    let (sender, connected) = mpsc::channel();
    let target = path.clone();
    thread::spawn(move || sender.send(Stream::connect(&target).map(drop)));
    let error = connected
        .recv_timeout(LIMIT)
        .expect("connect blocks")
        .unwrap_err();
    assert!(matches!(error, Error::Backlog { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains("backlog"),
        "{text}"
    );
}

#[test]
fn connect_waits_for_room_in_backlog() {
    let directory = Directory::new();
    let path = directory.path("net.socket");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _first = UnixStream::connect(&path).unwrap();
    let target = path.clone();
    let connecting = thread::spawn(move || connect_within(&target, LIMIT));
    // In any order with the second connection, the first one leaves the backlog.
    scratch::accept(&listener);
    scratch::join(connecting).unwrap();
}

#[test]
fn signals_neither_fail_nor_prolong_connect() {
    extern "C" fn ignore(_: libc::c_int) {}
    let handler = ignore as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, and no other test uses this signal.
    unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
    let directory = Directory::new();
    let path = directory.path("net.socket");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _first = UnixStream::connect(&path).unwrap();
    let timeout = Duration::from_millis(300);
    let connecting = thread::spawn(move || {
        let started_at = Instant::now();
        (connect_within(&path, timeout), started_at.elapsed())
    });
    scratch::wait_until("the end of connect", || {
        // SAFETY: the thread is not joined yet.
        unsafe { libc::pthread_kill(connecting.as_pthread_t(), libc::SIGUSR2) };
        connecting.is_finished()
    });
    let (result, elapsed) = scratch::join(connecting);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(elapsed >= timeout, "{elapsed:?}");
}

#[test]
fn connect_rejects_paths_of_no_socket() {
    let long = "x".repeat(108);
    for path in ["", "a\0b", &long] {
        let error = Stream::connect(Path::new(path)).err().unwrap();
        assert!(
            matches!(&error, Error::Connect { source, .. } if source.kind() == io::ErrorKind::InvalidInput),
            "{path:?}: {error}"
        );
    }
}

#[test]
fn incomplete_frame_is_dropped() {
    for length in [1, 4, 5, 63] {
        let (mut fixture, mut theirs) = fixture(16);
        fixture.add_buffer(1000);
        fixture.add_buffer(1000);
        theirs.write_all(&framed(&packet(1, 60))).unwrap();
        theirs.write_all(&framed(&packet(2, 60))[..length]).unwrap();
        disconnect(&theirs);
        fixture.net.process_event(READABLE);
        assert_eq!(fixture.used(0), [72], "the complete frame is delivered");
        assert!(!is_up(&fixture));
    }
}

#[test]
fn transient_error_keeps_link() {
    let (mut ours, mut theirs) = stream();
    for code in [libc::ENOBUFS, libc::ENOMEM, libc::EINTR, libc::EAGAIN] {
        let failed = ours.update_link::<()>(Err(io::Error::from_raw_os_error(code)));
        assert!(failed.is_err());
        assert_eq!(ours.link(), Link::Up);
    }
    let mut fixture = Fixture::new(setup(Box::new(ours)), STATUS, [16, 16]);
    fixture.add_packet(&packet(1, 60));
    fixture.net.notify(1);
    let mut bytes = [0; 64];
    theirs.read_exact(&mut bytes).unwrap();
    assert!(bytes == *framed(&packet(1, 60)));

    let (mut ours, _theirs) = stream();
    let broken = io::Error::from_raw_os_error(libc::EPIPE);
    assert!(ours.update_link::<()>(Err(broken)).is_err());
    assert_eq!(ours.link(), Link::Lost);
}
