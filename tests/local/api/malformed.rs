//! Clients that do not behave, while a guest runs: each gets its answer or its end, and the guest goes on.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use super::http::{Client, DONE, go};
use super::served::ApiProcess;

/// A guest that prints for ever.
fn ticking() -> ApiProcess {
    let mut served = ApiProcess::start();
    served.boots("ticker.elf");
    served.act("InstanceStart");
    served.expect("tick 1\n");
    served
}

/// The guest prints two lines more than it has till now, at least.
fn expect_progress(served: &mut ApiProcess) {
    served.expect("tick ");
    served.expect("\ntick ");
    assert_eq!(served.state(), "Running");
}

#[test]
fn ten_clients_at_once_are_served() {
    let mut served = ticking();
    let clients: Vec<Client> = (0..10).map(|_| served.connect()).collect();
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
                    assert_eq!(client.ask("GET", path, "").status(), status, "{path}");
                }
            });
        }
    });
    expect_progress(&mut served);
    served.terminate();
}

/// The eleventh is told so at once, and there is room again when one of the ten goes.
#[test]
fn one_client_too_many_is_told_so() {
    let mut served = ticking();
    let mut clients: Vec<Client> = (0..10).map(|_| served.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("GET", "/", "").status(), 200);
    }
    assert_eq!(
        served.connect().rest(),
        "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         { \"error\": \"Too many open connections\" }"
    );
    drop(clients);
    expect_progress(&mut served);
    served.terminate();
}

/// Nine clients that have begun and do not go on take nothing from the tenth, which sends a byte at a time.
#[test]
fn slow_clients_stall_nobody() {
    let mut served = ticking();
    let mut slow: Vec<Client> = (0..9).map(|_| served.connect()).collect();
    let request = go("PATCH", "/vm", r#"{"state":"Resumed"}"#);
    for (number, client) in slow.iter_mut().enumerate() {
        client.send(&request[..(number + 1) * request.len() / 10]);
    }
    let mut slowest = served.connect();
    for byte in request.as_bytes() {
        slowest.send([*byte]);
    }
    assert_eq!(slowest.receive().text, DONE);
    drop(slowest);
    expect_progress(&mut served);
    for (number, mut client) in slow.into_iter().enumerate() {
        client.send(&request[(number + 1) * request.len() / 10..]);
        assert_eq!(client.receive().text, DONE);
    }
    served.terminate();
}

#[test]
fn half_closed_connections_end() {
    let mut served = ticking();
    let request = go("GET", "/", "");
    for length in [0, 1, request.len() / 2, request.len()] {
        let mut client = served.connect();
        client.send(&request[..length]);
        client.stream().shutdown(Shutdown::Write).unwrap();
        // Whether it still gets an answer depends on how far it came; it gets an end in any case.
        client.rest();
    }
    // Gone before its answer, a hundred times, which would fill all places if one were kept.
    for _ in 0..100 {
        served.connect().send(&request);
    }
    expect_progress(&mut served);
    served.terminate();
}

/// Answers that nobody reads are kept for a while, and no further request is read.
#[test]
fn a_client_that_does_not_read_stalls_nobody() {
    let mut served = ticking();
    let client = served.connect();
    client.stream().set_nonblocking(true).unwrap();
    let request = go("GET", "/openapi.yaml", "");
    let mut stream: &UnixStream = client.stream();
    let mut sent = 0;
    while sent < 64 << 20 {
        match std::io::Write::write(&mut stream, request.as_bytes()) {
            Ok(length) if length == request.len() => sent += length,
            _ => break,
        }
    }
    assert!(sent < 64 << 20, "all requests were read, and no answer");
    expect_progress(&mut served);
    served.terminate();
}

#[test]
fn several_requests_in_one_write_are_all_answered() {
    let mut served = ticking();
    let mut client = served.connect();
    let three = [
        go("GET", "/version", ""),
        go("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        go("GET", "/", ""),
    ];
    client.send(three.concat());
    assert_eq!([0; 3].map(|_| client.receive().status()), [200, 204, 200]);
    client.send("PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.receive().text, "HTTP/1.1 100 \r\n\r\n");
    client.send(r#"{"state":"Resumed"}"#);
    assert_eq!(client.receive().text, DONE);
    client.send("PATCH /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"sta\r\ne\r\nte\":\"Resumed\"}\r\n0\r\n\r\n");
    assert_eq!(client.receive().text, DONE);
    client.send("GET http://localhost/version HTTP/1.0\r\nConnection: close\r\n\r\n");
    assert_eq!(client.receive().status(), 200);
    expect_progress(&mut served);
    served.terminate();
}

/// Bytes that no client would send, the same in each run.
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
fn garbage_is_refused() {
    let mut served = ticking();
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
        let mut client = served.connect();
        client.send(bytes);
        let answer = client.receive();
        assert_eq!(answer.status(), 400, "{bytes:?}: {answer:?}");
        assert!(
            answer.text.contains("Connection: close\r\n") && !answer.fault().is_empty(),
            "{bytes:?}: {answer:?}"
        );
        assert_eq!(client.rest(), "", "{bytes:?}");
    }
    let mut noise = Noise(4);
    for round in 0..300 {
        let length = usize::from(noise.next()) * 8;
        let bytes: Vec<u8> = (0..length).map(|_| noise.next()).collect();
        let client = served.connect();
        // It may be refused, and the connection gone, before all is written.
        let _ = std::io::Write::write_all(&mut client.stream(), &bytes);
        let _ = client.stream().shutdown(Shutdown::Write);
        let answer = client.rest();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "round {round}: {answer}"
        );
    }
    expect_progress(&mut served);
    served.terminate();
}

/// Each byte of a request changed and each left out: an answer or an end, never a hang.
#[test]
fn damaged_requests_are_answered() {
    let mut served = ticking();
    let request = go("PATCH", "/vm", r#"{"state":"Resumed"}"#).into_bytes();
    for place in 0..request.len() {
        for changed in [&[][..], &[0], b"\n", b"\"", &[0xff], b"9"] {
            let mut bytes = request.clone();
            bytes.splice(place..=place, changed.iter().copied());
            let client = served.connect();
            let _ = std::io::Write::write_all(&mut client.stream(), &bytes);
            let _ = client.stream().shutdown(Shutdown::Write);
            let answer = client.rest();
            assert!(
                answer.is_empty()
                    || answer.starts_with("HTTP/1.1 400 ")
                    || answer.starts_with("HTTP/1.1 204 "),
                "{}: {answer}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }
    expect_progress(&mut served);
    served.terminate();
}
