mod connection;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;

use scratch::Directory;

use super::*;
use crate::http::testing::{BIG, Echo, Loop, echo};

/// Server with an event loop.
struct Fixture {
    server: Server,
    events: Loop,
    handler: Echo,
    path: PathBuf,
    /// Time of the server.
    now: Rc<Cell<Instant>>,
    _directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let directory = Directory::new();
        let path = directory.path("api.sock");
        let mut server = Server::bind(&path, HttpLimits::default()).unwrap();
        let now = Rc::new(Cell::new(Instant::now()));
        let clock = Rc::clone(&now);
        server.clock = Box::new(move || {
            clock.set(clock.get() + Duration::from_nanos(1));
            clock.get()
        });
        Self {
            events: Loop::around(&server),
            server,
            handler: Echo::default(),
            path,
            now,
            _directory: directory,
        }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Connects ten clients, each a millisecond after the previous, and sends `text` of each.
    fn ten_clients(&mut self, text: &str) -> Vec<UnixStream> {
        let connect = |_| {
            self.wait(Duration::from_millis(1));
            let mut client = self.client();
            client.write_all(text.as_bytes()).unwrap();
            self.serve_all();
            client
        };
        (0..10).map(connect).collect()
    }

    fn wait(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    /// Connects and expects a response.
    fn expect_served(&mut self) -> UnixStream {
        let mut client = self.client();
        send_request(&mut client, "/a");
        self.serve_all();
        assert_eq!(received(&mut client), (echo("/a", 0), false));
        client
    }

    /// Connects and expects a rejection.
    fn expect_rejected(&mut self) {
        let mut client = self.client();
        send_request(&mut client, "/a");
        self.serve_all();
        expect_end(&mut client);
    }

    /// Serves until no work remains.
    fn serve_all(&mut self) {
        let mut calls = 0;
        while self.events.is_ready() {
            self.server.serve(&mut self.handler);
            calls += 1;
            assert!(calls < 100_000, "the event loop spins");
        }
    }

    fn open(&self) -> usize {
        self.server.connections.iter().flatten().count()
    }
}

fn send_request(client: &mut UnixStream, path: &str) {
    client
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .unwrap();
}

/// Returns the text received so far, and true at the end of the connection.
fn received(client: &mut UnixStream) -> (String, bool) {
    client.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let ended = client.read_to_end(&mut bytes).is_ok();
    (String::from_utf8(bytes).unwrap(), ended)
}

/// Expects the response to clients above the limit, and the end.
fn expect_end(client: &mut UnixStream) {
    let too_many = too_many(SERVER);
    assert_eq!(received(client), (too_many, true));
}

/// Expects that the client is still connected and has received nothing.
fn expect_open(client: &mut UnixStream) {
    assert_eq!(received(client), (String::new(), false));
}

const REQUEST: &str = "GET /a HTTP/1.1\r\n\r\n";

#[test]
fn descriptor_is_readable_while_work_remains() {
    let mut fixture = Fixture::new();
    assert!(!fixture.events.is_ready());
    let mut client = fixture.client();
    assert!(fixture.events.is_ready());
    fixture.serve_all();
    send_request(&mut client, "/a");
    assert!(fixture.events.is_ready());
    fixture.serve_all();
    assert_eq!(received(&mut client), (echo("/a", 0), false));
    drop(client);
    assert!(fixture.events.is_ready());
    fixture.serve_all();
    assert_eq!(fixture.open(), 0);
}

#[test]
fn pending_requests_keep_descriptor_readable() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    for _ in 0..100 {
        send_request(&mut client, "/a");
    }
    fixture.serve_all();
    assert_eq!(received(&mut client), (echo("/a", 0).repeat(100), false));
}

#[test]
fn stalled_client_does_not_block_others() {
    let mut fixture = Fixture::new();
    let mut slow = fixture.client();
    send_request(&mut slow, "/big");
    send_request(&mut slow, "/after");
    fixture.serve_all();
    let mut quick = fixture.client();
    send_request(&mut quick, "/quick");
    fixture.serve_all();
    assert_eq!(received(&mut quick), (echo("/quick", 0), false));
    let mut all = String::new();
    while !all.ends_with(&echo("/after", 0)) {
        all += &received(&mut slow).0;
        fixture.serve_all();
    }
    assert!(all.len() > BIG);
}

#[test]
fn client_above_limit_is_rejected() {
    let mut fixture = Fixture::new();
    let mut served = fixture.ten_clients(REQUEST);
    fixture.expect_rejected();
    for client in &mut served {
        assert_eq!(received(client), (echo("/a", 0), false));
        send_request(client, "/b");
    }
    fixture.serve_all();
    for client in &mut served {
        assert_eq!(received(client), (echo("/b", 0), false));
    }
    drop(served.pop());
    fixture.expect_served();
}

#[test]
fn rejected_clients_do_not_accumulate() {
    let mut fixture = Fixture::new();
    let _served = fixture.ten_clients(REQUEST);
    let mut rejected: Vec<_> = (0..50).map(|_| fixture.client()).collect();
    fixture.serve_all();
    assert_eq!(fixture.open(), 20);
    for client in &mut rejected {
        expect_end(client);
    }
}

#[test]
fn evicted_clients_do_not_accumulate() {
    let mut fixture = Fixture::new();
    let mut clients: Vec<_> = (0..50).map(|_| fixture.client()).collect();
    fixture.serve_all();
    assert_eq!((fixture.open(), fixture.server.count_open()), (19, 10));
    for client in &mut clients[..40] {
        expect_end(client);
    }
    for client in &mut clients[40..] {
        expect_open(client);
    }
}

#[test]
fn client_above_limit_evicts_oldest_without_request() {
    for text in ["", "GET", "PUT /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n1234"] {
        let mut fixture = Fixture::new();
        let mut idle = fixture.ten_clients(text);
        // A reused index and late bytes do not make a connection older or younger.
        drop(idle.remove(0));
        fixture.serve_all();
        idle.push(fixture.client());
        fixture.serve_all();
        idle[0].write_all(b"G").unwrap();
        let mut served = Vec::new();
        for oldest in 0..10 {
            served.push(fixture.expect_served());
            expect_end(&mut idle[oldest]);
            idle[oldest + 1..].iter_mut().for_each(expect_open);
        }
        fixture.expect_rejected();
        assert_eq!(fixture.server.count_open(), 10);
    }
}

#[test]
fn client_above_limit_evicts_longest_idle() {
    let mut fixture = Fixture::new();
    let mut idle = fixture.ten_clients(REQUEST);
    for client in &mut idle {
        assert_eq!(received(client), (echo("/a", 0), false));
    }
    fixture.wait(IDLE_TIMEOUT - Duration::from_millis(10));
    fixture.expect_rejected();
    // The oldest has sent another request, so the second is idle longest.
    send_request(&mut idle[0], "/b");
    fixture.serve_all();
    fixture.wait(Duration::from_millis(3));
    fixture.expect_served();
    expect_end(&mut idle[1]);
    assert_eq!(received(&mut idle[0]), (echo("/b", 0), false));
    idle[2..].iter_mut().for_each(expect_open);
    // A client without a request precedes any idle client.
    let mut silent = fixture.client();
    fixture.serve_all();
    fixture.wait(2 * IDLE_TIMEOUT);
    fixture.expect_served();
    expect_end(&mut silent);
}

/// The event of the eleventh client precedes those of the others, which have sent requests meanwhile.
#[test]
fn client_with_request_in_work_is_not_evicted() {
    let long = format!(
        "PUT /a HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{}",
        " ".repeat(50000)
    );
    for (before, request, length) in [("", REQUEST, 0), (REQUEST, REQUEST, 0), ("", &long, 50000)] {
        let mut fixture = Fixture::new();
        let mut clients = fixture.ten_clients(before);
        for client in &mut clients {
            received(client);
        }
        fixture.wait(2 * IDLE_TIMEOUT);
        let mut eleventh = fixture.client();
        for client in &mut clients {
            client.write_all(request.as_bytes()).unwrap();
        }
        fixture.serve_all();
        expect_end(&mut eleventh);
        for client in &mut clients {
            assert_eq!(received(client), (echo("/a", length), false));
        }
    }
}

/// The event of the eleventh client precedes that of the disconnection.
#[test]
fn disconnected_client_frees_its_place_at_once() {
    let mut fixture = Fixture::new();
    let mut served = fixture.ten_clients(REQUEST);
    let mut eleventh = fixture.client();
    send_request(&mut eleventh, "/b");
    drop(served.pop());
    fixture.serve_all();
    assert_eq!(received(&mut eleventh), (echo("/b", 0), false));
}

#[test]
fn client_that_reads_no_response_is_evicted() {
    let mut fixture = Fixture::new();
    let mut stalled = fixture.ten_clients("GET /big HTTP/1.1\r\n\r\n");
    fixture.expect_rejected();
    fixture.wait(IDLE_TIMEOUT - Duration::from_millis(1));
    // Progress of a reader.
    assert!(!received(&mut stalled[0]).0.is_empty());
    fixture.serve_all();
    fixture.wait(Duration::from_millis(2));
    fixture.expect_served();
    let (text, ended) = received(&mut stalled[1]);
    assert!(ended && text.len() < BIG, "{}", text.len());
    assert!(!received(&mut stalled[0]).1);
}

#[test]
fn slow_request_is_rejected_at_next_byte() {
    for [first, in_time, late] in [
        ["G", "E", "T"],
        ["GET / HTTP/1.1\r\nA: b\r\n", "B: ", "c\r\n"],
        ["PUT /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n1", "2", "3"],
        [
            "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1",
            "\r",
            "\n",
        ],
    ] {
        let mut fixture = Fixture::new();
        let mut client = fixture.expect_served();
        fixture.wait(2 * REQUEST_TIMEOUT);
        client.write_all(first.as_bytes()).unwrap();
        fixture.serve_all();
        fixture.wait(REQUEST_TIMEOUT - Duration::from_millis(1));
        client.write_all(in_time.as_bytes()).unwrap();
        fixture.serve_all();
        expect_open(&mut client);
        fixture.wait(Duration::from_millis(2));
        client.write_all(late.as_bytes()).unwrap();
        fixture.serve_all();
        let (text, ended) = received(&mut client);
        assert!(text.starts_with("HTTP/1.1 408 \r\n") && ended, "{text}");
        assert!(
            text.ends_with("\"fault_message\":\"The request is not complete in time; send it at once.\"}"),
            "{text}"
        );
    }
}

/// The event loop may be busy for longer than the limit while the bytes wait in the kernel.
#[test]
fn complete_request_is_served_after_any_time() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client
        .write_all(b"PUT /a HTTP/1.1\r\nContent-Length: 50000\r\n\r\n")
        .unwrap();
    fixture.serve_all();
    fixture.wait(2 * REQUEST_TIMEOUT);
    client.write_all(&[b' '; 50000]).unwrap();
    fixture.serve_all();
    assert_eq!(received(&mut client), (echo("/a", 50000), false));
}

#[test]
fn half_closed_client_gets_response() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    send_request(&mut client, "/none");
    client.shutdown(Shutdown::Write).unwrap();
    fixture.serve_all();
    let nothing = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(received(&mut client), (nothing.to_owned(), true));
    assert_eq!(fixture.open(), 0);
}

#[test]
fn disconnected_client_is_removed() {
    let mut fixture = Fixture::new();
    for _ in 0..50 {
        let mut client = fixture.client();
        send_request(&mut client, "/a");
        drop(client);
        drop(fixture.client());
        fixture.serve_all();
        assert_eq!(fixture.open(), 0);
    }
}

#[test]
fn concurrent_clients_are_served() {
    const REQUESTS: usize = 200;
    let mut fixture = Fixture::new();
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let mut client = fixture.client();
            client.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
            thread::spawn(move || {
                for _ in 0..REQUESTS {
                    let path = format!("/{number}");
                    send_request(&mut client, &path);
                    let expected = echo(&path, 0);
                    let mut response = vec![0; expected.len()];
                    client.read_exact(&mut response).unwrap();
                    assert_eq!(response, expected.as_bytes());
                }
            })
        })
        .collect();
    while fixture.handler.requests < 10 * REQUESTS {
        fixture.events.wait();
        fixture.server.serve(&mut fixture.handler);
    }
    for client in clients {
        scratch::join(client);
    }
}

/// Client that has sent a request for `/begin`, which is pending.
fn pending_client(fixture: &mut Fixture) -> UnixStream {
    let mut client = fixture.client();
    send_request(&mut client, "/begin");
    fixture.serve_all();
    assert_eq!(received(&mut client), (String::new(), false));
    client
}

/// Ends the pending request with the response to `/done`.
fn respond(fixture: &mut Fixture) {
    fixture.handler.is_busy = false;
    let response = Response::json(200, "\"/done 0\"");
    fixture.server.respond(&response, &mut fixture.handler);
}

#[test]
fn pending_request_delays_only_requests_that_must_wait() {
    let mut fixture = Fixture::new();
    let mut first = pending_client(&mut fixture);
    // The rest of this client waits for its own response; those of others wait in the order of their arrival.
    send_request(&mut first, "/now");
    let [mut second, mut third, mut quick] = [(); 3].map(|()| fixture.client());
    send_request(&mut third, "/begin");
    fixture.serve_all();
    send_request(&mut second, "/second");
    send_request(&mut second, "/now");
    send_request(&mut quick, "/now");
    fixture.serve_all();
    assert_eq!(received(&mut quick), (echo("/now", 0), false));
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(received(client), (String::new(), false));
    }
    respond(&mut fixture);
    fixture.serve_all();
    assert_eq!(received(&mut first), (echo("/done", 0) + &echo("/now", 0), false));
    for client in [&mut second, &mut third] {
        assert_eq!(received(client), (String::new(), false));
    }
    respond(&mut fixture);
    fixture.serve_all();
    assert_eq!(received(&mut third), (echo("/done", 0), false));
    assert_eq!(
        received(&mut second),
        (echo("/second", 0) + &echo("/now", 0), false)
    );
    assert_eq!((fixture.handler.cancelled, fixture.open()), (0, 4));
}

#[test]
fn last_request_ends_connection_after_its_response() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client
        .write_all(b"GET /begin HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    fixture.serve_all();
    assert_eq!((fixture.handler.cancelled, fixture.open()), (0, 1));
    respond(&mut fixture);
    fixture.serve_all();
    assert_eq!(received(&mut client), (echo("/done", 0), true));
    drop(client);
    fixture.serve_all();
    assert_eq!(fixture.open(), 0);
}

#[test]
fn disconnected_client_cancels_pending_request() {
    let mut fixture = Fixture::new();
    drop(pending_client(&mut fixture));
    fixture.serve_all();
    assert_eq!((fixture.handler.cancelled, fixture.open()), (1, 1));
    // A request that has not begun is dropped with its client.
    let mut gone = fixture.client();
    send_request(&mut gone, "/gone");
    fixture.serve_all();
    drop(gone);
    fixture.serve_all();
    assert_eq!((fixture.handler.requests, fixture.open()), (1, 1));
    respond(&mut fixture);
    fixture.serve_all();
    assert_eq!((fixture.handler.requests, fixture.open()), (1, 0));
}

#[test]
fn waiting_client_is_not_evicted() {
    let mut fixture = Fixture::new();
    let mut first = pending_client(&mut fixture);
    let mut others: Vec<_> = (0..9).map(|_| fixture.client()).collect();
    for client in &mut others {
        send_request(client, "/wait");
    }
    fixture.serve_all();
    let mut excess = fixture.client();
    fixture.serve_all();
    assert!(received(&mut excess).0.starts_with("HTTP/1.1 503 "));
    respond(&mut fixture);
    fixture.serve_all();
    assert_eq!(received(&mut first), (echo("/done", 0), false));
    for client in &mut others {
        assert_eq!(received(client), (echo("/wait", 0), false));
    }
}

#[test]
fn client_that_is_not_admitted_is_closed() {
    let mut fixture = Fixture::new();
    fixture.server.admits = |_| false;
    let mut client = fixture.client();
    fixture.serve_all();
    assert_eq!(received(&mut client), (String::new(), true));
    assert_eq!(fixture.open(), 0);
    fixture.server.admits = |_| true;
    fixture.expect_served();
}

#[test]
fn handler_takes_connection_after_switch() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    let request = "PUT /switch HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    fixture.serve_all();
    let response = "HTTP/1.1 101 \r\nServer: Firecracker API\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    assert_eq!(received(&mut client), (response.to_owned(), false));
    assert_eq!(fixture.open(), 0);
    let mut taken = fixture.handler.taken.take().unwrap();
    client.write_all(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
    assert!(!fixture.events.is_ready(), "the server watches the connection");
    let mut bytes = [0; 19];
    taken.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"GET /a HTTP/1.1\r\n\r\n");
    drop(taken);
    assert_eq!(received(&mut client), (String::new(), true));
    assert_eq!(fixture.handler.requests, 1);
}
