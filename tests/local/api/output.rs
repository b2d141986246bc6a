//! Destinations of serial output, log and metrics.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::served::{ApiProcess, Directory, create_fifo};

fn open_reader(path: &str) -> File {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap()
}

/// Waits until the file at `path` contains `text`.
fn wait_for(path: &Path, text: &str) {
    scratch::wait_until(&format!("{text:?} in {}", path.display()), || {
        fs::read_to_string(path).unwrap_or_default().contains(text)
    });
}

#[test]
fn serial_output_goes_to_file() {
    let process = ApiProcess::start();
    let path = process.directory.write("serial", "before\n");
    process.expect_no_content("PUT", "/serial", &format!("{{\"serial_out_path\":\"{path}\"}}"));
    process.set_kernel("hello.elf");
    process.run_action("InstanceStart");
    let directory = Directory::new();
    let kept = directory.path("kept");
    fs::hard_link(&path, &kept).unwrap();
    let (printed, _) = process.expect_exit(0);
    assert_eq!(printed, "");
    assert_eq!(fs::read_to_string(kept).unwrap(), "before\nhello from mayfly\n");
}

/// mayfly writes more than fits into the FIFOs, which have no reader.
#[test]
fn fifos_without_reader_stall_nothing() {
    let mut process = ApiProcess::start();
    let (log, metrics) = (
        create_fifo(&process.directory, "log"),
        create_fifo(&process.directory, "metrics"),
    );
    process.expect_no_content(
        "PUT",
        "/logger",
        &format!("{{\"log_path\":\"{log}\",\"level\":\"Trace\"}}"),
    );
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{metrics}\"}}"));
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 1\n");
    let mut client = process.connect();
    for _ in 0..1000 {
        let flushed = client.request("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
        assert_eq!(flushed.status(), 204, "{flushed:?}");
        let refused = client.request("GET", &format!("/{}", "x".repeat(500)), "");
        assert_eq!(refused.status(), 400);
    }
    process.expect("tick 2\n");
    let mut bytes = [0; 4096];
    assert!(open_reader(&log).read(&mut bytes).unwrap() > 0);
    let mut fifo = open_reader(&metrics);
    let mut text = Vec::new();
    // A full FIFO drops whole lines only.
    for _ in 0..3 {
        while let Ok(length @ 1..) = fifo.read(&mut bytes) {
            text.extend_from_slice(&bytes[..length]);
        }
        process.run_action("FlushMetrics");
    }
    let text = String::from_utf8(text).unwrap();
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(text.lines().count() > 10 && text.ends_with('\n'), "{text}");
    process.terminate();
}

#[test]
fn metrics_are_written_on_flush_and_exit() {
    let process = ApiProcess::start();
    let path = create_fifo(&process.directory, "metrics");
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    let again = process.request("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    assert!(again.fault_message().starts_with("Metrics error: "), "{again:?}");
    let mut lines = BufReader::new(open_reader(&path)).lines();
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    for _ in 0..2 {
        process.run_action("FlushMetrics");
        let line = lines.next().unwrap().unwrap();
        let metrics: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(metrics["utc_timestamp_ms"].as_u64().unwrap() > 0, "{line}");
    }
    let error = lines.next().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let text = process.request("GET", "/metrics", "");
    assert!(
        text.text.contains("Content-Type: text/plain; version=0.0.4\r\n"),
        "{}",
        text.text
    );
    assert!(text.body().contains("# TYPE "), "{}", text.body());
    // The exit of a VM writes a line, too.
    process.terminate();
    lines.next().unwrap().unwrap();
}

#[test]
fn log_line_has_id_level_and_request() {
    let directory = Directory::new();
    let path = directory.text("log");
    let process = ApiProcess::start_with(
        directory,
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
    process.request("GET", "/nothing", "");
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.contains(" [vm-7:") && log.contains("INFO"), "{log}");
    assert!(
        log.contains("rejected GET nothing") || log.contains("rejected GET /nothing"),
        "{log}"
    );
    process.terminate();
}

#[test]
fn sighup_reopens_files() {
    let mut process = ApiProcess::start();
    let (log, metrics) = (process.directory.text("log"), process.directory.text("metrics"));
    process.directory.write("metrics", "");
    process.expect_no_content(
        "PUT",
        "/logger",
        &format!("{{\"log_path\":\"{log}\",\"level\":\"Info\"}}"),
    );
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{metrics}\"}}"));
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    for file in [&log, &metrics] {
        fs::rename(file, format!("{file}.1")).unwrap();
    }
    process.signal(libc::SIGHUP);
    scratch::wait_until("reopened files", || {
        Path::new(&log).exists() && Path::new(&metrics).exists()
    });
    process.request("GET", "/nothing", "");
    process.run_action("FlushMetrics");
    wait_for(Path::new(&log), "nothing");
    wait_for(Path::new(&metrics), "utc_timestamp_ms");
    assert_eq!(process.state(), "Running");
    process.terminate();
}

/// The metrics hold the phases of the successful start once, after failed starts and several flushes.
#[test]
fn start_phases_appear_once() {
    let mut process = ApiProcess::start();
    let path = process.directory.write("metrics", "");
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    process.set_kernel("segments.elf");
    process.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":2}"#);
    for _ in 0..3 {
        let response = process.request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
        assert_eq!(response.status(), 400);
    }
    process.expect_no_content("PATCH", "/machine-config", r#"{"mem_size_mib":64}"#);
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 1\n");
    for _ in 0..3 {
        process.run_action("FlushMetrics");
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
    process.terminate();
}
