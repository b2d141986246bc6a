use std::path::Path;
use std::time::Duration;

use super::parse;
use crate::ctl::args::{self, CtlCommand, Error};

fn error(line: &str) -> String {
    parse(line).unwrap_err().to_string()
}

#[test]
fn options_precede_or_follow_the_command() {
    for line in [
        "--api-sock /s --timeout 3 --json pause",
        "pause --json --api-sock=/s --timeout=3",
    ] {
        let ctl = parse(line).unwrap().unwrap();
        assert_eq!(ctl.socket, Path::new("/s"));
        assert_eq!((ctl.timeout, ctl.json), (Duration::from_secs(3), true));
        assert_eq!(ctl.command, CtlCommand::Pause);
    }
    let ctl = parse("status").unwrap().unwrap();
    assert_eq!(ctl.socket, Path::new("/run/firecracker.socket"));
    assert_eq!((ctl.timeout, ctl.json), (Duration::from_secs(10), false));
}

#[test]
fn help_is_accepted_anywhere() {
    for line in [
        "--help",
        "-h",
        "help",
        "drive --help",
        "request PUT -h",
        "--json --help",
    ] {
        assert_eq!(parse(line).unwrap(), None, "{line}");
    }
}

/// Command lines with a usage error, and its message.
const INVALID: &[(&str, &str)] = &[
    ("", "missing command, such as status; run mayfly ctl --help"),
    ("--json", "missing command, such as status; run mayfly ctl --help"),
    (
        "reboot",
        "\"reboot\" is not a command of mayfly ctl; run mayfly ctl --help",
    ),
    (
        "drive",
        "missing the name of a drive for mayfly ctl drive; run mayfly ctl --help",
    ),
    (
        "net",
        "missing the name of a network interface for mayfly ctl net; run mayfly ctl --help",
    ),
    (
        "net eth0",
        "missing a change, such as --rx-bandwidth, for mayfly ctl net; run mayfly ctl --help",
    ),
    (
        "request",
        "missing a method, such as GET, for mayfly ctl request; run mayfly ctl --help",
    ),
    (
        "request GET",
        "missing a path, such as /machine-config, for mayfly ctl request; run mayfly ctl --help",
    ),
    (
        "pause now",
        "\"now\" is an unexpected argument of mayfly ctl pause; run mayfly ctl --help",
    ),
    (
        "request PUT / {} {}",
        "\"{}\" is an unexpected argument of mayfly ctl request; run mayfly ctl --help",
    ),
    (
        "pause --path /x",
        "--path is not an option of mayfly ctl pause; run mayfly ctl --help",
    ),
    (
        "pause --registers",
        "--registers is not an option of mayfly ctl pause; run mayfly ctl --help",
    ),
    (
        "net a --ops 1/1",
        "--ops is not an option of mayfly ctl net; run mayfly ctl --help",
    ),
    ("drive a --ops 1/1 --ops 1/1", "--ops is given twice; remove one"),
    (
        "status --api-sock a --api-sock b",
        "--api-sock is given twice; remove one",
    ),
    (
        "status --timeout 1 --timeout 1",
        "--timeout is given twice; remove one",
    ),
    (
        "status --timeout 0",
        "--timeout \"0\": expected a number of seconds from 1 to 3600",
    ),
    (
        "status --timeout x",
        "--timeout \"x\": expected a number of seconds from 1 to 3600",
    ),
    (
        "drive a --bandwidth 10M",
        "--bandwidth \"10M\": expected SIZE/MILLISECONDS, SIZE/MILLISECONDS/BURST or off, with sizes such as 10M",
    ),
    (
        "drive a --ops 1K/1",
        "--ops \"1K/1\": expected NUMBER/MILLISECONDS, NUMBER/MILLISECONDS/BURST or off",
    ),
    (
        "status --bogus",
        "invalid option '--bogus'; run mayfly ctl --help",
    ),
    ("status -x", "invalid option '-x'; run mayfly ctl --help"),
    (
        "status --api-sock",
        "missing argument for option '--api-sock'; run mayfly ctl --help",
    ),
];

#[test]
fn usage_errors_name_the_argument() {
    for (line, text) in INVALID {
        assert_eq!(error(line), *text, "{line}");
    }
}

#[test]
fn empty_instance_is_missing() {
    for command in ["suspend", "wake", "instance", "delete"] {
        let parsed = args::parse(&mut lexopt::Parser::from_args([command, ""]));
        assert_eq!(
            parsed.unwrap_err().to_string(),
            format!("missing the identifier of an instance for mayfly ctl {command}; run mayfly ctl --help")
        );
    }
}

#[test]
fn argument_that_is_not_utf8_is_rejected() {
    use std::os::unix::ffi::OsStringExt;

    let argument = std::ffi::OsString::from_vec(vec![0xff]);
    let parsed = args::parse(&mut lexopt::Parser::from_args(["drive".into(), argument]));
    assert!(matches!(parsed, Err(Error::NotUtf8(_))));
}
