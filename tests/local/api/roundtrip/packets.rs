//! A guest that goes from process to process counts its ticks and the packets that reach it, and tells of each.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::{PAUSED, Snapshot, run};
use crate::guest::LIMIT;
use crate::network::{attach_tap, in_own_network, make_tap, output_of};

const TICK: u32 = 1;
const ANSWER: u32 = 2;
/// Where the guest is. It listens to every port.
const GUEST: &str = "10.0.0.2:7";
/// Packets under way when the guest is paused, when it is frozen, and when it is gone. All of them find room in the tap.
const BURSTS: [u32; 3] = [12, 3, 3];

/// Slow enough for packets to wait in the device as well as in the tap, and for what the guest sends to wait in its queue.
const LIMITS: &str = ",rx-ops=4/2,tx-ops=6/2";

/// Who talks to the guest.
struct Peer {
    socket: UdpSocket,
    asked: u32,
    answered: u32,
    ticks: u32,
}

impl Peer {
    fn new() -> Self {
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(LIMIT / 3)).unwrap();
        Self {
            socket,
            asked: 0,
            answered: 0,
            ticks: 0,
        }
    }

    fn ask(&mut self, count: u32) {
        for _ in 0..count {
            let sent = self.socket.send_to(&self.asked.to_be_bytes(), GUEST).unwrap();
            assert_eq!(sent, 4);
            self.asked += 1;
        }
    }

    /// Takes one packet, which must be the next of its kind. False if there is none.
    fn take(&mut self) -> bool {
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
            ANSWER => &mut self.answered,
            kind => panic!("{kind}"),
        };
        assert_eq!(number(4), *count, "kind {}", number(0));
        *count += 1;
        assert!(self.answered <= self.asked);
        true
    }

    /// Takes what has come, without waiting.
    fn take_all(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.take() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Waits until all is answered, and for a tick more. What is wrong, if nothing comes any more.
    fn settles(&mut self) -> Result<(), String> {
        let ticks = self.ticks + 1;
        while self.answered < self.asked || self.ticks < ticks {
            if !self.take() {
                return Err(format!(
                    "{} of {} packets are answered, and there were {} ticks",
                    self.answered, self.asked, self.ticks
                ));
            }
        }
        Ok(())
    }
}

/// So many restores, each of a guest that is in the middle of something. Differences are written in place, but for every tenth
/// snapshot.
fn goes_through(restores: u32, options: &str, arguments: &str) {
    make_tap();
    output_of("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:07 dev tap0 nud permanent");
    // Open here too, so that what nobody has taken stays in it.
    let tap = attach_tap();
    let net = format!("--net fd:{},mac=02:00:00:00:00:07{LIMITS}", tap.as_raw_fd());
    let mut served = run("sequence.elf", &format!("{net} {options}"), arguments);
    served.expect("ready\n");
    let snapshot = Snapshot::new();
    let mut peer = Peer::new();
    let mut under_way = 0;
    for restore in 0..restores {
        peer.ask(BURSTS[0]);
        served.expect_no_content("PATCH", "/vm", PAUSED);
        peer.take_all();
        under_way += u32::from(peer.answered < peer.asked);
        peer.ask(BURSTS[1]);
        snapshot.create(&served, if restore % 10 == 0 { "Full" } else { "Diff" });
        peer.ask(BURSTS[2]);
        peer.take_all();
        assert_eq!(served.kill().replace("ready\n", ""), "");
        served = snapshot.load(r#","resume_vm":true"#);
        if let Err(why) = peer.settles() {
            panic!(
                "after restore {restore}: {why}; it has printed {:?}",
                served.kill()
            );
        }
    }
    assert!(
        under_way > restores / 10,
        "only {under_way} times was anything under way"
    );
    assert_eq!(peer.answered, restores * BURSTS.iter().sum::<u32>());
    assert!(peer.ticks >= restores);
}

/// Ticks are so far apart that the timer has expired at some freezes and counts down at others.
#[test]
fn no_tick_and_no_packet_is_lost_or_doubled_in_a_thousand_restores() {
    in_own_network(|| goes_through(1000, "", "us=4000"));
}

#[test]
fn no_deadline_of_a_time_stamp_is_lost_or_doubled() {
    in_own_network(|| goes_through(50, "", "deadline=1 us=20000"));
}

#[test]
fn nothing_is_lost_or_doubled_with_controllers_in_the_kernel() {
    in_own_network(|| goes_through(50, "--irqchip kernel", "us=20000"));
}
