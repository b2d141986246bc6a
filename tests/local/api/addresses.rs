//! Clones of one snapshot with addresses of their own on one bridge: the device rewrites the addresses of the guest.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

use super::served::{ApiProcess, Directory, create_tap, load_body, load_snapshot, pause_and_create};
use crate::guest::TIMEOUT;
use crate::guests::{file, program};
use crate::network::{await_queue, fetch, in_own_network, ping, run_command};

const MAC: &str = "02:00:00:00:00:01";
/// Ports of the guest, see `resources/guests/udp.c`.
const ECHO: u16 = 7;
const SPLIT: u16 = 9;
const ELSEWHERE: u16 = 13;
const CLOSED: u16 = 99;

/// Creates a bridge with the address of the host, and `count` taps on it: `tap1` and so on.
pub fn create_bridge(count: usize) {
    let mut batch = "link add br0 type bridge\naddr add 10.0.7.254/24 dev br0\nlink set br0 up\n".to_owned();
    for number in 1..=count {
        batch += &format!("tuntap add tap{number} mode tap\nlink set tap{number} master br0 up\n");
    }
    let directory = Directory::new();
    let batch = directory.write("batch", batch);
    run_command(&format!("ip -batch {batch}"));
    // On a busy machine the guest may reply late: repeat ARP requests for a minute instead of three seconds.
    for repetitions in ["mcast_solicit", "ucast_solicit"] {
        std::fs::write(format!("/proc/sys/net/ipv4/neigh/br0/{repetitions}"), "60").unwrap();
    }
}

/// Creates a snapshot, in `directory`, of a guest with the address 10.0.0.2 that serves `pages`.
pub fn create_net_snapshot(directory: &Directory, pages: u32) {
    create_tap("tap0");
    let mut process = ApiProcess::start();
    let interface = format!(r#"{{"iface_id":"net1","host_dev_name":"tap0","guest_mac":"{MAC}"}}"#);
    process.expect_no_content("PUT", "/network-interfaces/net1", &interface);
    let kernel = file("net.elf");
    let boot = format!(r#"{{"kernel_image_path":"{kernel}","boot_args":"ip=10.0.0.2 pages={pages}"}}"#);
    process.expect_no_content("PUT", "/boot-source", &boot);
    process.run_action("InstanceStart");
    process.expect("net 02:00:00:00:00:01 at 10.0.0.2\n");
    pause_and_create(&process, directory, "Full", "state", "memory");
    process.kill();
}

/// Starts a clone on `tap` by the API. `number` and `mac` are the last bytes of its addresses.
pub fn load_clone(directory: &Directory, tap: &str, number: u8, mac: u8) -> ApiProcess {
    let fields = format!(
        r#","resume_vm":true,"network_overrides":[{{"iface_id":"net1","host_dev_name":"{tap}","guest_ip":"10.0.0.2","ip":"10.0.7.{number}","mac":"02:00:00:00:07:{mac:02x}"}}]"#
    );
    let process = load_snapshot(directory, "state", "memory", &fields);
    await_queue(tap);
    process
}

/// Starts a clone on `tap` by the command line.
pub fn restore_clone(directory: &Directory, tap: &str, number: u8) -> ApiProcess {
    let own = Directory::new();
    let socket = own.text("api.sock");
    let net = format!(
        "net1=tap:{tap},guest-ip=10.0.0.2,ip=10.0.7.{number},guest-mac={MAC},mac=02:00:00:00:07:{number:02x}"
    );
    let process = ApiProcess::spawn(
        own,
        Command::new(program()).args([
            "restore",
            &directory.text("."),
            "--net",
            &net,
            "--api-sock",
            &socket,
        ]),
    );
    await_queue(tap);
    process
}

fn fetch_page(number: u8) {
    let page = fetch(&format!("10.0.7.{number}"));
    assert!(page.ends_with("\r\n\r\nhello from mayfly\n"), "{page}");
}

/// Exchanges datagrams with the clone `number`. The stacks of host and guest check all checksums.
fn check_udp(clone: &mut ApiProcess, number: u8) {
    let port = 40_000 + u16::from(number) * 10;
    let socket = UdpSocket::bind(("10.0.7.254", port)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut buffer = [0; 2000];
    let connect = |to: u16| socket.connect((format!("10.0.7.{number}"), to)).unwrap();
    for (to, length) in [(ECHO, 0), (ECHO, 1), (ECHO, 900), (SPLIT, 64), (SPLIT, 1401)] {
        let data = vec![number; length];
        connect(to);
        socket.send(&data).unwrap();
        let received = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..received] == data[..], "{length} bytes from port {to}");
    }
    // An ICMP error of the guest: the kernel finds the socket by the quoted addresses.
    connect(CLOSED);
    socket.send(&[1, 2, 3]).unwrap();
    assert_eq!(
        socket.recv(&mut buffer).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    // An ICMP error of the host: the guest checks the quoted packet.
    connect(ELSEWHERE);
    socket.send(&[1, 2, 3, 4, 5]).unwrap();
    clone.expect(&format!("error about port {}\n", port + 1));
}

#[test]
fn clones_answer_at_their_own_addresses() {
    in_own_network(|| {
        let directory = Directory::new();
        create_net_snapshot(&directory, 3);
        create_bridge(2);
        let mut clones = [
            (1, load_clone(&directory, "tap1", 1, 1)),
            (2, restore_clone(&directory, "tap2", 2)),
        ];
        for (number, clone) in &mut clones {
            ping(&format!("10.0.7.{number}"), 2);
            let neighbors = run_command(&format!("ip neigh show 10.0.7.{number}"));
            assert!(
                neighbors.contains(&format!("02:00:00:00:07:0{number}")),
                "{neighbors}"
            );
            check_udp(clone, *number);
            let shown = clone.request("GET", "/vm/config", "").json();
            let shown = &shown["network-interfaces"][0];
            assert_eq!(
                (
                    shown["ip"].as_str(),
                    shown["guest_ip"].as_str(),
                    shown["guest_mac"].as_str()
                ),
                (Some(&format!("10.0.7.{number}")[..]), Some("10.0.0.2"), Some(MAC))
            );
        }
        for _ in 0..3 {
            fetch_page(1);
            fetch_page(2);
        }
        for (_, mut clone) in clones {
            clone.expect(" 2 pings 3 pages\n");
            clone.expect_exit(0);
        }
    });
}

#[test]
fn second_host_with_address_is_reported() {
    in_own_network(|| {
        let directory = Directory::new();
        create_net_snapshot(&directory, 1);
        create_bridge(1);
        let clone = load_clone(&directory, "tap1", 1, 1);
        run_command("ping -c 1 -W 30 10.0.7.1");
        let conflicts = |clone: &ApiProcess| {
            let metrics = clone.request("GET", "/metrics", "");
            let prefix = "mayfly_net_address_conflicts_total{interface=\"net1\"} ";
            let line = metrics.body().lines().find_map(|line| line.strip_prefix(prefix));
            line.unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(conflicts(&clone), 0);
        // The host takes the address of the clone too, and announces it by a request for another.
        run_command("ip addr add 10.0.7.1/24 dev br0");
        let request = UdpSocket::bind("10.0.7.1:0").unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while conflicts(&clone) == 0 {
            assert!(Instant::now() < deadline, "the conflict is not found");
            // Fails while the neighbor is not found.
            let _ = request.send_to(&[0], "10.0.7.77:9");
            std::thread::yield_now();
        }
        clone.kill();
    });
}

#[test]
fn invalid_addresses_reject_load() {
    let directory = Directory::new();
    let process = ApiProcess::start();
    for (fields, reason) in [
        (r#""ip":"10.0.7.1""#, "ip requires guest_ip"),
        (r#""guest_ip":"10.0.7.1""#, "guest_ip requires ip"),
        (r#""pass":"ipv6""#, "pass requires guest_ip"),
        (
            r#""guest_ip":"10.0.0.2","ip":"fe80::1""#,
            r#"ip="fe80::1" is invalid; use the IPv4 address of one host such as 10.0.0.2"#,
        ),
        (
            r#""guest_ip":"10.0.0.2","ip":"10.0.7.1","guest_mac":"02:00:00:00:00:01""#,
            "guest_mac requires mac",
        ),
    ] {
        let fields =
            format!(r#","network_overrides":[{{"iface_id":"net1","host_dev_name":"tap1",{fields}}}]"#);
        let body = load_body(&directory, "state", "memory", &fields);
        let response = process.request("PUT", "/snapshot/load", &body);
        assert_eq!(response.status(), 400, "{}", response.text);
        assert_eq!(
            response.fault_message(),
            format!("Invalid network_overrides: {reason}.")
        );
    }
    process.terminate();
}
