//! Debian's Linux as the guest, with repeated snapshots, kills and restores while it writes and hashes files and keeps a TCP
//! connection open. The guest runs the task `work` of guest-virtio.sh.
//!
//! The disk is not part of a snapshot. It matches the last snapshot, because the guest does not run between the pause and the
//! kill.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::guest::{self, Guest, TIMEOUT};
use crate::virtio::{
    IMAGE, configure_tap, create_image, create_tap, md5sum, output_text, read_file, remove_tap, run_e2fsck,
    run_task, serve_connection, start,
};

#[path = "../../resources/uffd-handler/handler.rs"]
mod handler;

/// Restores with the default machine.
const MANY_ROUNDS: usize = 50;
/// Restores with other machines.
const FEW_ROUNDS: usize = 10;
/// Restores for one cycle through [`MIXED_KINDS`].
const ONE_CYCLE: usize = MIXED_KINDS.len();
/// Mostly diff snapshots: here they take a tenth of the time of a full snapshot.
pub const MIXED_KINDS: &[&str] = &["Full", "Diff", "Diff", "Diff", "Diff"];
/// Suspends in one scenario.
const SUSPENDS: usize = 5;
/// Exit status of a process whose guest is suspended.
const SUSPENDED: i32 = 123;
/// Maximum apparent lead of the guest's clock in seconds, from the delay of its output.
const SLACK: f64 = 5.0;
pub const SOCKET: &str = "/tmp/api";
pub const DIRECTORY: &str = "/tmp/snapshot";
/// Socket of the fault handler.
const HANDLER_SOCKET: &str = "/tmp/pages";
/// Bytes of one echo; its transfer takes longer than the pause of the guest.
const ECHO_SIZE: usize = 512 << 10;
/// Limit of one round. It has several waits.
const MAX_ROUND: Duration = TIMEOUT.saturating_mul(5);
/// Number of recent files that the guest keeps.
const KEPT_FILES: usize = 4;

scenarios! {
    restored_under_load => run_case(&Case { rounds: MANY_ROUNDS, kinds: MIXED_KINDS, ..DEFAULT_CASE });
    restored_under_load_of_two_cpus => run_case(&Case { options: "--cpus 2", ..DEFAULT_CASE });
    restored_with_kernel_irqchip => run_case(&Case { options: "--irqchip kernel", ..DEFAULT_CASE });
    restored_with_io_uring => run_case(&Case { drive: ",engine=async", rounds: ONE_CYCLE, kinds: MIXED_KINDS, ..DEFAULT_CASE });
    // Only the first snapshot is full: a full snapshot of a guest with a fault handler requests each page separately.
    tsc_continues_without_pause => check_tsc("", |counted| counted < PAUSE.as_secs_f64());
    tsc_advances_with_realtime => check_tsc("--realtime", |counted| counted >= PAUSE.as_secs_f64());
    late_tsc_deadline_fires_once => check_late_deadline("/guests/counter.elf", true);
    suspended_at_work => run_case(&Case { rounds: SUSPENDS, resume: Resume::Suspend, ..DEFAULT_CASE });
    restored_with_fault_handler => run_case(&Case { resume: Resume::Handler, rounds: ONE_CYCLE, kinds: MIXED_KINDS, ..DEFAULT_CASE });
}

/// Time between a snapshot and its restore. Longer than the guest runs between two readings of its clocks, which includes the starts of
/// processes on an emulated host.
const PAUSE: Duration = Duration::from_secs(6);

/// Restores a guest after a pause with `options`. The seconds that its TSC counts in between must be `expected`, and as many as those of
/// kvmclock: a guest may read kvmclock once and count cycles afterwards.
fn check_tsc(options: &str, expected: fn(f64) -> bool) {
    let mut guest = Guest::start(&format!("/guests/kvmclock.elf --memory 16M --api-sock {SOCKET}"));
    guest.expect("ready");
    let first = GuestTime::read(&mut guest);
    thread::sleep(Duration::from_secs(1));
    let before = GuestTime::read(&mut guest);
    pause_and_create(&mut guest, "Full");
    thread::sleep(PAUSE);
    guest = guest.restart(&format!("restore {DIRECTORY} --api-sock {SOCKET} {options}"));
    let after = GuestTime::read(&mut guest);
    let frequency = (before.cycles - first.cycles) / (before.seconds - first.seconds);
    let counted = (after.cycles - before.cycles) / frequency;
    let passed = after.seconds - before.seconds;
    println!("the TSC counts {counted} s, kvmclock {passed} s");
    assert!(
        expected(counted) && (counted - passed).abs() < 0.5,
        "{counted} s and {passed} s"
    );
    guest.terminate();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Restores a guest 1000 s later by the clock of the host, with `--realtime` or without. Only with it the counter of the guest advances, and
/// the deadline of its timer in 500 s has passed: it fires once.
pub fn check_late_deadline(kernel: &str, is_realtime: bool) {
    const LATER: i64 = 1000;
    let mut guest = Guest::start(&format!("{kernel} --memory 16M --api-sock {SOCKET}"));
    guest.expect("ready");
    let before = read_counter(&mut guest, 0);
    pause_and_create(&mut guest, "Full");
    advance_host_clock(LATER);
    let option = if is_realtime { "--realtime" } else { "" };
    guest = guest.restart(&format!("restore {DIRECTORY} --api-sock {SOCKET} {option}"));
    let ticks = u32::from(is_realtime);
    let after = read_counter(&mut guest, ticks);
    read_counter(&mut guest, ticks);
    guest.terminate();
    advance_host_clock(-LATER);
    fs::remove_dir_all(DIRECTORY).unwrap();
    let passed = after - before;
    println!("the counter advances by {passed:?}");
    assert_eq!(passed >= Duration::from_secs(1000), is_realtime, "{passed:?}");
    assert!(passed < Duration::from_secs(1000) + TIMEOUT, "{passed:?}");
}

/// Returns the time of the guest counter.elf, whose timer has fired `ticks` times.
fn read_counter(guest: &mut Guest, ticks: u32) -> Duration {
    guest.type_line("");
    guest.expect("counter ");
    let milliseconds = guest.expect(" ms ").parse().unwrap();
    guest.expect(&format!("ticks {ticks}\n"));
    Duration::from_millis(milliseconds)
}

fn advance_host_clock(seconds: i64) {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let time = libc::timespec {
        tv_sec: i64::try_from(now.as_secs()).unwrap() + seconds,
        tv_nsec: i64::from(now.subsec_nanos()),
    };
    // SAFETY: `time` is valid for reads.
    let result = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Clocks of the guest kvmclock.elf at one moment.
struct GuestTime {
    seconds: f64,
    /// Time stamp counter.
    cycles: f64,
}

impl GuestTime {
    fn read(guest: &mut Guest) -> Self {
        request(guest, "PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#);
        guest.expect("time ");
        let seconds = guest.expect("\n").trim().parse::<f64>().unwrap() / 1e9;
        guest.expect("counter ");
        let cycles = guest.expect("\n").trim().parse().unwrap();
        Self { seconds, cycles }
    }
}

/// Parameters of a scenario.
pub struct Case {
    pub rounds: usize,
    /// Types of the snapshots, repeated in a cycle.
    pub kinds: &'static [&'static str],
    /// Options of the drive.
    pub drive: &'static str,
    /// Other options.
    pub options: &'static str,
    /// Way from one process to the next.
    pub resume: Resume,
}

/// Way of the guest from one process to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// A snapshot, SIGKILL, and a restore.
    Kill,
    /// The same, with guest memory from a fault handler.
    Handler,
    /// A suspend, which ends the process, and a restore.
    Suspend,
}

impl Resume {
    /// Returns an option of the first process.
    fn option(self) -> String {
        match self {
            Self::Suspend => suspend_option(),
            Self::Kill | Self::Handler => String::new(),
        }
    }

    /// Creates a snapshot, of type `kind` unless it is a suspend.
    fn save(self, guest: &mut Guest, kind: &str) {
        match self {
            Self::Suspend => suspend(guest),
            Self::Kill | Self::Handler => pause_and_create(guest, kind),
        }
    }

    /// Continues the guest in another process.
    fn restore(self, guest: Guest) -> Guest {
        match self {
            Self::Kill => restore(guest),
            Self::Handler => restore_with_handler(guest),
            Self::Suspend => wake(guest),
        }
    }
}

pub const DEFAULT_CASE: Case = Case {
    rounds: FEW_ROUNDS,
    kinds: &["Full"],
    drive: "",
    options: "",
    resume: Resume::Kill,
};

/// Restores the guest repeatedly and checks that it detects no change.
pub fn run_case(case: &Case) {
    let &Case {
        rounds,
        kinds,
        drive,
        options,
        resume,
    } = case;
    create_image(&[]);
    create_tap();
    configure_tap();
    let mut guest = start(&format!(
        "--disk {IMAGE},cache=writeback{drive} --net tap:tap0 --api-sock {SOCKET} {options} {}",
        resume.option()
    ));
    run_task(&mut guest, "interface");
    let (request_sender, requests) = channel();
    let (echo_sender, echoes) = channel();
    let connection = serve_connection(5003, move |stream| exchange(&stream, &requests, &echo_sender));
    guest.type_line("virtio work &");

    let mut files = vec![next_file(&mut guest)];
    let begun = Instant::now();
    let (mut writes, mut sends) = (0, 0);
    // A frame cancels a suspend: the connection is quiet during each, and used after it.
    let is_quiet = resume == Resume::Suspend;
    for round in 1..=rounds {
        if !is_quiet {
            let _ = request_sender.send(());
        }
        guest.expect("begins ");
        guest.expect(" end");
        resume.save(&mut guest, kinds[(round - 1) % kinds.len()]);
        let is_echoed = echoes.try_recv().is_ok();
        guest = resume.restore(guest);
        if is_quiet {
            let _ = request_sender.send(());
        }
        sends += usize::from(!is_echoed && !is_quiet);
        // The output holds everything up to the kill and may lack everything since.
        writes += usize::from(!guest.rest().contains("wrote "));
        files.push(next_file(&mut guest));
        if !is_echoed && echoes.recv_timeout(TIMEOUT).is_err() {
            guest.fail("no echo on its connection");
        }
        println!("restore {round} of {rounds}");
    }
    println!("restored {writes} times during a write, {sends} times during an echo");
    assert!(
        writes > 0 && (sends > 0 || is_quiet),
        "no snapshot was during a write or an echo"
    );

    drop(request_sender);
    if let Err(error) = connection.recv_timeout(TIMEOUT).unwrap() {
        guest.fail(&format!("the connection failed: {error}"));
    }
    let ran = files[rounds].time - files[0].time;
    assert!(
        ran <= begun.elapsed().as_secs_f64() + SLACK,
        "the guest's clock advanced by {ran} s"
    );
    check_end(guest, &files);
    remove_tap();
    fs::remove_dir_all(DIRECTORY).unwrap();
}

/// Checks the clock, the kernel log and the files on the drive, and ends the guest.
fn check_end(mut guest: Guest, files: &[File]) {
    for pair in files.windows(2) {
        assert!(pair[0].time < pair[1].time, "the clock does not advance");
    }
    guest.type_line("touch /stop");
    guest.expect("virtio: ");
    let complaints = guest.expect(" end");
    if complaints.trim() != "ok" {
        guest.fail("the guest kernel logged problems");
    }
    let times = run_task(&mut guest, "clock");
    let (before, after) = times.split_once(' ').unwrap();
    let slept = parse_seconds(after) - parse_seconds(before);
    assert!(
        (1.0..TIMEOUT.as_secs_f64()).contains(&slept),
        "a sleep of 1 s took {slept} s"
    );
    guest.type_line("poweroff -f");
    let printed = guest.expect_exit(0);

    let (code, output) = run_e2fsck(&["-f", "-n"]);
    assert_eq!(code, 0, "e2fsck: {output}");
    let all: Vec<&str> = printed
        .split("wrote ")
        .skip(1)
        .filter_map(|line| line.split_once(" end").map(|(line, _)| line))
        .collect();
    for (number, line) in all.iter().enumerate() {
        let file = File::parse(line);
        assert_eq!(file.number, number, "a line was lost or repeated");
        if number + KEPT_FILES >= all.len() {
            assert_eq!(
                md5sum(&read_file(&file.number.to_string())),
                file.sum,
                "file {number}"
            );
        }
    }
}

/// Report of the guest on a file that it has written and read.
struct File {
    number: usize,
    sum: String,
    /// Uptime in seconds.
    time: f64,
}

impl File {
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Self {
            number: fields[0].parse().unwrap(),
            sum: fields[1].to_owned(),
            time: parse_seconds(fields[2]),
        }
    }
}

fn parse_seconds(text: &str) -> f64 {
    text.parse().unwrap()
}

/// Waits for the report on the next file.
fn next_file(guest: &mut Guest) -> File {
    guest.expect("wrote ");
    File::parse(&guest.expect(" end"))
}

/// Sends data for each of `requests` and checks its echo, then sends to `echoes`.
fn exchange(mut stream: &TcpStream, requests: &Receiver<()>, echoes: &Sender<()>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut received = vec![0; ECHO_SIZE];
    let mut numbers = 0_u32..;
    while requests.recv_timeout(MAX_ROUND).is_ok() {
        let sent: Vec<u8> = numbers
            .by_ref()
            .take(ECHO_SIZE / size_of::<u32>())
            .flat_map(u32::to_le_bytes)
            .collect();
        thread::scope(|scope| {
            // The guest stops reading while its echo remains unread.
            let writing = scope.spawn(|| (&*stream).write_all(&sent));
            stream.read_exact(&mut received)?;
            scratch::join(writing)
        })?;
        if received != sent {
            return Err(io::Error::other("the echo differs from the sent data"));
        }
        // After a failure of the scenario the receiver is gone.
        let _ = echoes.send(());
    }
    Ok(())
}

/// Pauses the guest and creates a snapshot of type `kind`.
pub fn pause_and_create(guest: &mut Guest, kind: &str) {
    fs::create_dir_all(DIRECTORY).unwrap();
    request(guest, "PATCH", "/vm", r#"{"state":"Paused"}"#);
    let body = format!(
        r#"{{"snapshot_type":"{kind}","snapshot_path":"{DIRECTORY}/state","mem_file_path":"{DIRECTORY}/memory"}}"#
    );
    request(guest, "PUT", "/snapshot/create", &body);
    // SIGKILL leaves the socket, and the next process listens there.
    fs::remove_file(SOCKET).unwrap();
}

/// Suspends the guest. A frame, such as a late acknowledgement, cancels an attempt.
fn suspend(guest: &mut Guest) {
    let begin = Instant::now();
    loop {
        match try_request("PATCH", "/scale-to-zero", r#"{"action":"Suspend"}"#) {
            Ok(()) => return,
            Err(text) if text.contains("a frame cancelled it") && begin.elapsed() < TIMEOUT => {
                println!("a frame cancelled the suspend; it is repeated");
            }
            Err(text) => guest.fail(&text),
        }
    }
}

/// Returns the option for suspends. Creates their directory.
fn suspend_option() -> String {
    fs::create_dir_all(DIRECTORY).unwrap();
    format!("--suspend-to {DIRECTORY}")
}

/// Waits for the end of a suspended process, and restores its guest.
fn wake(guest: Guest) -> Guest {
    let arguments = format!("restore {DIRECTORY} --api-sock {SOCKET} {}", suspend_option());
    guest.restart_after_exit(SUSPENDED, &arguments)
}

fn restore(guest: Guest) -> Guest {
    guest.restart(&format!("restore {DIRECTORY} --api-sock {SOCKET}"))
}

/// Restores the guest with a fault handler.
fn restore_with_handler(guest: Guest) -> Guest {
    let _ = fs::remove_file(HANDLER_SOCKET);
    let listener = UnixListener::bind(HANDLER_SOCKET).unwrap();
    // A diff snapshot changes only pages of this file that the handler has already provided.
    let memory = fs::File::open(format!("{DIRECTORY}/memory")).unwrap();
    thread::spawn(move || {
        let monitor = scratch::accept(&listener);
        // Runs until the kill of the guest.
        handler::serve(&monitor, &memory)
    });
    let mut guest = guest.restart(&format!("--api-sock {SOCKET}"));
    let begin = Instant::now();
    while !Path::new(SOCKET).exists() {
        if begin.elapsed() > TIMEOUT {
            guest.fail("the API socket is missing");
        }
        thread::yield_now();
    }
    let body = format!(
        r#"{{"snapshot_path":"{DIRECTORY}/state","mem_backend":{{"backend_type":"Uffd","backend_path":"{HANDLER_SOCKET}"}},"resume_vm":true}}"#
    );
    request(&mut guest, "PUT", "/snapshot/load", &body);
    guest
}

/// Starts a guest with `kernel` and processor `features` by requests. The process has prepared a VM without the features.
pub fn start_with_features(kernel: &str, features: &str) -> Guest {
    let _ = fs::remove_file(SOCKET);
    let mut guest = Guest::launch(&format!("--api-sock {SOCKET}"));
    scratch::wait_until("the API socket", || Path::new(SOCKET).exists());
    let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":64,"cpu_features":"{features}"}}"#);
    request(&mut guest, "PUT", "/machine-config", &machine);
    let boot = format!(r#"{{"kernel_image_path":"{kernel}"}}"#);
    request(&mut guest, "PUT", "/boot-source", &boot);
    request(
        &mut guest,
        "PUT",
        "/actions",
        r#"{"action_type":"InstanceStart"}"#,
    );
    guest
}

fn request(guest: &mut Guest, method: &str, path: &str, body: &str) {
    if let Err(text) = try_request(method, path, body) {
        guest.fail(&text);
    }
}

/// Sends a request. Returns the error of its response.
fn try_request(method: &str, path: &str, body: &str) -> Result<(), String> {
    let timeout = TIMEOUT.as_secs().to_string();
    let output = scratch::run(
        guest::mayfly_command()
            .args(["ctl", "--api-sock", SOCKET, "--timeout", &timeout])
            .args(["request", method, path, body]),
    );
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{method} {path}: {}", output_text(&output)))
}
