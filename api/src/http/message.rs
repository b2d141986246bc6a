//! Requests and responses. Responses are byte for byte those of Firecracker, unless the server has [another
//! name](super::Server::named).

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::Write as _;

/// Method of a request, case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Set.
    Put,
    /// Change in part.
    Patch,
    /// Remove.
    Delete,
    /// Any other method: a name that is never empty and has only the characters that HTTP permits.
    Other(String),
}

impl Method {
    /// Converts from a name.
    pub fn new(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Request with its complete body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Percent-decoded path without the query. Starts with `/`, unless the client sent another target. For
    /// `http://host/path` it is `/path`.
    pub path: String,
    /// Text after the first `?`, not decoded.
    pub query: Option<String>,
    /// Body of at most [`HttpLimits::body`](super::HttpLimits::body) bytes, empty if absent.
    pub body: Vec<u8>,
    /// Protocol that the client requests for the connection: the header `Upgrade`.
    pub upgrade: Option<String>,
}

/// Maximum length of the head of a response in bytes; the longest has about 150.
const MAX_HEAD: usize = 256;

/// Default content type.
const JSON: &str = "application/json";

/// Response to `Expect: 100-continue`.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 \r\n\r\n";

/// Default header `Server`: clients may expect that of Firecracker.
pub(super) const SERVER: &str = "Firecracker API";

/// Returns the response of the server `name` to a client above the limit.
pub(super) fn too_many(name: &str) -> String {
    format!(
        "HTTP/1.1 503 \r\nServer: {name}\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
         {{ \"error\": \"Too many open connections\" }}"
    )
}

/// Response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content: Option<Content>,
    deprecated: bool,
    closing: bool,
    /// Protocol of the connection after the response.
    protocol: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    kind: &'static str,
    body: Cow<'static, [u8]>,
}

impl Response {
    fn new(status: u16, content: Option<Content>) -> Self {
        Self {
            status,
            content,
            deprecated: false,
            closing: false,
            protocol: None,
        }
    }

    /// Creates a response with the status 204. Clients fail if it has a body or a `Content-Length`.
    pub fn no_content() -> Self {
        Self::new(204, None)
    }

    /// Creates a response with the status 101, after which the connection has another protocol.
    pub fn switch_to(protocol: &'static str) -> Self {
        Self {
            protocol: Some(protocol),
            ..Self::new(101, None)
        }
    }

    /// Returns true if the connection has another protocol after the response.
    pub(super) fn is_switch(&self) -> bool {
        self.protocol.is_some()
    }

    /// Creates a response with `status`, 200 to 599, and a JSON text.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let kind = JSON;
        let body = Cow::Owned(body.into());
        Self::new(status, Some(Content { kind, body }))
    }

    /// Creates a response with the status 400 and `text` as `fault_message`, the key that clients read.
    pub fn fault(text: &str) -> Self {
        let mut body = String::from("{\"fault_message\":");
        quote(&mut body, text);
        body.push('}');
        Self::json(400, body)
    }

    /// Creates a response with the status 200 and a body of any type.
    pub fn text(content_type: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        let content = Content {
            kind: content_type,
            body: body.into(),
        };
        Self::new(200, Some(content))
    }

    /// Creates a response with `status` to an invalid HTTP request. Firecracker has only the key `error` here, which its clients do
    /// not read.
    pub(super) fn invalid_request(status: u16, text: &str) -> Self {
        let mut body = String::from("{\"error\":");
        quote(&mut body, text);
        body.push_str(",\"fault_message\":");
        quote(&mut body, text);
        body.push('}');
        Self::json(status, body)
    }

    /// Announces the end of the connection.
    #[must_use]
    pub(super) fn closing(mut self) -> Self {
        self.closing = true;
        self
    }

    /// Adds the header `Deprecation: true`.
    #[must_use]
    pub fn deprecated(mut self) -> Self {
        self.deprecated = true;
        self
    }

    /// Returns the status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns true if the request had a deprecated key.
    pub fn is_deprecated(&self) -> bool {
        self.deprecated
    }

    /// Returns the body, empty if absent.
    pub fn body(&self) -> &[u8] {
        self.content.as_ref().map_or(&[], |content| &content.body)
    }

    /// Appends the response of the server `name` to `output`, without the body if `head_only` is true, as for HEAD.
    ///
    /// # Errors
    /// Fails with the required number of bytes if there is no memory for them; `output` is unchanged.
    pub(super) fn write(&self, output: &mut Vec<u8>, name: &str, head_only: bool) -> Result<(), usize> {
        let length = MAX_HEAD + if head_only { 0 } else { self.body().len() };
        output.try_reserve(length).map_err(|_| length)?;
        // Firecracker sends keep-alive even after `Connection: close`; such a client ignores the header. A client that
        // did not request the end must read it here, or its next request is lost.
        let connection = match self.protocol {
            Some(_) => "Upgrade",
            None if self.closing => "close",
            None => "keep-alive",
        };
        let deprecation = if self.deprecated {
            "Deprecation: true\r\n"
        } else {
            ""
        };
        // Writing to a vector cannot fail.
        let _ = write!(
            output,
            "HTTP/1.1 {} \r\nServer: {name}\r\nConnection: {connection}\r\n{deprecation}",
            self.status
        );
        if let Some(protocol) = self.protocol {
            let _ = write!(output, "Upgrade: {protocol}\r\n");
        }
        if let Some(Content { kind, body }) = &self.content {
            let _ = write!(
                output,
                "Content-Type: {kind}\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        output.extend_from_slice(b"\r\n");
        if !head_only {
            output.extend_from_slice(self.body());
        }
        Ok(())
    }
}

/// Appends `text` to `json` as a JSON string.
fn quote(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            control if control < ' ' => {
                // Writing to a string cannot fail.
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(response: &Response) -> String {
        let mut output = Vec::new();
        response.write(&mut output, SERVER, false).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn no_content_has_no_type_or_length() {
        assert_eq!(
            bytes(&Response::no_content()),
            "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            bytes(&Response::no_content().deprecated()),
            "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n"
        );
    }

    #[test]
    fn body_has_type_and_length() {
        assert_eq!(
            bytes(&Response::json(200, "{}")),
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            bytes(&Response::text("text/plain; version=0.0.4", b"up 1\n").deprecated()),
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\
             Content-Type: text/plain; version=0.0.4\r\nContent-Length: 5\r\n\r\nup 1\n"
        );
    }

    #[test]
    fn head_only_keeps_length() {
        let mut output = Vec::new();
        Response::json(400, "{}")
            .write(&mut output, SERVER, true)
            .unwrap();
        assert!(output.ends_with(b"Content-Length: 2\r\n\r\n"));
    }

    #[test]
    fn fault_text_is_escaped() {
        let fault = Response::fault("no \"kernel\" in C:\\\n\u{1}\u{7f}\u{e9}");
        assert_eq!(fault.status(), 400);
        assert_eq!(
            String::from_utf8_lossy(fault.body()),
            "{\"fault_message\":\"no \\\"kernel\\\" in C:\\\\\\n\\u0001\u{7f}\u{e9}\"}"
        );
    }

    #[test]
    fn invalid_request_has_both_keys() {
        let response = Response::invalid_request(400, "bad").closing();
        assert_eq!(response.body(), br#"{"error":"bad","fault_message":"bad"}"#);
        assert!(
            bytes(&response).starts_with("HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\n")
        );
    }

    #[test]
    fn too_many_has_exact_length() {
        let text = too_many(SERVER);
        assert_eq!(text.split_once("\r\n\r\n").unwrap().1.len(), 40);
    }
}
