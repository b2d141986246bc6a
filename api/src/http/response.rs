//! What a client is answered, byte for byte as Firecracker writes it.

use std::fmt::Write as _;
use std::io::Write as _;

/// The type of all answers but those that say otherwise.
const JSON: &str = "application/json";

/// Tells a client that its body is welcome.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 \r\n\r\n";

/// Tells a client that there is no room for one more.
pub(super) const TOO_MANY: &[u8] = b"HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\n\
    Content-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }";

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content: Option<Content>,
    deprecated: bool,
    closing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    kind: &'static str,
    body: Vec<u8>,
}

impl Response {
    fn new(status: u16, content: Option<Content>) -> Self {
        Self {
            status,
            content,
            deprecated: false,
            closing: false,
        }
    }

    /// 204: done, and there is nothing to tell. Clients fail if this has a body, or a length of one.
    pub fn no_content() -> Self {
        Self::new(204, None)
    }

    /// A status from 200 to 599 with a JSON text, which is sent as it is.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let kind = JSON;
        let body = body.into();
        Self::new(status, Some(Content { kind, body }))
    }

    /// 400 with `text` as the `fault_message`, which is where clients look for it.
    pub fn fault(text: &str) -> Self {
        let mut body = String::from("{\"fault_message\":");
        quote(&mut body, text);
        body.push('}');
        Self::json(400, body)
    }

    /// 200 with a body of any type.
    pub fn text(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let content = Content {
            kind: content_type,
            body: body.into(),
        };
        Self::new(200, Some(content))
    }

    /// 400 to what is not HTTP, after which the connection ends. Firecracker has such texts under `error`, where
    /// its clients do not find them.
    pub(super) fn refusal(text: &str) -> Self {
        let mut body = String::from("{\"error\":");
        quote(&mut body, text);
        body.push_str(",\"fault_message\":");
        quote(&mut body, text);
        body.push('}');
        let mut response = Self::json(400, body);
        response.closing = true;
        response
    }

    /// The same, and the client learns that it asked for something that will go.
    #[must_use]
    pub fn deprecated(mut self) -> Self {
        self.deprecated = true;
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, empty if there is none.
    pub fn body(&self) -> &[u8] {
        self.content.as_ref().map_or(&[], |content| &content.body)
    }

    /// Appends the answer to `output`; without the body if `head_only`, as the answer to HEAD has to be.
    pub(super) fn write(&self, output: &mut Vec<u8>, head_only: bool) {
        // Firecracker says keep-alive even to a client that asked for the end of the connection, and such a client does
        // not read it. One that did not ask must be told, or it takes the connection for good and loses its next request.
        let connection = if self.closing { "close" } else { "keep-alive" };
        let deprecation = if self.deprecated {
            "Deprecation: true\r\n"
        } else {
            ""
        };
        // Writing to a vector cannot fail.
        let _ = write!(
            output,
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n{deprecation}",
            self.status
        );
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
        response.write(&mut output, false);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn nothing_to_tell_has_neither_type_nor_length() {
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
    fn a_body_comes_with_its_type_and_length() {
        assert_eq!(
            bytes(&Response::json(200, "{}")),
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            bytes(&Response::text("text/plain; version=0.0.4", "up 1\n").deprecated()),
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\
             Content-Type: text/plain; version=0.0.4\r\nContent-Length: 5\r\n\r\nup 1\n"
        );
    }

    #[test]
    fn the_answer_to_head_has_the_length_of_a_body_that_is_not_there() {
        let mut output = Vec::new();
        Response::json(400, "{}").write(&mut output, true);
        assert!(output.ends_with(b"Content-Length: 2\r\n\r\n"));
    }

    #[test]
    fn a_fault_is_a_json_object_whatever_its_text() {
        let fault = Response::fault("no \"kernel\" in C:\\\n\u{1}\u{7f}\u{e9}");
        assert_eq!(fault.status(), 400);
        assert_eq!(
            String::from_utf8_lossy(fault.body()),
            "{\"fault_message\":\"no \\\"kernel\\\" in C:\\\\\\n\\u0001\u{7f}\u{e9}\"}"
        );
    }

    #[test]
    fn a_refusal_has_both_keys_and_ends_the_connection() {
        let refusal = Response::refusal("bad");
        assert_eq!(refusal.body(), br#"{"error":"bad","fault_message":"bad"}"#);
        assert!(
            bytes(&refusal).starts_with("HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\n")
        );
    }

    #[test]
    fn the_constant_answer_has_the_length_it_says() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        assert_eq!(text.split_once("\r\n\r\n").unwrap().1.len(), 40);
    }
}
