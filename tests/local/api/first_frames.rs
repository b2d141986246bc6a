//! Frames that a caller has read from the tap before the load, and passes with it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use super::addresses::create_net_snapshot;
use super::served::{ApiProcess, Directory};
use crate::guest::{Running, TIMEOUT};
use crate::guests::program;
use crate::network::{add_neighbor, attach_tap, in_own_network, ping, run_command};

/// Port of the guest that echoes, see `resources/guests/udp.c`.
const ECHO: u16 = 7;
/// Bytes of the header before each frame.
const HEADER: usize = 12;

/// Duplicates `file` to a number that children inherit.
fn inherit(file: &File) -> OwnedFd {
    // SAFETY: the call takes no pointer.
    let number = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 100) };
    assert!(number >= 100);
    // SAFETY: F_DUPFD returned the descriptor, which has no other owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Writes `packets` as records into a file without a name.
fn records(packets: &[Vec<u8>]) -> OwnedFd {
    let directory = Directory::new();
    let mut file = File::create_new(directory.path("frames")).unwrap();
    for packet in packets {
        let length = u32::try_from(packet.len()).unwrap();
        file.write_all(&length.to_le_bytes()).unwrap();
        file.write_all(packet).unwrap();
    }
    inherit(&File::open(directory.path("frames")).unwrap())
}

/// The snapshot of a guest at 10.0.0.2, and its tap without a process.
struct Sleeper {
    directory: Directory,
    tap: OwnedFd,
    socket: UdpSocket,
    sent: u8,
}

impl Sleeper {
    /// `ip` is the address that the host uses for the guest.
    fn new(ip: &str) -> Self {
        let directory = Directory::new();
        create_net_snapshot(&directory, 1);
        let tap = attach_tap();
        let size: libc::c_int = HEADER.try_into().unwrap();
        // SAFETY: the call reads one `int`.
        let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        assert_eq!(set, 0);
        run_command("ip addr flush dev tap0");
        run_command("ip addr add 10.0.7.254/16 dev tap0");
        run_command("ip addr add 10.0.0.254/24 dev tap0");
        run_command("ip link set tap0 up");
        add_neighbor(ip, [2, 0, 0, 0, 0, 1]);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((ip, ECHO)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self {
            directory,
            tap,
            socket,
            sent: 0,
        }
    }

    /// Sends `count` datagrams with increasing numbers.
    fn send(&mut self, count: u8) {
        for _ in 0..count {
            self.socket.send(&[self.sent; 100]).unwrap();
            self.sent += 1;
        }
    }

    /// Reads `count` packets of the socket from the tap.
    fn read(&self, count: u8) -> Vec<Vec<u8>> {
        let mut tap = File::from(self.tap.try_clone().unwrap());
        let mut packets = Vec::new();
        while packets.len() < count.into() {
            let mut packet = vec![0; 2048];
            let length = tap.read(&mut packet).unwrap();
            packet.truncate(length);
            // IPv6 of the host's own stack is not part of the test.
            if packet[HEADER + 12..HEADER + 14] == [8, 0] {
                packets.push(packet);
            }
        }
        packets
    }

    /// Expects the echo of each sent datagram, in their order.
    fn expect_echoes(&self) {
        let mut buffer = [0; 2000];
        for number in 0..self.sent {
            let received = self.socket.recv(&mut buffer).unwrap();
            assert_eq!((received, buffer[0]), (100, number));
        }
    }

    /// Returns the arguments that load the snapshot with the tap.
    fn arguments(&self, options: &str) -> Vec<String> {
        let net = format!("net1=fd:{}{options}", self.tap.as_raw_fd());
        ["restore", &self.directory.text("."), "--net", &net]
            .map(str::to_owned)
            .into()
    }
}

#[test]
fn guest_answers_first_frames_before_those_of_tap() {
    for options in ["", ",guest-ip=10.0.0.2,ip=10.0.7.1"] {
        in_own_network(|| {
            let ip = if options.is_empty() {
                "10.0.0.2"
            } else {
                "10.0.7.1"
            };
            let mut sleeper = Sleeper::new(ip);
            sleeper.send(20);
            let frames = records(&sleeper.read(20));
            // The guest has fewer buffers.
            sleeper.send(20);
            let own = Directory::new();
            let mut command = Command::new(program());
            command.args(sleeper.arguments(options)).args([
                "--first-frames",
                &format!("net1={}", frames.as_raw_fd()),
                "--untrusted",
                "--api-sock",
                &own.text("api.sock"),
            ]);
            let vm = ApiProcess::spawn(own, &mut command);
            sleeper.expect_echoes();
            ping(ip, 2);
            vm.kill();
        });
    }
}

#[test]
fn first_frames_pass_through_shell() {
    in_own_network(|| {
        let mut sleeper = Sleeper::new("10.0.0.2");
        sleeper.send(10);
        let frames = records(&sleeper.read(10));
        sleeper.send(5);
        let directory = Directory::new();
        let socket = directory.text("shell");
        let mut command = Command::new(program());
        command.args(["shell", &socket, "--for", &sleeper.directory.text(".")]);
        let mut shell = Running::start(command.stdin(Stdio::null()));
        scratch::wait_until("the socket of the shell", || directory.path("shell").exists());
        let restore = |first: &str| {
            let mut command = Command::new(program());
            command.args(sleeper.arguments(""));
            command.args(["--shell", &socket, "--first-frames", first]);
            Running::start(command.stdin(Stdio::null()))
        };
        // Refused without an effect on the shell.
        let mut refused = restore(&format!("eth9={}", frames.as_raw_fd()));
        refused.expect_exit(1);
        let stderr = refused.read_stderr();
        assert!(
            stderr.contains("interface \"eth9\": the snapshot has net1"),
            "{stderr}"
        );
        let mut client = restore(&frames.as_raw_fd().to_string());
        sleeper.expect_echoes();
        client.kill();
        shell.expect_exit(1);
    });
}

#[test]
fn waiting_first_frames_are_in_snapshot() {
    in_own_network(|| {
        let mut sleeper = Sleeper::new("10.0.0.2");
        sleeper.send(30);
        let frames = records(&sleeper.read(30));
        let own = Directory::new();
        let (socket, first, second) = (
            own.text("api.sock"),
            frames.as_raw_fd().to_string(),
            own.text("s"),
        );
        let mut command = Command::new(program());
        command.args(sleeper.arguments(""));
        command.args(["--first-frames", &first, "--paused", "--api-sock", &socket]);
        let mut paused = Running::start(command.stdin(Stdio::null()));
        scratch::wait_until("the API socket", || own.path("api.sock").exists());
        let created =
            scratch::run(Command::new(program()).args(["snapshot", &second, "--api-sock", &socket]));
        assert!(created.status.success(), "{created:?}");
        paused.kill();
        sleeper.send(5);
        let frames = records(&sleeper.read(5));
        sleeper.send(5);
        let first = frames.as_raw_fd().to_string();
        let mut command = Command::new(program());
        let net = format!("net1=fd:{}", sleeper.tap.as_raw_fd());
        command.args(["restore", &second, "--net", &net, "--first-frames", &first]);
        let mut vm = Running::start(command.stdin(Stdio::null()));
        sleeper.expect_echoes();
        vm.kill();
    });
}

#[test]
fn unusable_first_frames_fail_restore() {
    in_own_network(|| {
        let sleeper = Sleeper::new("10.0.0.2");
        let good = records(&[vec![0; 60]]);
        let short = records(&[vec![0; 60], vec![0; 25]]);
        let null = inherit(&File::open("/dev/null").unwrap());
        let number = |file: &OwnedFd| file.as_raw_fd().to_string();
        for (options, reason) in [
            (
                vec![format!("eth0={}", number(&good))],
                "interface \"eth0\": the snapshot has net1",
            ),
            (
                vec![number(&good), format!("net1={}", number(&good))],
                "interface \"net1\" twice",
            ),
            (
                vec![number(&short)],
                "frame 2 has 25 bytes with its header; 26 to 65566 are possible",
            ),
            (
                vec![number(&null)],
                "it is no regular file; pass a memfd (--first-frames ID=FD)",
            ),
            (vec![number(&sleeper.tap)], "it is no regular file"),
            (vec!["999".to_owned()], "Bad file descriptor"),
        ] {
            let mut command = Command::new(program());
            command.args(sleeper.arguments(""));
            for option in options {
                command.args(["--first-frames", &option]);
            }
            let mut vm = Running::start(command.stdin(Stdio::null()));
            vm.expect_exit(1);
            let stderr = vm.read_stderr();
            assert!(
                stderr.contains("first frames") && stderr.contains(reason),
                "{reason}: {stderr}"
            );
        }
    });
}
