use crate::http::server::*;
use crate::http::testing::{BIG, Echo, echo};

/// Client and its connection, without an event loop.
struct Fixture {
    client: UnixStream,
    connection: Connection,
    handler: Echo,
    scratch: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Connection::new)
    }

    fn with(start: fn(UnixStream, (HttpLimits, &'static str), Instant) -> io::Result<Connection>) -> Self {
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        Self {
            client,
            connection: start(server, (HttpLimits::default(), SERVER), Instant::now()).unwrap(),
            handler: Echo::default(),
            scratch: vec![0; 16384],
        }
    }

    fn send(&mut self, text: &str) -> &mut Self {
        self.client.write_all(text.as_bytes()).unwrap();
        self
    }

    fn process(&mut self) -> Wait {
        self.connection.process(&mut self.scratch, &mut self.handler)
    }

    /// Returns the text received so far, with `<end>` at the end of the connection.
    fn received(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.client.read_to_end(&mut bytes) {
            Ok(_) => bytes.extend(b"<end>"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        String::from_utf8(bytes).unwrap()
    }

    fn footprint(&self) -> usize {
        self.connection.output.capacity() + self.connection.parser.footprint()
    }
}

fn invalid_request_bytes(text: &str) -> String {
    let body = format!("{{\"error\":{text:?},\"fault_message\":{text:?}}}");
    format!(
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn connection_serves_several_requests() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.process(), Wait::Input);
    for path in ["/a", "/b"] {
        assert_eq!(
            fixture.send(&format!("GET {path} HTTP/1.1\r\n\r\n")).process(),
            Wait::Input
        );
        assert_eq!(fixture.received(), echo(path, 0));
    }
}

#[test]
fn split_request_gets_one_response() {
    let mut fixture = Fixture::new();
    for part in ["PUT /a HT", "TP/1.1\r\nContent-Length: 4\r\n\r", "\n{", "  "] {
        assert_eq!(fixture.send(part).process(), Wait::Input);
        assert_eq!(fixture.received(), "");
    }
    assert_eq!(fixture.send("}").process(), Wait::Input);
    assert_eq!(fixture.received(), echo("/a", 4));
}

#[test]
fn continue_is_sent_once() {
    let mut fixture = Fixture::new();
    let head = "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    fixture.send("GET /first HTTP/1.1\r\n\r\n").send(head).process();
    assert_eq!(
        fixture.received(),
        format!("{}HTTP/1.1 100 \r\n\r\n", echo("/first", 0))
    );
    fixture.send("{").process();
    assert_eq!(fixture.received(), "");
    fixture.send("}").process();
    assert_eq!(fixture.received(), echo("/a", 2));
}

#[test]
fn pipelined_requests_run_in_batches() {
    let mut fixture = Fixture::new();
    let paths: Vec<_> = (0..REQUESTS * 2 + 1).map(|number| format!("/{number}")).collect();
    for path in &paths {
        fixture.send(&format!("GET {path} HTTP/1.1\r\n\r\n"));
    }
    for requests in [REQUESTS, REQUESTS * 2] {
        assert_eq!(fixture.process(), Wait::Output);
        assert_eq!(fixture.handler.requests, requests);
    }
    assert_eq!(fixture.process(), Wait::Input);
    let expected: String = paths.iter().map(|path| echo(path, 0)).collect();
    assert_eq!(fixture.received(), expected);
}

#[test]
fn unread_responses_stop_requests() {
    let mut fixture = Fixture::new();
    for _ in 0..10 {
        fixture.send("GET /big HTTP/1.1\r\n\r\n");
    }
    for _ in 0..3 {
        assert_eq!(fixture.process(), Wait::Output);
        assert_eq!(fixture.handler.requests, 1);
    }
    assert!(fixture.footprint() < BIG + 20_000);
    let mut received = 0;
    while fixture.process() == Wait::Output {
        received += fixture.received().len();
    }
    received += fixture.received().len();
    assert_eq!(fixture.handler.requests, 10);
    assert!(received > 10 * BIG);
    assert!(fixture.footprint() <= 2 * KEPT_CAPACITY);
}

#[test]
fn half_closed_client_gets_all_responses() {
    let mut fixture = Fixture::new();
    fixture.send("GET /a HTTP/1.1\r\n\r\nGET /big HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
    fixture.client.shutdown(Shutdown::Write).unwrap();
    let mut received = String::new();
    while fixture.process() != Wait::Nothing {
        received += &fixture.received();
    }
    assert!(received.starts_with(&echo("/a", 0)) && received.ends_with(&echo("/c", 0)));
    assert_eq!(fixture.handler.requests, 3);
}

#[test]
fn truncated_request_is_rejected() {
    for cut in ["GET / HT", "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"] {
        let mut fixture = Fixture::new();
        fixture.send(cut).process();
        fixture.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(fixture.process(), Wait::Nothing);
        assert_eq!(
            fixture.received(),
            invalid_request_bytes("The request ends before its head and body are complete.")
        );
    }
}

#[test]
fn disconnected_client_ends_connection() {
    let mut fixture = Fixture::new();
    fixture.send("GET /big HTTP/1.1\r\n\r\n");
    assert_eq!(fixture.process(), Wait::Output);
    drop(fixture.client);
    let wait = fixture
        .connection
        .process(&mut fixture.scratch, &mut fixture.handler);
    assert_eq!(wait, Wait::Nothing);
}

#[test]
fn invalid_request_ends_connection() {
    let mut fixture = Fixture::new();
    fixture.send("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/3.0\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
    assert_eq!(fixture.process(), Wait::Input);
    let response = invalid_request_bytes("The head of the request is not HTTP/1.1: invalid HTTP version.");
    assert_eq!(fixture.received(), format!("{}{response}<end>", echo("/a", 0)));
    assert_eq!(fixture.handler.requests, 1);
}

#[test]
fn oversized_body_is_drained() {
    let mut fixture = Fixture::new();
    fixture
        .send("PUT /a HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n")
        .process();
    for _ in 0..4 {
        fixture.send(&"x".repeat(12_800)).process();
    }
    assert_eq!(fixture.send("x").footprint(), 0);
    let received = fixture.received();
    assert!(
        received.starts_with("HTTP/1.1 400 \r\n") && received.ends_with("<end>"),
        "{received}"
    );
    assert!(received.contains("\"fault_message\":\"Request payload with size 2000000 is larger than"));
    assert_eq!(fixture.process(), Wait::Input);
    fixture.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fixture.process(), Wait::Nothing);
    assert_eq!(fixture.handler.requests, 0);
}

#[test]
fn connection_continues_after_oversized_body() {
    let mut fixture = Fixture::new();
    fixture
        .send("PUT /a HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
        .process();
    let received = fixture.received();
    assert!(
        received.starts_with("HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n")
            && received.contains("\"fault_message\":\"Request payload with size 60000 is larger than")
            && !received.ends_with("<end>"),
        "{received}"
    );
    for _ in 0..4 {
        assert_eq!(fixture.send(&"x".repeat(15_000)).process(), Wait::Input);
        assert!(fixture.footprint() <= 2 * KEPT_CAPACITY);
    }
    fixture.send("GET /b HTTP/1.1\r\n\r\n").process();
    assert_eq!(fixture.received(), echo("/b", 0));
    // The end of the client within the body needs no further response.
    fixture
        .send("PUT /a HTTP/1.1\r\nContent-Length: 60000\r\n\r\nx")
        .process();
    fixture.received();
    fixture.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fixture.process(), Wait::Nothing);
    assert_eq!(fixture.received(), "");
}

#[test]
fn http_1_0_keeps_connection() {
    let mut fixture = Fixture::new();
    for head in [
        "GET /a HTTP/1.0\r\n\r\n",
        "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ] {
        assert_eq!(fixture.send(head).process(), Wait::Input);
        assert_eq!(fixture.received(), echo("/a", 0));
    }
}

#[test]
fn connection_close_ends_connection() {
    for done in [
        "GET /a HTTP/1.0\r\nConnection: close\r\n\r\n",
        "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.send(done).process(), Wait::Input);
        assert_eq!(fixture.received(), echo("/a", 0) + "<end>");
    }
}

#[test]
fn head_response_has_no_body() {
    let mut fixture = Fixture::new();
    fixture.send("HEAD /a HTTP/1.1\r\n\r\n").process();
    assert!(fixture.received().ends_with("Content-Length: 6\r\n\r\n"));
}

#[test]
fn rejected_client_gets_503() {
    let mut fixture = Fixture::with(Connection::reject);
    assert_eq!(
        fixture.received(),
        "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         { \"error\": \"Too many open connections\" }<end>"
    );
    assert_eq!(fixture.send("GET / HTTP/1.1\r\n\r\n").process(), Wait::Input);
    assert_eq!(fixture.handler.requests, 0);
}

#[test]
fn idle_connection_releases_memory() {
    let mut fixture = Fixture::new();
    for _ in 0..3 {
        fixture.send("PUT /a HTTP/1.1\r\nContent-Length: 50000\r\n\r\n");
        fixture.send(&"x".repeat(50_000));
        while fixture.handler.requests == 0 {
            fixture.process();
        }
        fixture.handler.requests = 0;
        assert!(fixture.footprint() <= 2 * KEPT_CAPACITY);
    }
    assert!(size_of::<Connection>() <= 512);
}
