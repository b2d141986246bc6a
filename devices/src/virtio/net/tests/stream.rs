use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{AGAIN, READABLE, Rig, WRITABLE, packet, received, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{OFFLOADS, STATUS};
use crate::virtio::net::stream::Error;
use crate::virtio::net::{Backend, HEADER, Link, MAX_FRAME, Stream};
use crate::virtio::testing::Piece;

fn stream() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(ours).unwrap(), theirs)
}

fn rig(queue_size: u16) -> (Rig, UnixStream) {
    let (stream, theirs) = stream();
    let rig = Rig::new(setup(Box::new(stream)), STATUS, [16, queue_size]);
    (rig, theirs)
}

/// The frame of `packet` as it is on the socket.
fn framed(packet: &[u8]) -> Vec<u8> {
    let frame = &packet[HEADER..];
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

pub(super) fn is_up(rig: &Rig) -> bool {
    let mut status = [0];
    rig.net.read_config(6, &mut status);
    status == [1]
}

#[test]
fn frames_come_in_whatever_pieces() {
    for piece in [1, 3, 4, 5, 100, 1 << 20] {
        let (mut rig, mut theirs) = rig(16);
        assert_eq!(rig.net.features() & OFFLOADS, 0);
        let packets = [packet(1, 60), packet(2, 1), packet(3, 1500)];
        let buffers: Vec<u64> = packets.iter().map(|_| rig.add_buffer(2000)).collect();
        let bytes: Vec<u8> = packets.iter().flat_map(|packet| framed(packet)).collect();
        for piece in bytes.chunks(piece) {
            theirs.write_all(piece).unwrap();
            rig.net.process_event(READABLE);
        }
        assert_eq!(rig.used(0), [72, 13, 1512]);
        for (address, packet) in buffers.iter().zip(&packets) {
            assert_eq!(rig.driver.read(*address, packet.len()), received(packet, 1));
        }
        assert!(is_up(&rig));
    }
}

#[test]
fn frames_go_out_with_their_lengths() {
    let (mut rig, mut theirs) = rig(16);
    let packets = [packet(1, 60), packet(2, 1500), packet(3, MAX_FRAME)];
    for packet in &packets {
        rig.add_packet(packet);
        rig.net.notify(1);
        let mut bytes = vec![0; packet.len() - HEADER + 4];
        theirs.read_exact(&mut bytes).unwrap();
        assert!(bytes == framed(packet));
    }
    assert_eq!(rig.used(1).len(), 3);
}

#[test]
fn a_full_socket_loses_nothing() {
    // Lengths that do not divide the socket's buffer, so that it takes parts of frames.
    for length in [14, 999, 40_001] {
        let (mut rig, mut theirs) = rig(16);
        theirs.set_nonblocking(true).unwrap();
        let (mut expected, mut read) = (Vec::new(), Vec::new());
        let address = rig.memory(HEADER + length);
        for seed in 0..250 {
            let packet = packet(seed, length);
            expected.extend(framed(&packet));
            rig.driver.write(address, &packet);
            let piece = Piece::readable(address, u32::try_from(packet.len()).unwrap());
            rig.driver.queues[1].add(&[piece]);
            rig.net.notify(1);
            // The memory is used again, as a driver does once its packet is used.
            while rig.used(1).is_empty() {
                assert!(
                    theirs.read_to_end(&mut read).is_err(),
                    "the socket was full, and is empty now"
                );
                rig.await_source(WRITABLE);
            }
        }
        for _ in 0..10 {
            assert!(theirs.read_to_end(&mut read).is_err());
            rig.serve(WRITABLE);
        }
        assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
        assert!(is_up(&rig));
    }
}

#[test]
fn a_lost_connection_takes_the_link_down_once() {
    let (mut rig, theirs) = rig(16);
    rig.add_buffer(1000);
    drop(theirs);
    rig.net.process_event(READABLE);
    assert!(!is_up(&rig));
    assert_eq!(rig.line.take(), 1);
    rig.net.process_event(READABLE);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    rig.net.process_event(AGAIN);
    assert_eq!(rig.used(1).len(), 1, "what cannot be sent is dropped");
    assert_eq!(rig.net.metrics().transmit.errors, 1);
    assert_eq!(rig.line.take(), 1);
}

#[test]
fn a_connection_lost_while_sending_takes_the_link_down() {
    let (mut rig, theirs) = rig(16);
    drop(theirs);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    assert!(!is_up(&rig));
    assert_eq!(rig.used(1).len(), 1);
}

#[test]
fn a_length_that_cannot_be_takes_the_link_down() {
    for length in [0, u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
        let (mut rig, mut theirs) = rig(16);
        rig.add_buffer(1000);
        theirs.write_all(&length.to_be_bytes()).unwrap();
        rig.net.process_event(READABLE);
        assert!(!is_up(&rig));
        assert!(rig.used(0).is_empty());
    }
}

#[test]
fn nobody_listens() {
    let error = Stream::connect(Path::new("/nowhere/net.socket")).err().unwrap();
    assert!(matches!(error, Error::Connect { .. }));
    assert!(
        error
            .to_string()
            .contains("passt --socket \"/nowhere/net.socket\"")
    );
}

#[test]
fn half_a_frame_is_dropped_with_the_connection() {
    for length in [1, 4, 5, 63] {
        let (mut rig, mut theirs) = rig(16);
        rig.add_buffer(1000);
        rig.add_buffer(1000);
        theirs.write_all(&framed(&packet(1, 60))).unwrap();
        theirs.write_all(&framed(&packet(2, 60))[..length]).unwrap();
        drop(theirs);
        rig.net.process_event(READABLE);
        assert_eq!(rig.used(0), [72], "what came whole is the driver's");
        assert!(!is_up(&rig));
    }
}

#[test]
fn a_kernel_short_of_memory_is_no_lost_connection() {
    let (mut ours, mut theirs) = stream();
    for code in [libc::ENOBUFS, libc::ENOMEM, libc::EINTR, libc::EAGAIN] {
        let failed = ours.checked::<()>(Err(io::Error::from_raw_os_error(code)));
        assert!(failed.is_err());
        assert_eq!(ours.link(), Link::Up);
    }
    let mut rig = Rig::new(setup(Box::new(ours)), STATUS, [16, 16]);
    rig.add_packet(&packet(1, 60));
    rig.net.notify(1);
    let mut bytes = [0; 64];
    theirs.read_exact(&mut bytes).unwrap();
    assert!(bytes == *framed(&packet(1, 60)));

    let (mut ours, _theirs) = stream();
    let broken = io::Error::from_raw_os_error(libc::EPIPE);
    assert!(ours.checked::<()>(Err(broken)).is_err());
    assert_eq!(ours.link(), Link::Lost);
}
