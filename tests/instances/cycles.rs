//! Cycles of suspend and wake, with a TCP connection that stays open and a number that the guest counts.
//!
//! `CYCLES` is the number of cycles, `SEED` selects the moments; `make cycles` runs 10,000.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::host::{GUEST, Supervisor, enter_namespace, on_tap};
use crate::network::{at, register_network};
use crate::random::{Random, number};

/// Port of the guest that counts.
const COUNT: u16 = 7;
/// Cool-down of the instance in milliseconds.
const COOLDOWN: u64 = 20;
/// Maximum wait for a response.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the number of segments that the host has sent again.
fn retransmitted(stream: &TcpStream) -> u32 {
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
    // SAFETY: `tcp_info` consists of integers, for which zero bytes are valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    // SAFETY: both pointers are valid for the call, which writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// Runs cycles of `web` at `address`.
fn run_cycles(supervisor: &Supervisor, address: &str) {
    let (cycles, mut random) = (number("CYCLES", 50), Random::new());
    let suspends = || supervisor.metric("mayfly_standby_suspends_total");
    let mut stream = TcpStream::connect((address, COUNT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (mut expected, mut longest, mut slept) = (0_u32, Duration::ZERO, 0_u32);
    let started = Instant::now();
    while suspends() < u64::from(cycles) {
        // Asleep, or at any moment of the suspend.
        if random.below(2) == 0 {
            supervisor.await_state("web", "suspended");
            slept += 1;
        } else {
            thread::sleep(random.time(3 * COOLDOWN));
        }
        let sent = Instant::now();
        stream.write_all(b"next").unwrap();
        let mut response = [0; 4];
        stream.read_exact(&mut response).unwrap();
        longest = longest.max(sent.elapsed());
        expected += 1;
        assert_eq!(
            u32::from_be_bytes(response),
            expected,
            "after {} suspends",
            suspends()
        );
        if expected.is_multiple_of(1000) {
            eprintln!("{address}: {expected} numbers, {} suspends", suspends());
        }
    }
    eprintln!(
        "{address}: {} suspends in {:?}, {expected} numbers in order, {slept} of a sleeper, longest wait {longest:?}, {} \
         segments repeated",
        suspends(),
        started.elapsed(),
        retransmitted(&stream)
    );
    for cause in ["start", "load", "timeout", "guest", "tap", "shell"] {
        assert_eq!(supervisor.failures(cause), 0, "{cause}");
    }
}

#[test]
fn connection_at_a_tap_survives_cycles() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    supervisor.register(
        "web",
        on_tap(json!({"scale_to_zero": {"cooldown_time_ms": COOLDOWN}})),
    );
    run_cycles(&supervisor, GUEST);
}

#[test]
fn connection_in_a_shared_network_survives_cycles_in_shells() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&["--shells", "1"]);
    register_network(&supervisor);
    let mut body = at("10.1.0.7");
    body["scale_to_zero"]["cooldown_time_ms"] = json!(COOLDOWN);
    supervisor.register("web", body);
    run_cycles(&supervisor, "10.1.0.7");
}
