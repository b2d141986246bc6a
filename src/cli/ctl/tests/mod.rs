//! A server that says what it is told to, and what `mayfly ctl` makes of it.

mod commands;
mod failures;
mod words;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use scratch::Directory;

use super::{Ctl, Error, args, run};

/// What the server says to a request that it agrees to.
const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

fn ok(body: &str) -> String {
    answer(200, body)
}

fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The command line `line`; words are apart by blanks, of which there are none in them.
fn words(line: &str) -> Result<Option<Ctl>, args::Error> {
    let words = line.split_whitespace();
    args::parse(&mut lexopt::Parser::from_args(words))
}

/// What a command prints or fails with, and the requests that it made.
struct Outcome {
    result: Result<String, Error>,
    requests: Vec<String>,
}

/// Has `line` done against a server that gives `answers`, one each.
fn ctl(line: &str, stdin: &str, answers: &[String]) -> Outcome {
    let folder = Directory::new();
    let listener = UnixListener::bind(folder.path("api.sock")).unwrap();
    let answers = answers.to_vec();
    let serving = thread::spawn(move || {
        let serve = |answer: &String| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            request
        };
        answers.iter().map(serve).collect()
    });
    let mut ctl = words(line).unwrap().unwrap();
    ctl.socket = folder.path("api.sock");
    let result = run(&ctl, &mut stdin.as_bytes()).map(|text| String::from_utf8(text).unwrap());
    Outcome {
        result,
        requests: serving.join().unwrap(),
    }
}

/// A request line, and the body behind it.
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
