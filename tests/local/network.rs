//! Network interfaces: on taps, each test in a network of its own, and on unix sockets. Taps take root.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::{fs, mem, thread};

use crate::file;
use crate::guest::{Guest, LIMIT};

const MAC: &str = "02:00:00:00:00:07";
/// What the guest says when it can be talked to.
const READY: &str = "net 02:00:00:00:00:07 at 10.0.0.2\n";

/// Does `test` on a thread with an empty network, which ends with it and with the programs that it starts.
pub fn in_own_network(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call takes no pointer, and changes only this thread.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            let error = io::Error::last_os_error();
            assert_eq!(
                result, 0,
                "this test makes a network namespace, which takes root's rights: {error}"
            );
            test();
        });
        thread.join().unwrap();
    });
}

/// What the program of `command`, with arguments separated by blanks, prints; it must succeed.
pub fn output_of(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}; make setup installs what is missing"));
    let printed = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {printed}{said}");
    printed
}

/// Makes the interface `tap0` with the address of the host.
pub fn make_tap() {
    output_of("ip tuntap add tap0 mode tap");
    output_of("ip addr add 10.0.0.1/24 dev tap0");
    output_of("ip link set tap0 up");
    // A guest that is slow to answer, on a busy machine, is asked for its address for a minute instead of three seconds.
    fs::write("/proc/sys/net/ipv4/neigh/tap0/mcast_solicit", "60").unwrap();
}

/// The guest answers ARP, ping, and curl.
fn serves(options: &str, arguments: &str) {
    in_own_network(|| {
        make_tap();
        serves_on("tap:tap0", options, arguments);
    });
}

fn serves_on(net: &str, options: &str, arguments: &str) {
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!(
        "{guest} {options} --net {net},mac={MAC} -- ip=10.0.0.2 {arguments}"
    ));
    guest.expect(READY);
    let pings = output_of("ping -c 3 -i 0.1 -W 30 10.0.0.2");
    assert!(pings.contains("3 received"), "{pings}");
    let neighbours = output_of("ip neigh show 10.0.0.2");
    assert!(neighbours.contains(MAC), "{neighbours}");
    let page = output_of("curl --silent --show-error --include --noproxy * --max-time 60 http://10.0.0.2/");
    assert!(
        page.starts_with("HTTP/1.0 200 OK\r\n") && page.ends_with("\r\n\r\nhello from mayfly\n"),
        "{page}"
    );
    guest.expect(" 3 pings 1 pages\n");
    guest.ends_with(0);
}

#[test]
fn a_guest_serves_a_page() {
    serves("", "");
}

#[test]
fn a_guest_serves_a_page_by_polling() {
    serves("", "poll=1");
}

#[test]
fn a_guest_serves_a_page_with_the_irqchip_of_the_kernel() {
    serves("--irqchip kernel", "");
}

/// `tap0`, attached, as a descriptor above the usual that children inherit.
pub fn attach_tap() -> OwnedFd {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all-zero bytes are a valid `ifreq`, which is a structure of integers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"tap0") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: `request` is what TUNSETIFF takes, for the length of the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: the call takes no pointer.
    let inherited = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_DUPFD, 100) };
    assert!(inherited >= 100, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just made it for this call.
    unsafe { OwnedFd::from_raw_fd(inherited) }
}

#[test]
fn a_guest_serves_a_page_on_a_tap_that_it_is_given() {
    in_own_network(|| {
        make_tap();
        let tap = attach_tap();
        serves_on(&format!("fd:{}", tap.as_raw_fd()), "", "");
    });
}

#[test]
fn an_interface_survives_a_hostile_guest() {
    in_own_network(|| {
        make_tap();
        let guest = file("/guests/hostile.elf");
        let mut guest = Guest::start(&format!("{guest} --net tap:tap0"));
        guest.expect("ok hostile 1 devices");
        guest.ends_with(0);
    });
}

/// A socket on which somebody waits for mayfly.
fn listen(name: &str) -> (UnixListener, String) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    (listener, path.to_str().unwrap().to_owned())
}

/// Who has 10.0.0.2? 10.0.0.1 at 02:..:01 wants to know. To all, and filled up to the least length of a frame.
fn question() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    frame.resize(60, 0);
    frame
}

/// 10.0.0.2 is at 02:..:07.
fn answer() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    frame.extend([2, 0, 0, 0, 0, 7, 10, 0, 0, 2]);
    frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    frame
}

fn with_length(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    [&length.to_be_bytes(), frame].concat()
}

fn next_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn a_guest_answers_on_a_socket() {
    let (listener, path) = listen("net.sock");
    let guest = file("/guests/net.elf");
    let mut guest = Guest::start(&format!(
        "{guest} --net unix:{path},mac={MAC} -- ip=10.0.0.2 arp=4"
    ));
    guest.expect(READY);
    // It was connected to before the guest could print.
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let framed = with_length(&question());
    peer.write_all(&framed).unwrap();
    assert_eq!(next_frame(&mut peer), answer());
    for cut in [2, 30] {
        peer.write_all(&framed[..cut]).unwrap();
        peer.write_all(&framed[cut..]).unwrap();
        assert_eq!(next_frame(&mut peer), answer());
    }
    peer.write_all(&framed).unwrap();
    assert_eq!(next_frame(&mut peer), answer());
    guest.expect("ok net 4 arps 0 pings 0 pages\n");
    guest.ends_with(0);
}
