//! Suspend of a guest that has written to 2 MiB, on tmpfs.

use std::fs;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use api::client::Client;
use serde_json::json;

use crate::process::{Process, guest, mayfly};
use crate::supervisor::{Journal, Supervisor, await_end, id, open_process, request};
use crate::{MEMORY, Times, collect};

/// Output of the guest once its pages are written.
const TOUCHED: &str = "touched 512 pages\n";
/// Time in milliseconds after which an idle guest is suspended.
const COOLDOWN: &str = "100";
/// Maximum wait for a response.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a VM whose guest has just written to its pages, with more `options`. Its directory is new.
fn start(directory: &Path, options: &[&str]) -> io::Result<Process> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory.join("web"))?;
    let mut command = Command::new(mayfly());
    command
        .args([
            "run",
            &guest("touch"),
            "--memory",
            &format!("{MEMORY}M"),
            "--suspend-to",
        ])
        .arg(directory.join("web"))
        .arg("--api-sock")
        .arg(directory.join("sock"))
        .args(options)
        .args(["--", "ready=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut vm = Process(command.spawn()?);
    vm.read(TOUCHED.len())?;
    Ok(vm)
}

/// Checks that a VM has written a snapshot.
fn check(directory: &Path) -> io::Result<()> {
    match directory.join("web/current/memory").exists() {
        true => Ok(()),
        false => Err(io::Error::other("the VM has ended without a snapshot")),
    }
}

/// Measures from the request of a suspend to the end of the process.
pub fn by_request(directory: &Path, rounds: usize) -> io::Result<Times> {
    collect(rounds, |_| {
        let vm = start(directory, &[])?;
        let process = open_process(&vm.0.id().into())?;
        let client = Client::new(directory.join("sock"), TIMEOUT);
        let begin = Instant::now();
        // The process may end before its response.
        let _ = request(
            &client,
            "PATCH",
            "/scale-to-zero",
            Some(&json!({"action": "Suspend"})),
        );
        await_end(&process)?;
        let time = begin.elapsed();
        check(directory)?;
        Ok(time)
    })
}

/// Measures from the decision that the guest is idle, just before its pause, to the end of the process. The log has the first part.
pub fn by_idleness(directory: &Path, rounds: usize) -> io::Result<Times> {
    collect(rounds, |_| {
        let options = ["--idle-after", COOLDOWN, "--log-level", "info"];
        let mut vm = start(directory, &options)?;
        let process = open_process(&vm.0.id().into())?;
        let stderr = vm.0.stderr.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut stderr = BufReader::new(stderr);
        let mut line = String::new();
        let first = loop {
            line.clear();
            if stderr.read_line(&mut line)? == 0 {
                return Err(io::Error::other("the VM has ended without a suspend"));
            }
            let rest = line.split("the VM is suspended after ").nth(1);
            let us = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
            if let Some(us) = us {
                break Duration::from_micros(us);
            }
        };
        let begin = Instant::now();
        await_end(&process)?;
        let time = first + begin.elapsed();
        stderr.read_to_string(&mut line)?;
        check(directory)?;
        Ok(time)
    })
}

/// Measures from the request of a suspend to the supervisor to the end of the process. Each process has loaded the 2 MiB.
pub fn by_supervisor(directory: &Path, rounds: usize) -> io::Result<Times> {
    let vm = start(directory, &[])?;
    let snapshot = directory.join("snapshot");
    crate::supervisor::run(&format!(
        "{} snapshot {} --api-sock {}",
        mayfly().display(),
        snapshot.display(),
        directory.join("sock").display()
    ))?;
    drop(vm);
    let mut journal = Journal::default();
    let config = json!({"snapshot_path": snapshot, "scale_to_zero": {"policy": "off"}});
    journal.register(0, &config);
    let supervisor = Supervisor::start(directory.join("supervisor"), &journal, &[])?;
    let path = format!("/instances/{}/state", id(0));
    collect(rounds, |_| {
        supervisor.request("PUT", &path, Some(&json!({"state": "wake"})))?;
        supervisor.suspend(&id(0))
    })
}
