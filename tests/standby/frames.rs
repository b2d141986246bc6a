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
/// Snapshot of a VM with the interfaces eth0 and eth1.
const STATE_OF_TWO: &[u8] = include_bytes!("interfaces.state");

/// Length of a packet with the payload `wake`: headers of virtio-net, Ethernet, IPv4 and UDP, and the payload.
const WAKE_LENGTH: usize = 12 + 14 + 20 + 8 + WAKE.len();
const WAKE: &[u8] = b"wake";
/// Payload of another length.
const LATER: &[u8] = b"later";

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
        ip(line);
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

/// Returns the lengths of the packets that the last process got first, by interface.
fn first_frames(supervisor: &Supervisor) -> Vec<(String, Vec<usize>)> {
    let start = supervisor.starts().pop().unwrap();
    let frames = start.rsplit('=').next().unwrap().split(',');
    let frames: Vec<_> = frames.filter_map(|frames| frames.split_once(':')).collect();
    assert!(start.contains(&format!(" files={} ", frames.len())), "{start}");
    let lengths = |text: &str| text.split('+').map(|length| length.parse().unwrap()).collect();
    frames
        .into_iter()
        .map(|(id, text)| (id.to_owned(), lengths(text)))
        .collect()
}

/// Returns the number of wakes of the instance.
fn wakes(supervisor: &Supervisor, id: &str) -> u64 {
    supervisor.get(id)["wakes"].as_u64().unwrap()
}

/// Sends datagrams to `address` until the instance is in `state` after more than `before` wakes: a new interface of the host drops the
/// first ones.
fn send_until(supervisor: &Supervisor, id: &str, address: &str, before: u64, state: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    scratch::wait_until("a datagram wakes the instance", || {
        // Another port does not.
        for port in [9, 7] {
            let _ = socket.send_to(WAKE, format!("{address}:{port}"));
        }
        let instance = supervisor.get(id);
        instance["wakes"].as_u64() > Some(before) && instance["state"] == state
    });
}

/// Wakes the instance by datagrams to `address`.
fn wake(supervisor: &Supervisor, id: &str, address: &str) {
    wake_after(supervisor, id, address, wakes(supervisor, id));
}

/// Wakes the instance, which has had `before` wakes, by datagrams to `address`, unless it is awake.
fn wake_after(supervisor: &Supervisor, id: &str, address: &str, before: u64) {
    send_until(supervisor, id, address, before, "running");
    let frames = first_frames(supervisor);
    assert!(
        frames.len() == 1 && frames[0].0 == "eth0" && frames[0].1[0] == WAKE_LENGTH,
        "{frames:?}"
    );
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
    ip("link delete tap0");
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
    ip("link delete tap0");
    for line in [
        format!("tuntap add tap0 mode tap user {USER}"),
        "addr add 10.0.0.1/24 dev tap0".into(),
        "link set tap0 up".into(),
        "tuntap add tap1 mode tap user 1".into(),
    ] {
        ip(&line);
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
    let before = wakes(&supervisor, "web");
    supervisor.set("web", "suspend");
    wake_after(&supervisor, "web", "10.1.0.7", before);
    let reason = supervisor.expect_rejection(409, "DELETE", "/networks/blue", None);
    assert!(reason.contains("it has 2 addresses"), "{reason}");
}

/// Runs ip with the arguments in `line`, and returns its output.
fn ip(line: &str) -> String {
    let output = scratch::run(Command::new("ip").args(line.split(' ')));
    assert!(output.status.success(), "ip {line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Registers a network of the TUN `name` with the addresses `gateway`/16.
fn register_network(supervisor: &Supervisor, id: &str, name: &str, gateway: &str) {
    let network = json!({"host_dev_name": name, "gateways": [{"ip": gateway, "prefix_length": 16}]});
    supervisor.expect("PUT", &format!("/networks/{id}"), Some(&network));
    await_qdisc(name);
}

/// Waits until the interface `name` keeps packets: a new one drops them.
fn await_qdisc(name: &str) {
    scratch::wait_until("the interface has a queue", || {
        !ip(&format!("-o link show dev {name}")).contains("qdisc noop")
    });
}

#[test]
fn frames_of_all_interfaces_reach_the_process() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start_with(STATE_OF_TWO, &[]);
    register_network(&supervisor, "blue", "mtun0", "10.1.0.1");
    register_network(&supervisor, "green", "mtun1", "10.2.0.1");
    supervisor.register(
        "web",
        json!({"network_interfaces": [
            {"iface_id": "eth0", "network_id": "blue", "ip": "10.1.0.7"},
            {"iface_id": "eth1", "network_id": "green", "ip": "10.2.0.7"},
        ]}),
    );
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Both wait when the supervisor continues.
    supervisor.signal(libc::SIGSTOP);
    for (address, payload) in [("10.1.0.7:7", WAKE), ("10.2.0.7:7", WAKE), ("10.2.0.7:7", LATER)] {
        socket.send_to(payload, address).unwrap();
    }
    supervisor.signal(libc::SIGCONT);
    supervisor.await_state("web", "running");
    let mut frames = first_frames(&supervisor);
    frames.sort_unstable();
    let later = WAKE_LENGTH + LATER.len() - WAKE.len();
    let expected = [("eth0", vec![WAKE_LENGTH]), ("eth1", vec![WAKE_LENGTH, later])];
    assert_eq!(frames, expected.map(|(id, lengths)| (id.to_owned(), lengths)));
    assert_eq!(supervisor.metric("mayfly_standby_dropped_frames_total"), 0);
}

/// Starts a supervisor of `web`, which has run before, at 10.1.0.7 in a shared network.
fn start_in_network(more: &[(&str, Value)]) -> Supervisor {
    let supervisor = Supervisor::start_with(STATE, &[]);
    register_network(&supervisor, "blue", "mtun0", "10.1.0.1");
    let mut web = interface(json!({"network_id": "blue", "ip": "10.1.0.7"}));
    for (key, value) in more {
        web[*key] = value.clone();
    }
    supervisor.register("web", web);
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    supervisor
}

#[test]
fn frames_of_a_refused_wake_precede_later_ones() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_in_network(&[("on_crash", json!("discard"))]);
    supervisor.set("web", "suspend");
    supervisor.await_state("web", "suspended");
    let own = supervisor.directory.text("state/suspended/web");
    supervisor.set_behavior(&format!("changed restore {own}"));
    send_until(
        &supervisor,
        "web",
        "10.1.0.7",
        wakes(&supervisor, "web"),
        "waking",
    );
    scratch::wait_until("the first process has its frames", || {
        supervisor.starts().len() == 2
    });
    let first = first_frames(&supervisor);
    // To the tap of the process, which does not read it.
    let record = fs::read_to_string(supervisor.directory.path("state/run/web.pid")).unwrap();
    let tap = record.lines().next().unwrap().rsplit(' ').next().unwrap();
    await_qdisc(tap);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(LATER, "10.1.0.7:7").unwrap();
    supervisor.directory.write("snapshot/loaded", "");
    supervisor.await_state("web", "running");
    assert_eq!(supervisor.starts().len(), 3);
    let second = first_frames(&supervisor);
    let later = WAKE_LENGTH + LATER.len() - WAKE.len();
    let (before, after) = (&first[0].1, &second[0].1);
    assert!(
        after.starts_with(before) && after.ends_with(&[later]),
        "{first:?} {second:?}"
    );
}

#[test]
fn boot_gets_no_first_frames() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_in_network(&[("on_crash", json!("boot")), ("boot", json!(["/kernel"]))]);
    let pid = i32::try_from(supervisor.get("web")["pid"].as_i64().unwrap()).unwrap();
    // SAFETY: the call takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    assert!(supervisor.await_state("web", "suspended").ends_with("boots"));
    send_until(
        &supervisor,
        "web",
        "10.1.0.7",
        wakes(&supervisor, "web"),
        "running",
    );
    let start = supervisor.starts().pop().unwrap();
    assert!(start.contains(" run /kernel "), "{start}");
    assert_eq!(first_frames(&supervisor), []);
    assert!(supervisor.metric("mayfly_standby_dropped_frames_total") >= 1);
}
