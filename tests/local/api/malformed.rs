//! Malformed requests, stalled and excess clients while a guest runs: each connection gets a response or ends, and the guest
//! continues.

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
            assert_eq!(client.request("GET", "/", "").status(), 200, "{part:?}");
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
    for length in [0, 1, request.len() / 2, request.len()] {
        let mut client = process.connect();
        client.send(&request[..length]);
        client.stream().shutdown(Shutdown::Write).unwrap();
        // A complete request may get a response. The connection ends in any case.
        client.read_to_end();
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

#[test]
fn garbage_is_rejected() {
    let mut process = start_ticker();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(5000));
    let large = "PUT /vm HTTP/1.1\r\nContent-Length: 51201\r\n\r\n";
    for bytes in [
        "\r\n\0\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\n\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\r\n\r\n",
        "PUT /vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "PUT /vm HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "PUT /vm HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /%zz HTTP/1.1\r\n\r\n",
        large,
        &long,
    ] {
        let mut client = process.connect();
        client.send(bytes);
        let response = client.receive();
        assert_eq!(response.status(), 400, "{bytes:?}: {response:?}");
        assert!(
            response.text.contains("Connection: close\r\n") && !response.fault_message().is_empty(),
            "{bytes:?}: {response:?}"
        );
        assert_eq!(client.read_to_end(), "", "{bytes:?}");
    }
    let mut noise = Noise(4);
    for round in 0..300 {
        let length = usize::from(noise.next()) * 8;
        let bytes: Vec<u8> = (0..length).map(|_| noise.next()).collect();
        let client = process.connect();
        // mayfly may reject the request and close the connection during the write.
        let _ = std::io::Write::write_all(&mut client.stream(), &bytes);
        let _ = client.stream().shutdown(Shutdown::Write);
        let response = client.read_to_end();
        assert!(
            response.is_empty() || response.starts_with("HTTP/1.1 400 "),
            "round {round}: {response}"
        );
    }
    expect_progress(&mut process);
    process.terminate();
}

/// Changes and removes each byte of a request: each connection gets a response or ends, without a hang.
#[test]
fn damaged_request_gets_response_or_end() {
    let mut process = start_ticker();
    let request = go_request("PATCH", "/vm", r#"{"state":"Resumed"}"#).into_bytes();
    for offset in 0..request.len() {
        for changed in [&[][..], &[0], b"\n", b"\"", &[0xff], b"9"] {
            let mut bytes = request.clone();
            bytes.splice(offset..=offset, changed.iter().copied());
            let client = process.connect();
            let _ = std::io::Write::write_all(&mut client.stream(), &bytes);
            let _ = client.stream().shutdown(Shutdown::Write);
            let response = client.read_to_end();
            assert!(
                response.is_empty()
                    || response.starts_with("HTTP/1.1 400 ")
                    || response.starts_with("HTTP/1.1 204 "),
                "{}: {response}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
    expect_progress(&mut process);
    process.terminate();
}
