//! Command lines and signals: exit status and first lines of the output.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use crate::oracle::case::Observation;
use crate::oracle::process::{Process, Vmm, create_directory, describe};
use crate::oracle::{compare, list};

/// Limit of a command that ends at once.
const LIMIT: Duration = Duration::from_secs(60);

/// Reason of commands whose output differs, but not their exit status.
const OUTPUT: &str = "output";

/// Arguments, split at spaces, of commands that end by themselves.
const COMMANDS: [&str; 36] = [
    "--version",
    "--help",
    "-h",
    "--snapshot-version",
    "--unknown",
    "positional",
    "--api-sock",
    "--api-sock=/tmp/x",
    "--api-sock --id",
    "--id a --id b",
    "--no-api",
    "--no-api --config-file missing",
    "--no-api --config-file directory",
    "--no-api --config-file empty",
    "--no-api --config-file text",
    "--no-api --config-file empty.json",
    "--no-api --config-file no-kernel.json",
    "--no-api --config-file no-drives.json",
    "--no-api --config-file wrong-type.json",
    "--config-file missing",
    "--level",
    "--no-api --level Bla --config-file missing",
    "--level Bla",
    "--log-path directory",
    "--log-path missing/log",
    "--metrics-path directory",
    "--metrics-path missing/metrics",
    "--seccomp-filter missing",
    "--no-seccomp --seccomp-filter missing",
    "--metadata missing",
    "--describe-snapshot missing",
    "--describe-snapshot text",
    "--http-api-max-payload-size x",
    "--mmds-size-limit x",
    "--start-time-us x",
    "--api-sock missing/api.sock",
];

/// Identifiers of `--id` that both reject. Each is one argument.
const IDS: [&str; 4] = [
    "a_b",
    "",
    "a b",
    "0123456789012345678901234567890123456789012345678901234567890123x",
];

/// Signals to a process that serves its API socket.
const SIGNALS: [(&str, libc::c_int); 10] = [
    ("SIGTERM", libc::SIGTERM),
    ("SIGINT", libc::SIGINT),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGHUP", libc::SIGHUP),
    ("SIGILL", libc::SIGILL),
    ("SIGBUS", libc::SIGBUS),
    ("SIGSEGV", libc::SIGSEGV),
    ("SIGXCPU", libc::SIGXCPU),
    ("SIGXFSZ", libc::SIGXFSZ),
    ("SIGSYS", libc::SIGSYS),
];

fn kernel() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/dist/guests/x86_64/ticker.elf")
}

/// Removes the time and the thread of a log line of Firecracker.
fn without_prefix(line: &str) -> &str {
    let is_stamped = line.len() > 20 && line.as_bytes()[..4].iter().all(u8::is_ascii_digit);
    match line.split_once("] ") {
        Some((_, rest)) if is_stamped => rest,
        _ => line,
    }
}

/// Replaces the version of the VMM.
fn without_version(line: &str) -> String {
    match line.strip_prefix("Firecracker v") {
        Some(version) if version.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit()) => {
            "Firecracker VERSION".to_owned()
        }
        _ => line.to_owned(),
    }
}

/// Returns the first line of `bytes` that is not empty.
fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text
        .lines()
        .map(without_prefix)
        .find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim_end().to_owned()
}

/// Runs one command in a directory of its own.
fn run(vmm: Vmm, arguments: &[&str]) -> String {
    let directory = create_directory(vmm, kernel());
    directory.write("empty.json", "{}");
    directory.write(
        "no-kernel.json",
        r#"{"boot-source":{"kernel_image_path":"missing"},"drives":[]}"#,
    );
    directory.write(
        "no-drives.json",
        r#"{"boot-source":{"kernel_image_path":"missing"}}"#,
    );
    directory.write(
        "wrong-type.json",
        r#"{"boot-source":{"kernel_image_path":"kernel"},"drives":[],"machine-config":{"vcpu_count":"x"}}"#,
    );
    let mut command = Command::new("./firecracker");
    command.args(arguments).current_dir(directory.root());
    let output = scratch::run_within(LIMIT, &mut command);
    let mut text = describe(output.status);
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let line = first_line(bytes);
        if !line.is_empty() {
            text.push_str(&format!("; {name}: {}", without_version(&line)));
        }
    }
    text
}

fn run_all(vmm: Vmm) -> Vec<Observation> {
    let commands = COMMANDS.iter().map(|text| text.split(' ').collect::<Vec<_>>());
    let ids = IDS.iter().map(|id| vec!["--id", id]);
    let observe = |arguments: Vec<&str>| Observation {
        request: format!("firecracker {}", arguments.join(" ")),
        outcome: run(vmm, &arguments),
    };
    commands.chain(ids).map(observe).collect()
}

fn send_all(vmm: Vmm) -> Vec<Observation> {
    let send = |(name, signal): (&str, libc::c_int)| Observation {
        request: name.to_owned(),
        outcome: Process::start(vmm, kernel()).signal(signal),
    };
    SIGNALS.into_iter().map(send).collect()
}

#[test]
fn commands_end_alike() {
    list::check(
        "commands",
        &compare(run_all(Vmm::Firecracker), run_all(Vmm::Mayfly)),
    );
}

#[test]
fn signals_end_alike() {
    list::check(
        "signals",
        &compare(send_all(Vmm::Firecracker), send_all(Vmm::Mayfly)),
    );
}

#[test]
fn commands_with_other_output_have_the_same_exit_status() {
    let status = |outcome: &str| outcome.split(';').next().unwrap_or_default().to_owned();
    let mut statuses = BTreeSet::new();
    for (difference, reason) in list::listed("commands") {
        if reason == OUTPUT {
            let (firecracker, mayfly) = (status(&difference.firecracker), status(&difference.mayfly));
            assert_eq!(firecracker, mayfly, "{}", difference.request);
            statuses.insert(mayfly);
        }
    }
    // A failure, an invalid log level and invalid arguments: `FcExitCode` of Firecracker.
    let expected = ["exit status 1", "exit status 152", "exit status 153"];
    assert!(statuses.iter().eq(expected), "{statuses:?}");
}
