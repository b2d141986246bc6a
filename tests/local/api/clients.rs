//! Unmodified third-party clients: curl, firecracker-python, pyrecracker, schemathesis and fctools. The scripts in tests/clients run
//! them, and the lists in tests/clients/results state their tests.

mod fctools;
#[allow(dead_code, reason = "tests/clients uses the versions and reasons")]
#[path = "../../clients/results.rs"]
mod results;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use super::http::NO_CONTENT;
use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
/// Limit of the download of the clients, which `make setup` does before.
const SETUP_LIMIT: Duration = Duration::from_secs(1800);
/// Limit of a script, which sends thousands of requests.
const SCRIPT_LIMIT: Duration = Duration::from_secs(900);

/// The clients, fetched and built once.
static SETUP: LazyLock<()> = LazyLock::new(|| {
    let output = scratch::run_within(SETUP_LIMIT, &mut Command::new(format!("{SCRIPTS}/setup.sh")));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the clients are missing: {stderr}; run `make setup` to fetch them"
    );
});

/// Fetches and builds the clients where they are missing.
fn set_up() {
    LazyLock::force(&SETUP);
}

/// Runs a script of tests/clients in `directory`. Returns its stdout.
fn run_python(script: &str, directory: &Directory, arguments: &[&str]) -> String {
    set_up();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/clients/bin/python");
    let mut command = Command::new(python);
    command.arg(format!("{SCRIPTS}/{script}")).args(arguments);
    // The scripts import one of the source tree.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let output = scratch::run_within(SCRIPT_LIMIT, command.current_dir(directory.path("")));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script}: {}\n{printed}\n{stderr}",
        output.status
    );
    printed
}

/// Runs a script that drives a VM of `ticker.elf` by `client`, and compares its steps with the list.
fn check_steps(client: &str, script: &str) {
    let directory = Directory::new();
    let home = directory.text("");
    let mayfly = program();
    let arguments = [
        mayfly.to_str().unwrap(),
        &file("ticker.elf"),
        home.trim_end_matches('/'),
    ];
    let printed = run_python(script, &directory, &arguments);
    results::check(client, "VM", &parse_results(&printed), &printed);
}

/// Returns the tests that a script has reported, and true for those that passed.
fn parse_results(printed: &str) -> BTreeMap<String, bool> {
    let results = printed.lines().filter_map(|line| match line.split_once(' ')? {
        ("passed", name) => Some((name.to_owned(), true)),
        ("failed", name) => Some((name.to_owned(), false)),
        _ => None,
    });
    results.collect()
}

/// Sends a request by curl. Returns the response with its head.
fn run_curl(process: &ApiProcess, method: &str, path: &str, body: &str) -> String {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--include",
        "--max-time",
        "60",
        "--unix-socket",
    ]);
    command
        .arg(process.socket())
        .args(["-X", method, &format!("http://localhost{path}")]);
    if !body.is_empty() {
        command.args(["-H", "Content-Type: application/json", "--data", body]);
    }
    let output = scratch::run(&mut command);
    assert!(
        output.status.success(),
        "{method} {path}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn curl_sends_all_methods() {
    let mut process = ApiProcess::start();
    let boot = format!("{{\"kernel_image_path\":\"{}\"}}", file("ticker.elf"));
    let shown = run_curl(&process, "GET", "/", "");
    assert!(
        shown.starts_with("HTTP/1.1 200 \r\nServer: Firecracker API\r\n"),
        "{shown}"
    );
    // curl sends a large body only after a 100 Continue response.
    let blanks = " ".repeat(40_000);
    for (method, path, body) in [
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#),
        ("PATCH", "/machine-config", r#"{"mem_size_mib":128}"#),
        ("PUT", "/boot-source", &(boot + &blanks)),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
    ] {
        let response = run_curl(&process, method, path, body);
        assert!(response.ends_with(NO_CONTENT), "{method} {path}: {response}");
    }
    let refused = run_curl(&process, "DELETE", "/drives/d", "");
    assert!(
        refused.starts_with("HTTP/1.1 400 ") && refused.contains("not supported after starting"),
        "{refused}"
    );
    process.expect("tick 1\n");
    process.terminate();
}

#[test]
fn firecracker_python_controls_guest() {
    check_steps("firecracker-python", "drive.py");
}

#[test]
fn pyrecracker_saves_and_restores_guest() {
    check_steps("pyrecracker", "pyrecracker_client.py");
}

/// Starts mayfly in its own directory, where relative paths of requests create files.
fn start_in_directory() -> ApiProcess {
    let directory = Directory::new();
    let mut command = Command::new(program());
    command
        .args(["--api-sock", &directory.text("api.sock")])
        .current_dir(directory.path(""));
    ApiProcess::spawn(directory, &mut command)
}

/// Runs schemathesis, and compares the results of the operations with the list of `state`.
fn run_schemathesis(process: &ApiProcess, state: &str) {
    // Waits for the socket, which the script requires.
    assert_eq!(process.request("GET", "/version", "").status(), 200);
    let socket = process.socket();
    let printed = run_python("explore.py", &process.directory, &[socket.to_str().unwrap()]);
    results::check("schemathesis", state, &parse_results(&printed), &printed);
}

#[test]
fn schemathesis_passes_before_start() {
    let process = start_in_directory();
    // A failed snapshot load ends mayfly. With a drive configured, mayfly rejects the request instead.
    let disk = process.directory.write("disk", [0; 4096]);
    let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"}}"#);
    process.expect_no_content("PUT", "/drives/d", &drive);
    run_schemathesis(&process, "not started");
    assert_eq!(process.state(), "Not started");
    process.terminate();
}

#[test]
fn schemathesis_passes_while_guest_runs() {
    let mut process = start_in_directory();
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    run_schemathesis(&process, "running");
    process.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    process.expect("tick ");
    process.expect("\ntick ");
    process.terminate();
}
