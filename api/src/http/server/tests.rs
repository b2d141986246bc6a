mod connection;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
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
    _directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let directory = Directory::new();
        let path = directory.path("api.sock");
        let server = Server::bind(&path, HttpLimits::default()).unwrap();
        Self {
            events: Loop::around(&server),
            server,
            handler: Echo::default(),
            path,
            _directory: directory,
        }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
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
    let mut served: Vec<_> = (0..10).map(|_| fixture.client()).collect();
    let mut eleventh = fixture.client();
    send_request(&mut eleventh, "/a");
    fixture.serve_all();
    let (text, ended) = received(&mut eleventh);
    assert!(text.starts_with("HTTP/1.1 503 \r\n") && ended, "{text}");
    for client in &mut served {
        send_request(client, "/a");
    }
    fixture.serve_all();
    for client in &mut served {
        assert_eq!(received(client), (echo("/a", 0), false));
    }
    drop(served.pop());
    let mut next = fixture.client();
    send_request(&mut next, "/b");
    fixture.serve_all();
    assert_eq!(received(&mut next), (echo("/b", 0), false));
}

#[test]
fn rejected_clients_do_not_accumulate() {
    let mut fixture = Fixture::new();
    let _served: Vec<_> = (0..10).map(|_| fixture.client()).collect();
    let mut rejected: Vec<_> = (0..50).map(|_| fixture.client()).collect();
    fixture.serve_all();
    assert_eq!(fixture.open(), 20);
    for client in &mut rejected {
        let (text, ended) = received(client);
        assert!(text.starts_with("HTTP/1.1 503 \r\n") && ended, "{text}");
    }
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
        client.join().unwrap();
    }
}
