use super::*;

fn read(head: &str) -> Result<Head, RequestError> {
    parse(head.as_bytes(), &HttpLimits::default())
}

fn with(headers: &str) -> Result<Head, RequestError> {
    read(&format!("PUT /a HTTP/1.1\r\n{headers}\r\n"))
}

fn path(target: &str) -> Option<(String, Option<String>)> {
    let head = read(&format!("GET {target} HTTP/1.1\r\n\r\n")).ok()?;
    Some((head.request.path, head.request.query))
}

#[test]
fn methods_have_their_names() {
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
fn a_path_is_what_follows_the_host_and_comes_without_its_query() {
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
fn percent_signs_are_decoded_or_refused() {
    assert_eq!(path("/a%20b%c3%A9").unwrap().0, "/a b\u{e9}");
    for wrong in ["/%", "/%2", "/%zz", "/%+1", "/%ff", "/a%00", "/a%0d%0a"] {
        let refused = read(&format!("GET {wrong} HTTP/1.1\r\n\r\n"));
        assert!(matches!(refused, Err(RequestError::Path(_))), "{wrong}");
    }
}

#[test]
fn the_length_of_a_body_is_one_number() {
    let framing = |headers| with(headers).unwrap().framing;
    assert_eq!(framing(""), Framing::Length(0));
    assert_eq!(framing("CONTENT-length:51200\r\n"), Framing::Length(51200));
    assert_eq!(
        framing("Content-Length: 7 \r\ncontent-length: 07\r\n"),
        Framing::Length(7)
    );
    assert_eq!(framing("transfer-encoding:\tChunked\r\n"), Framing::Chunked);
    for wrong in ["", "x", "+1", "-1", "1 2", "1,1", "0x1", "99999999999999999999"] {
        let refused = with(&format!("Content-Length: {wrong}\r\n"));
        assert!(
            matches!(refused, Err(RequestError::ContentLength(_))),
            "{wrong:?}"
        );
    }
    for wrong in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    ] {
        assert!(matches!(with(wrong), Err(RequestError::Conflict)), "{wrong:?}");
    }
    for wrong in [
        "gzip",
        "gzip, chunked",
        "identity",
        "chunked\r\nTransfer-Encoding: chunked",
    ] {
        let refused = with(&format!("Transfer-Encoding: {wrong}\r\n"));
        assert!(
            matches!(refused, Err(RequestError::TransferEncoding(_))),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_body_over_the_limit_is_refused_in_the_words_that_clients_know() {
    let refusal = with("Content-Length: 51201\r\n").unwrap_err();
    assert_eq!(
        refusal.text(),
        "Request payload with size 51201 is larger than the limit of 51200 allowed by server.\n\
         All previous unanswered requests will be dropped."
    );
}

#[test]
fn a_client_may_wait_for_a_word_and_say_that_it_is_done() {
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
    assert!(last("GET / HTTP/1.0\r\n\r\n"));
    assert!(!last("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
}

#[test]
fn what_is_not_http_is_refused() {
    for wrong in [
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
        let refusal = read(wrong).unwrap_err();
        assert!(matches!(refusal, RequestError::Head(_)), "{wrong:?}");
        assert!(
            refusal
                .text()
                .starts_with("The head of the request is not HTTP/1.1: ")
        );
    }
    let latin = parse(b"GET / HTTP/1.1\r\na: \xe9\r\n\r\n", &HttpLimits::default());
    assert!(matches!(latin, Err(RequestError::NotText)));
    let crowd = "a:b\r\n".repeat(HEADERS + 1);
    assert!(matches!(
        with(&crowd),
        Err(RequestError::Head(httparse::Error::TooManyHeaders))
    ));
    assert!(with(&"a:b\r\n".repeat(HEADERS)).is_ok());
}
