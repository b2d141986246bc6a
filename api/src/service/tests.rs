use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vmm::control::Service;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::http::{HttpLimits, Server};
use crate::testing::Fixture;

#[test]
fn descriptor_serves_clients() {
    let mut path = PathBuf::new();
    let mut fixture = Fixture::with(|socket| {
        path = socket.to_owned();
        Some(Server::bind(socket, HttpLimits::default()).unwrap())
    });
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, fixture.api.descriptor(), event)
        .unwrap();
    // The first call accepts the client, the second reads the request.
    for _ in 0..2 {
        let mut events = [EpollEvent::default()];
        scratch::wait_until("work", || epoll.wait(0, &mut events).unwrap_or(0) > 0);
        fixture.api.ready(&mut fixture.control);
    }
    let mut response = [0; 1024];
    client.set_nonblocking(true).unwrap();
    let count = client.read(&mut response).unwrap();
    let response = String::from_utf8_lossy(&response[..count]);
    assert!(response.starts_with("HTTP/1.1 200 \r\n"), "{response}");
    assert!(
        response.ends_with(r#"{"firecracker_version":"1.2.3"}"#),
        "{response}"
    );
}

#[test]
fn metrics_file_is_set_once() {
    let mut fixture = Fixture::new();
    std::fs::write(fixture.at("@/metrics"), "").unwrap();
    fixture.expect_no_content(
        "PUT",
        "/metrics",
        r#"{"metrics_path": "@/metrics", "emit_id": false, "properties": null}"#,
    );
    assert_eq!(
        fixture.expect_fault("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#),
        "Metrics error: cannot set the metrics file: it is set already, and can be set only once"
    );
    fixture.api.ready(&mut fixture.control);
    fixture.api.finish(&fixture.control);
}

#[test]
fn metrics_lines_have_requested_labels() {
    let read = |body: &str| {
        let mut fixture = Fixture::new();
        fixture.expect_no_content("PUT", "/metrics", body);
        fixture.api.finish(&fixture.control);
        let text = std::fs::read_to_string(fixture.at("@/metrics")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        (line["id"].clone(), line["properties"].clone())
    };
    let id = serde_json::json!(Fixture::new().api.process().instance().id);
    for (body, expected) in [
        (r#"{"metrics_path": "@/metrics"}"#, Default::default()),
        (
            r#"{"metrics_path": "@/metrics", "emit_id": true}"#,
            (id.clone(), serde_json::Value::Null),
        ),
        (
            r#"{"metrics_path": "@/metrics", "emit_id": true, "properties": {"tenant": "a", "zone": ""}}"#,
            (id, serde_json::json!({"tenant": "a", "zone": ""})),
        ),
    ] {
        assert_eq!(read(body), expected, "{body}");
    }
}

#[test]
fn reopen_reports_open_files() {
    let mut fixture = Fixture::new();
    assert!(!fixture.api.reopen_logs());
    fixture.expect_no_content("PUT", "/logger", r#"{"level": "Info"}"#);
    assert!(!fixture.api.reopen_logs());
    fixture.expect_no_content("PUT", "/logger", r#"{"log_path": "/l"}"#);
    assert!(fixture.api.reopen_logs());
    let mut fixture = Fixture::new();
    std::fs::write(fixture.at("@/metrics"), "").unwrap();
    fixture.expect_no_content("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#);
    assert!(fixture.api.reopen_logs());
}
