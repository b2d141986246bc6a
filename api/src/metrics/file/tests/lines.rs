use std::fs;
use std::path::Path;

use scratch::{Directory, Reader};
use serde_json::Value;
use vmm::control::VmMetrics;

use crate::metrics::ProcessMetrics;
use crate::metrics::file::{ATOMIC, MetricsFile};
use crate::metrics::testing::full;

/// Parses `bytes` as lines of JSON, the last of which must be complete.
fn lines(bytes: &[u8]) -> Vec<Value> {
    assert_eq!(bytes.last(), Some(&b'\n'), "the last line has no end");
    let lines = bytes.split(|byte| *byte == b'\n');
    let mut lines: Vec<_> = lines.map(<[u8]>::to_vec).collect();
    lines.pop();
    lines
        .iter()
        .map(|line| serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
        .collect()
}

fn accepted(accepted: u64) -> ProcessMetrics {
    let mut process = ProcessMetrics::default();
    process.counters.accepted = accepted;
    process
}

fn missed(line: &Value) -> (u64, u64) {
    let number = |value: &Value| value.as_u64().unwrap();
    (
        number(&line["mayfly"]["api_server"]["accepted"]),
        number(&line["logger"]["missed_metrics_count"]),
    )
}

fn write(file: &mut MetricsFile, metrics: &VmMetrics, number: u64) {
    file.write(metrics, &accepted(number)).unwrap();
}

#[test]
fn each_write_appends_line() {
    let directory = Directory::new();
    let path = directory.path("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    write(&mut file, &full(), 1);
    write(&mut file, &VmMetrics::default(), 2);
    let lines = lines(&fs::read(&path).unwrap());
    assert_eq!(lines.iter().map(missed).collect::<Vec<_>>(), [(1, 0), (2, 0)]);
    assert!(lines[0]["utc_timestamp_ms"].as_u64().unwrap() > 1_700_000_000_000);
}

#[test]
fn unread_lines_are_dropped_and_counted() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    // A line is longer than 1 KiB, so not all of these fit.
    let written = reader.size() as u64 / 1024;
    (0..written).for_each(|number| write(&mut file, &VmMetrics::default(), number));
    let mut bytes = reader.read();
    // Completes the last line that has begun.
    write(&mut file, &VmMetrics::default(), 7);
    bytes.extend(reader.read());
    let mut lines: Vec<_> = lines(&bytes).iter().map(missed).collect();
    let kept = lines.len() as u64 - 1;
    assert!(kept > 0);
    assert_eq!(lines.pop(), Some((7, written - kept)));
    let expected: Vec<_> = (0..kept).map(|number| (number, 0)).collect();
    assert_eq!(lines, expected);
}

#[test]
fn dropped_line_loses_no_events() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    let mut metrics = VmMetrics::default();
    // Nothing of a line fits.
    file.output.write(&vec![b'x'; reader.size()]).unwrap();
    metrics.serial.writes = 3;
    write(&mut file, &metrics, 1);
    reader.read();
    metrics.serial.writes = 5;
    write(&mut file, &metrics, 2);
    metrics.serial.writes = 6;
    write(&mut file, &metrics, 3);
    let lines = lines(&reader.read());
    let writes: Vec<_> = lines.iter().map(|line| &line["uart"]["write_count"]).collect();
    assert_eq!(writes, [5, 1]);
}

#[test]
fn long_line_precedes_next() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    let size = reader.size();
    let mut metrics = full();
    metrics.devices[0].id = "x".repeat(2 * size.max(ATOMIC));
    write(&mut file, &metrics, 1);
    assert!(
        !file.rest.is_empty(),
        "a long line fits into a FIFO of {size} bytes"
    );
    // Dropped: the line before is not complete.
    write(&mut file, &VmMetrics::default(), 2);
    let mut bytes = reader.read();
    assert_ne!(bytes.last(), Some(&b'\n'));
    for number in 3.. {
        write(&mut file, &VmMetrics::default(), number);
        let more = reader.read();
        assert!(!more.is_empty());
        bytes.extend(more);
        if file.rest.is_empty() {
            break;
        }
    }
    write(&mut file, &VmMetrics::default(), 100);
    bytes.extend(reader.read());
    let lines = lines(&bytes);
    let (last, _) = missed(lines.last().unwrap());
    let dropped: u64 = lines.iter().map(|line| missed(line).1).sum();
    assert_eq!((missed(&lines[0]), last), ((1, 0), 100));
    assert!(dropped >= 1);
    // Line 2, and those after it until the long line is complete.
    let got = lines.len() as u64;
    assert!(got + dropped >= 4, "{got} lines and {dropped} dropped");
}

#[test]
fn line_waits_for_rest_of_long_line() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    let size = reader.size();
    // There is room for a line, but not for the rest of the long line.
    file.output.write(&vec![b'x'; size - 3 * ATOMIC]).unwrap();
    file.rest = vec![b'y'; 4 * ATOMIC - 1];
    file.rest.push(b'\n');
    write(&mut file, &VmMetrics::default(), 1);
    let mut bytes = reader.read();
    assert_eq!(bytes.split_off(size - 3 * ATOMIC), vec![b'y'; 3 * ATOMIC]);
    write(&mut file, &VmMetrics::default(), 2);
    let got = reader.read();
    let line = got.strip_prefix(vec![b'y'; ATOMIC - 1].as_slice()).unwrap();
    assert_eq!(missed(&lines(line.strip_prefix(b"\n").unwrap())[0]), (2, 1));
    assert!(line.len() < 3 * ATOMIC, "a line would not have fit");
}

#[test]
fn reopen_replaces_rotated_file() {
    let directory = Directory::new();
    let path = directory.path("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    write(&mut file, &VmMetrics::default(), 1);
    fs::rename(&path, directory.path("metrics.1")).unwrap();
    write(&mut file, &VmMetrics::default(), 2);
    file.reopen().unwrap();
    write(&mut file, &VmMetrics::default(), 3);
    assert_eq!(lines(&fs::read(directory.path("metrics.1")).unwrap()).len(), 2);
    assert_eq!(missed(&lines(&fs::read(&path).unwrap())[0]), (3, 0));
}

#[test]
fn new_fifo_starts_with_complete_line() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let first = Reader::open(&path);
    let mut metrics = full();
    metrics.devices[0].id = "x".repeat(2 * first.shrink().max(ATOMIC));
    write(&mut file, &metrics, 1);
    file.reopen().unwrap();
    assert!(
        !file.rest.is_empty(),
        "the same FIFO still lacks the end of its line"
    );
    fs::rename(&path, directory.path("old")).unwrap();
    let path = directory.fifo("metrics");
    file.reopen().unwrap();
    write(&mut file, &VmMetrics::default(), 2);
    let got = lines(&Reader::open(&path).read());
    assert_eq!(got.iter().map(missed).collect::<Vec<_>>(), [(2, 1)]);
}

#[test]
fn full_disk_error_names_path() {
    let mut file = MetricsFile::open(Path::new("/dev/full")).unwrap();
    let error = file.write(&VmMetrics::default(), &accepted(1)).unwrap_err();
    assert!(error.starts_with("cannot write to \"/dev/full\": "), "{error}");
    assert_eq!((file.metrics.dropped, file.metrics.failures), (0, 1));
}

#[test]
fn failed_reopen_keeps_file() {
    let directory = Directory::new();
    fs::create_dir(directory.path("logs")).unwrap();
    let mut file = MetricsFile::open(&directory.path("logs/metrics")).unwrap();
    fs::rename(directory.path("logs"), directory.path("gone")).unwrap();
    assert!(file.reopen().unwrap_err().starts_with("cannot open "));
    write(&mut file, &VmMetrics::default(), 1);
    assert_eq!(lines(&fs::read(directory.path("gone/metrics")).unwrap()).len(), 1);
}
