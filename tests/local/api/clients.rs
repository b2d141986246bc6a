//! Clients that others wrote, unchanged: curl, firecracker-python and schemathesis. tests/clients has the scripts that drive
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::http::DONE;
use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// The Python that has the clients, which are fetched once.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = Command::new(format!("{SCRIPTS}/setup.sh")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the clients are not there; make setup fetches them: {said}"
    );
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/clients/bin/python")
});

/// Runs a script of tests/clients in `folder`; what it prints.
fn python(script: &str, folder: &Directory, arguments: &[&str]) -> String {
    let mut command = Command::new(PYTHON.as_path());
    command.arg(format!("{SCRIPTS}/{script}")).args(arguments);
    let output = command.current_dir(folder.path("")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script}: {}\n{printed}\n{said}",
        output.status
    );
    printed
}

/// What curl prints of the answer, with its head.
fn curl(served: &ApiProcess, method: &str, path: &str, body: &str) -> String {
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
        .arg(served.socket())
        .args(["-X", method, &format!("http://localhost{path}")]);
    if !body.is_empty() {
        command.args(["-H", "Content-Type: application/json", "--data", body]);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{method} {path}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn curl_does_all_methods() {
    let mut served = ApiProcess::start();
    let boot = format!("{{\"kernel_image_path\":\"{}\"}}", file("ticker.elf"));
    let shown = curl(&served, "GET", "/", "");
    assert!(
        shown.starts_with("HTTP/1.1 200 \r\nServer: Firecracker API\r\n"),
        "{shown}"
    );
    // Longer than what curl sends at once: it asks whether it may, and waits for the answer.
    let blanks = " ".repeat(40_000);
    for (method, path, body) in [
        ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":64}"#),
        ("PATCH", "/machine-config", r#"{"mem_size_mib":128}"#),
        ("PUT", "/boot-source", &(boot + &blanks)),
        ("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
    ] {
        let answer = curl(&served, method, path, body);
        assert!(answer.ends_with(DONE), "{method} {path}: {answer}");
    }
    let refused = curl(&served, "DELETE", "/drives/d", "");
    assert!(
        refused.starts_with("HTTP/1.1 400 ") && refused.contains("not supported after starting"),
        "{refused}"
    );
    served.expect("tick 1\n");
    served.terminate();
}

#[test]
fn firecracker_python_drives_a_guest() {
    let folder = Directory::new();
    let home = folder.text("");
    let mayfly = program();
    let arguments = [
        mayfly.to_str().unwrap(),
        &file("ticker.elf"),
        home.trim_end_matches('/'),
    ];
    let printed = python("drive.py", &folder, &arguments);
    assert!(
        printed.contains("booted, paused, resumed and stopped"),
        "{printed}"
    );
}

/// Files that it names are made where mayfly runs.
fn confined() -> ApiProcess {
    let folder = Directory::new();
    let mut command = Command::new(program());
    command
        .args(["--api-sock", &folder.text("api.sock")])
        .current_dir(folder.path(""));
    ApiProcess::called(folder, &mut command)
}

fn explore(served: &ApiProcess) {
    // There is a socket before the script looks for it.
    assert_eq!(served.ask("GET", "/version", "").status(), 200);
    python("explore.py", &served.folder, &[served.socket().to_str().unwrap()]);
}

#[test]
fn schemathesis_finds_nothing_before_the_start() {
    let served = confined();
    // A snapshot that cannot be loaded would be the end, so that there is something that it is refused for.
    let disk = served.folder.write("disk", [0; 4096]);
    let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"}}"#);
    served.expect_no_content("PUT", "/drives/d", &drive);
    explore(&served);
    assert_eq!(served.state(), "Not started");
    served.terminate();
}

#[test]
fn schemathesis_finds_nothing_while_a_guest_runs() {
    let mut served = confined();
    served.boots("ticker.elf");
    served.act("InstanceStart");
    explore(&served);
    served.expect_no_content("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    served.expect("tick ");
    served.expect("\ntick ");
    served.terminate();
}
