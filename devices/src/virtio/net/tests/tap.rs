//! Tests with a tap in a network namespace of the test's thread. They require root.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;

use super::{Fixture, READABLE, is_readable, packet, setup};
use crate::virtio::VirtioDevice;
use crate::virtio::net::features::{
    CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_UFO, HOST_USO, MRG_RXBUF, STATUS,
};
use crate::virtio::net::{Backend, HEADER, Tap};

const HOST: [u8; 4] = [10, 9, 0, 1];
const GUEST: [u8; 4] = [10, 9, 0, 2];
const GUEST_MAC: [u8; 6] = super::MAC;
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];

/// Runs `test` on a thread with an empty network namespace, if the host permits it.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
pub(super) fn in_own_network(test: impl FnOnce() + Send) {
    if !scratch::require(scratch::Requirement::NetworkNamespace) {
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer, and changes only this thread.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            test();
        });
        thread.join().unwrap();
    });
}

pub(super) fn ip(arguments: &str) {
    let output = scratch::run(Command::new("ip").args(arguments.split(' ')));
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Creates an interface and attaches to it.
pub(super) fn tap(name: &str) -> Tap {
    ip(&format!("tuntap add {name} mode tap"));
    Tap::open(name).expect("this test requires root and /dev/net/tun")
}

/// Creates a device on a new tap with the host's address.
pub(super) fn fixture(features: u64, mtu: u16) -> Fixture {
    // With IPv6, the kernel sends router and neighbour solicitations. Without IPv6 the file does not exist.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let tap = tap("mayfly0");
    ip("link set lo up");
    ip(&format!("link set mayfly0 mtu {mtu} addrgenmode none up"));
    ip("addr add 10.9.0.1/24 dev mayfly0");
    Fixture::new(setup(Box::new(tap)), features, [64, 64])
}

/// Returns the next frame from the kernel of type `kind`.
fn next_frame(fixture: &mut Fixture, buffers: &mut Vec<(u64, u32)>, kind: [u8; 2]) -> Vec<u8> {
    for _ in 0..100 {
        let used = fixture.driver.queues[0].collect_used();
        let Some(first) = used.first() else {
            assert!(
                is_readable(fixture.descriptor(READABLE), 60_000),
                "no frame arrives"
            );
            fixture.net.process_event(READABLE);
            continue;
        };
        let count = used.len();
        let lengths = used.iter().map(|used| used.length);
        let mut bytes = Vec::new();
        for ((address, _), length) in buffers.drain(..count).zip(lengths) {
            bytes.extend(fixture.driver.read(address, usize::try_from(length).unwrap()));
        }
        assert!(first.length > 0);
        if bytes[HEADER + 12..HEADER + 14] == kind {
            assert_eq!(usize::from(bytes[10]), count, "the used buffers hold one packet");
            return bytes;
        }
    }
    panic!("only frames of other types arrive");
}

fn add_buffers(fixture: &mut Fixture, count: usize, length: u32) -> Vec<(u64, u32)> {
    let length_in_memory = usize::try_from(length).unwrap();
    (0..count)
        .map(|_| (fixture.add_buffer(length_in_memory), length))
        .collect()
}

/// Returns the guest's reply to an ARP request for its address.
fn arp_reply(request: &[u8]) -> Vec<u8> {
    let arp = &request[HEADER..];
    assert_eq!(arp[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1], "an ARP request");
    assert_eq!((&arp[28..32], &arp[38..42]), (&HOST[..], &GUEST[..]));
    let mut reply = vec![0; HEADER];
    reply.extend(&arp[6..12]);
    reply.extend(GUEST_MAC);
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(GUEST_MAC);
    reply.extend(GUEST);
    reply.extend(&arp[22..32]);
    reply
}

/// Returns the one's complement sum of `bytes`, the base of IPv4 checksums.
fn sum(bytes: &[u8]) -> u16 {
    let units = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = units.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Returns a UDP datagram from the guest to `port` of the host, with its header. With `segment`, it requests
/// segments of that length and has no checksum.
fn datagram(to_mac: &[u8], port: u16, data: &[u8], segment: Option<u16>) -> Vec<u8> {
    let udp_length = u16::try_from(8 + data.len()).unwrap();
    let mut header = vec![0; HEADER];
    let mut udp = 9999_u16.to_be_bytes().to_vec();
    udp.extend(port.to_be_bytes());
    udp.extend(udp_length.to_be_bytes());
    udp.extend([0, 0]);
    if let Some(segment) = segment {
        // NEEDS_CSUM, GSO_UDP_L4; then start and offset of the checksum.
        header[..2].copy_from_slice(&[1, 5]);
        header[2..4].copy_from_slice(&42_u16.to_le_bytes());
        header[4..6].copy_from_slice(&segment.to_le_bytes());
        header[6..8].copy_from_slice(&34_u16.to_le_bytes());
        header[8..10].copy_from_slice(&6_u16.to_le_bytes());
        let mut pseudo = [GUEST, HOST].concat();
        pseudo.extend([0, 17]);
        pseudo.extend(udp_length.to_be_bytes());
        udp[6..8].copy_from_slice(&sum(&pseudo).to_be_bytes());
    }
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(GUEST);
    ip.extend(HOST);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mac = [to_mac, &GUEST_MAC[..], &[8, 0]].concat();
    [header, mac, ip, udp, data.to_vec()].concat()
}

#[test]
fn guest_and_host_exchange_packets() {
    in_own_network(|| {
        let mut fixture = fixture(MRG_RXBUF | CSUM | GUEST_CSUM | HOST_USO | STATUS, 9000);
        let mut buffers = add_buffers(&mut fixture, 40, 1000);
        let socket = UdpSocket::bind("10.9.0.1:4444").unwrap();
        let data: Vec<u8> = packet(3, 8000)[HEADER..].to_vec();
        let before = fixture.driver.clear_log();
        socket.send_to(&data, "10.9.0.2:9999").unwrap();
        let request = next_frame(&mut fixture, &mut buffers, ARP);
        fixture.driver.expect_writes_logged(&before);
        let reply = arp_reply(&request);
        let host_mac = request[HEADER + 6..HEADER + 12].to_vec();
        fixture.add_packet(&reply);
        fixture.net.notify(1);

        let received = next_frame(&mut fixture, &mut buffers, IPV4);
        assert_eq!(received[0], 1, "the packet needs a checksum");
        assert!(received[HEADER + 42..] == data);
        assert_eq!(received.len(), HEADER + 42 + 8000);

        fixture.add_packet(&datagram(&host_mac, 4444, b"hello", None));
        fixture.net.notify(1);
        let mut response = [0; 4000];
        assert_eq!(socket.recv(&mut response).unwrap(), 5);
        assert_eq!(response[..5], *b"hello");
        assert_eq!(fixture.net.metrics().transmit.packets, 2);
        assert_eq!(fixture.net.metrics().transmit.errors, 0);

        if fixture.net.features() & HOST_USO != 0 {
            fixture.add_packet(&datagram(&host_mac, 4444, &data[..2500], Some(1000)));
            fixture.net.notify(1);
            for segment in data[..2500].chunks(1000) {
                assert_eq!(socket.recv(&mut response).unwrap(), segment.len());
                assert!(response[..segment.len()] == *segment);
            }
        }
    });
}

#[test]
fn frame_longer_than_expected_is_received() {
    in_own_network(|| {
        // The driver expects 1500 bytes, but the host sends 8000, which exceeds the buffers popped for a
        // packet.
        let mut fixture = fixture(MRG_RXBUF, 9000);
        let mut buffers = add_buffers(&mut fixture, 2, 800);
        let socket = UdpSocket::bind("10.9.0.1:4444").unwrap();
        let data: Vec<u8> = packet(3, 8000)[HEADER..].to_vec();
        socket.send_to(&data, "10.9.0.2:9999").unwrap();
        // The kernel repeats the request until it receives a reply; a new interface loses earlier packets.
        let request = next_frame(&mut fixture, &mut buffers, ARP);
        buffers.extend(add_buffers(&mut fixture, 1, 800));
        fixture.add_packet(&arp_reply(&request));
        fixture.net.notify(1);
        fixture.await_event(READABLE);
        buffers.extend(add_buffers(&mut fixture, 40, 800));
        fixture.net.notify(0);
        let received = next_frame(&mut fixture, &mut buffers, IPV4);
        assert!(received[HEADER + 42..] == data);
        assert_eq!(received[..10], [0; 10], "no offload is negotiated");
    });
}

/// Returns true if the kernel may pass long TCP packets to `interface`.
fn accepts_long_tcp_packets(interface: &str) -> bool {
    /// `ETHTOOL_GTSO` and its result, `struct ethtool_value` of linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: 0x1e,
        data: 0,
    };
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *target = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: the kernel reads and writes `request` and `value`, which outlive the call. The number is SIOCETHTOOL.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value.data != 0
}

#[test]
fn offload_combinations_are_accepted() {
    in_own_network(|| {
        let mut tap = tap("mayfly0");
        assert!(tap.offloads() & HOST_UFO != 0);
        let all = [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6];
        for choice in 0_u32..32 {
            let chosen = (0..).zip(all).filter(|(at, _)| choice >> at & 1 != 0);
            let features: u64 = chosen.map(|(_, feature)| feature).sum();
            if features & !tap.offloads() == 0 {
                tap.use_features(features).unwrap();
                assert_eq!(
                    accepts_long_tcp_packets("mayfly0"),
                    features & GUEST_CSUM != 0 && features & (GUEST_TSO4 | GUEST_TSO6) != 0,
                    "{features:#x}"
                );
            }
        }
    });
}
