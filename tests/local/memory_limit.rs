//! Falling limits of the address space (RLIMIT_AS): each command and request succeeds or fails with a message and a documented
//! status.

use std::io;
use std::net::Shutdown;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use super::api::http::go_request;
use super::api::served::{ApiProcess, Directory, PAUSED, create_snapshot, load_body, start_ticker};
use crate::guests::{file, program};

/// Exit status if mayfly has no memory left.
const OUT_OF_MEMORY: i32 = 122;

const KIB: u64 = 1024;

/// Limits the address space of `command` to `bytes`.
pub fn limit_address_space(command: &mut Command, bytes: u64) {
    let limit = move || set_limit(0, bytes);
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { command.pre_exec(limit) };
}

/// Limits the address space of the process `id`, 0 for this one, to `bytes`.
fn set_limit(id: libc::pid_t, bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is valid for reads, and a null pointer requests no old limit.
    match unsafe { libc::prlimit(id, libc::RLIMIT_AS, &raw const limit, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs mayfly with an address space of `bytes`.
pub fn run_limited(arguments: &[&str], bytes: u64) -> Output {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("RUST_BACKTRACE");
    limit_address_space(&mut command, bytes);
    scratch::run(&mut command)
}

/// Returns the smallest limit in bytes, in steps of 4 KiB, with which `succeeds` returns true; it must with the largest.
pub fn smallest_limit(mut succeeds: impl FnMut(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, 512 << 20);
    assert!(succeeds(high));
    while high - low > 4 * KIB {
        let middle = (low + high) / 2 / (4 * KIB) * (4 * KIB);
        if succeeds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Limits from `low` to `high`: evenly distributed, and each page below `high`.
pub fn limits(low: u64, high: u64) -> impl Iterator<Item = u64> {
    let even = (0..12).map(move |step| low + (high - low) * step / 12 / KIB * KIB);
    even.chain((0..12).map(move |page| high + 4 * KIB - page * 4 * KIB))
}

#[test]
fn commands_fail_with_message() {
    let snapshot = Directory::new();
    start_ticker_with_snapshot(&snapshot).kill();
    let (state, memory) = (snapshot.text("state"), snapshot.text("memory"));
    let hello = file("hello.elf");
    // Below this limit the C library cannot start the program.
    let start = smallest_limit(|limit| run_limited(&["--version"], limit).status.success());
    for arguments in [
        &["help", "run"][..],
        &["inspect", &hello],
        &["run", &hello, "--memory", "2M"],
        &["run", &hello, "--memory", "2M", "--cpus", "4", "--timings"],
        &["demo"],
        &["--describe-snapshot", &state],
        &["ctl", "--api-sock", &memory, "status"],
    ] {
        let success = arguments[0] != "ctl";
        let enough = if success {
            smallest_limit(|limit| run_limited(arguments, limit).status.success())
        } else {
            start + 4096 * KIB
        };
        for limit in limits(start, enough.max(start + 256 * KIB)) {
            let output = run_limited(arguments, limit);
            let stderr = String::from_utf8(output.stderr).unwrap();
            match output.status.code() {
                Some(0) => assert!(success && !output.stdout.is_empty(), "{arguments:?} {limit}"),
                Some(1 | 121 | OUT_OF_MEMORY) => {
                    let message = stderr.lines().find(|line| line.starts_with("mayfly: cannot "));
                    assert!(message.is_some(), "{arguments:?} {limit}: {stderr}");
                }
                _ => panic!("{arguments:?} {limit}: {}: {stderr}", output.status),
            }
        }
    }
}

/// Starts a ticker and creates a snapshot in `directory`.
fn start_ticker_with_snapshot(directory: &Directory) -> ApiProcess {
    let process = start_ticker();
    process.expect_no_content("PATCH", "/vm", PAUSED);
    let response = create_snapshot(&process, directory, "Full", "state", "memory");
    assert_eq!(response.status(), 204);
    process
}

/// Returns the size of the address space of the process `id` in bytes.
fn address_space(id: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{id}/statm")).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * 4 * KIB
}

/// Sends `request` to `process`, which may grow by `growth` bytes. The VM must survive, unless a load fails.
fn request_with_limit(process: ApiProcess, growth: u64, request: &str) {
    let id = libc::pid_t::try_from(process.id()).unwrap();
    let mut client = process.connect();
    assert_eq!(client.request("GET", "/", "").status(), 200);
    set_limit(id, address_space(process.id()) + growth).unwrap();
    client.send(request);
    client.stream().shutdown(Shutdown::Write).unwrap();
    let response = client.read_to_end();
    set_limit(id, libc::RLIM_INFINITY).unwrap();
    let context = || format!("growth of {growth} bytes, {:.60}: {response}", request);
    let is_load = request.contains("/snapshot/load");
    match response.strip_prefix("HTTP/1.1 ").map(|rest| &rest[..3]) {
        Some("400") if is_load => {
            let stderr = process.expect_abort(1);
            assert!(stderr.starts_with("mayfly: "), "{}: {stderr}", context());
        }
        Some("200" | "204") => process.terminate(),
        Some("400" | "503") => {
            assert!(response.contains(" memory"), "{}", context());
            process.terminate();
        }
        None if is_load => {
            let stderr = process.expect_abort(OUT_OF_MEMORY);
            assert!(
                stderr.contains("mayfly: cannot allocate "),
                "{}: {stderr}",
                context()
            );
        }
        _ => panic!("{}", context()),
    }
}

#[test]
fn requests_fail_with_message() {
    let snapshot = Directory::new();
    start_ticker_with_snapshot(&snapshot).kill();
    let create = format!(
        r#"{{"snapshot_type":"Full","snapshot_path":"{}","mem_file_path":"{}"}}"#,
        snapshot.text("other"),
        snapshot.text("other memory")
    );
    let headers: String = (0..60)
        .map(|number| format!("X-{number}: {}\r\n", "v".repeat(100)))
        .collect();
    let requests = [
        go_request("GET", "/metrics", ""),
        go_request("GET", "/openapi.yaml", ""),
        go_request("GET", "/vm/config", "").replace("\r\n\r\n", &format!("\r\n{headers}\r\n")),
        go_request(
            "PATCH",
            "/vm",
            &format!(r#"{{"state":"Resumed"{}}}"#, " ".repeat(50_000)),
        ),
        go_request("PUT", "/snapshot/create", &create),
        go_request(
            "PUT",
            "/snapshot/load",
            &load_body(&snapshot, "state", "memory", ""),
        ),
    ];
    for request in &requests {
        for growth in [0, 16, 40, 80, 150, 300, 3000, 6000] {
            let process = if request.contains("/snapshot/load") {
                ApiProcess::start()
            } else {
                let process = start_ticker();
                process.expect_no_content("PATCH", "/vm", PAUSED);
                process
            };
            request_with_limit(process, growth * KIB, request);
        }
    }
}
