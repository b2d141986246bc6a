use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vmm::control::Service;

use crate::http::{HttpLimits, Server};
use crate::testing::Bench;

#[test]
fn a_client_is_answered_through_the_one_descriptor() {
    let mut path = PathBuf::new();
    let mut bench = Bench::with(|socket| {
        path = socket.to_owned();
        Some(Server::bind(socket, HttpLimits::default()).unwrap())
    });
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
    let epoll = super::Epoll::new().unwrap();
    let event = super::EpollEvent::new(super::EventSet::IN, 0);
    epoll
        .ctl(super::ControlOperation::Add, bench.api.descriptor(), event)
        .unwrap();
    // First the client is let in, then it is read.
    for _ in 0..2 {
        let mut events = [super::EpollEvent::default()];
        while epoll.wait(-1, &mut events).unwrap_or(0) == 0 {}
        bench.api.ready(&mut bench.control);
    }
    let mut answer = [0; 1024];
    client.set_nonblocking(true).unwrap();
    let count = client.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]);
    assert!(answer.starts_with("HTTP/1.1 200 \r\n"), "{answer}");
    assert!(answer.ends_with(r#"{"firecracker_version":"1.2.3"}"#), "{answer}");
}

#[test]
fn metrics_are_set_once() {
    let mut bench = Bench::new();
    std::fs::write(bench.at("@/metrics"), "").unwrap();
    bench.done(
        "PUT",
        "/metrics",
        r#"{"metrics_path": "@/metrics", "emit_id": false, "properties": {}}"#,
    );
    assert_eq!(
        bench.fault("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#),
        "Metrics error: there is a file for the metrics already; it can be set only once"
    );
    bench.api.ready(&mut bench.control);
    bench.api.finish(&bench.control);
}

#[test]
fn a_hang_up_means_those_who_have_something_to_open_again() {
    let mut bench = Bench::new();
    assert!(!bench.api.reopen_logs());
    bench.done("PUT", "/logger", r#"{"level": "Info"}"#);
    assert!(!bench.api.reopen_logs());
    bench.done("PUT", "/logger", r#"{"log_path": "/l"}"#);
    assert!(bench.api.reopen_logs());
    let mut bench = Bench::new();
    std::fs::write(bench.at("@/metrics"), "").unwrap();
    bench.done("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#);
    assert!(bench.api.reopen_logs());
}

#[test]
fn the_timer_is_there_only_for_a_metrics_file() {
    let mut bench = Bench::new();
    assert!(bench.api.process.numbers.is_none());
    std::fs::write(bench.at("@/metrics"), "").unwrap();
    bench.done("PUT", "/metrics", r#"{"metrics_path": "@/metrics"}"#);
    let numbers = bench.api.process.numbers.as_mut().unwrap();
    assert!(numbers.timer.is_armed().unwrap());
    // A minute is over at once.
    numbers
        .timer
        .reset(std::time::Duration::from_nanos(1), None)
        .unwrap();
    let mut events = [super::EpollEvent::default()];
    assert_eq!(bench.api.process.epoll.wait(-1, &mut events).unwrap(), 1);
    bench.api.ready(&mut bench.control);
    assert_eq!(bench.api.process.epoll.wait(0, &mut events).unwrap(), 0);
}
