use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use vmm::control::VmMetrics;

use super::{LineLabels, Written, render};
use crate::http::Method;
use crate::metrics::ProcessMetrics;
use crate::metrics::groups::FileMetrics;
use crate::metrics::testing::{full, full_process, leaves};

const TIME: Duration = Duration::from_micros(1_700_000_000_123_999);
const FILE: FileMetrics = FileMetrics {
    dropped: 20_001,
    failures: 20_002,
};

/// Renders a line after `written`. Returns its content and the numbers of events after it.
fn line(metrics: &VmMetrics, process: &ProcessMetrics, written: &Written) -> (Value, Written) {
    let labels = LineLabels::default();
    let (line, written) = render(TIME, &labels, metrics, process, FILE, written).unwrap();
    (serde_json::from_slice(&line).unwrap(), written)
}

fn first_line(metrics: &VmMetrics, process: &ProcessMetrics) -> Value {
    line(metrics, process, &Written::default()).0
}

/// Names that have the value 0 in each line: of groups, and of metrics with their group.
fn zeros() -> BTreeSet<String> {
    let text = "
        balloon mmds vsock entropy pmem memory_hotplug seccomp
        api_server/sync_response_fails api_server/sync_vmm_send_timeout_count
        deprecated_api/deprecated_cmd_line_api_calls logger/log_fails
        i8042/error_count i8042/missed_read_count i8042/missed_write_count
        interrupts/config_updates vmm/panic_count
        signals/sigbus signals/sigsegv signals/sigxfsz signals/sigxcpu signals/sigpipe signals/sigill
        net/mac_address_updates net/rx_partial_writes net/tx_partial_reads net/tx_spoofed_mac_count
        block/read_agg/min_us block/read_agg/max_us block/write_agg/min_us block/write_agg/max_us
        net/tap_write_agg/min_us net/tap_write_agg/max_us
    ";
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn only_unsupported_metrics_are_zero() {
    let value = first_line(&full(), &full_process());
    let zeros = zeros();
    let mut found = BTreeSet::new();
    for (path, number) in leaves(&value) {
        let path = path.strip_prefix('/').unwrap();
        if path.starts_with("mayfly/") {
            continue;
        }
        let group = path.split('/').next().unwrap();
        // A device has no more zeros than the sum of its kind, which has no bounds.
        let kind = ["block", "net"]
            .into_iter()
            .find(|kind| group.starts_with(&format!("{kind}_")));
        let known = match kind {
            Some(kind) => {
                let field = &path[group.len()..];
                zeros.contains(&format!("{kind}{field}")) && !field.contains("_agg")
            }
            None => zeros.contains(group) || zeros.contains(path),
        };
        assert_eq!(number == 0.0, known, "{path} is {number}");
        found.insert(if zeros.contains(group) { group } else { path }.to_owned());
    }
    let missing: Vec<_> = zeros.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn values_have_firecracker_names() {
    let (metrics, process) = (full(), full_process());
    let value = first_line(&metrics, &process);
    assert_eq!(value["utc_timestamp_ms"], 1_700_000_000_123_u64);
    let logger = &value["logger"];
    assert_eq!(
        (&logger["missed_metrics_count"], &logger["metrics_fails"]),
        (&20_001.into(), &20_002.into())
    );
    let drive = metrics.drives()[0];
    let block = &value[format!("block_{}", drive.id)];
    assert_eq!(block["read_count"], drive.metrics.reads);
    assert_eq!(
        (&block["execute_fails"], &block["activate_fails"]),
        (&3.into(), &drive.transport.activation_failures.into())
    );
    let sum: u64 = metrics
        .drives()
        .iter()
        .map(|drive| drive.metrics.written_bytes)
        .sum();
    assert_eq!(value["block"]["write_bytes"], sum);
    let net = metrics.interfaces()[1];
    assert_eq!(
        value[format!("net_{}", net.id)]["tx_bytes_count"],
        net.metrics.transmit.bytes
    );
    let exits = |id: usize| metrics.vcpus[id].exits[3].1;
    assert_eq!(value["vcpu"]["exit_mmio_write"], exits(0) + exits(1));
    assert_eq!(
        value["vcpu"]["failures"],
        metrics.vcpus.iter().map(|vcpu| vcpu.failures).sum::<u64>()
    );
    assert_eq!(value["latencies_us"]["load_snapshot"], process.operations.load_us);
    assert_eq!(
        value["latencies_us"]["vmm_load_snapshot"],
        metrics.operations.load_us
    );
    assert_eq!(
        value["mayfly"]["api_server"]["accepted"],
        process.counters.accepted
    );
    assert_eq!(
        value["mayfly"]["vcpu_1"]["exit_halt"],
        metrics.vcpus[1].exits[4].1
    );
}

#[test]
fn durations_of_sample_are_scaled() {
    let metrics = full();
    let drive = metrics.drives()[0].metrics;
    let value = first_line(&metrics, &ProcessMetrics::default());
    let read = &value["block_rootfs"]["read_agg"];
    assert_eq!(read["min_us"], drive.read_duration.min_ns / 1000);
    assert_eq!(read["max_us"], drive.read_duration.max_ns / 1000);
    assert_eq!(read["sum_us"], drive.read_duration.sum_ns / 1000 * drive.reads);
    let min = metrics
        .vcpus
        .iter()
        .map(|vcpu| vcpu.durations[1].min_ns / 1000)
        .min();
    assert_eq!(value["vcpu"]["exit_io_out_agg"]["min_us"], min.unwrap());
}

#[test]
fn events_count_from_last_line() {
    let (mut metrics, mut process) = (full(), full_process());
    let (_, written) = line(&metrics, &process, &Written::default());
    metrics.serial.writes += 5;
    metrics.input.resets -= 1;
    process.requests.add(&Method::Put, "/drives/rootfs", true);
    process.requests.add(&Method::Patch, "/balloon", true);
    process.requests.add(&Method::Get, "/", false);
    let (second, _) = line(&metrics, &process, &written);
    assert_eq!(second["uart"]["write_count"], 5);
    // An estimate may decrease; a line never has a huge number.
    assert_eq!(second["i8042"]["reset_count"], 0);
    let drives = &second["put_api_requests"];
    assert_eq!(
        (&drives["drive_count"], &drives["drive_fails"]),
        (&1.into(), &1.into())
    );
    assert_eq!(second["get_api_requests"]["instance_info_count"], 1);
    assert_eq!(second["block_rootfs"]["read_count"], 0);
    // Current values, and all of mayfly's own, stay.
    assert_eq!(second["latencies_us"]["pause_vm"], process.operations.pause_us);
    let own = &second["mayfly"]["block_rootfs"]["reads"];
    assert_eq!(*own, metrics.drives()[0].metrics.reads);
}

#[test]
fn own_group_has_all_metrics_of_prometheus() {
    let metrics = full();
    let value = first_line(&metrics, &ProcessMetrics::default());
    let present: Vec<f64> = leaves(&value["mayfly"]).into_iter().map(|(_, one)| one).collect();
    let mut all = serde_json::to_value(&metrics).unwrap();
    // Only in Firecracker's groups.
    for field in ["serial", "input", "operations"] {
        all.as_object_mut().unwrap().remove(field);
    }
    for (path, number) in leaves(&all) {
        // The number of a vCPU is part of the name of its group.
        let named = path.starts_with("/vcpus/") && path.ends_with("/id");
        let elsewhere = ["/transport/", "/durations/", "/failures", "/clock_failures"];
        let elsewhere = elsewhere.iter().any(|part| path.contains(part));
        assert!(
            named || elsewhere || present.contains(&number),
            "{path} = {number} is missing"
        );
    }
}

/// Returns the start of a line with these labels, up to the first group.
fn start_of_line(id: Option<&str>, properties: Option<&[(&str, &str)]>) -> String {
    let texts = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let labels = LineLabels {
        id: id.map(str::to_owned),
        properties: properties.map(|properties| properties.iter().map(texts).collect()),
    };
    let (metrics, process) = (VmMetrics::default(), ProcessMetrics::default());
    let (line, _) = render(TIME, &labels, &metrics, &process, FILE, &Written::default()).unwrap();
    let line = String::from_utf8(line).unwrap();
    let (start, _) = line.split_once("\"api_server\":").unwrap();
    start.to_owned()
}

/// The place of the labels in the example of Firecracker's docs/metrics.md.
#[test]
fn labels_follow_time() {
    let time = r#"{"utc_timestamp_ms":1700000000123,"#;
    assert_eq!(start_of_line(None, None), time);
    assert_eq!(
        start_of_line(Some("vm-1"), Some(&[("b", "2"), ("a", "\"\n\u{e9}")])),
        format!("{time}\"id\":\"vm-1\",\"properties\":{{\"a\":\"\\\"\\n\u{e9}\",\"b\":\"2\"}},")
    );
    assert_eq!(
        start_of_line(None, Some(&[])),
        format!("{time}\"properties\":{{}},")
    );
}

#[test]
fn line_before_start_is_valid() {
    let value = first_line(&VmMetrics::default(), &ProcessMetrics::default());
    assert_eq!(value["mayfly"]["memory"]["size_bytes"], 0);
    assert!(value["mayfly"]["memory"]["resident_bytes"].is_null());
    for group in ["block", "net", "vcpu", "uart", "i8042", "mmds"] {
        assert!(value[group].is_object(), "{group}");
    }
}

/// Groups and names that Firecracker 1.12.1 writes, and that fctools 0.6 and Firecracker's own tests require.
const FIRECRACKER: &str = include_str!("firecracker-1.12.txt");

#[test]
fn names_of_firecracker_are_in_line() {
    let value = first_line(&full(), &full_process());
    let names: BTreeSet<_> = leaves(&value).into_iter().map(|(path, _)| path).collect();
    let missing: Vec<_> = FIRECRACKER
        .lines()
        .filter(|name| !names.contains(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(FIRECRACKER.lines().count() > 200);
}
