//! Commands against a server with prepared responses.

mod args;
mod commands;
mod failures;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use scratch::Directory;

use super::args::Ctl;
use super::{Error, run};

/// Successful response without a body.
const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

fn ok(body: &str) -> String {
    response(200, body)
}

fn response(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Parses `line`, whose arguments are separated by spaces.
fn parse(line: &str) -> Result<Option<Ctl>, super::args::Error> {
    super::args::parse(&mut lexopt::Parser::from_args(line.split_whitespace()))
}

/// Result of a command, and the requests that it sent.
struct Outcome {
    result: Result<String, Error>,
    requests: Vec<String>,
}

/// Runs `line` against a server that sends `responses`, one for each request.
fn ctl(line: &str, stdin: &str, responses: &[String]) -> Outcome {
    let (directory, serving) = serve(responses);
    let mut ctl = parse(line).unwrap().unwrap();
    ctl.socket = directory.path("api.sock");
    let result = run(&ctl, &mut stdin.as_bytes()).map(|text| String::from_utf8(text).unwrap());
    Outcome {
        result,
        requests: scratch::join(serving),
    }
}

/// Starts a server that sends `responses`, one for each request, and returns the requests.
fn serve(responses: &[String]) -> (Directory, JoinHandle<Vec<String>>) {
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.path("api.sock")).unwrap();
    let responses = responses.to_vec();
    let serving = thread::spawn(move || {
        let serve = |response: &String| {
            let mut stream = scratch::accept(&listener);
            stream.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
            let request = read_request(&mut stream);
            stream.write_all(response.as_bytes()).unwrap();
            request
        };
        responses.iter().map(serve).collect()
    });
    (directory, serving)
}

/// Reads one request: its method and path, then its body.
fn read_request(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    let line = head.lines().next().unwrap().strip_suffix(" HTTP/1.1").unwrap();
    format!("{line} {}", String::from_utf8(body).unwrap())
        .trim_end()
        .to_owned()
}
