//! Malformed requests, stalled and excess clients while a guest runs: each request gets its response, and the guest continues.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::http::{Client, NO_CONTENT, go_request};
use super::served::{ApiProcess, start_ticker};

/// The complete response to a client above the limit.
const TOO_MANY: &str = "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
    { \"error\": \"Too many open connections\" }";

/// Expects one more complete line of the guest.
fn expect_progress(process: &mut ApiProcess) {
    process.expect("tick ");
    process.expect("\ntick ");
    assert_eq!(process.state(), "Running");
}

#[test]
fn ten_parallel_clients_get_responses() {
    let mut process = start_ticker();
    let clients: Vec<Client> = (0..10).map(|_| process.connect()).collect();
    thread::scope(|scope| {
        for (number, mut client) in clients.into_iter().enumerate() {
            scope.spawn(move || {
                for round in 0..200 {
                    let (path, status) = match (number + round) % 4 {
                        0 => ("/", 200),
                        1 => ("/vm/config", 200),
                        2 => ("/nothing", 400),
                        _ => ("/machine-config", 200),
                    };
                    assert_eq!(client.request("GET", path, "").status(), status, "{path}");
                }
            });
        }
    });
    expect_progress(&mut process);
    process.terminate();
}

/// Ten clients that completed a request in the last 5 s keep their places: the eleventh gets a 503 response at once.
#[test]
fn eleventh_client_gets_503() {
    let mut process = start_ticker();
    let mut clients: Vec<Client> = (0..10).map(|_| process.connect()).collect();
    // On a busy host, more time may pass between the first response and the last connection.
    let rejected = (0..20).any(|_| {
        let start = Instant::now();
        for client in &mut clients {
            assert_eq!(client.request("GET", "/", "").status(), 200);
        }
        let eleventh = process.connect();
        if start.elapsed() > Duration::from_secs(4) {
            return false;
        }
        assert_eq!(eleventh.read_to_end(), TOO_MANY);
        true
    });
    assert!(rejected, "the host is too busy");
    drop(clients);
    expect_progress(&mut process);
    process.terminate();
}

/// Ten clients that send nothing, or a part of a request, lose their places to clients that send requests.
#[test]
fn idle_clients_do_not_lock_the_api() {
    let mut process = start_ticker();
    for part in ["", "GET / HT", "PUT /vm HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"] {
        let mut idle: Vec<Client> = (0..10).map(|_| process.connect()).collect();
        for client in &mut idle {
            client.send(part);
        }
        let mut clients: Vec<Client> = (0..10).map(|_| process.connect()).collect();
        for client in &mut clients {
            let response = client.request("GET", "/", "");
            assert_eq!(response.status(), 200, "{part:?}: {}", response.text);
        }
        for client in idle {
            assert_eq!(client.read_to_end(), TOO_MANY, "{part:?}");
        }
    }
    expect_progress(&mut process);
    process.terminate();
}

/// Nine partial requests do not delay a tenth client, which sends one byte at a time.
#[test]
fn slow_clients_do_not_stall_others() {
    let mut process = start_ticker();
    let mut slow: Vec<Client> = (0..9).map(|_| process.connect()).collect();
    let request = go_request("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    for (number, client) in slow.iter_mut().enumerate() {
        client.send(&request[..(number + 1) * request.len() / 10]);
    }
    let mut slowest = process.connect();
    for byte in request.as_bytes() {
        slowest.send([*byte]);
    }
    assert_eq!(slowest.receive().text, NO_CONTENT);
    drop(slowest);
    expect_progress(&mut process);
    for (number, mut client) in slow.into_iter().enumerate() {
        client.send(&request[(number + 1) * request.len() / 10..]);
        assert_eq!(client.receive().text, NO_CONTENT);
    }
    process.terminate();
}

#[test]
fn half_closed_connection_ends() {
    let mut process = start_ticker();
    let request = go_request("GET", "/", "");
    let whole = process.request("GET", "/", "").text;
    for length in 0..=request.len() {
        let mut client = process.connect();
        client.send(&request[..length]);
        client.stream().shutdown(Shutdown::Write).unwrap();
        let response = client.read_to_end();
        if length == 0 {
            assert_eq!(response, "");
        } else if length == request.len() {
            assert_eq!(response, whole);
        } else {
            assert_eq!(
                split_response(&response),
                ((400, TRUNCATED.to_owned()), ""),
                "{length} bytes"
            );
        }
    }
    // More closed connections than places: a leaked place would block later clients.
    for _ in 0..100 {
        process.connect().send(&request);
    }
    expect_progress(&mut process);
    process.terminate();
}

/// mayfly buffers a limited number of unread responses, then reads no further request.
#[test]
fn non_reading_client_does_not_stall_guest() {
    let mut process = start_ticker();
    let client = process.connect();
    client.stream().set_nonblocking(true).unwrap();
    let request = go_request("GET", "/openapi.yaml", "");
    let mut stream: &UnixStream = client.stream();
    let mut sent = 0;
    while sent < 64 << 20 {
        match std::io::Write::write(&mut stream, request.as_bytes()) {
            Ok(length) if length == request.len() => sent += length,
            _ => break,
        }
    }
    assert!(
        sent < 64 << 20,
        "mayfly read all requests of a client that reads no response"
    );
    expect_progress(&mut process);
    process.terminate();
}

#[test]
fn pipelined_requests_get_responses() {
    let mut process = start_ticker();
    let mut client = process.connect();
    let three = [
        go_request("GET", "/version", ""),
        go_request("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        go_request("GET", "/", ""),
    ];
    client.send(three.concat());
    assert_eq!([0; 3].map(|_| client.receive().status()), [200, 204, 200]);
    client.send("PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.receive().text, "HTTP/1.1 100 \r\n\r\n");
    client.send(r#"{"state":"Resumed"}"#);
    assert_eq!(client.receive().text, NO_CONTENT);
    client.send("PATCH /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"sta\r\ne\r\nte\":\"Resumed\"}\r\n0\r\n\r\n");
    assert_eq!(client.receive().text, NO_CONTENT);
    client.send("GET http://localhost/version HTTP/1.0\r\nConnection: close\r\n\r\n");
    assert_eq!(client.receive().status(), 200);
    expect_progress(&mut process);
    process.terminate();
}

/// Random bytes with a fixed seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }
}

/// Sends `bytes` and the end. Returns all responses as status and fault message, which is empty for status 204. The connection must
/// end after complete responses, at least one.
fn exchange(process: &ApiProcess, bytes: &[u8]) -> Vec<(u16, String)> {
    let mut client = process.connect();
    client.send(bytes);
    client.stream().shutdown(Shutdown::Write).unwrap();
    let text = client.read_to_end();
    let mut rest = text.as_str();
    let mut responses = Vec::new();
    while !rest.is_empty() {
        let (response, next) = split_response(rest);
        responses.push(response);
        rest = next;
    }
    assert!(
        !responses.is_empty(),
        "no response to {:?}",
        String::from_utf8_lossy(bytes)
    );
    responses
}

/// Splits the first response off `text`: status and fault message, and the rest.
fn split_response(text: &str) -> ((u16, String), &str) {
    if let Some(rest) = text.strip_prefix(NO_CONTENT) {
        return ((204, String::new()), rest);
    }
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap();
    let length = head.split_once("Content-Length: ").unwrap().1.parse().unwrap();
    let (body, rest) = rest.split_at(length);
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let fault = body["fault_message"].as_str().unwrap().to_owned();
    ((status.trim_end().parse().unwrap(), fault), rest)
}

/// Invalid requests and their fault messages.
const INVALID: [(&str, &str); 16] = [
    ("G", TRUNCATED),
    ("PUT /vm HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", TRUNCATED),
    (
        "\r\n\0\r\n\r\n",
        "The head of the request is not HTTP/1.1: invalid token.",
    ),
    (
        "GET / HTTP/2.0\r\n\r\n",
        "The head of the request is not HTTP/1.1: invalid HTTP version.",
    ),
    (
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "The head of the request is not HTTP/1.1: invalid HTTP version.",
    ),
    (
        "GET /\r\n\r\n",
        "The head of the request is not HTTP/1.1: invalid token.",
    ),
    (
        "GET / HTTP/1.1\nHost: x\n\n",
        "A line of the request does not end with a carriage return and a line feed.",
    ),
    (
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\r\n\r\n",
        "The head of the request is not HTTP/1.1: invalid token.",
    ),
    (
        "PUT /vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "Invalid Content-Length: \"-1\" is not a number of bytes.",
    ),
    (
        "PUT /vm HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "Invalid Content-Length: \"99999999999999999999\" is not a number of bytes.",
    ),
    (
        "PUT /vm HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "The length of the body is given twice, and differently; send Content-Length or chunks.",
    ),
    (
        "PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "Invalid chunk of a body: \"zz\".",
    ),
    (
        "PUT /vm HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding \"gzip\" is not supported; send chunks, or Content-Length and the body as it is.",
    ),
    (
        "GET /%zz HTTP/1.1\r\n\r\n",
        "Invalid path \"/%zz\": each % must precede two hexadecimal digits, and the decoded path must be UTF-8 without control \
         characters.",
    ),
    (
        "PUT /vm HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\nAll previous unanswered requests \
         will be dropped.",
    ),
    (
        "GET /\u{fc} HTTP/1.1\r\n\r\n",
        "Invalid request method and/or path: GET \u{fc}.",
    ),
];

const TRUNCATED: &str = "The request ends before its head and body are complete.";

#[test]
fn invalid_request_gets_its_fault_message() {
    let mut process = start_ticker();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(5000));
    let headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    let dynamic = [
        (
            long.as_str(),
            "The line of the request is longer than the 1024 bytes allowed by server.",
        ),
        (
            &headers,
            "The head of the request is not HTTP/1.1: too many headers.",
        ),
    ];
    for (bytes, fault) in INVALID.into_iter().chain(dynamic) {
        assert_eq!(
            exchange(&process, bytes.as_bytes()),
            [(400, fault.to_owned())],
            "{bytes:?}"
        );
    }
    expect_progress(&mut process);
    process.terminate();
}

/// A client that keeps its end open gets the response at once, then the end.
#[test]
fn invalid_request_ends_the_connection() {
    let mut process = start_ticker();
    for (bytes, fault) in INVALID.into_iter().filter(|(_, fault)| *fault != TRUNCATED) {
        let mut client = process.connect();
        client.send(bytes);
        let response = client.receive();
        assert_eq!(
            (response.status(), response.fault_message().as_str()),
            (400, fault),
            "{bytes:?}"
        );
        if response.text.contains("Connection: close\r\n") {
            assert_eq!(client.read_to_end(), "", "{bytes:?}");
        } else {
            // Valid HTTP: only the route is unknown, or the body too long, which precedes the next request.
            if fault.starts_with("Request payload") {
                client.send([b'x'; 51201]);
            }
            assert_eq!(client.request("GET", "/", "").status(), 200, "{bytes:?}");
        }
    }
    expect_progress(&mut process);
    process.terminate();
}

#[test]
fn noise_is_rejected() {
    let mut process = start_ticker();
    let mut noise = Noise(4);
    for round in 0..300 {
        let length = (usize::from(noise.next()) + 1) * 8;
        let bytes: Vec<u8> = (0..length).map(|_| noise.next()).collect();
        let responses = exchange(&process, &bytes);
        let [(400, fault)] = &responses[..] else {
            panic!("round {round}: {responses:?}");
        };
        let known = [
            TRUNCATED,
            "A line of the request does not end",
            "The line of the request is longer",
            "The head of the request is not",
        ];
        assert!(
            known.iter().any(|start| fault.starts_with(start)),
            "round {round}: {fault}"
        );
    }
    expect_progress(&mut process);
    process.terminate();
}

/// Lines of a request, and the responses after each byte is removed, or replaced by a line feed, a quotation mark or the digit 9:
/// `+` for status 204, `.` for 400, `2` for 400 twice, because the body is parsed as a second request.
#[rustfmt::skip]
const DAMAGED: [(&str, [&str; 4]); 9] = [
    (
        "PATCH /vm HTTP/1.1\r\n",
        [
            "....................",
            "...................+",
            "....................",
            "....................",
        ],
    ),
    (
        "Host: localhost\r\n",
        [
            "++++.++++++++++..",
            "................+",
            ".....++++++++++..",
            "++++.++++++++++..",
        ],
    ),
    (
        "User-Agent: Go-http-client/1.1\r\n",
        [
            "++++++++++.+++++++++++++++++++..",
            "...............................+",
            "...........+++++++++++++++++++..",
            "++++++++++.+++++++++++++++++++..",
        ],
    ),
    (
        "Content-Length: 19\r\n",
        [
            "22222222222222.+22..",
            "...................+",
            "....................",
            "22222222222222...+..",
        ],
    ),
    (
        "Accept: application/json\r\n",
        [
            "++++++.+++++++++++++++++..",
            ".........................+",
            ".......+++++++++++++++++..",
            "++++++.+++++++++++++++++..",
        ],
    ),
    (
        "Content-Type: application/json\r\n",
        [
            "++++++++++++.+++++++++++++++++..",
            "...............................+",
            ".............+++++++++++++++++..",
            "++++++++++++.+++++++++++++++++..",
        ],
    ),
    (
        "Accept-Encoding: gzip\r\n",
        [
            "+++++++++++++++.+++++..",
            "......................+",
            "................+++++..",
            "+++++++++++++++.+++++..",
        ],
    ),
    (
        "\r\n",
        [
            "..",
            ".+",
            "..",
            "..",
        ],
    ),
    (
        r#"{"state":"Resumed"}"#,
        [
            "...................",
            "...................",
            ".+.....+.+.......+.",
            "...................",
        ],
    ),
];

/// Changes and removes each byte of a request: each connection gets the expected responses.
#[test]
fn damaged_request_gets_its_responses() {
    let mut process = start_ticker();
    let request: String = DAMAGED.iter().map(|(line, _)| *line).collect();
    let mut at = 0;
    for (line, expected) in &DAMAGED {
        let none = ".".repeat(line.len());
        let changes = [&b""[..], b"\n", b"\"", b"9", b"\0", b"\xff"];
        for (change, expected) in changes
            .into_iter()
            .zip(expected.iter().copied().chain([none.as_str(); 2]))
        {
            let damage = |offset: usize| {
                let mut bytes = request.clone().into_bytes();
                bytes.splice(at + offset..=at + offset, change.iter().copied());
                let responses = exchange(&process, &bytes);
                match responses.iter().map(|(status, _)| *status).collect::<Vec<_>>()[..] {
                    [204] => '+',
                    [400] => '.',
                    [400, 400] => '2',
                    _ => panic!("{:?}: {responses:?}", String::from_utf8_lossy(&bytes)),
                }
            };
            let found: String = (0..line.len()).map(damage).collect();
            assert_eq!(found, expected, "{line:?} {change:?}");
        }
        at += line.len();
    }
    expect_progress(&mut process);
    process.terminate();
}
