use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use vmm::ErrorChain;

use super::{Directory, answer, ctl, ok, words};
use crate::cli::ctl::request::MAX_STDIN;
use crate::cli::ctl::{Error, run};

const COMMANDS: [&str; 12] = [
    "status",
    "config",
    "metrics",
    "start",
    "pause",
    "resume",
    "stop",
    "flush-metrics",
    "drive a",
    "net a --rx-ops 1/1",
    "request GET /",
    "status --json",
];

/// What `line` fails with when it is answered so.
fn failure(line: &str, answer: String) -> String {
    ErrorChain(&ctl(line, "", &[answer]).result.unwrap_err()).to_string()
}

#[test]
fn the_servers_reason_is_given() {
    for line in COMMANDS {
        let refusal = answer(400, r#"{"fault_message":"The drive is\nunknown.\u001b[2J"}"#);
        assert_eq!(
            failure(line, refusal),
            "refused: The drive is unknown.\\u{1b}[2J",
            "{line}"
        );
        let refusal = answer(503, r#"{ "error": "Too many open connections" }"#);
        assert_eq!(
            failure(line, refusal),
            "refused: Too many open connections",
            "{line}"
        );
    }
}

#[test]
fn a_refusal_without_a_reason_is_still_one() {
    for body in ["", "<html>", "[]", r#"{"fault_message":3}"#] {
        assert_eq!(
            failure("pause", answer(500, body)),
            "the answer to PATCH /vm is the status 500, without a reason: is it mayfly's API?"
        );
    }
}

#[test]
fn an_answer_that_cannot_be_shown_is_an_error() {
    assert!(
        failure("config", ok("<html>"))
            .starts_with("the answer to GET /vm/config is no JSON: is it mayfly's API?")
    );
    assert_eq!(
        failure("metrics", ok("<html>")),
        "the metrics are not understood; --json shows them as they came: line 1 is no metric: \"<html>\""
    );
}

#[test]
fn without_a_server_nothing_is_waited_for() {
    let folder = Directory::new();
    for line in COMMANDS {
        let mut ctl = words(line).unwrap().unwrap();
        ctl.socket = folder.path("api.sock");
        let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot connect to the API socket "),
            "{line}: {error}"
        );
    }
    drop(UnixListener::bind(folder.path("api.sock")).unwrap());
    let mut ctl = words("status").unwrap().unwrap();
    ctl.socket = folder.path("api.sock");
    let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
    assert!(error.contains("no process listens"), "{error}");
}

#[test]
fn a_server_that_says_nothing_is_left() {
    let folder = Directory::new();
    let _listener = UnixListener::bind(folder.path("api.sock")).unwrap();
    for line in COMMANDS {
        let mut ctl = words(line).unwrap().unwrap();
        (ctl.socket, ctl.patience) = (folder.path("api.sock"), Duration::from_millis(10));
        let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
        assert!(
            error.contains("within 0.01 s: the server is stopped or busy"),
            "{line}: {error}"
        );
    }
}

#[test]
fn stdin_has_its_limit_and_its_errors() {
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::Other.into())
        }
    }

    let ctl = words("request PUT /x -").unwrap().unwrap();
    assert!(matches!(
        run(&ctl, &mut io::repeat(b'x')),
        Err(Error::Large(MAX_STDIN))
    ));
    assert!(matches!(run(&ctl, &mut Broken), Err(Error::Stdin(_))));
}
