use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use vmm::ErrorChain;

use super::{Directory, ctl, ok, parse, response};
use crate::ctl::request::MAX_STDIN;
use crate::ctl::{Error, run};

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

/// Returns the message of `line` after `response`.
fn failure(line: &str, response: String) -> String {
    ErrorChain(&ctl(line, "", &[response]).result.unwrap_err()).to_string()
}

/// Expects `message` to name a request and `reason`.
fn expect_rejection(message: &str, reason: &str) {
    let (request, rest) = message.split_once(" was rejected: ").expect(message);
    assert!(request.contains(" /"), "{message}");
    assert_eq!(rest, reason);
}

#[test]
fn rejection_names_request_and_reason() {
    for line in COMMANDS {
        let rejection = response(400, r#"{"fault_message":"The drive is\nunknown.\u001b[2J"}"#);
        expect_rejection(&failure(line, rejection), "The drive is unknown.\\u{1b}[2J");
        let rejection = response(503, r#"{ "error": "Too many open connections" }"#);
        expect_rejection(&failure(line, rejection), "Too many open connections");
    }
}

#[test]
fn rejection_without_reason_is_an_error() {
    for body in ["", "<html>", "[]", r#"{"fault_message":3}"#] {
        assert_eq!(
            failure("pause", response(500, body)),
            "cannot use the response to PATCH /vm: status 500 without a reason; check that the socket is that of mayfly or \
             Firecracker"
        );
    }
}

#[test]
fn response_that_is_not_json_is_an_error() {
    assert!(failure("config", ok("<html>")).starts_with(
        "cannot read the response to GET /vm/config as JSON; run with --json to print it unchanged: "
    ));
}

#[test]
fn absent_server_fails_at_once() {
    let directory = Directory::new();
    for line in COMMANDS {
        let mut ctl = parse(line).unwrap().unwrap();
        ctl.socket = directory.path("api.sock");
        let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot connect to the API socket "),
            "{line}: {error}"
        );
    }
    drop(UnixListener::bind(directory.path("api.sock")).unwrap());
    let mut ctl = parse("status").unwrap().unwrap();
    ctl.socket = directory.path("api.sock");
    let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
    assert!(error.contains("no process listens"), "{error}");
}

#[test]
fn silent_server_times_out() {
    let directory = Directory::new();
    let _listener = UnixListener::bind(directory.path("api.sock")).unwrap();
    for line in COMMANDS {
        let mut ctl = parse(line).unwrap().unwrap();
        (ctl.socket, ctl.timeout) = (directory.path("api.sock"), Duration::from_millis(10));
        let error = run(&ctl, &mut io::empty()).unwrap_err().to_string();
        assert!(
            error.contains("within 0.01 s: the server is stopped or busy"),
            "{line}: {error}"
        );
    }
}

#[test]
fn stdin_is_limited_and_its_errors_reported() {
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::Other.into())
        }
    }

    let ctl = parse("request PUT /x -").unwrap().unwrap();
    assert!(matches!(
        run(&ctl, &mut io::repeat(b'x')),
        Err(Error::Large(MAX_STDIN))
    ));
    assert!(matches!(run(&ctl, &mut Broken), Err(Error::Stdin(_))));
}
