use std::path::PathBuf;

use log::LevelFilter;

use super::{FirecrackerArgs, FirecrackerCommand, SOCKET, parse};

fn words(line: &str) -> Result<FirecrackerCommand, (String, u8)> {
    let parsed = parse(line.split_whitespace().map(Into::into));
    parsed.map_err(|error| (error.to_string(), error.status()))
}

fn options(line: &str) -> FirecrackerArgs {
    match words(line).unwrap() {
        FirecrackerCommand::Serve(options) => *options,
        other => panic!("{line} is {other:?}"),
    }
}

/// As each client of the table in the specification writes it.
#[test]
fn what_clients_write_is_understood() {
    for line in [
        "--api-sock S --id ID --no-seccomp",
        "--no-api --config-file /tmp/fc.json",
        "--no-api --config-file /tmp/fc.json --no-seccomp",
        "--api-sock /tmp/c.sock --no-seccomp --config-file /tmp/fc.json",
        "--id 1 --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 --api-sock /run/firecracker.socket",
        "--id UID --boot-timer --no-api --config-file P",
        "--api-sock P --log-path L --level Debug --show-level --show-log-origin --module m --metrics-path M",
        "--http-api-max-payload-size 100000 --mmds-size-limit 1",
    ] {
        options(line);
    }
    let one = options("--api-sock S --id a-1 --level warning --log-path L");
    assert_eq!(
        (one.socket, one.id.as_str(), one.log.level, one.log.path),
        (
            Some(PathBuf::from("S")),
            "a-1",
            Some(LevelFilter::Warn),
            Some("L".into())
        )
    );
    assert_eq!(options("").socket, Some(SOCKET.into()));
    assert_eq!(options("--no-api --config-file f").socket, None);
    assert_eq!(options("--no-api --config-file f --api-sock s").socket, None);
    assert_eq!(words("--id x --version"), Ok(FirecrackerCommand::Version));
    assert_eq!(words("--id x -h"), Ok(FirecrackerCommand::Help));
}

#[test]
fn what_makes_no_sense_is_named() {
    for (line, text, status) in [
        ("--bogus", "found argument \"--bogus\"", 153),
        ("run", "found argument \"run\"", 153),
        ("--api-sock=/x", "found argument \"--api-sock=/x\"", 153),
        ("--id a --id b", "--id is there twice", 153),
        ("--id", "--id needs a value", 153),
        ("--id --no-api", "--id needs a value", 153),
        ("--id a_b", "1 to 64 letters", 153),
        ("--level loud", "Off, Error, Warning", 152),
        ("--no-api", "--no-api needs the flag --config-file", 153),
        ("--metadata f", "no metadata service", 153),
        ("--enable-pci", "memory-mapped", 153),
        ("--seccomp-filter f", "--no-seccomp", 153),
        ("--start-time-us x", "a number is needed", 153),
        ("--describe-snapshot", "--describe-snapshot needs a value", 153),
        ("--snapshot-version --id a_b", "1 to 64 letters", 153),
    ] {
        let (said, code) = words(line).unwrap_err();
        assert!(said.contains(text), "{line}: {said}");
        assert_eq!(code, status, "{line}");
    }
}

#[test]
fn versions_of_snapshots_are_asked_for() {
    assert_eq!(
        words("--snapshot-version"),
        Ok(FirecrackerCommand::SnapshotVersion)
    );
    for line in ["--describe-snapshot /s", "--id x --describe-snapshot /s --no-api"] {
        assert_eq!(words(line), Ok(FirecrackerCommand::DescribeSnapshot("/s".into())));
    }
    // Of two questions, Firecracker answers the first.
    assert_eq!(
        words("--describe-snapshot /s --snapshot-version"),
        Ok(FirecrackerCommand::SnapshotVersion)
    );
}
