//! Where the guest's output, the log and the metrics go.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use super::served::{ApiProcess, Directory, fifo};
use crate::guest::LIMIT;

fn reader(path: &str) -> File {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap()
}

/// Waits until what is at `path` has `text` in it.
fn wait_for(path: &Path, text: &str) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = fs::read_to_string(path).unwrap_or_default();
        if found.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "{text:?} is not in {found:?}");
        thread::yield_now();
    }
}

#[test]
fn the_guests_output_goes_to_a_file() {
    let served = ApiProcess::start();
    let path = served.folder.write("serial", "before\n");
    served.expect_no_content("PUT", "/serial", &format!("{{\"serial_out_path\":\"{path}\"}}"));
    served.boots("hello.elf");
    served.act("InstanceStart");
    let folder = Directory::new();
    let kept = folder.path("kept");
    fs::hard_link(&path, &kept).unwrap();
    let (printed, _) = served.ends_with(0);
    assert_eq!(printed, "");
    assert_eq!(fs::read_to_string(kept).unwrap(), "before\nhello from mayfly\n");
}

/// More than fits into a FIFO is said, and nobody reads it.
#[test]
fn fifos_without_a_reader_stall_nothing() {
    let mut served = ApiProcess::start();
    let (log, metrics) = (fifo(&served.folder, "log"), fifo(&served.folder, "metrics"));
    served.expect_no_content(
        "PUT",
        "/logger",
        &format!("{{\"log_path\":\"{log}\",\"level\":\"Trace\"}}"),
    );
    served.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{metrics}\"}}"));
    served.boots("ticker.elf");
    served.act("InstanceStart");
    served.expect("tick 1\n");
    let mut client = served.connect();
    for _ in 0..1000 {
        let flushed = client.ask("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
        assert_eq!(flushed.status(), 204, "{flushed:?}");
        let refused = client.ask("GET", &format!("/{}", "x".repeat(500)), "");
        assert_eq!(refused.status(), 400);
    }
    served.expect("tick 2\n");
    let mut bytes = [0; 4096];
    assert!(reader(&log).read(&mut bytes).unwrap() > 0);
    let mut fifo = reader(&metrics);
    let mut text = Vec::new();
    // What did not fit is gone in whole lines only, whenever there is room again.
    for _ in 0..3 {
        while let Ok(length @ 1..) = fifo.read(&mut bytes) {
            text.extend_from_slice(&bytes[..length]);
        }
        served.act("FlushMetrics");
    }
    let text = String::from_utf8(text).unwrap();
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(text.lines().count() > 10 && text.ends_with('\n'), "{text}");
    served.terminate();
}

#[test]
fn metrics_are_written_when_they_are_asked_for() {
    let served = ApiProcess::start();
    let path = fifo(&served.folder, "metrics");
    served.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    let again = served.ask("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    assert!(again.fault().starts_with("Metrics error: "), "{again:?}");
    let mut lines = BufReader::new(reader(&path)).lines();
    served.boots("loop.elf");
    served.act("InstanceStart");
    for _ in 0..2 {
        served.act("FlushMetrics");
        let line = lines.next().unwrap().unwrap();
        let numbers: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(numbers["utc_timestamp_ms"].as_u64().unwrap() > 0, "{line}");
    }
    let none = lines.next().unwrap().unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    let text = served.ask("GET", "/metrics", "");
    assert!(
        text.text.contains("Content-Type: text/plain; version=0.0.4\r\n"),
        "{}",
        text.text
    );
    assert!(text.body().contains("# TYPE "), "{}", text.body());
    // The end of a guest is worth a line as well.
    served.terminate();
    lines.next().unwrap().unwrap();
}

#[test]
fn the_log_says_who_and_what() {
    let folder = Directory::new();
    let path = folder.text("log");
    let served = ApiProcess::with(
        folder,
        &[
            "--id",
            "vm-7",
            "--log-path",
            &path,
            "--level",
            "Info",
            "--show-level",
        ],
    );
    served.ask("GET", "/nothing", "");
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.contains(" [vm-7:") && log.contains("INFO"), "{log}");
    assert!(
        log.contains("rejected GET nothing") || log.contains("rejected GET /nothing"),
        "{log}"
    );
    served.terminate();
}

#[test]
fn a_hang_up_opens_the_files_again() {
    let mut served = ApiProcess::start();
    let (log, metrics) = (served.folder.text("log"), served.folder.text("metrics"));
    served.folder.write("metrics", "");
    served.expect_no_content(
        "PUT",
        "/logger",
        &format!("{{\"log_path\":\"{log}\",\"level\":\"Info\"}}"),
    );
    served.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{metrics}\"}}"));
    served.boots("loop.elf");
    served.act("InstanceStart");
    for file in [&log, &metrics] {
        fs::rename(file, format!("{file}.1")).unwrap();
    }
    served.signal(libc::SIGHUP);
    let deadline = Instant::now() + LIMIT;
    while !(Path::new(&log).exists() && Path::new(&metrics).exists()) {
        assert!(Instant::now() < deadline, "the files were not opened again");
        thread::yield_now();
    }
    served.ask("GET", "/nothing", "");
    served.act("FlushMetrics");
    wait_for(Path::new(&log), "nothing");
    wait_for(Path::new(&metrics), "utc_timestamp_ms");
    assert_eq!(served.state(), "Running");
    served.terminate();
}

/// The start is told of as it went, once, however often it was tried and is asked for.
#[test]
fn metrics_do_not_grow() {
    let mut served = ApiProcess::start();
    let path = served.folder.write("metrics", "");
    served.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    served.boots("segments.elf");
    served.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":2}"#);
    for _ in 0..3 {
        let answer = served.ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        assert_eq!(answer.status(), 400);
    }
    served.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    served.boots("ticker.elf");
    served.act("InstanceStart");
    served.expect("tick 1\n");
    for _ in 0..3 {
        served.act("FlushMetrics");
    }
    let text = fs::read_to_string(&path).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let phases = last["boot"].as_array().unwrap();
    let mut names: Vec<String> = phases
        .iter()
        .map(|phase| format!("{}{}", phase["name"], phase["vcpu"]))
        .collect();
    let count = names.len();
    assert!(count > 10, "{last}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "{last}");
    served.terminate();
}
