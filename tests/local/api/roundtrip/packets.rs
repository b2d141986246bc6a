//! Round trips of a guest that numbers its timer ticks and its received packets, and reports each.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::super::served::PAUSED;
use super::{Snapshot, start};
use crate::guest::TIMEOUT;
use crate::network::{add_neighbor, attach_tap, create_host_tap, in_own_network};

const TICK: u32 = 1;
const REPLY: u32 = 2;
/// Address of the guest, which listens on all ports.
const GUEST: &str = "10.0.0.2:7";
/// Numbers of packets sent before the pause, before the snapshot, and before the kill. The queue of the tap holds all.
const BURSTS: [u32; 3] = [12, 3, 3];

/// Rate limits that keep packets waiting in the device, in the tap, and in the tx queue of the guest.
const LIMITS: &str = ",rx-ops=4/2,tx-ops=6/2";

/// Peer of the guest.
struct Peer {
    socket: UdpSocket,
    sent: u32,
    replied: u32,
    ticks: u32,
}

impl Peer {
    fn new() -> Self {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(TIMEOUT / 3)).unwrap();
        Self {
            socket,
            sent: 0,
            replied: 0,
            ticks: 0,
        }
    }

    fn send(&mut self, count: u32) {
        for _ in 0..count {
            let length = self.socket.send_to(&self.sent.to_be_bytes(), GUEST).unwrap();
            assert_eq!(length, 4);
            self.sent += 1;
        }
    }

    /// Receives one packet, which must be the next of its kind. Returns false without a packet.
    fn receive(&mut self) -> bool {
        let mut packet = [0; 64];
        let length = match self.socket.recv(&mut packet) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(length, 8);
        let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let count = match number(0) {
            TICK => &mut self.ticks,
            REPLY => &mut self.replied,
            kind => panic!("{kind}"),
        };
        assert_eq!(number(4), *count, "kind {}", number(0));
        *count += 1;
        assert!(self.replied <= self.sent);
        true
    }

    /// Receives all available packets without blocking.
    fn receive_available(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.receive() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Waits for all replies and for one more tick. Fails if packets cease before.
    fn expect_replies(&mut self) -> Result<(), String> {
        let ticks = self.ticks + 1;
        while self.replied < self.sent || self.ticks < ticks {
            if !self.receive() {
                return Err(format!(
                    "{} of {} packets have a reply, after {} ticks",
                    self.replied, self.sent, self.ticks
                ));
            }
        }
        Ok(())
    }
}

/// Runs `restores` round trips with packets in flight. Snapshots are diff snapshots in place, and every tenth is full.
fn run_restores(restores: u32, options: &str, arguments: &str) {
    create_host_tap();
    add_neighbor("10.0.0.2", [2, 0, 0, 0, 0, 7]);
    // An open descriptor in the test keeps the queue of the tap across processes.
    let tap = attach_tap();
    let net = format!("--net fd:{},mac=02:00:00:00:00:07{LIMITS}", tap.as_raw_fd());
    let mut process = start("sequence.elf", &format!("{net} {options}"), arguments);
    process.expect("ready\n");
    let snapshot = Snapshot::new();
    let mut peer = Peer::new();
    let mut in_flight = 0;
    for restore in 0..restores {
        peer.send(BURSTS[0]);
        process.expect_no_content("PATCH", "/vm", PAUSED);
        peer.receive_available();
        in_flight += u32::from(peer.replied < peer.sent);
        peer.send(BURSTS[1]);
        snapshot.create(&process, if restore % 10 == 0 { "Full" } else { "Diff" });
        peer.send(BURSTS[2]);
        peer.receive_available();
        assert_eq!(process.kill().replace("ready\n", ""), "");
        process = snapshot.load(r#","resume_vm":true"#);
        if let Err(error) = peer.expect_replies() {
            panic!(
                "after restore {restore}: {error}; the guest printed {:?}",
                process.kill()
            );
        }
    }
    assert!(
        in_flight > restores / 10,
        "packets were in flight at {in_flight} restores only"
    );
    assert_eq!(peer.replied, restores * BURSTS.iter().sum::<u32>());
    assert!(peer.ticks >= restores);
}

/// With this tick period, the timer has expired at some snapshots and is pending at others.
#[cfg(target_arch = "x86_64")]
#[test]
fn thousand_restores_keep_ticks_and_packets() {
    in_own_network(|| run_restores(1000, "", "us=4000"));
}

/// As above, in the time of an emulated host.
#[cfg(target_arch = "aarch64")]
#[test]
fn restores_keep_ticks_and_packets() {
    in_own_network(|| run_restores(20, "", "us=20000"));
}

/// The timer of other architectures has deadlines alone.
#[cfg(target_arch = "x86_64")]
#[test]
fn restores_keep_tsc_deadlines() {
    in_own_network(|| run_restores(50, "", "deadline=1 us=20000"));
}

/// Other architectures have one interrupt controller.
#[cfg(target_arch = "x86_64")]
#[test]
fn restores_keep_ticks_and_packets_with_kernel_irqchip() {
    in_own_network(|| run_restores(50, "--irqchip kernel", "us=20000"));
}
