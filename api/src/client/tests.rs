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

use super::{Client, ClientResponse, Error, MAX_BODY, MAX_HEAD, NonblockingRequest, switch};
use crate::http::testing::{BIG, Echo, Loop};
use crate::http::{HttpLimits, Server};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);
/// Timeout of requests that get no response.
const SHORT: Duration = Duration::from_millis(20);

/// Sends a request to a server that reads it, sends `response` and disconnects.
fn respond(response: impl AsRef<[u8]> + Send + 'static) -> Result<ClientResponse, Error> {
    let fixture = Fixture::new(move |stream| {
        let _ = stream.write_all(response.as_ref());
    });
    let response = fixture.client(LONG).request("GET", "/x", None);
    fixture.end();
    response
}

/// Server for one request.
struct Fixture {
    directory: Directory,
    serving: JoinHandle<String>,
}

impl Fixture {
    fn new(serve: impl FnOnce(&mut UnixStream) + Send + 'static) -> Self {
        let directory = Directory::new();
        let listener = UnixListener::bind(path(&directory)).unwrap();
        let serving = thread::spawn(move || {
            let mut stream = scratch::accept(&listener);
            limit(&stream);
            let request = read_request(&mut stream);
            serve(&mut stream);
            request
        });
        Self { directory, serving }
    }

    fn client(&self, timeout: Duration) -> Client {
        Client::new(path(&self.directory), timeout)
    }

    /// Returns the received request.
    fn end(self) -> String {
        scratch::join(self.serving)
    }
}

/// Limits each read and write of `stream`.
fn limit(stream: &UnixStream) {
    stream.set_read_timeout(Some(scratch::TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(scratch::TIMEOUT)).unwrap();
}

fn path(directory: &Directory) -> PathBuf {
    directory.path("api.sock")
}

/// Reads a request with `Content-Length`.
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
fn request_bytes_are_exact() {
    let fixture = Fixture::new(|stream| stream.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap());
    let client = fixture.client(LONG);
    let response = client
        .request("PUT", "/actions?x=1", Some(br#"{"a":1}"#))
        .unwrap();
    assert_eq!(
        fixture.end(),
        "PUT /actions?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}"
    );
    assert_eq!((response.status, response.body.len()), (204, 0));
    assert!(response.is_success());
}

#[test]
fn own_server_is_compatible() {
    let directory = Directory::new();
    let mut server = Server::bind(&path(&directory), HttpLimits::default()).unwrap();
    let client = Client::new(path(&directory), LONG);
    let requesting = thread::spawn(move || {
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
    scratch::wait_until("four responses", || {
        while events.is_ready() {
            server.serve(&mut echo);
        }
        echo.requests == 4 && requesting.is_finished()
    });
    let [none, small, big, head] = scratch::join(requesting);
    assert_eq!((none.status, none.body), (204, Vec::new()));
    assert_eq!(small.body, b"\"/a 5\"");
    assert_eq!((big.body.len(), head.body.len()), (BIG, 0));
}

#[test]
fn response_formats_are_accepted() {
    for (response, status, body) in [
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
        assert_eq!(respond(response).unwrap(), expected, "{response}");
        let fixture = Fixture::new(move |stream| {
            for byte in response.as_bytes() {
                // The client may have disconnected after a complete response.
                let _ = stream.write_all(&[*byte]);
            }
        });
        assert_eq!(
            fixture.client(LONG).request("GET", "/", None).unwrap(),
            expected,
            "{response}"
        );
        fixture.end();
    }
}

#[test]
fn early_rejection_is_read() {
    let directory = Directory::new();
    let listener = UnixListener::bind(path(&directory)).unwrap();
    let client = Client::new(path(&directory), LONG);
    // The body is larger than the socket buffer, so the server disconnects during the write.
    let requesting = thread::spawn(move || client.request("PUT", "/x", Some(&vec![b' '; 8 << 20])));
    let mut stream = scratch::accept(&listener);
    limit(&stream);
    stream.read_exact(&mut [0]).unwrap();
    stream
        .write_all(b"HTTP/1.1 400 \r\nContent-Length: 5\r\n\r\nlarge")
        .unwrap();
    drop(stream);
    assert_eq!(scratch::join(requesting).unwrap().body, b"large");
}

#[test]
fn invalid_response_fails() {
    for response in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "\u{0}\u{1}",
        "HTTP/3 200\r\n\r\n",
        "HTTP/1.1 20 x\r\n\r\n",
    ] {
        assert!(matches!(respond(response), Err(Error::Head(_))), "{response:?}");
    }
    for response in [
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: 1x",
        "Content-Length: 1\r\nContent-Length: 2",
        "Transfer-Encoding: chunked",
    ] {
        let full = format!("HTTP/1.1 200 \r\n{response}\r\n\r\n1\r\n");
        assert!(matches!(respond(full), Err(Error::Framing(_))), "{response:?}");
    }
}

#[test]
fn truncated_response_fails() {
    for response in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nfour",
    ] {
        let error = respond(response).unwrap_err();
        assert!(matches!(error, Error::Closed(_)), "{response:?}: {error}");
    }
}

#[test]
fn response_size_is_limited() {
    let length = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    assert!(matches!(respond(length), Err(Error::Large(MAX_BODY))));
    let endless = |start: &'static str, part: &'static [u8]| {
        let fixture = Fixture::new(move |stream| {
            let mut sent = stream.write_all(start.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(part);
            }
        });
        let error = fixture.client(LONG).request("GET", "/", None).unwrap_err();
        fixture.end();
        error
    };
    let body = endless("HTTP/1.1 200 \r\n\r\n", &[b'x'; 65536]);
    assert!(matches!(body, Error::Large(MAX_BODY)), "{body}");
    let head = endless("HTTP/1.1 200 \r\nName: ", &[b'x'; 100]);
    assert!(matches!(head, Error::Large(MAX_HEAD)), "{head}");
}

#[test]
fn silent_server_times_out() {
    for start in [
        "",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nx",
    ] {
        let directory = Directory::new();
        let listener = UnixListener::bind(path(&directory)).unwrap();
        let (done, over) = mpsc::channel::<()>();
        let serving = thread::spawn(move || {
            let mut stream = scratch::accept(&listener);
            // The client may have timed out already.
            let _ = stream.write_all(start.as_bytes());
            let _ = over.recv_timeout(scratch::TIMEOUT);
        });
        let error = Client::new(path(&directory), SHORT)
            .request("GET", "/", None)
            .unwrap_err();
        drop(done);
        scratch::join(serving);
        assert!(matches!(error, Error::Silent { .. }), "{start:?}: {error}");
        assert!(
            text(&error).contains("within 0.02 s: the server is stopped or busy"),
            "{error}"
        );
    }
}

#[test]
fn stalled_server_times_out() {
    let directory = Directory::new();
    let _listener = UnixListener::bind(path(&directory)).unwrap();
    let body = vec![b' '; 8 << 20];
    let error = Client::new(path(&directory), SHORT).request("PUT", "/", Some(&body));
    assert!(matches!(error, Err(Error::Silent { .. })));
}

#[test]
fn full_queue_times_out() {
    let directory = Directory::new();
    let listener = UnixListener::bind(path(&directory)).unwrap();
    // SAFETY: the call takes no pointer; a listening socket may be asked to listen again.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    // With a backlog of 0, the kernel still queues one connection.
    let _first = UnixStream::connect(path(&directory)).unwrap();
    let error = Client::new(path(&directory), SHORT).request("GET", "/", None);
    assert!(matches!(error, Err(Error::Silent { .. })));
}

fn failure(path: &Path) -> Error {
    Client::new(path, LONG).request("GET", "/", None).unwrap_err()
}

#[test]
fn connect_errors_name_remedy() {
    let directory = Directory::new();
    let missing = failure(&path(&directory));
    assert!(matches!(missing, Error::Missing(_)));
    assert!(
        text(&missing).contains("start mayfly with this path"),
        "{missing}"
    );
    assert!(matches!(
        failure(&directory.path("no/api.sock")),
        Error::Missing(_)
    ));

    fs::write(path(&directory), "").unwrap();
    assert!(matches!(failure(&path(&directory)), Error::NotSocket(_)));
    assert!(matches!(failure(&path(&directory).join("x")), Error::Missing(_)));
    assert!(matches!(failure(directory.root()), Error::NotSocket(_)));

    fs::remove_file(path(&directory)).unwrap();
    drop(UnixListener::bind(path(&directory)).unwrap());
    let stale = failure(&path(&directory));
    assert!(matches!(stale, Error::Refused(_)));
    assert!(text(&stale).contains("no process listens"), "{stale}");

    let long: PathBuf = iter::once("/").chain(iter::repeat_n("x", 107)).collect();
    let long = failure(&long);
    assert!(matches!(long, Error::Long { .. }), "{long}");
}

#[test]
fn connect_without_permission_is_denied() {
    let directory = Directory::new();
    let _listener = UnixListener::bind(path(&directory)).unwrap();
    fs::set_permissions(path(&directory), fs::Permissions::from_mode(0o000)).unwrap();
    // Permissions do not bind root.
    if let Err(error) = UnixStream::connect(path(&directory)) {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        let denied = failure(&path(&directory));
        assert!(text(&denied).contains("run as the user of mayfly"), "{denied}");
    }
}

#[test]
fn invalid_request_is_not_sent() {
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
    fn random_response_does_not_panic(bytes in any::<Vec<u8>>(), start in 0_usize..3) {
        let mut response = ["", "HTTP/1.1 200 \r\n", "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n"][start]
            .as_bytes()
            .to_vec();
        response.extend(bytes);
        let _ = respond(response);
    }
}

/// Returns the results of a pending request with `max_body` whose server sends `parts`, one after each part.
fn results_of_pending(parts: &[&str], max_body: usize) -> Vec<Option<Result<ClientResponse, Error>>> {
    let (client, mut server) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let request = ("GET", "/x", None);
    let mut pending = NonblockingRequest::send(client, Path::new("sock"), request, max_body).unwrap();
    limit(&server);
    assert!(read_request(&mut server).starts_with("GET /x HTTP/1.1\r\n"));
    assert!(pending.receive().is_none());
    let receive = |part: &&str| {
        server.write_all(part.as_bytes()).unwrap();
        pending.receive()
    };
    let mut results: Vec<_> = parts.iter().map(receive).collect();
    drop(server);
    results.push(pending.receive());
    results
}

#[test]
fn pending_request_never_blocks() {
    let parts = [
        "HTTP/1.1 100 \r\n\r\nHTTP/1.1 40",
        "0 \r\nContent-Length: 3\r\n\r\nn",
        "o.",
    ];
    let results = results_of_pending(&parts, 3);
    let [None, None, Some(Ok(response)), None] = results.as_slice() else {
        panic!("{results:?}");
    };
    assert_eq!((response.status, response.body.as_slice()), (400, &b"no."[..]));
    let results = results_of_pending(&["HTTP/1.1 200 \r\n\r\nall"], 3);
    let [None, Some(Ok(response))] = results.as_slice() else {
        panic!("{results:?}");
    };
    assert_eq!(response.body, b"all");
}

#[test]
fn pending_request_fails_with_its_connection() {
    for part in [
        "",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nno",
    ] {
        let results = results_of_pending(&[part], 3);
        assert!(
            matches!(results.as_slice(), [None, Some(Err(Error::Closed(path)))] if path == Path::new("sock")),
            "{results:?}"
        );
    }
    for part in [
        "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 \r\n\r\nlong",
    ] {
        let results = results_of_pending(&[part], 3);
        assert!(
            matches!(results.as_slice(), [Some(Err(Error::Large(3))), None]),
            "{results:?}"
        );
    }
    let (client, server) = UnixStream::pair().unwrap();
    drop(server);
    let error = NonblockingRequest::send(client, Path::new("sock"), ("GET", "/", None), 3).unwrap_err();
    assert!(matches!(error, Error::Closed(_)), "{error}");
}

#[test]
fn switched_connection_has_no_timeout() {
    let fixture = Fixture::new(|stream| {
        stream
            .write_all(b"HTTP/1.1 101 \r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            .unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let (response, mut stream) = switch(&path(&fixture.directory), LONG, "echo", "/switch", b"{}").unwrap();
    assert_eq!((response.status, response.body.len()), (101, 0));
    assert_eq!(
        (stream.read_timeout().unwrap(), stream.write_timeout().unwrap()),
        (None, None)
    );
    limit(&stream);
    stream.write_all(b"ping").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"ping");
    let request = fixture.end();
    assert!(
        request.contains("\r\nConnection: Upgrade\r\nUpgrade: echo\r\n") && request.ends_with("\r\n\r\n{}"),
        "{request}"
    );
}

#[test]
fn rejected_switch_has_its_response() {
    let fixture = Fixture::new(|stream| {
        stream
            .write_all(b"HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\nno")
            .unwrap();
    });
    let (response, _) = switch(&path(&fixture.directory), LONG, "echo", "/switch", b"{}").unwrap();
    assert_eq!((response.status, response.body.as_slice()), (400, &b"no"[..]));
    fixture.end();
}
