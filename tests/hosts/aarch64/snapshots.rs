//! Snapshots on aarch64, with the test guests.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use super::Map;
use crate::guest::{Guest, TIMEOUT, mayfly_command};
use crate::snapshots::{Case, DEFAULT_CASE, MIXED_KINDS, check_late_deadline, run_case};
use crate::virtio::{create_tap, remove_tap, run_program};

const SOCKET: &str = "/tmp/api";
const DIRECTORY: &str = "/tmp/snapshot";
const SHELL: &str = "/tmp/shell";

scenarios_on_each_map! {
    ticks_continue_after_restores => |map| check_ticks(map, "");
    ticks_continue_with_realtime => |map| check_ticks(map, "--realtime");
    memory_is_restored => check_memory;
    clock_is_restored => check_clock;
    shell_restores_guest => check_shell;
    clones_have_identities_of_their_own => check_identities;
    clone_has_address_of_its_own => check_address;
    counter_advances_with_realtime => |map| check_late_deadline(&counter(map), true);
    counter_continues_without_realtime => |map| check_late_deadline(&counter(map), false);
}

/// Linux under load, on the map of Firecracker, as on x86_64.
mod linux {
    mod gic2 {
        #[test]
        fn restored_under_load() {
            let name = concat!(module_path!(), "::restored_under_load");
            crate::host::run(name, || crate::aarch64::snapshots::check_linux(""));
        }
    }
    mod gic3 {
        #[test]
        fn restored_under_load_of_two_cpus() {
            let name = concat!(module_path!(), "::restored_under_load_of_two_cpus");
            crate::host::run(name, || crate::aarch64::snapshots::check_linux("--cpus 2"));
        }
    }
}

/// On one host alone. That of the backports has an offset of the counters.
#[test]
fn virtual_counter_stops_and_advances() {
    let name = concat!(module_path!(), "::virtual_counter_stops_and_advances");
    crate::host::run(name, || check_counters(super::FC));
}

/// On one host alone: the state file decides.
#[test]
fn snapshot_of_x86_64_is_refused() {
    crate::host::run(concat!(module_path!(), "::snapshot_of_x86_64_is_refused"), || {
        fs::create_dir_all(DIRECTORY).unwrap();
        let state = include_bytes!("../../../vmm/src/arch/x86_64/testdata/identity.state");
        fs::write(format!("{DIRECTORY}/state"), state).unwrap();
        fs::write(format!("{DIRECTORY}/memory"), []).unwrap();
        let output = scratch::run(mayfly_command().args(["restore", DIRECTORY]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("x86_64") && stderr.contains("aarch64"),
            "{stderr}"
        );
        fs::remove_dir_all(DIRECTORY).unwrap();
    });
}

fn check_linux(options: &'static str) {
    run_case(&Case {
        options,
        kinds: MIXED_KINDS,
        ..DEFAULT_CASE
    });
}

/// Starts `guest` with an API socket.
fn start(map: Map, guest: &str) -> Guest {
    Guest::start(&format!(
        "/guests/{}/{guest} --memory 64M --api-sock {SOCKET}",
        map.name
    ))
}

fn restore(options: &str) -> Guest {
    Guest::launch(&format!("restore {DIRECTORY} --api-sock {SOCKET} {options}"))
}

/// Creates a snapshot of the running guest.
fn create_snapshot(options: &[&str]) {
    let command = ["snapshot", DIRECTORY, "--api-sock", SOCKET];
    let Output { status, stderr, .. } = scratch::run(mayfly_command().args(command).args(options));
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
}

/// Expects `count` consecutive ticks after the next one. Returns the number of that first tick.
fn expect_ticks(guest: &mut Guest, count: u32) -> u32 {
    guest.expect("tick ");
    let first: u32 = guest.expect("\n").trim().parse().unwrap();
    for number in first + 1..=first + count {
        guest.expect(&format!("tick {number}"));
    }
    first
}

/// Restores a guest with the timer of the architecture several times, from one snapshot and from one of a restored guest.
pub fn check_ticks(map: Map, options: &str) {
    let mut guest = start(map, "ticker.elf");
    let first = expect_ticks(&mut guest, 5);
    create_snapshot(&[]);
    guest.terminate();
    let mut restored = restore(options);
    let second = expect_ticks(&mut restored, 5);
    restored.terminate();
    let mut restored = restore(options);
    assert_eq!(expect_ticks(&mut restored, 5), second);
    assert!(second > first + 5, "tick {second} follows {first}");
    create_snapshot(&[]);
    restored.terminate();
    let mut last = restore(options);
    let third = expect_ticks(&mut last, 5);
    assert!(third > second + 5, "tick {third} follows {second}");
    last.terminate();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Counters of a guest in seconds.
struct Counters {
    virtual_seconds: f64,
    physical_seconds: f64,
}

fn read_counters(guest: &mut Guest) -> Counters {
    guest.type_line("");
    guest.expect("counters ");
    let line = guest.expect(" end");
    println!("counters {line}");
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    Counters {
        virtual_seconds: numbers[0] / numbers[2],
        physical_seconds: numbers[1] / numbers[2],
    }
}

/// Time between a snapshot and its restore.
const PAUSE: Duration = Duration::from_secs(6);

/// Restores a guest after a pause, without and with `--realtime`: its virtual counter stops and advances during the pause. Its physical
/// counter is that of the host on both kernels, docs/guests.md: the older has no offset, and the emulated processor ignores that of the later.
pub fn check_counters(map: Map) {
    let mut guest = start(map, "counters.elf");
    guest.expect("ready");
    let before = read_counters(&mut guest);
    create_snapshot(&[]);
    guest.terminate();
    thread::sleep(PAUSE);
    for options in ["", "--realtime"] {
        let mut restored = restore(options);
        let after = read_counters(&mut restored);
        let passed = after.virtual_seconds - before.virtual_seconds;
        let physical = after.physical_seconds - before.physical_seconds;
        println!("{options:?}: the virtual counter counts {passed} s, the physical {physical} s");
        let is_stopped = |seconds: f64| (0.0..PAUSE.as_secs_f64()).contains(&seconds);
        assert_eq!(is_stopped(passed), options.is_empty(), "{options:?}: {passed} s");
        assert!(passed >= 0.0, "{options:?}: {passed} s");
        assert!(physical >= PAUSE.as_secs_f64(), "{options:?}: {physical} s");
        restored.terminate();
    }
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Restores a guest that checks its pages, from a full snapshot and from a diff that is merged into it.
fn check_memory(map: Map) {
    let mut guest = start(map, "touch.elf");
    guest.expect("touched 512 pages");
    create_snapshot(&[]);
    guest.terminate();
    let mut restored = restore("");
    restored.type_line("w");
    restored.expect("ok touch 512 pages");
    create_snapshot(&["--diff"]);
    restored.terminate();
    let mut merged = restore("");
    merged.type_line("q");
    merged.expect("ok touch 512 pages");
    merged.expect_exit(0);
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Restores a guest that has set its real-time clock.
fn check_clock(map: Map) {
    let mut guest = Guest::start(&format!(
        "/guests/{}/rtc.elf --memory 64M --api-sock {SOCKET} -- ahead=1000000",
        map.name
    ));
    guest.expect("set rtc");
    create_snapshot(&[]);
    guest.terminate();
    let mut restored = restore("");
    restored.type_line("");
    restored.expect("ok rtc");
    restored.expect_exit(0);
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Restores a guest that prints its identity record, twice from one snapshot and once from a snapshot of a clone. The interrupt of the new
/// record alone wakes the guest.
pub fn check_identities(map: Map) {
    let mut guest = start(map, "generation.elf");
    let mut seen = vec![expect_identity(&mut guest, 0)];
    create_snapshot(&[]);
    guest.terminate();
    for counter in [1, 1, 2] {
        let mut clone = restore("");
        let random = expect_identity(&mut clone, counter);
        assert!(!seen.contains(&random), "{random} repeats");
        seen.push(random);
        if seen.len() == 3 {
            create_snapshot(&[]);
        }
        clone.terminate();
    }
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Expects a record after `counter` loads, each with its interrupt. Returns generation ID and randomness.
fn expect_identity(guest: &mut Guest, counter: u32) -> String {
    guest.expect(&format!("identity {counter} "));
    let random = guest.expect(&format!(" interrupts {counter}\n"));
    assert_eq!(random.len(), 32 + 1 + 128, "{random}");
    random
}

/// Returns the path of the guest that reads the counter.
fn counter(map: Map) -> String {
    format!("/guests/{}/counter.elf", map.name)
}

/// Restores a guest with another address on the host's side, which answers ping and a request there.
fn check_address(map: Map) {
    const MAC: &str = "02:00:00:00:00:07";
    const ADDRESS: &str = "10.0.7.1";
    create_tap();
    let mut guest = Guest::start(&format!(
        "/guests/{}/net.elf --memory 64M --api-sock {SOCKET} --net tap:tap0,mac={MAC} -- ip=10.0.0.2",
        map.name
    ));
    guest.expect(&format!("net {MAC} at 10.0.0.2\n"));
    create_snapshot(&[]);
    guest.terminate();
    run_program("ip", &["address", "add", "10.0.7.254/24", "dev", "tap0"]);
    run_program("ip", &["link", "set", "tap0", "up"]);
    let mut clone = restore(&format!(
        "--net net0=tap:tap0,guest-ip=10.0.0.2,ip={ADDRESS},guest-mac={MAC},mac=02:00:00:00:07:01"
    ));
    run_program("ping", &["-c", "2", "-W", "30", ADDRESS]);
    // While the VM runs: its end clears them.
    let neighbors = scratch::run(Command::new("ip").args(["neigh", "show", ADDRESS])).stdout;
    let neighbors = String::from_utf8_lossy(&neighbors).into_owned();
    assert!(neighbors.contains("02:00:00:00:07:01"), "{neighbors}");
    let mut page = String::new();
    let mut connection = TcpStream::connect((ADDRESS, 80)).unwrap();
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    connection.read_to_string(&mut page).unwrap();
    // The guest ends once the connection is closed.
    drop(connection);
    assert!(page.ends_with("\r\n\r\nhello from mayfly\n"), "{page}");
    // The first ping may precede the address of the host's tap.
    clone.expect(" pings 1 pages");
    clone.expect_exit(0);
    remove_tap();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Restores a guest whose registers are those of optional `features` of the processor, from its snapshot and from one of a restored guest. It
/// prints `line` while they are right.
pub fn check_extension(map: Map, guest: &str, features: &str, line: &str) {
    let mut guest = start(map, &format!("{guest} --cpu-features {features}"));
    guest.expect(line);
    for _ in 0..2 {
        create_snapshot(&[]);
        guest.terminate();
        guest = restore("");
        guest.type_line("");
        guest.expect(line);
    }
    guest.terminate();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

fn check_shell(map: Map) {
    let mut guest = start(map, "ticker.elf");
    expect_ticks(&mut guest, 3);
    create_snapshot(&[]);
    guest.terminate();
    let shell = Guest::launch(&format!("shell {SHELL} --for {DIRECTORY}"));
    scratch::wait_until("the socket of the shell", || Path::new(SHELL).exists());
    let mut client = Guest::launch(&format!("restore --shell {SHELL} {DIRECTORY}"));
    expect_ticks(&mut client, 5);
    client.terminate();
    shell.expect_exit(1);
    fs::remove_dir_all(DIRECTORY).unwrap();
}
