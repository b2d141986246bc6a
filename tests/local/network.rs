//! Network interfaces on taps and on Unix sockets. Each test with a tap has its own network namespace, which requires root.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use std::{fs, mem, thread};

use crate::file;
use crate::guest::{Guest, TIMEOUT};
use crate::guests::program;

const MAC: &str = "02:00:00:00:00:07";
/// Line that the guest prints once its interface is ready.
const READY: &str = "net 02:00:00:00:00:07 at 10.0.0.2\n";

/// Runs `test` on a thread in a new network namespace, if the host permits it. Programs that it starts inherit the namespace.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "each wait of `test` has a limit")]
pub fn in_own_network(test: impl FnOnce() + Send) {
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

/// Runs `command`, split at spaces, which must succeed. Returns its stdout.
pub fn run_command(command: &str) -> String {
    let mut arguments = command.split(' ');
    let output = scratch::run(Command::new(arguments.next().unwrap()).args(arguments));
    let printed = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {printed}{stderr}");
    printed
}

/// Creates the tap `name`, which outlives its process, with more `flags` and for the user `owner`. The `ip` of busybox, on the emulated
/// host, creates none.
///
/// A process of its own attaches to the tap: a child that another test starts has the descriptors of this process until its execve, and
/// the next process could not attach.
pub fn create_tap(name: &str, flags: libc::c_int, owner: Option<libc::c_ulong>) {
    let tap = name.to_owned();
    let mut create = Command::new("true");
    // SAFETY: the closure runs between fork and exec, makes system calls and does not allocate.
    unsafe { create.pre_exec(move || create_persistent_tap(&tap, flags, owner)) };
    let created = scratch::run(&mut create);
    assert!(created.status.success(), "{name}: {created:?}");
}

fn create_persistent_tap(name: &str, flags: libc::c_int, owner: Option<libc::c_ulong>) -> io::Result<()> {
    let device = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = tap_request(name, flags);
    // SAFETY: TUNSETIFF takes an `ifreq`, which is valid for the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    if let Some(owner) = owner {
        // SAFETY: TUNSETOWNER takes a number.
        check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOWNER, owner) })?;
    }
    let persist: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes a number.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, persist) })
}

/// Returns the error of a system call with this `result`, if there is one.
pub fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates the tap `tap0` with the address of the host.
pub fn create_host_tap() {
    create_tap("tap0", 0, None);
    run_command("ip addr add 10.0.0.1/24 dev tap0");
    run_command("ip link set tap0 up");
    repeat_arp("tap0");
}

/// Repeats ARP requests on the interface `name` for a minute instead of three seconds: on a busy machine, the guest may reply late.
pub fn repeat_arp(name: &str) {
    fs::write(format!("/proc/sys/net/ipv4/neigh/{name}/mcast_solicit"), "60").unwrap();
}

/// Gives `address` on `tap0` the MAC address `mac`, for a guest without ARP. The `ip` of busybox cannot.
pub fn add_neighbor(address: &str, mac: [u8; 6]) {
    /// `ATF_COM` and `ATF_PERM` of linux/if_arp.h.
    const COMPLETE_PERMANENT: libc::c_int = 6;
    let family = |family: libc::c_int| libc::sa_family_t::try_from(family).unwrap();
    let fill = |to: &mut [libc::c_char], bytes: &[u8]| {
        for (to, from) in to.iter_mut().zip(bytes) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
    };
    // SAFETY: `arpreq` consists of integers, for which zero bytes are valid.
    let mut request: libc::arpreq = unsafe { mem::zeroed() };
    request.arp_pa.sa_family = family(libc::AF_INET);
    // After the port.
    let address: Ipv4Addr = address.parse().unwrap();
    fill(&mut request.arp_pa.sa_data[2..], &address.octets());
    request.arp_ha.sa_family = libc::ARPHRD_ETHER;
    fill(&mut request.arp_ha.sa_data, &mac);
    request.arp_flags = COMPLETE_PERMANENT;
    fill(&mut request.arp_dev, b"tap0");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: SIOCSARP takes an `arpreq`, which is valid for the call.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSARP as libc::Ioctl,
            &raw const request,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Expects replies to `count` pings of `address`.
pub fn ping(address: &str, count: u32) {
    let pings = run_command(&format!("ping -c {count} -i 0.1 -W 30 {address}"));
    // busybox counts packets.
    let is_complete =
        pings.contains(&format!("{count} received")) || pings.contains(&format!("{count} packets received"));
    assert!(is_complete, "{pings}");
}

/// Returns the response, with its head, of the guest's HTTP server at `address`.
pub fn fetch(address: &str) -> String {
    let mut connection = TcpStream::connect((address, 80)).unwrap();
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).unwrap();
    response
}

/// Checks that the guest replies to ARP, ping, and an HTTP request.
fn check_network(options: &str, arguments: &str) {
    in_own_network(|| {
        create_host_tap();
        check_network_on("tap:tap0", options, arguments);
    });
}

fn check_network_on(net: &str, options: &str, arguments: &str) {
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!(
        "{guest} {options} --net {net},mac={MAC} -- ip=10.0.0.2 {arguments}"
    ));
    guest.expect(READY);
    ping("10.0.0.2", 3);
    let neighbors = run_command("ip neigh show 10.0.0.2");
    assert!(neighbors.contains(MAC), "{neighbors}");
    let page = fetch("10.0.0.2");
    assert!(
        page.starts_with("HTTP/1.0 200 OK\r\n") && page.ends_with("\r\n\r\nhello from mayfly\n"),
        "{page}"
    );
    guest.expect(" 3 pings 1 pages\n");
    guest.expect_exit(0);
}

#[test]
fn guest_serves_page() {
    check_network("", "");
}

#[test]
fn polling_guest_serves_page() {
    check_network("", "poll=1");
}

/// Other architectures have one interrupt controller.
#[cfg(target_arch = "x86_64")]
#[test]
fn guest_with_kernel_irqchip_serves_page() {
    check_network("--irqchip kernel", "");
}

/// Returns the argument of TUNSETIFF for the tap `name` with more `flags`.
fn tap_request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: `ifreq` consists of integers, for which zero bytes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | flags;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    request
}

/// Attaches to the tap `name`, once no other process has it.
fn open_tap(name: &str, flags: libc::c_int) -> fs::File {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = tap_request(name, flags);
    scratch::wait_until("the end of an earlier descriptor of the tap", || {
        // SAFETY: TUNSETIFF takes an `ifreq`, which is valid for the call.
        let attached = check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) });
        let is_busy = matches!(&attached, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
        assert!(attached.is_ok() || is_busy, "{name}: {attached:?}");
        !is_busy
    });
    device
}

/// Waits until the tap `name` keeps packets of the host: the kernel drops them for a moment after a process has attached.
pub fn await_queue(name: &str) {
    scratch::wait_until("the tap has a queue", || {
        !run_command(&format!("ip link show dev {name}")).contains("qdisc noop")
    });
}

/// Attaches to `tap0`. Returns a descriptor that children inherit, with a number above those of the standard library.
pub fn attach_tap() -> OwnedFd {
    let device = open_tap("tap0", libc::IFF_VNET_HDR);
    // SAFETY: the call takes no pointer.
    let inherited = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_DUPFD, 100) };
    assert!(inherited >= 100, "{}", io::Error::last_os_error());
    await_queue("tap0");
    // SAFETY: F_DUPFD returned the descriptor, which has no other owner.
    unsafe { OwnedFd::from_raw_fd(inherited) }
}

#[test]
fn guest_on_inherited_tap_serves_page() {
    in_own_network(|| {
        create_host_tap();
        let tap = attach_tap();
        check_network_on(&format!("fd:{}", tap.as_raw_fd()), "", "");
    });
}

#[test]
fn interface_survives_hostile_guest() {
    in_own_network(|| {
        create_host_tap();
        let guest = file("/guests/hostile.elf");
        let mut guest = Guest::start(&format!("{guest} --net tap:tap0"));
        guest.expect("ok hostile 1 devices");
        guest.expect_exit(0);
    });
}

/// Listens on the Unix socket `name` for mayfly.
fn listen(name: &str) -> (UnixListener, String) {
    let path = scratch::process_path(name);
    let listener = UnixListener::bind(&path).unwrap();
    (listener, path.to_str().unwrap().to_owned())
}

/// Returns a broadcast ARP request for 10.0.0.2 from 10.0.0.1 at 02:..:01, padded to the minimum length of a frame.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    frame.resize(60, 0);
    frame
}

/// Returns the ARP reply: 10.0.0.2 is at 02:..:07.
fn arp_reply() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    frame.extend([2, 0, 0, 0, 0, 7, 10, 0, 0, 2]);
    frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    frame
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    [&length.to_be_bytes(), frame].concat()
}

fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn guest_on_unix_socket_replies_to_arp() {
    let (listener, path) = listen("net.sock");
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --net unix:{path},mac={MAC} -- ip=10.0.0.2 arp=4"
    ));
    guest.expect(READY);
    // mayfly connects before the guest starts.
    let mut peer = scratch::accept(&listener);
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    let framed = with_length(&arp_request());
    peer.write_all(&framed).unwrap();
    assert_eq!(read_frame(&mut peer), arp_reply());
    for cut in [2, 30] {
        peer.write_all(&framed[..cut]).unwrap();
        peer.write_all(&framed[cut..]).unwrap();
        assert_eq!(read_frame(&mut peer), arp_reply());
    }
    peer.write_all(&framed).unwrap();
    assert_eq!(read_frame(&mut peer), arp_reply());
    guest.expect("ok net 4 arps 0 pings 0 pages\n");
    guest.expect_exit(0);
}

/// Root's passt takes another user, which mayfly cannot signal without capabilities.
#[test]
fn passt_ends_with_vm() {
    if !scratch::require(scratch::Requirement::Passt) {
        return;
    }
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!("{guest} --net user,mac={MAC} -- ip=10.0.0.2"));
    guest.expect(READY);
    let children = format!("/proc/{}/task/{}/children", guest.id(), guest.id());
    let passt = fs::read_to_string(children).unwrap();
    let passt = format!("/proc/{}", passt.trim());
    assert_eq!(
        fs::read_to_string(format!("{passt}/comm")).unwrap().get(..5),
        Some("passt")
    );
    guest.terminate();
    scratch::wait_until("the end of passt", || !fs::exists(&passt).unwrap());
}

/// Starts the test guest with the ports of the host that reach its page and its echo of datagrams. Returns the guest and the ports.
fn start_with_ports(arguments: &str) -> (Guest, [u16; 2]) {
    // Nothing else in this network takes the ports until passt has them.
    let tcp = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let udp = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let guest = file("/guests/net.elf");
    let ports = format!("tcp=127.0.0.1/{tcp}:80,udp=127.0.0.1/{udp}:7");
    let guest = Guest::start(&format!(
        "{guest} --net user,mac={MAC},address=10.0.0.2/24,gateway=10.0.0.1,{ports} -- ip=10.0.0.2 {arguments}"
    ));
    (guest, [tcp, udp])
}

#[test]
fn forwarded_ports_reach_guest() {
    if !scratch::require(scratch::Requirement::Passt) {
        return;
    }
    let (mut guest, [tcp, udp]) = start_with_ports("");
    guest.expect(READY);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 16];
    scratch::wait_until("the echo of a datagram", || {
        socket.send_to(b"ping", ("127.0.0.1", udp)).unwrap();
        matches!(socket.recv(&mut buffer), Ok(4)) && buffer[..4] == *b"ping"
    });
    let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("hello from mayfly\n"), "{page}");
    drop(stream);
    guest.expect_exit(0);
}

#[test]
fn port_in_use_prevents_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (guest, port) = (file("hello.elf"), listener.local_addr().unwrap().port());
    let output = scratch::run(Command::new(program()).args([
        "run",
        &guest,
        "--net",
        &format!("user,tcp=127.0.0.1/{port}:80"),
    ]));
    let printed = String::from_utf8_lossy(&output.stderr);
    let expected = format!(
        "cannot attach network interface \"net0\": cannot forward TCP port 127.0.0.1:{port} of this host; choose another one, or end \
         the program that uses it"
    );
    assert!(printed.contains(&expected), "{printed}");
    assert_eq!(output.status.code(), Some(1));
}

/// The event loop sends what the rate limiter holds back.
#[test]
fn throttled_reply_reaches_unix_socket() {
    let (listener, path) = listen("throttled.sock");
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --net unix:{path},mac={MAC},tx-ops=1/50 -- ip=10.0.0.2 arp=3"
    ));
    guest.expect(READY);
    let mut peer = scratch::accept(&listener);
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    peer.write_all(&with_length(&arp_request()).repeat(3)).unwrap();
    for _ in 0..3 {
        assert_eq!(read_frame(&mut peer), arp_reply());
    }
    guest.expect("ok net 3 arps 0 pings 0 pages\n");
    guest.expect_exit(0);
}
