//! HTTP client on a Unix socket that checks each byte.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::guest::TIMEOUT;

/// The complete 204 response.
pub const NO_CONTENT: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

/// Returns the complete response with `status` and the JSON text `body`.
pub fn json_response(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns the complete 400 response with the fault message `message`.
pub fn fault_response(message: &str) -> String {
    json_response(
        400,
        &format!("{{\"fault_message\":{}}}", serde_json::Value::from(message)),
    )
}

/// Returns a request in the format of Go's client, which most orchestrators use.
pub fn go_request(method: &str, path: &str, body: &str) -> String {
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

/// A received response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Head and body.
    pub text: String,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.text["HTTP/1.1 ".len()..][..3].parse().unwrap()
    }

    pub fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").unwrap().1
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.body()).unwrap()
    }

    pub fn fault_message(&self) -> String {
        self.json()["fault_message"].as_str().unwrap().to_owned()
    }
}

/// A connection. A late response fails the test.
pub struct Client(UnixStream);

impl Client {
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(stream))
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads one response and no byte of the next.
    pub fn receive(&mut self) -> Response {
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
        Response {
            text: head + std::str::from_utf8(&body).unwrap(),
        }
    }

    /// Returns all remaining bytes up to the end of the connection.
    pub fn read_to_end(mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            // The kernel resets a connection that the server closes with unread bytes.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8(bytes).unwrap(),
        }
    }

    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Response {
        self.send(go_request(method, path, body));
        self.receive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Until its execve, a child that another test starts has all descriptors of this process. A close alone would not disconnect.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
