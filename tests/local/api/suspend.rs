//! Suspend of idle VMs: when, where, and what cancels or spoils it.

use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Client, NO_CONTENT, go_request};
use super::killed::Random;
use super::served::{ApiProcess, Directory, PAUSED, RESUMED, count_ticks, load_body};
use crate::guest::{Running, TIMEOUT};
use crate::guests::{file, program};
use crate::network::{add_neighbor, attach_tap, create_host_tap, in_own_network, ping, run_command};

/// Exit status of a suspended VM.
const SUSPENDED: i32 = 123;
/// Exit status if a disk has changed since the snapshot.
const DRIVE_CHANGED: i32 = 119;

const READY: &str = r#"{"action":"Ready"}"#;
const SUSPEND: &str = r#"{"action":"Suspend"}"#;
const CANCEL: &str = r#"{"action":"Cancel"}"#;

/// Command line that fills `mib` MiB, so that a snapshot on a disk takes a while.
const LARGE: [&str; 4] = ["--memory", "300M", "--", "mib=256"];

/// Starts `mayfly` with an API socket and `arguments`, split at spaces; `rest` follows.
fn start(arguments: &str, rest: &[&str]) -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(arguments.split(' ').filter(|word| !word.is_empty()))
        .args(["--api-sock", &socket])
        .args(rest);
    ApiProcess::spawn(directory, &mut command)
}

fn run(guest: &str, arguments: &str, rest: &[&str]) -> ApiProcess {
    start(&format!("run {} {arguments}", file(guest)), rest)
}

fn restore(directory: &Directory, arguments: &str) -> ApiProcess {
    start(&format!("restore {} {arguments}", directory.text("")), &[])
}

fn act(process: &ApiProcess, action: &str) {
    process.expect_no_content("PATCH", "/scale-to-zero", action);
}

/// Begins a request without waiting for its response.
fn begin(process: &ApiProcess, body: &str) -> Client {
    let mut client = process.connect();
    client.send(go_request("PATCH", "/scale-to-zero", body));
    client
}

/// Begins a suspend in a stopped process, which executes `requests` on other connections before the suspend proceeds far. Returns the
/// client of the suspend, and those of `requests`.
fn begin_with<const N: usize>(
    process: &mut ApiProcess,
    requests: [(&str, &str); N],
) -> (Client, [Client; N]) {
    let mut first = process.connect();
    assert_eq!(first.request("GET", "/", "").status(), 200);
    process.signal(libc::SIGSTOP);
    first.send(go_request("PATCH", "/scale-to-zero", SUSPEND));
    // The process accepts them after the stop: an accepted client has its turn before them.
    let others = requests.map(|(method, body)| {
        let mut client = process.connect();
        client.send(go_request(method, "/scale-to-zero", body));
        client
    });
    process.signal(libc::SIGCONT);
    (first, others)
}

fn info(process: &ApiProcess) -> Value {
    process.request("GET", "/scale-to-zero", "").json()
}

/// Waits until `field` has `value`.
fn await_info(process: &ApiProcess, field: &str, value: &str) -> Value {
    let mut last = Value::Null;
    scratch::wait_until(&format!("{field} {value}"), || {
        last = info(process);
        last[field] == value
    });
    last
}

fn current(directory: &Directory) -> Option<String> {
    let link = fs::read_link(directory.path("current")).ok()?;
    Some(link.to_str().unwrap().to_owned())
}

/// Restores the guest `touch` of `directory`, which checks its pages.
fn expect_touched(directory: &Directory, pages: u32) {
    let mut command = Command::new(program());
    command
        .args(["restore", &directory.text("")])
        .stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    running.take_input().unwrap().write_all(b"q").unwrap();
    running.expect(&format!("ok touch {pages} pages\n"));
    running.expect_exit(0);
}

#[test]
fn idle_guest_is_suspended_when_ready() {
    let directory = Directory::new();
    let options = format!("--suspend-to {} --idle-after 50", directory.text(""));
    let mut process = run("touch.elf", &options, &[]);
    process.expect("touched 512 pages\n");
    let before = await_info(&process, "state", "NotReady");
    assert_eq!(
        (&before["policy"], &before["cooldown_time_ms"], &before["reason"]),
        (&json!("idle"), &json!(50), &json!("not_ready"))
    );
    assert_eq!(
        before["snapshot_dir"],
        directory.path("").canonicalize().unwrap().to_str().unwrap()
    );
    act(&process, READY);
    process.expect_exit(SUSPENDED);
    assert_eq!(directory.names(), ["current", "gen-1"]);
    // A restored guest is ready.
    for generation in ["gen-2", "gen-3"] {
        restore(&directory, &options).expect_exit(SUSPENDED);
        assert_eq!(directory.names(), ["current", generation]);
        assert_eq!(current(&directory).as_deref(), Some(generation));
    }
    expect_touched(&directory, 512);
}

/// Without an API socket, mayfly may open no file but those of the directory. aarch64 has no ready port.
#[cfg(target_arch = "x86_64")]
#[test]
fn guest_announces_by_port_that_it_is_ready() {
    let directory = Directory::new();
    let path = directory.text("");
    let mut command = Command::new(program());
    command.args([
        "run",
        &file("touch.elf"),
        "--suspend-to",
        &path,
        "--idle-after",
        "50",
    ]);
    let mut running = Running::start(command.args(["--", "ready=1"]).stdin(Stdio::null()));
    running.expect_exit(SUSPENDED);
    let mut command = Command::new(program());
    command.args(["restore", &path, "--suspend-to", &path, "--idle-after", "50"]);
    Running::start(command.stdin(Stdio::null())).expect_exit(SUSPENDED);
    assert_eq!(directory.names(), ["current", "gen-2"]);
    expect_touched(&directory, 512);
}

#[test]
fn requested_suspend_loses_no_tick() {
    let directory = Directory::new();
    let options = format!("--suspend-to {}", directory.text(""));
    let mut process = run("ticker.elf", &options, &[]);
    let mut printed = String::new();
    for _ in 0..4 {
        process.expect("tick ");
        process.expect("tick ");
        let mut command = Command::new(program());
        command.args(["ctl", "--api-sock", process.socket().to_str().unwrap(), "suspend"]);
        // It waits for the disk.
        command.args(["--timeout", "170"]);
        let output = scratch::run(&mut command);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "suspended\n");
        printed += &process.expect_exit(SUSPENDED).0;
        count_ticks(&printed);
        process = restore(&directory, &options);
    }
    // One that is paused is suspended too, and runs when it is loaded.
    process.expect("tick ");
    process.expect_no_content("PATCH", "/vm", PAUSED);
    act(&process, SUSPEND);
    printed += &process.expect_exit(SUSPENDED).0;
    let mut last = restore(&directory, &options);
    last.expect(&format!("tick {}\n", count_ticks(&printed) + 2));
    last.terminate();
}

#[test]
fn suspend_in_progress_is_cancelled() {
    let directory = Directory::new();
    let options = format!("--suspend-to {}", directory.text(""));
    let mut process = run("touch.elf", &options, &LARGE);
    process.expect("touched 65536 pages\n");
    for (state, body) in [("Running", RESUMED), ("Paused", PAUSED)] {
        process.expect_no_content("PATCH", "/vm", body);
        let requests = [("GET", ""), ("PATCH", CANCEL)];
        let (mut suspend, [mut read, mut cancel]) = begin_with(&mut process, requests);
        assert_eq!(read.receive().json()["state"], "Suspending");
        assert_eq!(cancel.receive().text, NO_CONTENT);
        let reason = suspend.receive().fault_message();
        assert_eq!(
            reason,
            "Suspend error: cannot complete the suspend: a request cancelled it"
        );
        assert_eq!(process.state(), state);
        assert_eq!(info(&process)["error"], Value::Null);
        assert!(directory.names().is_empty());
    }
    // The end of its client cancels a suspend too.
    drop(begin_with(&mut process, []));
    scratch::wait_until("a cancelled suspend", || {
        process
            .request("GET", "/metrics", "")
            .text
            .contains("mayfly_suspends_total{event=\"cancelled\"} 3\n")
    });
    let fault = process.request("PATCH", "/scale-to-zero", CANCEL).fault_message();
    assert_eq!(
        fault,
        "Suspend error: cannot cancel the suspend: the VM does not suspend"
    );
    assert!(directory.names().is_empty());
    // A signal ends the process in the middle of a suspend, and leaves no generation.
    let (_suspend, [mut read]) = begin_with(&mut process, [("GET", "")]);
    assert_eq!(read.receive().json()["state"], "Suspending");
    process.terminate();
    assert!(directory.names().is_empty());
}

/// Prefers the threads of `process` to other processes, if the host permits it: a guest that polls uses more than half of a processor.
fn prefer(process: &ApiProcess) {
    for entry in fs::read_dir(format!("/proc/{}/task", process.id())).unwrap() {
        let thread = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: the call takes no pointer.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, -20) };
    }
}

#[test]
fn polling_guest_is_reported_once() {
    let directory = Directory::new();
    let options = format!("--suspend-to {} --idle-after 100", directory.text(""));
    let process = run("loop.elf", &options, &[]);
    prefer(&process);
    act(&process, READY);
    await_info(&process, "reason", "polling");
    let metrics = process.request("GET", "/metrics", "").text;
    assert!(metrics.contains("mayfly_guest_polling_total 1\n"), "{metrics}");
    // A second window finds the same.
    thread::sleep(Duration::from_millis(1200));
    await_info(&process, "reason", "polling");
    // A guest that polls can be suspended by request.
    act(&process, SUSPEND);
    let stderr = process.expect_exit(SUSPENDED).1;
    assert_eq!(stderr.matches("the guest is never idle").count(), 1, "{stderr}");
}

#[test]
fn settings_apply_before_and_after_start_and_load() {
    let directory = Directory::new();
    let files = |name: &str, fields: &str| {
        let (state, memory) = (
            directory.text(&format!("{name}-state")),
            directory.text(&format!("{name}-memory")),
        );
        format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}","cooldown_time_ms":50{fields}}}"#)
    };
    let idle = r#","policy":"idle""#;
    // Before the start.
    let mut process = ApiProcess::start();
    process.expect_no_content("PUT", "/scale-to-zero", &files("a", idle));
    process.set_kernel("touch.elf");
    process.run_action("InstanceStart");
    process.expect("touched");
    act(&process, READY);
    process.expect_exit(SUSPENDED);
    // After a load, which is the start of a guest that is ready.
    let process = ApiProcess::start();
    let load = load_body(&directory, "a-state", "a-memory", r#","resume_vm":true"#);
    process.expect_no_content("PUT", "/snapshot/load", &load);
    let off = files("b", r#","policy":"off""#);
    process.expect_no_content("PUT", "/scale-to-zero", &off);
    assert_eq!(info(&process)["state"], "Off");
    process.expect_no_content("PUT", "/scale-to-zero", &files("b", idle));
    process.expect_exit(SUSPENDED);
    // Existing files are refused, and the guest goes on.
    let process = ApiProcess::start();
    let load = load_body(&directory, "b-state", "b-memory", r#","resume_vm":true"#);
    process.expect_no_content("PUT", "/snapshot/load", &load);
    process.expect_no_content("PUT", "/scale-to-zero", &files("b", idle));
    scratch::wait_until("a failure", || info(&process)["error"].is_string());
    let error = info(&process)["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("b-state") && error.ends_with("the file exists; move it away"),
        "{error}"
    );
    let fault = process
        .request("PATCH", "/scale-to-zero", SUSPEND)
        .fault_message();
    assert_eq!(fault, format!("Suspend error: {error}"));
    assert_eq!(process.state(), "Running");
    process.expect_no_content(
        "PUT",
        "/scale-to-zero",
        r#"{"policy":"idle","stateful":false,"cooldown_time_ms":50}"#,
    );
    process.expect_exit(SUSPENDED);
    assert_eq!(directory.names(), ["a-memory", "a-state", "b-memory", "b-state"]);
}

#[test]
fn suspend_without_place_is_refused() {
    let mut process = run("ticker.elf", "--log-level info", &[]);
    process.expect("tick ");
    let fault = process
        .request("PATCH", "/scale-to-zero", SUSPEND)
        .fault_message();
    assert!(fault.contains("no place for its snapshot is set"), "{fault}");
    process.expect("tick ");
    process.terminate();
}

#[test]
fn stateless_suspend_leaves_snapshot_unchanged() {
    let directory = Directory::new();
    let mut process = run("touch.elf", &format!("--suspend-to {}", directory.text("")), &[]);
    process.expect("touched 512 pages\n");
    act(&process, SUSPEND);
    process.expect_exit(SUSPENDED);
    for _ in 0..2 {
        restore(&directory, "--stateless --idle-after 50").expect_exit(SUSPENDED);
        assert_eq!(directory.names(), ["current", "gen-1"]);
    }
    expect_touched(&directory, 512);
}

/// Expects `mayfly` with `arguments` to end with `code`. Returns its stderr.
fn expect_failure(arguments: &str, code: i32) -> String {
    let mut command = Command::new(program());
    let output = scratch::run(command.args(arguments.split(' ')).stdin(Stdio::null()));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

#[test]
fn unusable_directory_is_refused_at_start() {
    let directory = Directory::new();
    let guest = file("touch.elf");
    let missing = format!("run {guest} --suspend-to {}", directory.text("missing"));
    let stderr = expect_failure(&missing, 1);
    assert!(
        stderr.contains("missing\"") && stderr.contains("(--suspend-to DIR)"),
        "{stderr}"
    );
    let file = directory.write("file", "");
    let stderr = expect_failure(&format!("run {guest} --suspend-to {file}"), 1);
    assert!(stderr.contains("Not a directory"), "{stderr}");
    // Another VM suspends there.
    let path = directory.text("");
    let mut first = run("ticker.elf", &format!("--suspend-to {path}"), &[]);
    first.expect("tick ");
    let stderr = expect_failure(&format!("run {guest} --suspend-to {path}"), 1);
    assert!(
        stderr.contains("another VM does; name a directory for each VM"),
        "{stderr}"
    );
    first.terminate();
    for (options, text) in [
        ("--idle-after 5", "--idle-after requires --suspend-to"),
        ("--idle-cpu 5", "--idle-cpu requires --idle-after"),
        (
            "--suspend-to /tmp --stateless",
            "--suspend-to and --stateless exclude each other",
        ),
        (
            "--idle-after 0 --stateless",
            "--idle-after \"0\": expected a number of milliseconds from 1 to",
        ),
    ] {
        let stderr = expect_failure(&format!("run {guest} {options}"), 2);
        assert!(stderr.contains(text), "{stderr}");
    }
}

#[test]
fn full_disk_keeps_vm_and_old_generation() {
    super::chroot::in_own_mounts(|root| {
        let disk = root.join("disk");
        fs::create_dir(&disk).unwrap();
        super::chroot::mount(Path::new("tmpfs"), &disk, c"tmpfs", 0, c"size=4m");
        let path = disk.to_str().unwrap();
        let options = format!("--suspend-to {path} --memory 32M");
        let mut process = run("touch.elf", &options, &["--", "mib=1"]);
        process.expect("touched 256 pages\n");
        act(&process, SUSPEND);
        process.expect_exit(SUSPENDED);
        let old = fs::read(disk.join("gen-1/state")).unwrap();
        let mut filler = File::create(disk.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let process = start(
            &format!("restore {path} --suspend-to {path} --idle-after 50"),
            &[],
        );
        scratch::wait_until("a failure", || info(&process)["error"].is_string());
        let error = info(&process)["error"].as_str().unwrap().to_owned();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(process.state(), "Running");
        assert_eq!(fs::read(disk.join("gen-1/state")).unwrap(), old);
        assert!(!disk.join("gen-2").exists());
        fs::remove_file(disk.join("filler")).unwrap();
        drop(filler);
        act(&process, SUSPEND);
        let stderr = process.expect_exit(SUSPENDED).1;
        assert!(
            stderr.contains("the VM runs on: ") && stderr.contains("No space left"),
            "{stderr}"
        );
        assert_eq!(fs::read_link(disk.join("current")).unwrap(), Path::new("gen-2"));
    });
}

#[test]
fn guest_that_ends_during_suspend_ends_or_is_suspended() {
    let mut random = Random::new(16);
    let mut ends = [0; 2];
    // Later rounds leave the guest more time: hosts need different times for its end.
    for round in 0..80 {
        if round >= 20 && ends.iter().all(|count| *count > 0) {
            break;
        }
        // Memory: the moment of the end must not be hidden by a sync.
        let directory = Directory::new_in(Path::new("/dev/shm"));
        let own = Directory::new();
        let socket = own.text("api.sock");
        let mut command = Command::new(program());
        command.args([
            "run",
            &file("touch.elf"),
            "--suspend-to",
            &directory.text(""),
            "--api-sock",
            &socket,
        ]);
        let mut running = Running::start(command.stdin(Stdio::piped()));
        running.expect("touched 512 pages\n");
        let client = super::served::connect(&own.path("api.sock"));
        let mut input = running.take_input().unwrap();
        input.write_all(b"q").unwrap();
        spin(Duration::from_micros(random.below(1000 * (round + 1))));
        // Fails if the guest has ended.
        let request = go_request("PATCH", "/scale-to-zero", SUSPEND);
        let _ = client.stream().write_all(request.as_bytes());
        let status = running.wait().code();
        match status {
            Some(0) => {
                ends[0] += 1;
                assert_eq!(current(&directory), None);
            }
            Some(SUSPENDED) => {
                ends[1] += 1;
                // Its input is a part of the guest.
                let printed = running.take_printed() + &restore(&directory, "").expect_exit(0).0;
                assert!(printed.contains("ok touch 512 pages\n"), "{printed}");
            }
            other => panic!("{other:?}: {}", running.take_printed()),
        }
    }
    assert!(ends.iter().all(|count| *count > 0), "{ends:?}");
}

fn spin(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// After a kill at any moment of a suspend, the guest goes on from the last complete generation, and loses no tick since then.
#[test]
fn kill_during_suspend_leaves_complete_generation() {
    const ROUNDS: usize = 200;
    // Memory: a disk takes most of the time for its syncs, which no kill interrupts.
    let directory = Directory::new_in(Path::new("/dev/shm"));
    let options = format!("--suspend-to {}", directory.text(""));
    let mut first = run("ticker.elf", &options, &["--memory", "8M"]);
    first.expect("tick 3\n");
    act(&first, SUSPEND);
    let mut complete = first.expect_exit(SUSPENDED).0;
    let mut random = Random::new(200);
    let mut outcomes = [0; 2];
    // Longest time of a suspend, measured: kills are spread over it.
    let mut length = Duration::from_millis(20);
    for round in 0..ROUNDS {
        let generation = current(&directory).unwrap();
        let mut process = restore(&directory, &options);
        process.expect("\n");
        let begin_time = Instant::now();
        let mut client = begin(&process, SUSPEND);
        if round % 20 == 0 {
            assert_eq!(client.receive().text, NO_CONTENT);
            length = begin_time.elapsed();
        } else {
            spin(length.mul_f64(random.below(1200) as f64 / 1000.0));
        }
        let printed = complete.clone() + &process.kill();
        count_ticks(&printed);
        let is_new = current(&directory).unwrap() != generation;
        outcomes[usize::from(is_new)] += 1;
        if is_new {
            complete = printed;
        }
    }
    assert!(outcomes.iter().all(|count| *count > ROUNDS / 10), "{outcomes:?}");
    let mut last = restore(&directory, &options);
    last.expect(&format!("tick {}\n", count_ticks(&complete) + 3));
    assert_eq!(directory.names().len(), 2, "{:?}", directory.names());
}

#[test]
fn shell_loads_and_suspends_generations() {
    let directory = Directory::new();
    let path = directory.text("");
    let mut process = run("ticker.elf", &format!("--suspend-to {path} --memory 8M"), &[]);
    process.expect("tick 3\n");
    act(&process, SUSPEND);
    let mut printed = process.expect_exit(SUSPENDED).0;
    for generation in ["gen-2", "gen-3"] {
        let own = Directory::new();
        let (socket, api) = (own.text("shell"), own.text("api.sock"));
        let mut command = Command::new(program());
        let mut shell = Running::start(
            command
                .args(["shell", &socket, "--for", &path])
                .stdin(Stdio::null()),
        );
        scratch::wait_until("a shell", || own.path("shell").exists());
        let mut command = Command::new(program());
        command.args([
            "restore",
            &path,
            "--shell",
            &socket,
            "--suspend-to",
            &path,
            "--api-sock",
            &api,
        ]);
        let mut client = ApiProcess::spawn(own, &mut command);
        client.expect("\n");
        act(&client, SUSPEND);
        printed += &client.expect_exit(SUSPENDED).0;
        count_ticks(&printed);
        shell.expect_exit(SUSPENDED);
        assert_eq!(current(&directory).as_deref(), Some(generation));
    }
}

/// A guest with the writable drive `disk` of `directory`, suspended to its directory `s`.
fn suspend_with_drive(directory: &Directory) {
    directory.write("disk", [0; 4096]);
    fs::create_dir(directory.path("s")).unwrap();
    let options = format!(
        "--disk {},id=d --suspend-to {}",
        directory.text("disk"),
        directory.text("s")
    );
    let mut process = run("ticker.elf", &options, &["--memory", "8M"]);
    process.expect("tick 3\n");
    act(&process, SUSPEND);
    process.expect_exit(SUSPENDED);
}

#[test]
fn changed_drive_is_refused_unless_replaced() {
    let directory = Directory::new();
    suspend_with_drive(&directory);
    let snapshot = directory.text("s");
    let expect_load = |arguments: &str| {
        let options = format!("restore {snapshot} --log-level warning{arguments}");
        let mut process = start(&options, &[]);
        process.expect("tick ");
        process.terminate();
    };
    expect_load("");
    File::options()
        .append(true)
        .open(directory.path("disk"))
        .unwrap()
        .write_all(&[1; 512])
        .unwrap();
    let (disk, link) = (directory.text("disk"), directory.text("link"));
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    // An override that names the same file replaces nothing.
    for arguments in [
        "".to_owned(),
        format!(" --disk d={disk}"),
        format!(" --untrusted --disk d={link}"),
    ] {
        let stderr = expect_failure(&format!("restore {snapshot}{arguments}"), DRIVE_CHANGED);
        for text in [
            "drive \"d\": its disk has changed since, from 4096 bytes, modified at ",
            " to 4608 bytes, modified at ",
            "(--disk ID=PATH, --ignore-drive-changes)",
        ] {
            assert!(stderr.contains(text), "{stderr}");
        }
    }
    expect_load(" --ignore-drive-changes");
    let other = directory.write("other", [0; 4096]);
    expect_load(&format!(" --disk d={other}"));
    check_changed_drive_in_shell(&directory);
    check_changed_drive_by_api(&directory);
}

/// A shell is not used up by such a snapshot.
fn check_changed_drive_in_shell(directory: &Directory) {
    let snapshot = directory.text("s");
    let socket = directory.text("shell");
    let mut command = Command::new(program());
    let mut shell = Running::start(
        command
            .args(["shell", &socket, "--for", &snapshot])
            .stdin(Stdio::null()),
    );
    scratch::wait_until("a shell", || directory.path("shell").exists());
    expect_failure(&format!("restore {snapshot} --shell {socket}"), DRIVE_CHANGED);
    let mut command = Command::new(program());
    command.args(["restore", &snapshot, "--ignore-drive-changes", "--shell", &socket]);
    let mut client = Running::start(command.stdin(Stdio::null()));
    client.expect("tick ");
    drop(client);
    shell.expect_exit(1);
}

fn check_changed_drive_by_api(directory: &Directory) {
    let body = |fields: &str| load_body(directory, "s/gen-1/state", "s/gen-1/memory", fields);
    let process = ApiProcess::start();
    let fault = process
        .request("PUT", "/snapshot/load", &body(r#","check_drives":true"#))
        .fault_message();
    assert!(fault.contains("its disk has changed since"), "{fault}");
    process.expect_exit(1);
    let mut process = ApiProcess::start();
    process.expect_no_content("PUT", "/snapshot/load", &body(r#","resume_vm":true"#));
    process.expect("tick ");
    let stderr = process.end_by(libc::SIGTERM);
    assert!(
        stderr.contains("the disk of drive \"d\" has changed since the snapshot"),
        "{stderr}"
    );
}

#[test]
fn frame_wakes_guest_that_suspends() {
    in_own_network(|| {
        create_host_tap();
        let directory = Directory::new();
        let options = format!(
            "--net tap:tap0,mac=02:00:00:00:00:07 --suspend-to {}",
            directory.text("")
        );
        // The resident pages of the initrd make the snapshot large.
        let initrd = directory_of_initrd();
        let mut process = run(
            "net.elf",
            &options,
            &[
                "--memory",
                "400M",
                "--initrd",
                &initrd.text("initrd"),
                "--",
                "ip=10.0.0.2",
            ],
        );
        process.expect(" at 10.0.0.2\n");
        ping("10.0.0.2", 1);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let has_ended = AtomicBool::new(false);
        let reason = thread::scope(|scope| {
            // From before the suspend on: one frame would have to arrive while the snapshot is written.
            scope.spawn(|| {
                let begin = Instant::now();
                while !has_ended.load(Ordering::Relaxed) && begin.elapsed() < TIMEOUT {
                    // The error of an earlier datagram, for which the guest has no port.
                    let _ = socket.send_to(b"wake", "10.0.0.2:9");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let response = begin(&process, SUSPEND).receive();
            has_ended.store(true, Ordering::Relaxed);
            response.fault_message()
        });
        assert_eq!(
            reason,
            "Suspend error: cannot complete the suspend: a frame cancelled it"
        );
        assert_eq!(process.state(), "Running");
        assert!(directory.names().is_empty());
        ping("10.0.0.2", 1);
        process.terminate();
    });
}

/// Returns a directory with an initrd of 256 MiB.
fn directory_of_initrd() -> Directory {
    let directory = Directory::new();
    let mut file = File::create(directory.path("initrd")).unwrap();
    for _ in 0..256 {
        file.write_all(&[7; 1 << 20]).unwrap();
    }
    directory
}

#[test]
fn frame_for_suspended_guest_waits_in_tap() {
    in_own_network(|| {
        create_host_tap();
        add_neighbor("10.0.0.2", [2, 0, 0, 0, 0, 7]);
        // An open descriptor in the test keeps the queue of the tap across processes.
        let tap = attach_tap();
        let net = format!("fd:{}", tap.as_raw_fd());
        let directory = Directory::new();
        let path = directory.text("");
        let options = format!("--suspend-to {path} --idle-after 100");
        let arguments = [
            "--memory",
            "16M",
            "--net",
            &format!("{net},mac=02:00:00:00:00:07"),
            "--",
            "ip=10.0.0.2",
        ];
        let mut process = run("net.elf", &options, &arguments);
        process.expect(" at 10.0.0.2\n");
        let socket = std::net::UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.connect("10.0.0.2:7").unwrap();
        socket.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
        let expect_echo = |number: u8| {
            let mut buffer = [0; 16];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], number);
        };
        // The first frame of the guest, its answer, begins the cool-down.
        await_info(&process, "state", "NotReady");
        socket.send(&[0]).unwrap();
        expect_echo(0);
        for number in 1..4 {
            process.expect_exit(SUSPENDED);
            socket.send(&[number]).unwrap();
            process = restore(&directory, &format!("--net net0={net} {options}"));
            expect_echo(number);
        }
        process.expect_exit(SUSPENDED);
    });
}

/// ARP and keep-alives do not keep a guest awake; other frames do.
#[test]
fn only_transfers_keep_guest_awake() {
    in_own_network(|| {
        create_host_tap();
        let directory = Directory::new();
        let options = format!("--suspend-to {} --idle-after 5000", directory.text(""));
        let arguments = [
            "--memory",
            "16M",
            "--net",
            "tap:tap0,mac=02:00:00:00:00:07",
            "--",
            "ip=10.0.0.2",
            "arp=1000",
        ];
        let mut process = run("net.elf", &options, &arguments);
        process.expect(" at 10.0.0.2\n");
        for _ in 0..4 {
            ping("10.0.0.2", 4);
            await_info(&process, "reason", "frame");
        }
        let is_suspended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_suspended.load(Ordering::Relaxed) {
                    // The host asks the guest for its address, which answers.
                    run_command("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:07 dev tap0 nud probe");
                    thread::sleep(Duration::from_millis(100));
                }
            });
            process.expect_exit(SUSPENDED);
            is_suspended.store(true, Ordering::Relaxed);
        });
    });
}
