//! Many clones of one snapshot on one bridge. Each response shows its sender: by the address, and by the identity record in it.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{fs, thread};

use super::addresses::{create_bridge, create_net_snapshot, load_clone, restore_clone};
use super::served::{ApiProcess, Directory};
use crate::guest::TIMEOUT;
use crate::network::{in_own_network, run_command};

/// Ports of the guest, see `resources/guests/udp.c`.
const SPLIT: u16 = 9;
const IDENTITY: u16 = 11;
const ELSEWHERE: u16 = 13;
const STATUS: u16 = 15;
const ANNOUNCE: u16 = 17;
const IPV6: u16 = 19;
const CLOSED: u16 = 99;

const HOST: &str = "10.0.7.254:0";
/// Number of clones. Their addresses end with their number, from 1.
const CLONES: u8 = 200;
const REQUESTS: u32 = 10_000;
const WORKERS: u32 = 4;
/// Maximum bytes of a packet of the host to the clones, so that longer datagrams have fragments.
const MTU: usize = 400;

/// Counters of requests, as the guest counts those it has answered.
#[derive(Debug, Default)]
struct Requests {
    pings: AtomicU32,
    datagrams: AtomicU32,
    pages: AtomicU32,
}

/// Bytes of the generation ID, and of the randomness behind it.
type Id = [u8; 16];
type Randomness = [u8; 64];

/// Status of a guest.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    loads: u64,
    id: Id,
    randomness: Randomness,
    pings: u32,
    datagrams: u32,
    pages: u32,
}

impl Status {
    fn parse(bytes: &[u8]) -> Self {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 100);
        Self {
            loads: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            id: bytes[8..24].try_into().unwrap(),
            randomness: bytes[24..88].try_into().unwrap(),
            pings: number(88),
            datagrams: number(92),
            pages: number(96),
        }
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 7, number)
}

/// Sender of requests.
struct Client {
    udp: UdpSocket,
    icmp: UdpSocket,
    seed: u64,
    sequence: u16,
}

impl Client {
    fn new(seed: u64) -> Self {
        let udp = UdpSocket::bind(HOST).unwrap();
        let icmp = ping_socket();
        for socket in [&udp, &icmp] {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        Self {
            udp,
            icmp,
            seed,
            sequence: 0,
        }
    }

    /// Returns a pseudo-random number below `limit`.
    fn random(&mut self, limit: u64) -> usize {
        // xorshift64.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        usize::try_from((self.seed >> 16) % limit).unwrap()
    }

    fn random_bytes(&mut self, length: usize) -> Vec<u8> {
        let byte = |_| u8::try_from(self.random(256)).unwrap();
        (0..length).map(byte).collect()
    }

    /// Sends `data` to a port of clone `number`. Returns the bytes behind the echo of `data` in the response.
    fn exchange(&mut self, number: u8, port: u16, data: &[u8]) -> Vec<u8> {
        let mut response = [0; 2000];
        self.udp.send_to(data, (address(number), port)).unwrap();
        let (length, from) = self
            .udp
            .recv_from(&mut response)
            .unwrap_or_else(|error| panic!("clone {number}, port {port}: {error}"));
        assert_eq!(from, SocketAddr::from((address(number), port)));
        response[..length]
            .strip_prefix(data)
            .expect("the response has the data of the request")
            .to_vec()
    }

    fn status(&mut self, number: u8) -> Status {
        let data = self.random_bytes(8);
        Status::parse(&self.exchange(number, STATUS, &data))
    }

    fn ping(&mut self, number: u8) {
        self.sequence = self.sequence.wrapping_add(1);
        let length = self.random(56);
        let data = [&self.sequence.to_be_bytes()[..], &self.random_bytes(length)[..]].concat();
        // The kernel sets the checksum and the identifier.
        let request = [&[8, 0, 0, 0, 0, 0], &data[..]].concat();
        let mut response = [0; 2000];
        self.icmp.send_to(&request, (address(number), 0)).unwrap();
        let (length, from) = self
            .icmp
            .recv_from(&mut response)
            .unwrap_or_else(|error| panic!("ping of clone {number}: {error}"));
        assert_eq!(from.ip(), address(number));
        assert_eq!(response[0], 0, "type of a reply");
        assert_eq!(response[6..length], data);
    }

    /// Expects an ICMP error of the clone: the kernel finds the socket by the quoted addresses.
    fn expect_closed_port(&mut self, number: u8) {
        let socket = UdpSocket::bind(HOST).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect((address(number), CLOSED)).unwrap();
        let length = self.random(100);
        socket.send(&self.random_bytes(length)).unwrap();
        let error = socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "clone {number}");
    }
}

/// Returns a socket that sends and receives ICMP messages.
fn ping_socket() -> UdpSocket {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) };
    assert!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just created the descriptor, which has no other owner.
    UdpSocket::from(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Permits ping sockets to all groups, and makes packets to the clones short.
fn set_host_up() {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    run_command(&format!(
        "ip route replace 10.0.7.0/24 dev br0 src 10.0.7.254 mtu lock {MTU}"
    ));
}

/// Requests the page with the ID. The guest serves one connection at a time.
fn fetch_id(number: u8) -> Id {
    let mut connection = TcpStream::connect_timeout(&(address(number), 80).into(), TIMEOUT).unwrap();
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    connection.write_all(b"GET /id HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    connection.read_to_string(&mut page).unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{page}");
    u128::from_str_radix(body.trim_end(), 16).unwrap().to_be_bytes()
}

/// A clone, with the ID that it had at the start.
struct Clone {
    number: u8,
    id: Id,
    requests: Requests,
    connection: Mutex<()>,
}

impl Clone {
    /// Sends one request, at random.
    fn check(&self, client: &mut Client) {
        let Requests {
            pings,
            datagrams,
            pages,
        } = &self.requests;
        let add = |counter: &AtomicU32| counter.fetch_add(1, Ordering::Relaxed);
        let echo = |client: &mut Client, port, length| {
            add(datagrams);
            let data = client.random_bytes(length);
            client.exchange(self.number, port, &data)
        };
        match client.random(20) {
            0..9 => {
                add(pings);
                client.ping(self.number);
            }
            9..15 => {
                let length = client.random(100);
                assert_eq!(echo(client, IDENTITY, length), self.id);
            }
            15 => {
                let length = MTU + client.random(100);
                assert_eq!(echo(client, IDENTITY, length), self.id);
            }
            16 => {
                let length = 8 + client.random(200);
                assert_eq!(echo(client, SPLIT, length), [0; 0]);
            }
            17 => client.expect_closed_port(self.number),
            _ => {
                add(pages);
                let _connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
                assert_eq!(fetch_id(self.number), self.id);
            }
        }
    }

    /// Sends an ICMP error to the guest, which checks the quoted packet.
    fn check_error(&self, process: &mut ApiProcess) {
        let socket = UdpSocket::bind(HOST).unwrap();
        socket
            .send_to(&[1, 2, 3], (address(self.number), ELSEWHERE))
            .unwrap();
        self.requests.datagrams.fetch_add(1, Ordering::Relaxed);
        let port = socket.local_addr().unwrap().port() + 1;
        process.expect(&format!("error about port {port}\n"));
    }
}

/// Returns the counter `name` of the interface of `process`, with more `labels`.
fn counter(process: &ApiProcess, name: &str, labels: &str) -> u64 {
    let metrics = process.request("GET", "/metrics", "");
    let prefix = format!("mayfly_net_{name}_total{{interface=\"net1\"{labels}}} ");
    let line = metrics
        .body()
        .lines()
        .find_map(|line| line.strip_prefix(&prefix[..]));
    line.unwrap_or_else(|| panic!("{prefix}: {}", metrics.text))
        .parse()
        .unwrap()
}

fn address_drops(process: &ApiProcess, direction: &str, reason: &str) -> u64 {
    let labels = format!(",direction=\"{direction}\",reason=\"{reason}\"");
    counter(process, "address_drops", &labels)
}

/// Returns the clones on the bridge. None must have the ID or the randomness of another one.
fn find_clones() -> Vec<Clone> {
    let mut client = Client::new(1);
    let mut seen = HashSet::new();
    let find = |number| {
        let status = client.status(number);
        assert_eq!(status.loads, 1);
        for word in [&status.id[..], &status.randomness[..]].concat().chunks(8) {
            let is_new = seen.insert(word.to_vec());
            assert!(is_new, "clone {number} has bytes of another identity: {status:?}");
        }
        Clone {
            number,
            id: status.id,
            requests: Requests {
                datagrams: 1.into(),
                ..Requests::default()
            },
            connection: Mutex::default(),
        }
    };
    (1..=CLONES).map(find).collect()
}

/// Sends requests to clones at random.
fn send_requests(clones: &[Clone], seed: u64) {
    let mut client = Client::new(seed);
    for _ in 0..REQUESTS / WORKERS {
        clones[client.random(CLONES.into())].check(&mut client);
    }
}

/// Checks that the guest has answered the requests to this clone, and no other ones.
fn check_counters(clone: &Clone, client: &mut Client, process: &ApiProcess) {
    let status = client.status(clone.number);
    let sent = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    let requests = &clone.requests;
    assert_eq!(
        (status.id, status.pings, status.datagrams),
        (clone.id, sent(&requests.pings), sent(&requests.datagrams)),
        "clone {}",
        clone.number
    );
    // The guest may count a repeated end of a connection.
    assert!(status.pages >= sent(&requests.pages), "{requests:?} {status:?}");
    for reason in ["source", "malformed", "protocol", "vlan"] {
        assert_eq!(address_drops(process, "transmit", reason), 0, "{reason}");
    }
    assert_eq!(address_drops(process, "receive", "malformed"), 0);
}

#[test]
fn two_hundred_clones_answer_random_requests() {
    in_own_network(|| {
        let directory = Directory::new();
        create_net_snapshot(&directory, u32::MAX);
        create_bridge(CLONES.into());
        set_host_up();
        let restore = |number| restore_clone(&directory, &format!("tap{number}"), number);
        let processes: Vec<ApiProcess> = (1..=CLONES).map(restore).collect();
        let clones = find_clones();
        thread::scope(|scope| {
            let clones = &clones;
            for seed in 1..=WORKERS {
                scope.spawn(move || send_requests(clones, seed.into()));
            }
        });
        let mut client = Client::new(1);
        for (clone, mut process) in clones.iter().zip(processes) {
            clone.check_error(&mut process);
            check_counters(clone, &mut client, &process);
            process.terminate();
        }
    });
}

/// The network takes them for one host with two MAC addresses.
#[test]
fn clones_with_one_address_answer_for_each_other_and_are_reported() {
    in_own_network(|| {
        let directory = Directory::new();
        create_net_snapshot(&directory, 1);
        create_bridge(2);
        set_host_up();
        let clones = [1, 2].map(|number| load_clone(&directory, &format!("tap{number}"), 1, number));
        let mut client = Client::new(1);
        let mut id_at = |number, state: &str| {
            run_command(&format!(
                "ip neigh replace 10.0.7.1 lladdr 02:00:00:00:07:{number:02x} dev br0 nud {state}"
            ));
            client.status(1).id
        };
        let ids = [1, 2].map(|number| id_at(number, "permanent"));
        assert_ne!(ids[0], ids[1]);
        // ARP finds one of them.
        let found = id_at(2, "failed");
        assert!(ids.contains(&found));
        assert_eq!(id_at(1, "permanent"), ids[0]);
        let conflicts = |clone| counter(clone, "address_conflicts", "");
        assert_eq!(clones.each_ref().map(conflicts), [0, 0]);
        client.exchange(1, ANNOUNCE, b"x");
        // The other guest answers the announcement, so that both see a message of the other.
        scratch::wait_until("the conflict is reported", || {
            clones.each_ref().map(conflicts) == [1, 1]
        });
        clones.into_iter().for_each(ApiProcess::terminate);
    });
}

#[test]
fn ipv6_is_dropped_and_counted() {
    in_own_network(|| {
        let directory = Directory::new();
        create_net_snapshot(&directory, 1);
        create_bridge(1);
        set_host_up();
        let clone = load_clone(&directory, "tap1", 1, 1);
        assert_eq!(address_drops(&clone, "transmit", "ipv6"), 0);
        Client::new(1).exchange(1, IPV6, b"x");
        assert_eq!(address_drops(&clone, "transmit", "ipv6"), 1);
        run_command("ip -6 addr add fd00::1/64 dev br0 nodad");
        // The host asks for the neighbor at this address.
        let socket = UdpSocket::bind("[fd00::1]:0").unwrap();
        socket.send_to(b"x", "[fd00::2]:9").unwrap();
        scratch::wait_until("IPv6 to the guest is counted", || {
            address_drops(&clone, "receive", "ipv6") > 0
        });
        clone.terminate();
    });
}
