use std::fs;
use std::path::Path;

use scratch::{Directory, Reader};
use serde_json::Value;
use vmm::control::VmMetrics;

use crate::metrics::Counters;
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

fn accepted(accepted: u64) -> Counters {
    Counters { accepted, refused: 0 }
}

fn missed(line: &Value) -> (u64, u64) {
    let number = |value: &Value| value.as_u64().unwrap();
    (
        number(&line["api_server"]["accepted"]),
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
    let size = reader.shrink() as u64;
    let written = size;
    // A line is longer than one byte, so not all of these fit.
    (0..written).for_each(|number| write(&mut file, &VmMetrics::default(), number));
    let before = lines(&reader.read());
    assert!(!before.is_empty());
    let kept = before.len() as u64;
    let expected: Vec<_> = (0..kept).map(|number| (number, 0)).collect();
    assert_eq!(before.iter().map(missed).collect::<Vec<_>>(), expected);
    write(&mut file, &VmMetrics::default(), 7);
    let after = lines(&reader.read());
    assert_eq!(
        after.iter().map(missed).collect::<Vec<_>>(),
        [(7, written - kept)]
    );
}

#[test]
fn long_line_precedes_next() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    let size = reader.shrink();
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
    let (last, dropped) = missed(lines.last().unwrap());
    assert_eq!((missed(&lines[0]), last), ((1, 0), 100));
    assert!(dropped >= 1);
    // Line 2, and those after it until the long line is complete.
    let got = lines.len() as u64;
    assert!(got + dropped >= 4, "{got} lines and {dropped} dropped");
}

#[test]
fn short_line_waits_for_long_line() {
    let directory = Directory::new();
    let path = directory.fifo("metrics");
    let mut file = MetricsFile::open(&path).unwrap();
    let mut reader = Reader::open(&path);
    let size = reader.shrink();
    // There is room for a short line, but not for the rest of the long line.
    file.output.write(&vec![b'x'; size - 1000]).unwrap();
    file.rest = vec![b'y'; 1999];
    file.rest.push(b'\n');
    write(&mut file, &VmMetrics::default(), 1);
    assert_eq!(reader.read(), vec![b'x'; size - 1000]);
    write(&mut file, &VmMetrics::default(), 2);
    let got = reader.read();
    let line = got.strip_prefix([b'y'; 1999].as_slice()).unwrap();
    assert_eq!(missed(&lines(line.strip_prefix(b"\n").unwrap())[0]), (2, 1));
    assert!(line.len() < 1000, "a line would not have fit");
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
    assert_eq!(file.dropped, 1);
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
