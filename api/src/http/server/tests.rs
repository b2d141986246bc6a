use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use scratch::Directory;

use super::*;
use crate::http::testing::{BIG, Echo, Loop, echo};

/// A server with an event loop around it.
struct House {
    server: Server,
    events: Loop,
    handler: Echo,
    path: PathBuf,
    _folder: Directory,
}

impl House {
    fn new() -> Self {
        let folder = Directory::new();
        let path = folder.path("api.sock");
        let server = Server::bind(&path, HttpLimits::default()).unwrap();
        Self {
            events: Loop::around(&server),
            server,
            handler: Echo::default(),
            path,
            _folder: folder,
        }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Serves until there is nothing to do.
    fn settle(&mut self) {
        let mut turns = 0;
        while self.events.is_ready() {
            self.server.serve(&mut self.handler);
            turns += 1;
            assert!(turns < 100_000, "the event loop spins");
        }
    }

    fn open(&self) -> usize {
        self.server.connections.iter().flatten().count()
    }
}

fn ask(client: &mut UnixStream, path: &str) {
    client
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .unwrap();
}

/// What has come to the client, and whether that was the end.
fn received(client: &mut UnixStream) -> (String, bool) {
    client.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let ended = client.read_to_end(&mut bytes).is_ok();
    (String::from_utf8(bytes).unwrap(), ended)
}

#[test]
fn its_descriptor_is_readable_exactly_while_there_is_work() {
    let mut house = House::new();
    assert!(!house.events.is_ready());
    let mut client = house.client();
    assert!(house.events.is_ready());
    house.settle();
    ask(&mut client, "/a");
    assert!(house.events.is_ready());
    house.settle();
    assert_eq!(received(&mut client), (echo("/a", 0), false));
    drop(client);
    assert!(house.events.is_ready());
    house.settle();
    assert_eq!(house.open(), 0);
}

#[test]
fn requests_that_wait_for_their_turn_keep_it_readable() {
    let mut house = House::new();
    let mut client = house.client();
    for _ in 0..100 {
        ask(&mut client, "/a");
    }
    house.settle();
    assert_eq!(received(&mut client), (echo("/a", 0).repeat(100), false));
}

#[test]
fn a_client_that_does_not_read_costs_no_turns_and_holds_up_nobody() {
    let mut house = House::new();
    let mut slow = house.client();
    ask(&mut slow, "/big");
    ask(&mut slow, "/after");
    house.settle();
    let mut quick = house.client();
    ask(&mut quick, "/quick");
    house.settle();
    assert_eq!(received(&mut quick), (echo("/quick", 0), false));
    let mut all = String::new();
    while !all.ends_with(&echo("/after", 0)) {
        all += &received(&mut slow).0;
        house.settle();
    }
    assert!(all.len() > BIG);
}

#[test]
fn the_eleventh_client_is_turned_away_and_the_next_is_not() {
    let mut house = House::new();
    let mut served: Vec<_> = (0..10).map(|_| house.client()).collect();
    let mut eleventh = house.client();
    ask(&mut eleventh, "/a");
    house.settle();
    let (text, ended) = received(&mut eleventh);
    assert!(text.starts_with("HTTP/1.1 503 \r\n") && ended, "{text}");
    for client in &mut served {
        ask(client, "/a");
    }
    house.settle();
    for client in &mut served {
        assert_eq!(received(client), (echo("/a", 0), false));
    }
    drop(served.pop());
    let mut next = house.client();
    ask(&mut next, "/b");
    house.settle();
    assert_eq!(received(&mut next), (echo("/b", 0), false));
}

#[test]
fn clients_that_do_not_go_do_not_add_up() {
    let mut house = House::new();
    let _served: Vec<_> = (0..10).map(|_| house.client()).collect();
    let mut away: Vec<_> = (0..50).map(|_| house.client()).collect();
    house.settle();
    assert_eq!(house.open(), 20);
    for client in &mut away {
        let (text, ended) = received(client);
        assert!(text.starts_with("HTTP/1.1 503 \r\n") && ended, "{text}");
    }
}

#[test]
fn a_client_that_says_all_at_once_gets_its_answer() {
    let mut house = House::new();
    let mut client = house.client();
    ask(&mut client, "/none");
    client.shutdown(Shutdown::Write).unwrap();
    house.settle();
    let nothing = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(received(&mut client), (nothing.to_owned(), true));
    assert_eq!(house.open(), 0);
}

#[test]
fn a_client_that_goes_before_its_turn_leaves_nothing() {
    let mut house = House::new();
    for _ in 0..50 {
        let mut client = house.client();
        ask(&mut client, "/a");
        drop(client);
        drop(house.client());
        house.settle();
        assert_eq!(house.open(), 0);
    }
}

#[test]
fn many_clients_in_their_own_threads_are_all_served() {
    const REQUESTS: usize = 200;
    let mut house = House::new();
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let mut client = house.client();
            thread::spawn(move || {
                for _ in 0..REQUESTS {
                    let path = format!("/{number}");
                    ask(&mut client, &path);
                    let wanted = echo(&path, 0);
                    let mut answer = vec![0; wanted.len()];
                    client.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, wanted.as_bytes());
                }
            })
        })
        .collect();
    while house.handler.asked < 10 * REQUESTS {
        house.events.wait();
        house.server.serve(&mut house.handler);
    }
    for client in clients {
        client.join().unwrap();
    }
}
