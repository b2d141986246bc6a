//! Tests with interfaces, each in a network namespace of its own.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::net::FirstFrames as Reader;
use devices::virtio::net::tap::{self, Tap};

use super::frame::{ETHERNET, Ethernet, Packet, Transport, VNET_HEADER};
use super::tap::Scratch;
use super::tun::{Error, GATEWAY_MAC};
use super::{Addresses, Assigned, FirstFrames, Network, NetworkSetup, Sleeper, Wake, WakeRule, sys};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Maximum wait for a packet of the same host.
const WAIT: Duration = Duration::from_secs(10);

/// Runs `test` on a thread in a new network namespace, if the host permits it.
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
fn in_own_network(test: impl FnOnce() + Send) {
    if !scratch::require(scratch::Requirement::NetworkNamespace) {
        return;
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer and affects this thread only.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            test();
        });
        thread.join().unwrap();
    });
}

/// Waits up to `timeout` for a packet of `file`. Returns true if there is one.
fn wait_readable(file: impl AsFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = timeout.as_millis().try_into().unwrap();
    // SAFETY: `poll` is one pollfd, exclusively borrowed during the call.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

fn run(command: &str) -> String {
    let mut arguments = command.split(' ');
    let output = scratch::run(Command::new(arguments.next().unwrap()).args(arguments));
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn network(max_taps: usize) -> Network {
    open_network(max_taps, false)
}

fn open_network(max_taps: usize, persistent: bool) -> Network {
    let gateways = ["10.64.0.1/10", "fd64::1/64"].map(|text| {
        let (address, prefix) = text.split_once('/').unwrap();
        (address.parse().unwrap(), prefix.parse().unwrap())
    });
    let setup = NetworkSetup {
        name: "mayfly0".into(),
        gateways: gateways.into(),
        tap_prefix: "mf".into(),
        max_taps,
        persistent,
    };
    // A child that another test starts keeps the TUN of a closed network attached until its `execve`.
    scratch::wait_for("the TUN", || match Network::open(setup.clone()) {
        Err(Error::Attach { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => None,
        result => Some(result.unwrap()),
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends a datagram with `data` to port 9 of `address`.
fn send(address: IpAddr, data: &[u8]) {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.send_to(data, (address, 9)).unwrap();
}

/// Waits for a wake.
fn await_wakes(network: &mut Network, scratch: &mut Scratch) -> Vec<Wake> {
    let deadline = Instant::now() + WAIT;
    loop {
        assert!(Instant::now() < deadline, "no packet wakes");
        wait_readable(network.fd(), Duration::from_millis(100));
        let wakes = network.on_readable(scratch).unwrap();
        if !wakes.is_empty() {
            return wakes;
        }
    }
}

/// Returns the packets, each an Ethernet frame, of `frames`.
fn packets(frames: &FirstFrames) -> Vec<Vec<u8>> {
    assert!(Reader::parse(frames.records().to_vec()).is_ok());
    let mut rest = frames.records();
    let mut packets = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (packet, more) = more.split_at(usize::try_from(u32::from_le_bytes(*length)).unwrap());
        packets.push(packet[VNET_HEADER..].to_vec());
        rest = more;
    }
    packets
}

/// Reads a frame of a tap, without those of the host's own IPv6.
fn read_frame(tap: impl AsFd, scratch: &mut Scratch) -> Option<Vec<u8>> {
    loop {
        let length = sys::read(tap.as_fd(), scratch.bytes()).ok()?;
        let frame = scratch.bytes()[VNET_HEADER..length].to_vec();
        if Ethernet::parse(&frame).unwrap().is_unicast() {
            return Some(frame);
        }
    }
}

fn await_frame(tap: impl AsFd, scratch: &mut Scratch) -> Vec<u8> {
    let deadline = Instant::now() + WAIT;
    loop {
        assert!(Instant::now() < deadline, "no frame arrives");
        if let Some(frame) = read_frame(&tap, scratch) {
            return frame;
        }
        wait_readable(tap.as_fd(), Duration::from_millis(100));
    }
}

/// Returns the data of a datagram in a frame.
fn data(frame: &[u8]) -> &[u8] {
    let header = match frame[ETHERNET] >> 4 {
        4 => 28,
        _ => 48,
    };
    &frame[ETHERNET + header..]
}

#[test]
fn wake_moves_route_to_tap() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(2);
        network.prepare_taps(1).unwrap();
        for (address, instance) in [(ip("10.64.0.5"), 5), (ip("fd64::5"), 6)] {
            network
                .register(address, instance, MAC, WakeRule::Unicast)
                .unwrap();
            send(address, b"first");
            let wakes = await_wakes(&mut network, &mut scratch);
            assert_eq!(wakes, [Wake { address, instance }]);
            send(address, b"second");
            let assigned = network.assign(address, &mut scratch).unwrap();
            let frames = packets(&assigned.frames);
            let texts: Vec<_> = frames.iter().map(|frame| data(frame)).collect();
            assert_eq!(texts, [&b"first"[..], b"second"]);
            assert_eq!(frames[0][..12], [MAC, GATEWAY_MAC].concat());
            // Without ARP: the neighbor is known.
            send(address, b"third");
            let frame = await_frame(&assigned.tap, &mut scratch);
            assert_eq!(
                (data(&frame), &frame[..12]),
                (&b"third"[..], &[MAC, GATEWAY_MAC].concat()[..])
            );
            assert!(matches!(
                network.assign(address, &mut scratch),
                Err(Error::Assigned(_))
            ));
            assert!(matches!(network.unregister(address), Err(Error::Assigned(_))));
            // What the instance has not read wakes it again.
            send(address, b"fourth");
            drop(assigned.tap);
            wait_readable(network.fd(), Duration::from_millis(1));
            network.release(address, &mut scratch).unwrap();
            assert_eq!(network.take_wakes(), [Wake { address, instance }]);
            send(address, b"fifth");
            let assigned = network.assign(address, &mut scratch).unwrap();
            let frames = packets(&assigned.frames);
            let texts: Vec<_> = frames.iter().map(|frame| data(frame)).collect();
            assert_eq!(texts, [&b"fourth"[..], b"fifth"]);
            network.release(address, &mut scratch).unwrap();
            assert!(network.take_wakes().is_empty());
            network.unregister(address).unwrap();
        }
        assert!(network.is_empty());
        let routes = run("ip route show table main") + &run("ip -6 route show table main");
        assert!(
            !routes.contains("mf0 scope link") && !routes.contains("fd64::5"),
            "{routes}"
        );
        assert_eq!(network.counters().dropped, 0);
    });
}

#[test]
fn ping_and_connection_wake_by_rule() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let (any, web) = (ip("10.64.1.1"), ip("10.64.1.2"));
        network.register(any, 1, MAC, WakeRule::Unicast).unwrap();
        let port = WakeRule::Ports([80].into());
        network.register(web, 2, MAC, port).unwrap();
        let connect = |port: u16| {
            let address = SocketAddr::from((Ipv4Addr::new(10, 64, 1, 2), port));
            let error = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
        };
        connect(81);
        assert!(network.on_readable(&mut scratch).unwrap().is_empty());
        assert!(network.counters().ignored > 0);
        connect(80);
        let wakes = await_wakes(&mut network, &mut scratch);
        assert_eq!(wakes[0].instance, 2);
        let assigned = network.assign(web, &mut scratch).unwrap();
        let frames = packets(&assigned.frames);
        let packet = Packet::parse(&frames[0][ETHERNET..]).unwrap();
        assert_eq!(
            packet.transport(),
            Transport::Tcp {
                port: 80,
                opens: true
            }
        );
        // No tap is left, and the ping waits for one.
        let ping = scratch::run(Command::new("ping").args(["-c", "1", "-W", "1", "10.64.1.1"]));
        assert!(!ping.status.success());
        let wakes = await_wakes(&mut network, &mut scratch);
        assert_eq!(wakes[0].instance, 1);
        assert!(matches!(
            network.assign(any, &mut scratch),
            Err(Error::NoTap { limit: 1, .. })
        ));
        network.release(web, &mut scratch).unwrap();
        let assigned = network.assign(any, &mut scratch).unwrap();
        let frames = packets(&assigned.frames);
        let packet = Packet::parse(&frames[0][ETHERNET..]).unwrap();
        assert_eq!(packet.transport(), Transport::Echo);
    });
}

/// Sets its flag when it is dropped, also by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends numbered datagrams from the network of `namespace` until `is_done`, at most 500 beyond those that are `received`: fewer than a
/// tap or the first frames hold. Returns their number.
fn send_numbers(namespace: &fs::File, address: IpAddr, is_done: &AtomicBool, received: &AtomicU32) -> u32 {
    // SAFETY: the call takes no pointer and affects this thread only.
    let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((address, 9)).unwrap();
    let mut sent = 0_u32;
    while !is_done.load(Ordering::Relaxed) {
        let waiting = sent.saturating_sub(received.load(Ordering::Relaxed));
        if waiting < 500 && socket.send(&sent.to_be_bytes()).is_ok() {
            sent += 1;
        }
    }
    sent
}

/// Expects each of the numbers below `sent` once.
fn expect_each_once(mut numbers: Vec<u32>, sent: u32) {
    numbers.sort_unstable();
    let repeated: Vec<_> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    let lost: Vec<_> = (0..sent)
        .filter(|number| numbers.binary_search(number).is_err())
        .collect();
    assert!(
        repeated.is_empty() && lost.is_empty(),
        "repeated: {repeated:?}, lost: {lost:?} of {sent}"
    );
}

/// One thread sends numbered datagrams as fast as the queues permit, while the instance wakes and sleeps again. Only packets that are
/// counted as late may arrive after later ones: the machine can stop the sender between the lookup of its route and the queue.
#[test]
#[allow(clippy::disallowed_methods, reason = "the thread ends once the flag is set")]
fn moves_lose_and_reorder_no_packet() {
    const MOVES: usize = 100;
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let address = ip("10.64.0.5");
        network.register(address, 5, MAC, WakeRule::Unicast).unwrap();
        let namespace = fs::File::open("/proc/thread-self/ns/net").unwrap();
        let (is_done, received) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            let done = Done(&is_done);
            let sender = scope.spawn(|| send_numbers(&namespace, address, &is_done, &received));
            let (mut numbers, mut of_taps) = (Vec::new(), 0);
            let mut check = |frame: &[u8]| {
                numbers.push(u32::from_be_bytes(data(frame).try_into().unwrap()));
            };
            for _ in 0..MOVES {
                if network.take_wakes().is_empty() {
                    await_wakes(&mut network, &mut scratch);
                }
                let read = |network: &Network, of_taps: u32| {
                    let kept = u32::try_from(network.counters().kept).unwrap();
                    received.store(kept + of_taps, Ordering::Relaxed);
                };
                // The sender goes on during the move.
                read(&network, of_taps);
                let assigned = network.assign(address, &mut scratch).unwrap();
                packets(&assigned.frames).iter().for_each(|frame| check(frame));
                for _ in 0..20 {
                    read(&network, of_taps);
                    assert!(network.on_readable(&mut scratch).unwrap().is_empty());
                    check(&await_frame(&assigned.tap, &mut scratch));
                    of_taps += 1;
                }
                network.release(address, &mut scratch).unwrap();
            }
            drop(done);
            let sent = sender.join().unwrap();
            network.on_readable(&mut scratch).unwrap();
            let assigned = network.assign(address, &mut scratch).unwrap();
            packets(&assigned.frames).iter().for_each(|frame| check(frame));
            while let Some(frame) = read_frame(&assigned.tap, &mut scratch) {
                check(&frame);
            }
            let counters = network.counters();
            let reordered = numbers.windows(2).filter(|pair| pair[1] < pair[0]).count();
            expect_each_once(numbers, sent);
            assert_eq!(counters.dropped, 0);
            assert!(counters.late <= 10, "{} late", counters.late);
            // A packet can be late for the tap too, when the route moves back.
            assert!(
                reordered <= MOVES / 10,
                "{reordered} reordered, {} late",
                counters.late
            );
        });
    });
}

/// A sender that has looked up its route before the release needs the neighbor.
#[test]
fn neighbor_stays_until_the_tap_is_used_again() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let (first, second) = (ip("10.64.0.5"), ip("10.64.0.6"));
        let neighbors = || run("ip neigh show dev mf0 nud permanent");
        for (number, address) in [(1, first), (2, second)] {
            network.register(address, number, MAC, WakeRule::Unicast).unwrap();
        }
        network.assign(first, &mut scratch).unwrap();
        network.release(first, &mut scratch).unwrap();
        assert!(neighbors().contains("10.64.0.5 "), "{}", neighbors());
        network.assign(second, &mut scratch).unwrap();
        assert!(!neighbors().contains("10.64.0.5 "), "{}", neighbors());
        assert!(neighbors().contains("10.64.0.6 "), "{}", neighbors());
    });
}

#[test]
fn hundred_thousand_destinations_need_no_neighbors() {
    const COUNT: u32 = 100_000;
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let v4 = UdpSocket::bind("0.0.0.0:0").unwrap();
        let v6 = UdpSocket::bind("[::]:0").unwrap();
        let addresses = |number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            let v4: IpAddr = Ipv4Addr::new(10, 65 + a, b, c).into();
            let v6 = Ipv6Addr::new(0xfd64, 0, 0, 0, 1, 0, a.into(), u16::from_be_bytes([b, c]));
            [v4, v6.into()]
        };
        for number in 0..COUNT {
            for address in addresses(number) {
                network.register(address, number, MAC, WakeRule::Unicast).unwrap();
            }
        }
        let mut woken = 0;
        for number in 0..COUNT {
            let [first, second] = addresses(number);
            v4.send_to(&[1], (first, 9)).unwrap();
            v6.send_to(&[1], (second, 9)).unwrap();
            if number % 1000 == 999 {
                while wait_readable(network.fd(), Duration::ZERO) {
                    let wakes = network.on_readable(&mut scratch).unwrap();
                    woken += wakes.len();
                    for wake in wakes {
                        network.abandon(wake.address).unwrap();
                    }
                }
            }
        }
        assert_eq!(woken, 2 * usize::try_from(COUNT).unwrap());
        for version in ["-4", "-6"] {
            let neighbors = run(&format!("ip {version} neigh show nud all"));
            assert!(neighbors.lines().count() < 20, "{}", neighbors.lines().count());
        }
    });
}

#[test]
fn adopted_instance_returns_its_tap() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let address = ip("10.64.0.5");
        let mut old = network(2);
        old.register(address, 5, MAC, WakeRule::Unicast).unwrap();
        let assigned = old.assign(address, &mut scratch).unwrap();
        assert!(assigned.frames.is_empty());
        // The supervisor ends, and the instance runs on.
        drop(old);
        let mut new = network(2);
        new.register(address, 5, MAC, WakeRule::Unicast).unwrap();
        new.adopt(address, &assigned.name).unwrap();
        send(address, b"running");
        assert_eq!(data(&await_frame(&assigned.tap, &mut scratch)), b"running");
        let Assigned { tap, name, .. } = assigned;
        drop(tap);
        // The kernel removes it once no process has it open, not even a child before its `execve`.
        scratch::wait_until("the end of the tap", || sys::interface_index(&name).is_err());
        new.release(address, &mut scratch).unwrap();
        send(address, b"asleep");
        assert_eq!(await_wakes(&mut new, &mut scratch)[0].instance, 5);
        let assigned = new.assign(address, &mut scratch).unwrap();
        assert_eq!(packets(&assigned.frames).len(), 1);
    });
}

#[test]
fn reclaimed_route_leads_to_the_sleeper() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let [kept, left] = ["10.64.0.5", "10.64.0.6"].map(ip);
        let mut old = open_network(2, true);
        let new_addresses = |network: &mut Network| {
            for (number, address) in [(5, kept), (6, left)] {
                network.register(address, number, MAC, WakeRule::Unicast).unwrap();
            }
        };
        new_addresses(&mut old);
        let running = old.assign(kept, &mut scratch).unwrap();
        let ended = old.assign(left, &mut scratch).unwrap();
        drop(old);
        // The supervisor has ended, and then one of the instances.
        drop(ended);
        let mut new = open_network(2, true);
        new_addresses(&mut new);
        new.adopt(kept, &running.name).unwrap();
        new.reclaim().unwrap();
        send(kept, b"running");
        assert_eq!(data(&await_frame(&running.tap, &mut scratch)), b"running");
        send(left, b"asleep");
        assert_eq!(await_wakes(&mut new, &mut scratch)[0].instance, 6);
    });
}

#[test]
fn sleeper_answers_until_frame_wakes_it() {
    in_own_network(|| {
        run("ip tuntap add tap0 mode tap");
        run("ip address add 10.0.0.1/24 dev tap0");
        let addresses = Addresses {
            mac: MAC,
            ip: [ip("10.0.0.2"), ip("fe80::2")].into(),
        };
        let rule = WakeRule::Ports([9].into());
        let mut scratch = Scratch::default();
        let mut sleeper = Sleeper::open("tap0", addresses, rule).unwrap();
        run("ip link set tap0 up");
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        // The kernel asks for the address, then sends both.
        socket.send_to(b"ignored", "10.0.0.2:8").unwrap();
        socket.send_to(b"first", "10.0.0.2:9").unwrap();
        let deadline = Instant::now() + WAIT;
        let frames = loop {
            assert!(Instant::now() < deadline, "no frame wakes");
            wait_readable(sleeper.fd(), Duration::from_millis(100));
            if let Some(frames) = sleeper.on_readable(&mut scratch).unwrap() {
                break frames;
            }
        };
        assert_eq!(data(&packets(&frames)[0]), b"first");
        assert!(sleeper.counters().answered > 0 && sleeper.counters().ignored > 0);
        assert!(run("ip neigh show 10.0.0.2 dev tap0").contains("02:00:00:00:00:01"));
        // Later frames wait in the tap.
        socket.send_to(b"second", "10.0.0.2:9").unwrap();
        run("ip neigh flush dev tap0");
        sleeper.announce().unwrap();
        let (tap, ..): (Tap, _, _) = sleeper.into_parts();
        assert_eq!(data(&await_frame(&tap, &mut scratch)), b"second");
    });
}

#[test]
fn late_packet_reaches_tap() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let address = ip("10.64.0.5");
        network.register(address, 5, MAC, WakeRule::Unicast).unwrap();
        let assigned = network.assign(address, &mut scratch).unwrap();
        // As by a sender with the old route.
        run("ip route del 10.64.0.5/32 dev mf0");
        send(address, b"late");
        wait_readable(network.fd(), WAIT);
        assert!(network.on_readable(&mut scratch).unwrap().is_empty());
        let frame = await_frame(&assigned.tap, &mut scratch);
        assert_eq!(
            (data(&frame), &frame[..12]),
            (&b"late"[..], &[MAC, GATEWAY_MAC].concat()[..])
        );
        let counters = network.counters();
        assert_eq!((counters.late, counters.dropped), (1, 0));
        // The route is gone already.
        network.release(address, &mut scratch).unwrap();
    });
}

#[test]
fn waking_instance_keeps_limited_packets() {
    in_own_network(|| {
        let mut scratch = Scratch::default();
        let mut network = network(1);
        let address = ip("10.64.0.5");
        network.register(address, 5, MAC, WakeRule::Unicast).unwrap();
        for _ in 0..3000 {
            send(address, &[7; 10]);
        }
        let mut wakes = Vec::new();
        while wait_readable(network.fd(), Duration::ZERO) {
            wakes.extend(network.on_readable(&mut scratch).unwrap());
        }
        assert_eq!(wakes, [Wake { address, instance: 5 }]);
        let assigned = network.assign(address, &mut scratch).unwrap();
        let counters = network.counters();
        assert_eq!(
            (assigned.frames.len(), counters.kept, counters.dropped),
            (1024, 1024, 1976)
        );
    });
}

#[test]
fn open_descriptor_keeps_frames_over_restart() {
    in_own_network(|| {
        run("ip tuntap add tap0 mode tap");
        run("ip address add 10.0.0.1/24 dev tap0");
        let addresses = Addresses {
            mac: MAC,
            ip: [ip("10.0.0.2")].into(),
        };
        let mut scratch = Scratch::default();
        let open = || {
            scratch::wait_for("the tap", || {
                match Sleeper::open("tap0", addresses.clone(), WakeRule::Unicast) {
                    // A child that another test starts keeps it attached until its `execve`.
                    Err(tap::Error::Busy { .. }) => None,
                    result => Some(result.unwrap()),
                }
            })
        };
        let sleeper = open();
        run("ip link set tap0 up");
        run("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev tap0");
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        // The descriptor store has a duplicate.
        let stored = sleeper.fd().try_clone_to_owned().unwrap();
        drop(sleeper);
        socket.send_to(b"stored", "10.0.0.2:9").unwrap();
        let mut sleeper = Sleeper::from_descriptor(stored, addresses.clone(), WakeRule::Unicast).unwrap();
        let frames = sleeper.on_readable(&mut scratch).unwrap().unwrap();
        assert_eq!(data(&packets(&frames)[0]), b"stored");
        // The tap stays without it, but its frames do not.
        drop(sleeper);
        let _ = socket.send_to(b"lost", "10.0.0.2:9");
        let mut sleeper = open();
        assert!(sleeper.on_readable(&mut scratch).unwrap().is_none());
        scratch::wait_until("the carrier", || socket.send_to(b"kept", "10.0.0.2:9").is_ok());
        let deadline = Instant::now() + WAIT;
        let frames = loop {
            assert!(Instant::now() < deadline, "no frame wakes");
            if let Some(frames) = sleeper.on_readable(&mut scratch).unwrap() {
                break frames;
            }
            socket.send_to(b"kept", "10.0.0.2:9").unwrap();
        };
        assert_eq!(data(&packets(&frames)[0]), b"kept");
    });
}
