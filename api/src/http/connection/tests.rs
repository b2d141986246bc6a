use super::*;
use crate::http::testing::{BIG, Echo, echo};

/// A client and its connection, driven by hand.
struct Pair {
    client: UnixStream,
    connection: Connection,
    handler: Echo,
    scratch: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        Self::with(Connection::new)
    }

    fn with(start: fn(UnixStream, HttpLimits) -> io::Result<Connection>) -> Self {
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        Self {
            client,
            connection: start(server, HttpLimits::default()).unwrap(),
            handler: Echo::default(),
            scratch: vec![0; 16384],
        }
    }

    fn send(&mut self, text: &str) -> &mut Self {
        self.client.write_all(text.as_bytes()).unwrap();
        self
    }

    fn turn(&mut self) -> Wait {
        self.connection.process(&mut self.scratch, &mut self.handler)
    }

    /// What has come to the client.
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

fn faulty(text: &str) -> String {
    let body = format!("{{\"error\":{text:?},\"fault_message\":{text:?}}}");
    format!(
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_client_may_ask_again_and_again() {
    let mut pair = Pair::new();
    assert_eq!(pair.turn(), Wait::Input);
    for path in ["/a", "/b"] {
        assert_eq!(
            pair.send(&format!("GET {path} HTTP/1.1\r\n\r\n")).turn(),
            Wait::Input
        );
        assert_eq!(pair.received(), echo(path, 0));
    }
}

#[test]
fn a_request_in_pieces_is_answered_with_its_last() {
    let mut pair = Pair::new();
    for piece in ["PUT /a HT", "TP/1.1\r\nContent-Length: 4\r\n\r", "\n{", "  "] {
        assert_eq!(pair.send(piece).turn(), Wait::Input);
        assert_eq!(pair.received(), "");
    }
    assert_eq!(pair.send("}").turn(), Wait::Input);
    assert_eq!(pair.received(), echo("/a", 4));
}

#[test]
fn a_client_that_waits_for_a_word_gets_it_once() {
    let mut pair = Pair::new();
    let head = "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    pair.send("GET /first HTTP/1.1\r\n\r\n").send(head).turn();
    assert_eq!(
        pair.received(),
        format!("{}HTTP/1.1 100 \r\n\r\n", echo("/first", 0))
    );
    pair.send("{").turn();
    assert_eq!(pair.received(), "");
    pair.send("}").turn();
    assert_eq!(pair.received(), echo("/a", 2));
}

#[test]
fn many_requests_at_once_are_answered_in_order_over_several_turns() {
    let mut pair = Pair::new();
    let paths: Vec<_> = (0..REQUESTS * 2 + 1).map(|number| format!("/{number}")).collect();
    for path in &paths {
        pair.send(&format!("GET {path} HTTP/1.1\r\n\r\n"));
    }
    for asked in [REQUESTS, REQUESTS * 2] {
        assert_eq!(pair.turn(), Wait::Output);
        assert_eq!(pair.handler.asked, asked);
    }
    assert_eq!(pair.turn(), Wait::Input);
    let wanted: String = paths.iter().map(|path| echo(path, 0)).collect();
    assert_eq!(pair.received(), wanted);
}

#[test]
fn a_client_that_does_not_read_is_not_read() {
    let mut pair = Pair::new();
    for _ in 0..10 {
        pair.send("GET /big HTTP/1.1\r\n\r\n");
    }
    for _ in 0..3 {
        assert_eq!(pair.turn(), Wait::Output);
        assert_eq!(pair.handler.asked, 1);
    }
    assert!(pair.footprint() < BIG + 20_000);
    let mut received = 0;
    while pair.turn() == Wait::Output {
        received += pair.received().len();
    }
    received += pair.received().len();
    assert_eq!(pair.handler.asked, 10);
    assert!(received > 10 * BIG);
    assert!(pair.footprint() <= 2 * KEPT);
}

#[test]
fn a_client_that_has_said_all_gets_its_answers() {
    let mut pair = Pair::new();
    pair.send("GET /a HTTP/1.1\r\n\r\nGET /big HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
    pair.client.shutdown(Shutdown::Write).unwrap();
    let mut received = String::new();
    while pair.turn() != Wait::Nothing {
        received += &pair.received();
    }
    assert!(received.starts_with(&echo("/a", 0)) && received.ends_with(&echo("/c", 0)));
    assert_eq!(pair.handler.asked, 3);
}

#[test]
fn a_request_that_is_cut_off_is_refused() {
    for cut in ["GET / HT", "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"] {
        let mut pair = Pair::new();
        pair.send(cut).turn();
        pair.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(pair.turn(), Wait::Nothing);
        assert_eq!(
            pair.received(),
            faulty("The request ends before its head or its body does.")
        );
    }
}

#[test]
fn a_client_that_has_gone_is_forgotten() {
    let mut pair = Pair::new();
    pair.send("GET /big HTTP/1.1\r\n\r\n");
    assert_eq!(pair.turn(), Wait::Output);
    drop(pair.client);
    let wait = pair.connection.process(&mut pair.scratch, &mut pair.handler);
    assert_eq!(wait, Wait::Nothing);
}

#[test]
fn answers_before_a_refusal_come_and_requests_after_it_do_not() {
    let mut pair = Pair::new();
    pair.send("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/3.0\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
    assert_eq!(pair.turn(), Wait::Input);
    let refusal = faulty("The head of the request is not HTTP/1.1: invalid HTTP version.");
    assert_eq!(pair.received(), format!("{}{refusal}<end>", echo("/a", 0)));
    assert_eq!(pair.handler.asked, 1);
}

#[test]
fn a_client_that_sends_too_much_sees_why_and_no_reset() {
    let mut pair = Pair::new();
    pair.send("PUT /a HTTP/1.1\r\nContent-Length: 51201\r\n\r\n")
        .turn();
    for _ in 0..4 {
        pair.send(&"x".repeat(12_800)).turn();
    }
    assert_eq!(pair.send("x").footprint(), 0);
    let received = pair.received();
    assert!(
        received.starts_with("HTTP/1.1 400 \r\n") && received.ends_with("<end>"),
        "{received}"
    );
    assert!(received.contains("\"fault_message\":\"Request payload with size 51201 is larger than"));
    assert_eq!(pair.turn(), Wait::Input);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(pair.turn(), Wait::Nothing);
    assert_eq!(pair.handler.asked, 0);
}

#[test]
fn a_client_that_is_done_sees_the_end() {
    for done in [
        "GET /a HTTP/1.0\r\n\r\n",
        "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        let mut pair = Pair::new();
        assert_eq!(pair.send(done).turn(), Wait::Input);
        assert_eq!(pair.received(), echo("/a", 0) + "<end>");
    }
}

#[test]
fn the_answer_to_head_has_no_body() {
    let mut pair = Pair::new();
    pair.send("HEAD /a HTTP/1.1\r\n\r\n").turn();
    assert!(pair.received().ends_with("Content-Length: 6\r\n\r\n"));
}

#[test]
fn a_client_too_many_is_told_so() {
    let mut pair = Pair::with(Connection::turn_away);
    assert_eq!(
        pair.received(),
        "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         { \"error\": \"Too many open connections\" }<end>"
    );
    assert_eq!(pair.send("GET / HTTP/1.1\r\n\r\n").turn(), Wait::Input);
    assert_eq!(pair.handler.asked, 0);
}

#[test]
fn an_idle_connection_holds_next_to_nothing() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        pair.send("PUT /a HTTP/1.1\r\nContent-Length: 50000\r\n\r\n");
        pair.send(&"x".repeat(50_000));
        while pair.handler.asked == 0 {
            pair.turn();
        }
        pair.handler.asked = 0;
        assert!(pair.footprint() <= 2 * KEPT);
    }
    assert!(size_of::<Connection>() <= 512);
}
