//! HTTP server.
//!
//! The boundaries of reads do not matter: requests and responses are the same if the client sends all bytes at once, in pieces,
//! or one by one. A request has one meaning: its canonical form is accepted and equals it. Bodies stay within the limit.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use api::http::{Handler, HttpLimits, Reply, Request, Response, Server};
use scratch::Directory;

use super::input::Input;

pub const DICTIONARY: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n\r\n",
    b"PUT /",
    b"PATCH /",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"http://",
    b"%2f",
    b"%00",
    b"ffffffffffffffff\r\n",
];

/// Low limits, which short inputs reach.
const LIMITS: HttpLimits = HttpLimits {
    body: 600,
    head: 500,
    line: 200,
    connections: 10,
};

/// Answers each request with its number.
#[derive(Default)]
struct Recorder(Vec<Request>);

impl Handler for Recorder {
    fn handle(&mut self, request: &Request) -> Reply {
        self.0.push(request.clone());
        Reply::Response(Response::json(200, self.0.len().to_string()))
    }

    fn cancel(&mut self) {}
}

/// A server with a path to it.
struct Service {
    server: Server,
    path: PathBuf,
    _directory: Directory,
}

impl Service {
    fn new(limits: HttpLimits) -> Self {
        let directory = Directory::new();
        let path = directory.path("socket");
        Self {
            server: Server::bind(&path, limits).expect("cannot listen"),
            path,
            _directory: directory,
        }
    }

    /// Sends `pieces` over one connection. Returns all requests and the response bytes.
    fn exchange<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Request>, Vec<u8>) {
        let mut recorder = Recorder::default();
        let mut client = UnixStream::connect(&self.path).expect("cannot connect");
        client.set_nonblocking(true).expect("cannot change the socket");
        self.server.serve(&mut recorder);
        let mut response = Vec::new();
        for piece in pieces {
            // The server closes the connection after an invalid request.
            let is_open = client.write_all(piece).is_ok();
            self.server.serve(&mut recorder);
            drain(&mut client, &mut response);
            if !is_open {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Write);
        for _ in 0..3 {
            self.server.serve(&mut recorder);
            drain(&mut client, &mut response);
        }
        drop(client);
        self.server.serve(&mut recorder);
        (recorder.0, response)
    }
}

/// Reads all available bytes. The server may have reset the connection.
fn drain(client: &mut UnixStream, response: &mut Vec<u8>) {
    match client.read_to_end(response) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => {}
        Err(error) => panic!("cannot read the response: {error}"),
    }
}

thread_local! {
    static STRICT: RefCell<Service> = RefCell::new(Service::new(LIMITS));
    static DEFAULT: RefCell<Service> = RefCell::new(Service::new(HttpLimits::default()));
}

/// The first byte gives the length of the pieces.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let length = usize::from(input.u8() % 64) + 1;
    let stream = input.bytes(bytes.len());
    let expected = STRICT.with_borrow_mut(|service| service.exchange([stream].into_iter()));
    let found = STRICT.with_borrow_mut(|service| service.exchange(stream.chunks(length)));
    assert_eq!(found, expected, "pieces of {length} bytes");
    for request in &expected.0 {
        assert!(request.body.len() <= LIMITS.body);
        let canonical = canonical(request);
        let (found, _) =
            DEFAULT.with_borrow_mut(|service| service.exchange([canonical.as_slice()].into_iter()));
        assert_eq!(found.as_slice(), std::slice::from_ref(request));
    }
}

/// Returns the canonical form of `request`.
fn canonical(request: &Request) -> Vec<u8> {
    let mut head = format!("{} ", request.method);
    for byte in request.path.bytes() {
        match byte {
            b'/' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => head.push(byte.into()),
            _ => write!(head, "%{byte:02x}").expect("a string accepts all text"),
        }
    }
    if let Some(query) = &request.query {
        write!(head, "?{query}").expect("a string accepts all text");
    }
    let length = request.body.len();
    write!(head, " HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").expect("a string accepts all text");
    [head.as_bytes(), &request.body].concat()
}
