//! HTTP over a unix socket, with nothing between the test and the bytes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::guest::LIMIT;

/// All of the answer to what was done and has nothing to tell.
pub const DONE: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

/// All of the answer `status` with the JSON text `body`.
pub fn json(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// All of the answer to what is refused because of `why`.
pub fn fault(why: &str) -> String {
    json(
        400,
        &format!("{{\"fault_message\":{}}}", serde_json::Value::from(why)),
    )
}

/// A request as Go's client writes it, which all orchestrators but two are built on.
pub fn go(method: &str, path: &str, body: &str) -> String {
    let host = "Host: localhost\r\nUser-Agent: Go-http-client/1.1\r\n";
    match body {
        "" => format!(
            "{method} {path} HTTP/1.1\r\n{host}Accept: application/json\r\nAccept-Encoding: gzip\r\n\r\n"
        ),
        body => format!(
            "{method} {path} HTTP/1.1\r\n{host}Content-Length: {}\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
            body.len()
        ),
    }
}

/// One answer, as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// All of its bytes.
    pub text: String,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.text["HTTP/1.1 ".len()..][..3].parse().unwrap()
    }

    pub fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").unwrap().1
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.body()).unwrap()
    }

    pub fn fault(&self) -> String {
        self.json()["fault_message"].as_str().unwrap().to_owned()
    }
}

/// One connection. An answer that does not come in time fails the test.
pub struct Client(UnixStream);

impl Client {
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads one answer, and no byte of the next.
    pub fn receive(&mut self) -> Answer {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if let Err(error) = self.0.read_exact(&mut byte) {
                panic!("{error} after {:?}", String::from_utf8_lossy(&bytes));
            }
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).unwrap();
        Answer {
            text: head + std::str::from_utf8(&body).unwrap(),
        }
    }

    /// All that still comes, until the other side ends the connection.
    pub fn rest(mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            // What was never read of this side's bytes makes the end a reset.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8(bytes).unwrap(),
        }
    }

    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(go(method, path, body));
        self.receive()
    }
}
