//! Destinations of serial output, log and metrics.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vmm::arch::{Architecture, Native, Platform};

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
    // In memory: the end waits only a limited time for a disk.
    let directory = Directory::new_in(Path::new("/dev/shm"));
    let path = directory.write("serial", "before\n");
    process.expect_no_content("PUT", "/serial", &format!("{{\"serial_out_path\":\"{path}\"}}"));
    process.set_kernel("hello.elf");
    process.run_action("InstanceStart");
    let kept = directory.path("kept");
    fs::hard_link(&path, &kept).unwrap();
    let (printed, _) = process.expect_exit(0);
    assert_eq!(printed, "");
    assert_eq!(fs::read_to_string(kept).unwrap(), "before\nhello from mayfly\n");
}

/// Rate limiter with tokens for `size` bytes, which are not refilled within the time of a test.
pub fn limiter_without_refill(size: u64) -> String {
    format!(r#"{{"size":{size},"refill_time":1099511627776}}"#)
}

/// Returns the sum of a metric over all lines of the file at `path`.
pub fn sum_of_metric(path: &str, group: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| {
        let metrics: serde_json::Value = serde_json::from_str(line).unwrap();
        metrics[group][name].as_u64().unwrap()
    });
    lines.sum()
}

/// The rest is dropped, and the guest does not wait for tokens.
#[test]
fn serial_output_beyond_limit_is_dropped_and_counted() {
    for has_file in [true, false] {
        let directory = Directory::new_in(Path::new("/dev/shm"));
        let (serial, metrics) = (directory.write("serial", ""), directory.write("metrics", ""));
        let process = ApiProcess::start();
        process.expect_no_content("PUT", "/metrics", &format!(r#"{{"metrics_path":"{metrics}"}}"#));
        let limiter = limiter_without_refill(5);
        let file = if has_file {
            format!("\"{serial}\"")
        } else {
            "null".to_owned()
        };
        let body = format!(r#"{{"serial_out_path":{file},"rate_limiter":{limiter}}}"#);
        process.expect_no_content("PUT", "/serial", &body);
        process.set_kernel("hello.elf");
        process.run_action("InstanceStart");
        let (printed, stderr) = process.expect_exit(0);
        let stored = fs::read_to_string(&serial).unwrap();
        assert_eq!(printed + &stored, "hello", "{has_file}");
        assert_eq!(stored.is_empty(), !has_file);
        assert_eq!(stderr, "");
        let sum = |name| sum_of_metric(&metrics, "uart", name);
        assert_eq!(sum("rate_limiter_dropped_bytes"), " from mayfly\n".len() as u64);
        assert_eq!(sum("write_count"), "hello from mayfly\n".len() as u64);
        assert_eq!(sum("missed_write_count"), 0);
    }
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
    assert!(text.lines().count() > 3 && text.ends_with('\n'), "{text}");
    process.terminate();
}

#[test]
fn metrics_are_written_on_start_flush_and_exit() {
    let process = ApiProcess::start();
    let path = create_fifo(&process.directory, "metrics");
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    let again = process.request("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    assert!(again.fault_message().starts_with("Metrics error: "), "{again:?}");
    let mut lines = BufReader::new(open_reader(&path)).lines();
    process.set_kernel("loop.elf");
    process.run_action("InstanceStart");
    for flushes in [false, true, true] {
        if flushes {
            process.run_action("FlushMetrics");
        }
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
    let request = r#"The API server received a Get request on "/nothing"."#;
    assert!(log.contains(request), "{log}");
    let error = "ERROR] Received Error. Status code: 400 Bad Request. Message: Invalid request method";
    assert!(log.contains(error), "{log}");
    process.terminate();
}

/// Lines that Firecracker's test framework and SDKs wait for, at their default level.
#[test]
fn log_has_words_of_firecracker() {
    let logs = Directory::new();
    let path = logs.text("log");
    let mut process = ApiProcess::start_with(Directory::new(), &["--log-path", &path]);
    let socket = process.directory.text("api.sock");
    process.set_kernel("ticker.elf");
    process.run_action("InstanceStart");
    process.expect("tick 1\n");
    for state in ["Paused", "Resumed"] {
        process.expect_no_content("PATCH", "/vm", &format!("{{\"state\":\"{state}\"}}"));
    }
    process.terminate();
    let log = fs::read_to_string(&path).unwrap();
    let mut rest = log.as_str();
    for line in [
        "] Running Firecracker v1.".to_owned(),
        format!("] Listening on API socket ({socket:?}).\n"),
        "] API server started.\n".to_owned(),
        "] The API server received a Put request on \"/boot-source\" with body \"{\\\"kernel_image_path"
            .to_owned(),
        "] The request was executed successfully. Status code: 204 No Content.\n".to_owned(),
        "] The API server received a Put request on \"/actions\" with body".to_owned(),
        "] The API server received a Patch request on \"/vm\" with body".to_owned(),
        "] 'pause vm' VMM action took ".to_owned(),
        "] 'pause vm' API request took ".to_owned(),
        "] 'resume vm' API request took ".to_owned(),
        "] Vmm is stopping.\n".to_owned(),
    ] {
        let found = rest.find(&line);
        rest = &rest[found.unwrap_or_else(|| panic!("{line:?} is missing or late in {log}")) + line.len()..];
    }
}

#[test]
fn exit_status_is_logged() {
    let logs = Directory::new();
    let path = logs.text("log");
    let process = ApiProcess::start_with(Directory::new(), &["--log-path", &path]);
    process.set_kernel("hello.elf");
    process.run_action("InstanceStart");
    process.expect_exit(0);
    let log = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        log.ends_with("] Firecracker exiting successfully. exit_code=0\n"),
        "{log}"
    );
}

/// Reads the last line of the metrics file at `path`.
fn last_metrics(path: &str) -> serde_json::Value {
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Exit of a vCPU whose guest prints.
const OUTPUT_EXIT: &str = match Native::ARCHITECTURE {
    Architecture::X86_64 => "exit_io_out",
    Architecture::Aarch64 => "exit_mmio_write",
};

#[test]
fn events_of_a_guest_are_in_metrics_file() {
    let mut process = ApiProcess::start();
    let path = process.directory.write("metrics", "");
    let count = || fs::read_to_string(&path).unwrap().lines().count();
    process.expect_no_content("PUT", "/metrics", &format!("{{\"metrics_path\":\"{path}\"}}"));
    process.set_kernel("ticker.elf");
    assert_eq!(count(), 0);
    process.run_action("InstanceStart");
    assert_eq!(count(), 1, "a line at the start");
    let first = last_metrics(&path);
    assert_eq!(first["put_api_requests"]["boot_source_count"], 1);
    assert!(
        first["api_server"]["process_startup_time_us"].as_u64().unwrap() > 0,
        "{first}"
    );
    process.expect("tick 1\n");
    for state in ["Paused", "Resumed"] {
        process.expect_no_content("PATCH", "/vm", &format!("{{\"state\":\"{state}\"}}"));
    }
    process.request("GET", "/", "");
    process.request("PUT", "/drives/a", "{}");
    process.run_action("FlushMetrics");
    let metrics = last_metrics(&path);
    let number = |group: &str, name: &str| metrics[group][name].as_u64().unwrap();
    for (group, name) in [
        ("uart", "write_count"),
        ("vcpu", OUTPUT_EXIT),
        ("latencies_us", "pause_vm"),
        ("latencies_us", "resume_vm"),
        ("latencies_us", "vmm_pause_vm"),
        ("latencies_us", "vmm_resume_vm"),
    ] {
        assert!(number(group, name) > 0, "{group}/{name} in {metrics}");
    }
    for (group, name, expected) in [
        ("put_api_requests", "boot_source_count", 0),
        // The request for a line counts after it.
        ("put_api_requests", "actions_count", 0),
        ("put_api_requests", "drive_fails", 1),
        ("get_api_requests", "instance_info_count", 1),
    ] {
        assert_eq!(number(group, name), expected, "{group}/{name} in {metrics}");
    }
    let sum = &metrics["vcpu"][format!("{OUTPUT_EXIT}_agg")]["sum_us"];
    assert!(sum.as_u64().unwrap() > 0, "{metrics}");
    process.terminate();
}

/// By a request and by a section of a configuration file.
#[test]
fn metrics_lines_have_id_and_properties() {
    for has_config in [false, true] {
        let directory = Directory::new();
        let path = directory.text("metrics");
        let body = format!(
            r#"{{"metrics_path":"{path}","emit_id":true,"properties":{{"tenant":"a","zone":"b c"}}}}"#
        );
        let kernel = crate::guests::file("loop.elf");
        let config = format!(r#"{{"boot-source":{{"kernel_image_path":"{kernel}"}},"metrics":{body}}}"#);
        let config = directory.write("fc.json", config);
        let mut flags = vec!["--id", "vm-7"];
        if has_config {
            flags.extend(["--config-file", &config]);
        }
        let process = ApiProcess::start_with(directory, &flags);
        if !has_config {
            process.expect_no_content("PUT", "/metrics", &body);
            process.set_kernel("loop.elf");
            process.run_action("InstanceStart");
        }
        process.run_action("FlushMetrics");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        for line in text.lines() {
            let metrics: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(metrics["id"], "vm-7", "{line}");
            assert_eq!(
                metrics["properties"],
                serde_json::json!({"tenant": "a", "zone": "b c"})
            );
        }
        process.terminate();
    }
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
    let phases = last["mayfly"]["boot"].as_array().unwrap();
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
