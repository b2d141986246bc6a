//! Wakes by frames, in a network namespace of each test.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::ptr;

use devices::virtio::net::tap::Tap;
use scratch::Requirement;
use serde_json::{Value, json};

use crate::fixture::Supervisor;
use crate::limits::USER;

/// Snapshot of a VM with the interface eth0.
const STATE: &[u8] = include_bytes!("interface.state");

/// Enters a network namespace with the tap tap0 at 10.0.0.1. Returns false if this host has none.
fn enter_namespace() -> bool {
    if !scratch::require(Requirement::NetworkNamespace) {
        return false;
    }
    // SAFETY: the call takes no pointer, and affects this thread and its children only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    for line in [
        "link set lo up",
        "tuntap add tap0 mode tap",
        "addr add 10.0.0.1/24 dev tap0",
        "link set tap0 up",
    ] {
        let output = scratch::run(Command::new("ip").args(line.split(' ')));
        assert!(output.status.success(), "ip {line}: {output:?}");
    }
    true
}

fn interface(more: Value) -> Value {
    let mut interface = json!({"iface_id": "eth0"});
    interface
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({"network_interfaces": [interface], "wake_on": {"rule": "ports", "ports": [7]}})
}

/// Sends datagrams to `address` until the instance runs: a new interface of the host drops the first ones.
fn wake(supervisor: &Supervisor, id: &str, address: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    scratch::wait_until("a datagram wakes the instance", || {
        // Another port does not.
        for port in [9, 7] {
            let _ = socket.send_to(b"wake", format!("{address}:{port}"));
        }
        let is_woken = supervisor.metric("mayfly_standby_wakes_total{cause=\"frame\"}") > 0;
        is_woken && supervisor.get(id)["state"] == "running"
    });
    let start = supervisor.starts().pop().unwrap();
    assert!(start.contains(" --first-frames eth0="), "{start}");
    // Length, virtio-net header, Ethernet header, IPv4 and UDP headers, payload.
    let length: usize = start.rsplit('=').next().unwrap().parse().unwrap();
    assert!(length >= 4 + 12 + 14 + 20 + 8 + 4, "{start}");
    assert_eq!(
        supervisor.metric("mayfly_standby_wakes_total{cause=\"frame\"}"),
        1
    );
}

#[test]
fn frame_at_a_tap_wakes_its_instance() {
    if !enter_namespace() {
        return;
    }
    let mut supervisor = Supervisor::start_with(STATE, &[]);
    let body = supervisor.body(interface(json!({"host_dev_name": "missing", "ip": "10.0.0.2"})));
    let reason = supervisor.expect_rejection(409, "PUT", "/instances/web", Some(&body));
    assert!(reason.contains("cannot open tap interface missing"), "{reason}");
    let missing =
        supervisor.expect_rejection(400, "PUT", "/instances/web", Some(&supervisor.body(json!({}))));
    assert!(
        missing.contains("\"eth0\" of the snapshot is missing"),
        "{missing}"
    );
    let mut web = interface(json!({"host_dev_name": "tap0", "ip": "10.0.0.2"}));
    // Its process is killed below.
    web["on_crash"] = json!("discard");
    supervisor.register("web", web);
    assert_eq!(
        supervisor.get("web")["config"]["network_interfaces"][0]["mac"],
        "02:00:00:00:00:02"
    );
    let body = supervisor.body(interface(json!({"host_dev_name": "tap0", "ip": "10.0.0.3"})));
    let reason = supervisor.expect_rejection(409, "PUT", "/instances/other", Some(&body));
    assert!(reason.contains("instance \"web\" has tap tap0"), "{reason}");
    wake(&supervisor, "web", "10.0.0.2");
    // A deleted tap is found at the next start.
    let pid = i32::try_from(supervisor.get("web")["pid"].as_i64().unwrap()).unwrap();
    supervisor.kill();
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    scratch::wait_until("the process ends", || !supervisor.is_alive("web"));
    let output = scratch::run(Command::new("ip").args(["link", "delete", "tap0"]));
    assert!(output.status.success());
    supervisor.restart();
    assert!(supervisor.await_state("web", "failed").contains("tap0"));
    assert_eq!(
        supervisor.metric("mayfly_standby_failures_total{cause=\"tap\"}"),
        1
    );
}

/// Makes /dev/net/tun accessible to all users, in a mount namespace of this thread. Returns false without the rights.
fn share_tun(directory: &scratch::Directory) -> bool {
    let node = CString::new(directory.text("tun")).unwrap();
    let private = libc::MS_PRIVATE | libc::MS_REC;
    let device = libc::makedev(10, 200);
    // SAFETY: the call takes no pointer, and affects this thread and its children only.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return false;
    }
    // SAFETY: all pointers are null or to a constant C string.
    let is_private = unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) };
    // SAFETY: the pointer is to a C string that outlives the call.
    let is_made = unsafe { libc::mknod(node.as_ptr(), libc::S_IFCHR | 0o666, device) };
    if is_private != 0 || is_made != 0 {
        return false;
    }
    // The umask has restricted the mode.
    fs::set_permissions(directory.path("tun"), Permissions::from_mode(0o666)).unwrap();
    let (from, to) = (node.as_ptr(), c"/dev/net/tun".as_ptr());
    // SAFETY: the pointers are null or to C strings that outlive the call.
    let is_bound = unsafe { libc::mount(from, to, ptr::null(), libc::MS_BIND, ptr::null()) };
    is_bound == 0
}

#[test]
fn tap_of_the_user_needs_no_rights() {
    if !enter_namespace() {
        return;
    }
    let directory = scratch::Directory::new();
    if !share_tun(&directory) {
        return scratch::skip("a device node", "run it as root");
    }
    let output = scratch::run(Command::new("ip").args(["link", "delete", "tap0"]));
    assert!(output.status.success());
    for line in [
        format!("tuntap add tap0 mode tap user {USER}"),
        "addr add 10.0.0.1/24 dev tap0".into(),
        "link set tap0 up".into(),
        "tuntap add tap1 mode tap user 1".into(),
    ] {
        let output = scratch::run(Command::new("ip").args(line.split(' ')));
        assert!(output.status.success(), "ip {line}: {output:?}");
    }
    let mut supervisor = Supervisor::start_with(STATE, &[]);
    supervisor.restart_as(USER);
    let other = supervisor.body(interface(json!({"host_dev_name": "tap1", "ip": "10.0.0.3"})));
    let reason = supervisor.expect_rejection(409, "PUT", "/instances/other", Some(&other));
    assert!(reason.contains("tap1"), "{reason}");
    supervisor.register(
        "web",
        interface(json!({"host_dev_name": "tap0", "ip": "10.0.0.2"})),
    );
    wake(&supervisor, "web", "10.0.0.2");
}

#[test]
fn inherited_tap_needs_no_rights() {
    // SAFETY: the call takes no pointer.
    if unsafe { libc::geteuid() } != 0 {
        return scratch::skip("another user", "run it as root");
    }
    if !enter_namespace() {
        return;
    }
    let tap = Tap::open("tap0").unwrap();
    // SAFETY: the call takes no pointer. Children inherit the copy, which stays open until the end of the tests.
    let number = unsafe { libc::dup(tap.as_fd().as_raw_fd()) };
    drop(tap);
    let mut supervisor = Supervisor::start_with(STATE, &["--tap-fd", &number.to_string()]);
    supervisor.restart_as(USER);
    supervisor.register(
        "web",
        interface(json!({"host_dev_name": "tap0", "ip": "10.0.0.2"})),
    );
    wake(&supervisor, "web", "10.0.0.2");
    // The next supervisor inherits it, too.
    supervisor.kill();
    supervisor.restart();
    supervisor.await_state("web", "running");
}

#[test]
fn packet_in_a_shared_network_wakes_its_instance() {
    if !enter_namespace() {
        return;
    }
    let mut supervisor = Supervisor::start_with(STATE, &[]);
    let in_blue = |ip: &str| interface(json!({"network_id": "blue", "ip": ip, "guest_ip": "10.0.0.2"}));
    let body = supervisor.body(in_blue("10.1.0.7"));
    let reason = supervisor.expect_rejection(409, "PUT", "/instances/web", Some(&body));
    assert!(reason.contains("cannot find the network \"blue\""), "{reason}");
    let network = json!({"host_dev_name": "mtun0", "gateways": [{"ip": "10.1.0.1", "prefix_length": 16}]});
    supervisor.expect("PUT", "/networks/blue", Some(&network));
    supervisor.expect_rejection(409, "PUT", "/networks/blue", Some(&network));
    supervisor.register("web", in_blue("10.1.0.7"));
    supervisor.register("other", in_blue("10.1.0.8"));
    wake(&supervisor, "web", "10.1.0.7");
    assert_eq!(supervisor.get("other")["state"], "suspended");
    // Network, route and tap survive the supervisor.
    supervisor.kill();
    supervisor.restart();
    assert!(
        supervisor
            .await_state("web", "running")
            .contains("earlier supervisor")
    );
    // Packets that wait in its tap may wake it at once.
    supervisor.set("web", "suspend");
    wake(&supervisor, "web", "10.1.0.7");
    let reason = supervisor.expect_rejection(409, "DELETE", "/networks/blue", None);
    assert!(reason.contains("it has 2 addresses"), "{reason}");
}
