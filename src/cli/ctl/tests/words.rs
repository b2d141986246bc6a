use std::path::Path;
use std::time::Duration;

use super::words;
use crate::cli::ctl::CtlCommand;

fn error(line: &str) -> String {
    words(line).unwrap_err().to_string()
}

#[test]
fn options_come_before_or_after_the_command() {
    for line in [
        "--api-sock /s --timeout 3 --json pause",
        "pause --json --api-sock=/s --timeout=3",
    ] {
        let ctl = words(line).unwrap().unwrap();
        assert_eq!(ctl.socket, Path::new("/s"));
        assert_eq!((ctl.patience, ctl.json), (Duration::from_secs(3), true));
        assert_eq!(ctl.action, CtlCommand::Pause);
    }
    let ctl = words("status").unwrap().unwrap();
    assert_eq!(ctl.socket, Path::new("/run/firecracker.socket"));
    assert_eq!((ctl.patience, ctl.json), (Duration::from_secs(10), false));
}

#[test]
fn help_is_everywhere() {
    for line in [
        "--help",
        "-h",
        "help",
        "drive --help",
        "request PUT -h",
        "--json --help",
    ] {
        assert_eq!(words(line).unwrap(), None, "{line}");
    }
}

/// Command lines that make no sense, and what is said to them.
const WRONG: &[(&str, &str)] = &[
    (
        "",
        "mayfly ctl needs a command, such as status: try mayfly ctl --help",
    ),
    (
        "--json",
        "mayfly ctl needs a command, such as status: try mayfly ctl --help",
    ),
    (
        "reboot",
        "mayfly ctl has no command \"reboot\": try mayfly ctl --help",
    ),
    (
        "drive",
        "mayfly ctl drive needs the name of a drive: try mayfly ctl --help",
    ),
    (
        "net",
        "mayfly ctl net needs the name of a network interface: try mayfly ctl --help",
    ),
    (
        "net eth0",
        "mayfly ctl net needs something to change, such as --rx-bandwidth: try mayfly ctl --help",
    ),
    (
        "request",
        "mayfly ctl request needs a method, such as GET: try mayfly ctl --help",
    ),
    (
        "request GET",
        "mayfly ctl request needs a path, such as /machine-config: try mayfly ctl --help",
    ),
    ("pause now", "\"now\" is one word too many for mayfly ctl pause"),
    (
        "request PUT / {} {}",
        "\"{}\" is one word too many for mayfly ctl request",
    ),
    ("pause --path /x", "mayfly ctl pause takes no --path"),
    ("net a --ops 1/1", "mayfly ctl net takes no --ops"),
    (
        "drive a --ops 1/1 --ops 1/1",
        "--ops is there twice: which one counts?",
    ),
    (
        "status --api-sock a --api-sock b",
        "--api-sock is there twice: which one counts?",
    ),
    (
        "status --timeout 1 --timeout 1",
        "--timeout is there twice: which one counts?",
    ),
    (
        "status --timeout 0",
        "--timeout \"0\": it is a number of seconds from 1 to 3600",
    ),
    (
        "status --timeout x",
        "--timeout \"x\": it is a number of seconds from 1 to 3600",
    ),
    (
        "drive a --bandwidth 10M",
        "--bandwidth \"10M\": it is SIZE/MILLISECONDS, SIZE/MILLISECONDS/BURST or off, with sizes such as 10M",
    ),
    (
        "drive a --ops 1K/1",
        "--ops \"1K/1\": it is NUMBER/MILLISECONDS, NUMBER/MILLISECONDS/BURST or off",
    ),
    (
        "status --bogus",
        "invalid option '--bogus': try mayfly ctl --help",
    ),
    ("status -x", "invalid option '-x': try mayfly ctl --help"),
    (
        "status --api-sock",
        "missing argument for option '--api-sock': try mayfly ctl --help",
    ),
];

#[test]
fn wrong_words_are_named() {
    for (line, text) in WRONG {
        assert_eq!(error(line), *text, "{line}");
    }
}

#[test]
fn what_is_no_text_cannot_go_to_the_api() {
    use std::os::unix::ffi::OsStringExt;

    let word = std::ffi::OsString::from_vec(vec![0xff]);
    let parsed = super::args::parse(&mut lexopt::Parser::from_args(["drive".into(), word]));
    assert!(matches!(parsed, Err(super::args::Error::NotText(_))));
}
