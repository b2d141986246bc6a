use crate::http::Method;
use crate::http::parser::*;

fn read(head: &str) -> Result<Head, RequestError> {
    parse_head(head.as_bytes(), &HttpLimits::default())
}

fn with(headers: &str) -> Result<Head, RequestError> {
    read(&format!("PUT /a HTTP/1.1\r\n{headers}\r\n"))
}

fn path(target: &str) -> Option<(String, Option<String>)> {
    let head = read(&format!("GET {target} HTTP/1.1\r\n\r\n")).ok()?;
    Some((head.request.path, head.request.query))
}

#[test]
fn methods_keep_names() {
    for name in ["GET", "PUT", "PATCH", "DELETE", "POST", "get", "X-Y"] {
        let head = read(&format!("{name} / HTTP/1.1\r\n\r\n")).unwrap();
        assert_eq!(head.request.method.to_string(), name);
    }
    let known = read("PATCH / HTTP/1.1\r\n\r\n").unwrap().request.method;
    assert_eq!(known, Method::Patch);
    let unknown = read("get / HTTP/1.1\r\n\r\n").unwrap().request.method;
    assert_eq!(unknown, Method::Other("get".to_owned()));
}

#[test]
fn target_is_split_into_path_and_query() {
    let plain = |text: &str| Some((text.to_owned(), None));
    let queried = |text: &str, query: &str| Some((text.to_owned(), Some(query.to_owned())));
    assert_eq!(path("/"), plain("/"));
    assert_eq!(path("/drives/root-1"), plain("/drives/root-1"));
    assert_eq!(path("http://localhost/machine-config"), plain("/machine-config"));
    assert_eq!(path("http://localhost"), plain("/"));
    assert_eq!(path("HTTP://unix/a?b=/c"), queried("/a", "b=/c"));
    assert_eq!(path("http://unix?b"), queried("/", "b"));
    assert_eq!(path("/a?b?c%"), queried("/a", "b?c%"));
    assert_eq!(path("/a://b"), plain("/a://b"));
    assert_eq!(path("*"), plain("*"));
    assert_eq!(path("foo"), plain("foo"));
}

#[test]
fn percent_encoding_is_decoded() {
    assert_eq!(path("/a%20b%c3%A9").unwrap().0, "/a b\u{e9}");
    for invalid in ["/%", "/%2", "/%zz", "/%+1", "/%ff", "/a%00", "/a%0d%0a"] {
        let rejected = read(&format!("GET {invalid} HTTP/1.1\r\n\r\n"));
        assert!(matches!(rejected, Err(RequestError::Path(_))), "{invalid}");
    }
}

#[test]
fn framing_headers_are_checked() {
    let framing = |headers| with(headers).unwrap().framing;
    assert_eq!(framing(""), Framing::Length(0));
    assert_eq!(framing("CONTENT-length:51200\r\n"), Framing::Length(51200));
    assert_eq!(
        framing("Content-Length: 7 \r\ncontent-length: 07\r\n"),
        Framing::Length(7)
    );
    assert_eq!(framing("transfer-encoding:\tChunked\r\n"), Framing::Chunked);
    for invalid in ["", "x", "+1", "-1", "1 2", "1,1", "0x1", "99999999999999999999"] {
        let rejected = with(&format!("Content-Length: {invalid}\r\n"));
        assert!(
            matches!(rejected, Err(RequestError::ContentLength(_))),
            "{invalid:?}"
        );
    }
    for invalid in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    ] {
        assert!(
            matches!(with(invalid), Err(RequestError::Conflict)),
            "{invalid:?}"
        );
    }
    for invalid in [
        "gzip",
        "gzip, chunked",
        "identity",
        "chunked\r\nTransfer-Encoding: chunked",
    ] {
        let rejected = with(&format!("Transfer-Encoding: {invalid}\r\n"));
        assert!(
            matches!(rejected, Err(RequestError::TransferEncoding(_))),
            "{invalid:?}"
        );
    }
}

#[test]
fn oversized_body_message_is_exact() {
    let error = with("Expect: 100-continue\r\nContent-Length: 51201\r\n").unwrap_err();
    assert_eq!(
        error.text(),
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\n\
         All previous unanswered requests will be dropped."
    );
}

#[test]
fn expect_and_connection_headers_are_read() {
    let expects = |head: &str| read(head).unwrap().expects;
    assert!(expects(
        "PUT / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"
    ));
    assert!(expects(
        "PUT / HTTP/1.1\r\nexpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    ));
    assert!(!expects("PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n"));
    assert!(!expects(
        "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    ));
    let last = |head: &str| read(head).unwrap().last;
    assert!(!last("GET / HTTP/1.1\r\n\r\n"));
    assert!(last("GET / HTTP/1.1\r\nConnection: TE, Close\r\n\r\n"));
    assert!(!last("GET / HTTP/1.0\r\n\r\n"));
    assert!(last("GET / HTTP/1.0\r\nConnection: close\r\n\r\n"));
    assert!(!last("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
}

#[test]
fn invalid_head_is_rejected() {
    for invalid in [
        "GET /\r\n\r\n",
        " GET / HTTP/1.1\r\n\r\n",
        " / HTTP/1.1\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n: no name\r\n\r\n",
        "GET / HTTP/1.1\r\nspace : before\r\n\r\n",
        "GET / HTTP/1.1\r\na: folded\r\n line\r\n\r\n",
        "GET / HTTP/1.1\r\na: nul\0\r\n\r\n",
        "GET /\0 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\rc\r\n\r\n",
    ] {
        let error = read(invalid).unwrap_err();
        assert!(matches!(error, RequestError::Head(_)), "{invalid:?}");
        assert!(
            error
                .text()
                .starts_with("The head of the request is not HTTP/1.1: ")
        );
    }
    let latin = parse_head(b"GET / HTTP/1.1\r\na: \xe9\r\n\r\n", &HttpLimits::default());
    assert!(matches!(latin, Err(RequestError::NotText)));
    let crowd = "a:b\r\n".repeat(HEADERS + 1);
    assert!(matches!(
        with(&crowd),
        Err(RequestError::Head(httparse::Error::TooManyHeaders))
    ));
    assert!(with(&"a:b\r\n".repeat(HEADERS)).is_ok());
}
