use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, iter};

use proptest::prelude::{any, proptest};
use scratch::Directory;

use super::exchange::{MAX_BODY, MAX_HEAD};
use super::{Client, ClientResponse, Error};
use crate::http::testing::{BIG, Echo, Loop};
use crate::http::{HttpLimits, Server};

/// Longer than any of this takes.
const LONG: Duration = Duration::from_secs(60);
/// As long as one waits for what does not come.
const SHORT: Duration = Duration::from_millis(20);

/// Asks a server that reads the request and then says `answer` and goes.
fn answered(answer: impl AsRef<[u8]> + Send + 'static) -> Result<ClientResponse, Error> {
    let house = House::new(move |stream| {
        let _ = stream.write_all(answer.as_ref());
    });
    let answer = house.client(LONG).request("GET", "/x", None);
    house.end();
    answer
}

/// A server for one request.
struct House {
    folder: Directory,
    serving: JoinHandle<String>,
}

impl House {
    fn new(serve: impl FnOnce(&mut UnixStream) + Send + 'static) -> Self {
        let folder = Directory::new();
        let listener = UnixListener::bind(path(&folder)).unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_request(&mut stream);
            serve(&mut stream);
            request
        });
        Self { folder, serving }
    }

    fn client(&self, patience: Duration) -> Client {
        Client::new(path(&self.folder), patience)
    }

    /// The request that came.
    fn end(self) -> String {
        self.serving.join().unwrap()
    }
}

fn path(folder: &Directory) -> PathBuf {
    folder.path("api.sock")
}

/// A request whose length is given.
fn read_request(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

fn text(error: &Error) -> String {
    error.to_string()
}

#[test]
fn a_request_is_what_servers_expect() {
    let house = House::new(|stream| stream.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap());
    let client = house.client(LONG);
    let answer = client
        .request("PUT", "/actions?x=1", Some(br#"{"a":1}"#))
        .unwrap();
    assert_eq!(
        house.end(),
        "PUT /actions?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}"
    );
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert!(answer.is_success());
}

#[test]
fn our_own_server_is_understood() {
    let folder = Directory::new();
    let mut server = Server::bind(&path(&folder), HttpLimits::default()).unwrap();
    let client = Client::new(path(&folder), LONG);
    let asking = thread::spawn(move || {
        let requests = [
            ("GET", "/none", None),
            ("PUT", "/a", Some(&b"12345"[..])),
            ("GET", "/big", None),
            ("HEAD", "/big", None),
        ];
        requests.map(|(method, target, body)| client.request(method, target, body).unwrap())
    });
    let mut echo = Echo::default();
    let events = Loop::around(&server);
    while echo.asked < 4 || !asking.is_finished() {
        if !events.is_ready() {
            thread::yield_now();
            continue;
        }
        server.serve(&mut echo);
    }
    let [none, small, big, head] = asking.join().unwrap();
    assert_eq!((none.status, none.body), (204, Vec::new()));
    assert_eq!(small.body, b"\"/a 5\"");
    assert_eq!((big.body.len(), head.body.len()), (BIG, 0));
}

#[test]
fn answers_come_in_pieces_and_in_several_shapes() {
    for (answer, status, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokrest", 200, "ok"),
        ("HTTP/1.1 200 \r\ncontent-length:  2 \r\n\r\nok", 200, "ok"),
        (
            "HTTP/1.1 400 \r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nno",
            400,
            "no",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, "until the end"),
        (
            "HTTP/1.1 100 \r\n\r\nHTTP/1.1 102 x\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx",
            200,
            "x",
        ),
        ("HTTP/1.1 204 \r\nContent-Length: 9\r\n\r\n", 204, ""),
    ] {
        let expected = ClientResponse {
            status,
            body: body.into(),
        };
        assert_eq!(answered(answer).unwrap(), expected, "{answer}");
        let house = House::new(move |stream| {
            for byte in answer.as_bytes() {
                // The client may have gone with what it needs.
                let _ = stream.write_all(&[*byte]);
            }
        });
        assert_eq!(
            house.client(LONG).request("GET", "/", None).unwrap(),
            expected,
            "{answer}"
        );
        house.end();
    }
}

#[test]
fn a_refusal_counts_though_the_request_was_not_read() {
    let folder = Directory::new();
    let listener = UnixListener::bind(path(&folder)).unwrap();
    let client = Client::new(path(&folder), LONG);
    // More than a socket holds, so that the server goes while it is written.
    let asking = thread::spawn(move || client.request("PUT", "/x", Some(&vec![b' '; 8 << 20])));
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
        .write_all(b"HTTP/1.1 400 \r\nContent-Length: 5\r\n\r\nlarge")
        .unwrap();
    drop(stream);
    assert_eq!(asking.join().unwrap().unwrap().body, b"large");
}

#[test]
fn what_is_no_answer_is_an_error() {
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "\u{0}\u{1}",
        "HTTP/3 200\r\n\r\n",
        "HTTP/1.1 20 x\r\n\r\n",
    ] {
        assert!(matches!(answered(answer), Err(Error::Head(_))), "{answer:?}");
    }
    for answer in [
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: 1x",
        "Content-Length: 1\r\nContent-Length: 2",
        "Transfer-Encoding: chunked",
    ] {
        let whole = format!("HTTP/1.1 200 \r\n{answer}\r\n\r\n1\r\n");
        assert!(matches!(answered(whole), Err(Error::Framing(_))), "{answer:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_is_none() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nfour",
    ] {
        let error = answered(answer).unwrap_err();
        assert!(matches!(error, Error::Closed(_)), "{answer:?}: {error}");
    }
}

#[test]
fn no_answer_takes_more_memory_than_it_may() {
    let length = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    assert!(matches!(answered(length), Err(Error::Large(MAX_BODY))));
    let endless = |start: &'static str, piece: &'static [u8]| {
        let house = House::new(move |stream| {
            let mut sent = stream.write_all(start.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(piece);
            }
        });
        let error = house.client(LONG).request("GET", "/", None).unwrap_err();
        house.end();
        error
    };
    let body = endless("HTTP/1.1 200 \r\n\r\n", &[b'x'; 65536]);
    assert!(matches!(body, Error::Large(MAX_BODY)), "{body}");
    let head = endless("HTTP/1.1 200 \r\nName: ", &[b'x'; 100]);
    assert!(matches!(head, Error::Large(MAX_HEAD)), "{head}");
}

#[test]
fn a_server_that_keeps_silent_is_not_waited_for() {
    for start in [
        "",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nx",
    ] {
        let folder = Directory::new();
        let listener = UnixListener::bind(path(&folder)).unwrap();
        let (done, over) = mpsc::channel::<()>();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The client may have lost patience already.
            let _ = stream.write_all(start.as_bytes());
            let _ = over.recv();
        });
        let error = Client::new(path(&folder), SHORT)
            .request("GET", "/", None)
            .unwrap_err();
        drop(done);
        serving.join().unwrap();
        assert!(matches!(error, Error::Silent { .. }), "{start:?}: {error}");
        assert!(
            text(&error).contains("within 0.02 s: the server is stopped or busy"),
            "{error}"
        );
    }
}

#[test]
fn a_server_that_reads_nothing_is_not_waited_for() {
    let folder = Directory::new();
    let _listener = UnixListener::bind(path(&folder)).unwrap();
    let body = vec![b' '; 8 << 20];
    let error = Client::new(path(&folder), SHORT).request("PUT", "/", Some(&body));
    assert!(matches!(error, Err(Error::Silent { .. })));
}

#[test]
fn a_server_that_accepts_nobody_is_not_waited_for() {
    let folder = Directory::new();
    let listener = UnixListener::bind(path(&folder)).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    // With no queue the kernel still keeps one connection.
    let _first = UnixStream::connect(path(&folder)).unwrap();
    let error = Client::new(path(&folder), SHORT).request("GET", "/", None);
    assert!(matches!(error, Err(Error::Silent { .. })));
}

fn failure(path: &Path) -> Error {
    Client::new(path, LONG).request("GET", "/", None).unwrap_err()
}

#[test]
fn without_a_server_the_way_out_is_said() {
    let folder = Directory::new();
    let missing = failure(&path(&folder));
    assert!(matches!(missing, Error::Missing(_)));
    assert!(text(&missing).contains("is mayfly running"), "{missing}");
    assert!(matches!(failure(&folder.path("no/api.sock")), Error::Missing(_)));

    fs::write(path(&folder), "").unwrap();
    assert!(matches!(failure(&path(&folder)), Error::NotSocket(_)));
    assert!(matches!(failure(&path(&folder).join("x")), Error::Missing(_)));
    assert!(matches!(failure(folder.root()), Error::NotSocket(_)));

    fs::remove_file(path(&folder)).unwrap();
    drop(UnixListener::bind(path(&folder)).unwrap());
    let left_over = failure(&path(&folder));
    assert!(matches!(left_over, Error::Refused(_)));
    assert!(text(&left_over).contains("nobody listens on"), "{left_over}");

    let long: PathBuf = iter::once("/").chain(iter::repeat_n("x", 107)).collect();
    let long = failure(&long);
    assert!(matches!(long, Error::Long { .. }), "{long}");
}

#[test]
fn a_socket_of_somebody_else_is_told_from_a_missing_one() {
    let folder = Directory::new();
    let _listener = UnixListener::bind(path(&folder)).unwrap();
    fs::set_permissions(path(&folder), fs::Permissions::from_mode(0o000)).unwrap();
    // Permissions do not bind root.
    if let Err(error) = UnixStream::connect(path(&folder)) {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        let denied = failure(&path(&folder));
        assert!(
            text(&denied).contains("be the user that mayfly runs as"),
            "{denied}"
        );
    }
}

#[test]
fn what_cannot_be_a_request_is_not_sent() {
    let client = Client::new("/nowhere", SHORT);
    for (method, target) in [
        ("", "/"),
        ("GET /x", "/"),
        ("G\r\nET", "/"),
        ("GET", ""),
        ("GET", "vm"),
        ("GET", "/a b"),
        ("GET", "/a\r\nX: y"),
    ] {
        let error = client.request(method, target, None).unwrap_err();
        assert!(
            matches!(error, Error::Request(_)),
            "{method:?} {target:?}: {error}"
        );
    }
}

proptest! {
    #[test]
    fn no_answer_panics(bytes in any::<Vec<u8>>(), start in 0_usize..3) {
        let mut answer = ["", "HTTP/1.1 200 \r\n", "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n"][start]
            .as_bytes()
            .to_vec();
        answer.extend(bytes);
        let _ = answered(answer);
    }
}
