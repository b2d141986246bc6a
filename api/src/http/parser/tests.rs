mod head;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

fn limits() -> HttpLimits {
    HttpLimits {
        body: 512,
        ..HttpLimits::default()
    }
}

/// Feeds `parts` to a parser. Returns all steps, and the error at the end.
fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Step, String>> {
    let mut parser = Parser::new(limits());
    let mut steps = Vec::new();
    for part in parts {
        parser.feed(part).unwrap();
        loop {
            match parser.next() {
                Ok(Step::Incomplete) => break,
                Ok(step) => steps.push(Ok(step)),
                Err(error) => {
                    steps.push(Err(error.text()));
                    return steps;
                }
            }
        }
    }
    steps
}

fn read_text(text: &str) -> Vec<Result<Step, String>> {
    read([text.as_bytes()])
}

fn request(method: Method, path: &str, body: &str) -> Result<Step, String> {
    Ok(Step::Request {
        request: Request {
            method,
            path: path.to_owned(),
            query: None,
            body: body.into(),
            upgrade: None,
        },
        last: false,
    })
}

fn chunks(text: &str) -> Vec<Result<Step, String>> {
    read_text(&format!(
        "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{text}"
    ))
}

#[test]
fn pipelined_requests_are_separated() {
    let steps = read_text(
        "\r\nPUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n",
    );
    assert_eq!(
        steps,
        [request(Method::Put, "/a", "{}"), request(Method::Get, "/b", "")]
    );
}

#[test]
fn continue_precedes_body_once() {
    let mut parser = Parser::new(limits());
    parser
        .feed(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    assert_eq!(parser.next().unwrap(), Step::Continue);
    assert_eq!(parser.next().unwrap(), Step::Incomplete);
    assert!(parser.is_partial());
    parser.feed(b"{").unwrap();
    assert_eq!(parser.next().unwrap(), Step::Incomplete);
    parser.feed(b"}").unwrap();
    assert!(matches!(parser.next().unwrap(), Step::Request { request, .. } if request.body == b"{}"));
    assert!(!parser.is_partial());
}

#[test]
fn oversized_body_gets_no_continue() {
    let steps = read_text("PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 513\r\n\r\n");
    assert_eq!(steps.len(), 1);
    assert!(
        steps[0]
            .as_ref()
            .unwrap_err()
            .starts_with("Request payload with size 513")
    );
}

#[test]
fn oversized_body_is_discarded() {
    let body = "GET / HTTP/1.1\r\n".repeat(40);
    let mut parser = Parser::new(limits());
    let text = format!("PUT /a HTTP/1.1\r\nContent-Length: 640\r\n\r\n{body}GET /b HTTP/1.1\r\n\r\n");
    let rejected = Step::Rejected {
        error: RequestError::Large {
            size: 640,
            limit: 512,
        },
        last: false,
    };
    // In one part, and byte by byte.
    assert_eq!(read_text(&text), [Ok(rejected), request(Method::Get, "/b", "")]);
    let (head, rest) = text.split_at(text.find(&body).unwrap());
    parser.feed(head.as_bytes()).unwrap();
    assert!(matches!(parser.next().unwrap(), Step::Rejected { .. }));
    for byte in rest[..640].bytes() {
        assert!(parser.is_discarding() && parser.is_partial());
        parser.feed(&[byte]).unwrap();
        assert_eq!(parser.next().unwrap(), Step::Incomplete);
        assert!(parser.footprint() <= KEPT_CAPACITY);
    }
    assert!(!parser.is_partial());
    // A longer body is not discarded.
    let long = format!("PUT /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_DISCARDED + 1);
    assert!(read_text(&long)[0].is_err());
    let longest = format!("PUT /a HTTP/1.1\r\nContent-Length: {MAX_DISCARDED}\r\n\r\n");
    assert!(read_text(&longest)[0].is_ok());
}

#[test]
fn chunks_are_joined() {
    let text = "3;a=\"b\"\r\n{\"a\r\n0A\r\n\":12345678\r\n1 ;x\r\n}\r\n0\r\n";
    assert_eq!(
        chunks(&format!("{text}\r\n")),
        [request(Method::Put, "/a", "{\"a\":12345678}")]
    );
    assert_eq!(
        chunks(&format!("{text}Digest: x\r\ny:\r\n\r\n")),
        [request(Method::Put, "/a", "{\"a\":12345678}")]
    );
    assert_eq!(chunks("0\r\n\r\n"), [request(Method::Put, "/a", "")]);
}

#[test]
fn invalid_chunks_are_rejected() {
    for invalid in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\n",
        "1 2\r\n",
        ";\r\n",
        "1;\x07\r\na\r\n",
        "10000000000000000\r\n",
        "1\r\nab\r\n",
        "1\r\na0\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\n: x\r\n\r\n",
        "0\r\na b: x\r\n\r\n",
    ] {
        let steps = chunks(invalid);
        assert!(
            steps[0].as_ref().unwrap_err().starts_with("Invalid chunk"),
            "{invalid:?}: {steps:?}"
        );
    }
    assert!(chunks("1\na")[0].is_err());
}

#[test]
fn chunks_have_limits() {
    let large = chunks(&format!("100\r\n{}\r\n101\r\n", "x".repeat(256)));
    assert!(
        large[0]
            .as_ref()
            .unwrap_err()
            .starts_with("Request payload with size 513")
    );
    let huge = chunks("1\r\nx\r\nffffffffffffffff\r\n");
    assert!(
        huge[0]
            .as_ref()
            .unwrap_err()
            .contains("size 18446744073709551615")
    );
    let fits = chunks(&format!("200\r\n{}\r\n0\r\n\r\n", "x".repeat(512)));
    assert_eq!(fits, [request(Method::Put, "/a", &"x".repeat(512))]);
    let trailers = chunks(&format!(
        "0\r\n{}\r\n",
        format!("a: {}\r\n", "x".repeat(1000)).repeat(9)
    ));
    assert!(trailers[0].as_ref().unwrap_err().starts_with("The trailer"));
    let extension = chunks(&format!("1;{}\r\n", "x".repeat(1024)));
    assert!(extension[0].as_ref().unwrap_err().starts_with("The line"));
}

#[test]
fn head_has_limits() {
    let line = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(length - 14));
    assert!(read_text(&line(1024))[0].is_ok());
    assert!(
        read_text(&line(1025))[0]
            .as_ref()
            .unwrap_err()
            .starts_with("The line")
    );
    assert!(read_text(&"x".repeat(1026))[0].is_err());
    let header = format!("a: {}\r\n", "x".repeat(1000));
    let endless = format!("GET / HTTP/1.1\r\n{}", header.repeat(9));
    assert!(
        read_text(&endless)[0]
            .as_ref()
            .unwrap_err()
            .starts_with("The head")
    );
    assert!(
        read_text("GET / HTTP/1.1\n\n")[0]
            .as_ref()
            .unwrap_err()
            .starts_with("A line")
    );
}

#[test]
fn parsed_request_releases_memory() {
    let mut parser = Parser::new(HttpLimits::default());
    for _ in 0..3 {
        parser
            .feed(b"PUT /a HTTP/1.1\r\nContent-Length: 50000\r\n\r\n")
            .unwrap();
        parser.feed(&[b'x'; 50000]).unwrap();
        assert!(matches!(parser.next(), Ok(Step::Request { .. })));
        assert_eq!(parser.next().unwrap(), Step::Incomplete);
        assert!(parser.footprint() <= KEPT_CAPACITY);
    }
}

/// Generates a request with its bytes.
fn any_request() -> impl Strategy<Value = (Result<Step, String>, Vec<u8>)> {
    let method = select(vec!["GET", "PUT", "PATCH", "DELETE", "POST"]);
    let path = "(/[a-z0-9_.-]{0,8}){1,3}";
    let headers = subsequence(vec!["Host: localhost\r\n", "ACCEPT: */*\r\n", "x:\r\n"], 0..=3);
    let body = vec(any::<u8>(), 0..200);
    let cuts = proptest::option::of(vec(1_usize..40, 1..10));
    (method, path, headers, body, cuts).prop_map(|(method, path, headers, body, cuts)| {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n{}", headers.concat()).into_bytes();
        match cuts {
            None => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
                bytes.extend(&body);
            }
            Some(cuts) => {
                bytes.extend(b"transfer-encoding: chunked\r\n\r\n");
                let mut rest = &body[..];
                for cut in cuts.into_iter().cycle() {
                    if rest.is_empty() {
                        break;
                    }
                    let (chunk, after) = rest.split_at(cut.min(rest.len()));
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                    rest = after;
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        let request = Request {
            method: Method::new(method),
            path,
            query: None,
            body,
            upgrade: None,
        };
        (Ok(Step::Request { request, last: false }), bytes)
    })
}

/// Cuts `bytes` into parts of these lengths, in a cycle.
fn cut<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    lengths.iter().cycle().map_while(move |length| {
        let (part, after) = rest.split_at((*length).min(rest.len()));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

proptest! {
    #[test]
    fn read_boundaries_do_not_matter(
        requests in vec(any_request(), 1..5),
        lengths in vec(1_usize..60, 1..20),
    ) {
        let (expected, bytes): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        prop_assert_eq!(read(cut(&bytes.concat(), &lengths)), expected);
    }

    #[test]
    fn garbage_follows_valid_requests(
        requests in vec(any_request(), 1..5),
        garbage in vec(any::<u8>(), 1..200),
        lengths in vec(1_usize..60, 1..20),
    ) {
        let (expected, bytes): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let bytes = [bytes.concat(), garbage, b"\n\n\n".to_vec()].concat();
        let steps = read(cut(&bytes, &lengths));
        prop_assert_eq!(&steps[..expected.len()], &expected[..]);
        prop_assert!(steps.last().unwrap().is_err());
        prop_assert_eq!(steps, read([&bytes[..]]));
    }

    #[test]
    fn memory_is_bounded(
        parts in vec(
            prop_oneof![
                vec(any::<u8>(), 0..300),
                select(vec![
                    &b"PUT / HTTP/1.1\r\n"[..], b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n",
                    b"\r\n", b"a: b\r\n", b"1ff\r\n", b"1\r\nx\r\n", b"0\r\n", b"Expect: 100-continue\r\n",
                ]).prop_map(<[u8]>::to_vec),
            ],
            0..100,
        ),
    ) {
        let mut parser = Parser::new(limits());
        for part in parts {
            parser.feed(&part).unwrap();
            while let Ok(Step::Continue | Step::Request { .. }) = parser.next() {}
            // A vector may allocate twice its length.
            prop_assert!(parser.footprint() <= 2 * (8192 + 1026 + 512 + 300));
            if parser.next().is_err() {
                break;
            }
        }
    }
}

#[test]
fn line_length_is_limited() {
    assert_eq!(first_line(b"abcd\r\nx", 4).unwrap(), Some(&b"abcd"[..]));
    assert_eq!(first_line(b"abcd\r", 4).unwrap(), None);
    assert!(matches!(
        first_line(b"abcde\r\n", 4),
        Err(RequestError::Long {
            part: "line",
            limit: 4
        })
    ));
    assert!(matches!(first_line(b"abcdef", 4), Err(RequestError::Long { .. })));
}

#[test]
fn lone_line_feed_is_rejected() {
    assert!(matches!(first_line(b"ab\ncd\r\n", 9), Err(RequestError::LineEnd)));
    assert!(matches!(first_line(b"\n", 9), Err(RequestError::LineEnd)));
    assert_eq!(first_line(b"\r\n", 9).unwrap(), Some(&b""[..]));
}

#[test]
fn requested_protocol_is_kept() {
    let steps =
        read_text("PUT /a HTTP/1.1\r\nConnection: Upgrade\r\nupgrade:  gdb \r\n\r\nGET /a HTTP/1.1\r\n\r\n");
    let protocols = steps.iter().filter_map(|step| match step {
        Ok(Step::Request { request, .. }) => Some(request.upgrade.as_deref()),
        _ => None,
    });
    assert_eq!(protocols.collect::<Vec<_>>(), [Some("gdb"), None]);
}
