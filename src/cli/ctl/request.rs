//! A request, and what its answer means.

use std::fmt::Write as _;
use std::io::Read;

use api::client::{Client, ClientResponse};
use serde_json::Value;

use super::{Error, RequestBody, table};

/// The longest body that is read from stdin, in bytes.
pub(super) const MAX_STDIN: u64 = 16 << 20;

/// A request to the API.
pub(super) struct Request {
    method: String,
    path: String,
    body: Option<Vec<u8>>,
}

impl Request {
    pub(super) fn new(method: &str, path: &str, body: Option<Vec<u8>>) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            body,
        }
    }

    pub(super) fn get(path: &str) -> Self {
        Self::new("GET", path, None)
    }

    pub(super) fn put(path: &str, body: &Value) -> Self {
        Self::new("PUT", path, Some(body.to_string().into_bytes()))
    }

    pub(super) fn patch(path: &str, body: &Value) -> Self {
        Self::new("PATCH", path, Some(body.to_string().into_bytes()))
    }

    /// Sends it and returns the body of the answer, if the server did what it was asked for.
    pub(super) fn send(&self, client: &Client) -> Result<Vec<u8>, Error> {
        let answer = client.request(&self.method, &self.path, self.body.as_deref());
        let answer = answer.map_err(Error::Client)?;
        if answer.is_success() {
            return Ok(answer.body);
        }
        Err(match fault(&answer) {
            Some(text) => Error::Refused(text),
            None => Error::Status {
                request: self.name(),
                status: answer.status,
            },
        })
    }

    /// As [`Self::send`], for an answer in JSON.
    pub(super) fn json(&self, client: &Client) -> Result<Value, Error> {
        serde_json::from_slice(&self.send(client)?).map_err(|source| Error::Json {
            request: self.name(),
            source,
        })
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Where servers say why they refuse. Firecracker has the errors of its HTTP under the second key.
fn fault(answer: &ClientResponse) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let text = ["fault_message", "error"]
        .iter()
        .find_map(|key| body[key].as_str())?;
    Some(table::printable(text.trim_end()))
}

/// `id` as one segment of a path, RFC 3986 section 3.3.
pub(super) fn segment(id: &str) -> String {
    let mut segment = String::new();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

/// The bytes that `body` stands for.
pub(super) fn read(body: &RequestBody, stdin: &mut dyn Read) -> Result<Option<Vec<u8>>, Error> {
    match body {
        RequestBody::None => Ok(None),
        RequestBody::Text(text) => Ok(Some(text.as_bytes().to_vec())),
        RequestBody::Stdin => {
            let mut bytes = Vec::new();
            let read = stdin.take(MAX_STDIN + 1).read_to_end(&mut bytes);
            if read.map_err(Error::Stdin)? as u64 > MAX_STDIN {
                return Err(Error::Large(MAX_STDIN));
            }
            Ok(Some(bytes))
        }
    }
}
