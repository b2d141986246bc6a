use std::collections::{HashMap, HashSet};

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use vmm::control::{StartPhase, VmMetrics};

use super::{Kind, Text, prometheus};
use crate::metrics::Counters;
use crate::metrics::testing::{full, leaves};

type Labels = Vec<(String, String)>;

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }

    fn without_bound(&self) -> Labels {
        let labels = self.labels.iter().filter(|(name, _)| name != "le");
        labels.cloned().collect()
    }
}

#[derive(Debug)]
struct Family {
    name: String,
    kind: String,
    samples: Vec<Sample>,
}

/// Parses `text` strictly in the exposition format.
fn parse(text: &str) -> Vec<Family> {
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "the last line has no end"
    );
    let mut families: Vec<Family> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty() && is_name(name), "{line}");
            let kind = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
            let kind = kind.strip_prefix(name).unwrap().strip_prefix(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert!(families.iter().all(|family| family.name != name), "{name} twice");
            families.push(Family {
                name: name.into(),
                kind: kind.into(),
                samples: Vec::new(),
            });
        } else {
            let family = families.last_mut().expect("a sample before all families");
            family.samples.push(sample(line));
        }
    }
    families
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"").expect(line);
            assert!(is_name(label), "{line}");
            let (value, after) = quoted(after);
            labels.push((label.to_owned(), value));
            match after.strip_prefix(',') {
                Some(after) => inside = after,
                None => {
                    rest = after.strip_prefix('}').expect(line);
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect(line);
    assert!(
        value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'),
        "{line}"
    );
    Sample {
        name: name.into(),
        labels,
        value: value.parse().expect(line),
    }
}

/// Splits `text` into the value up to its closing quote and the text after the quote.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.push(match characters.next().unwrap().1 {
                'n' => '\n',
                kept @ ('\\' | '"') => kept,
                other => panic!("\\{other} is no escape"),
            }),
            other => value.push(other),
        }
    }
    panic!("a value without an end: {text}");
}

fn counters() -> Counters {
    Counters {
        accepted: 4001,
        refused: 4002,
    }
}

fn parsed() -> Vec<Family> {
    parse(&prometheus(&full(), &counters()).unwrap())
}

fn value(families: &[Family], name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut found = families
        .iter()
        .flat_map(|family| &family.samples)
        .filter(|sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(name, value)| sample.label(name) == Some(value))
        });
    let first = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    assert!(found.next().is_none(), "more than one {name} {labels:?}");
    first.value
}

#[test]
fn names_follow_conventions() {
    for family in parsed() {
        let name = &family.name;
        assert!(
            name.starts_with("mayfly_") && !family.samples.is_empty(),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}");
        let unit = name.ends_with("_seconds") || name.ends_with("_bytes");
        assert!(unit || family.kind == "counter", "{name} has no unit");
        for sample in &family.samples {
            let suffix = sample.name.strip_prefix(name.as_str()).unwrap();
            let suffixes: &[_] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{} in {name}", sample.name);
            assert_eq!(suffix == "_bucket", sample.label("le").is_some(), "{sample:?}");
        }
    }
}

#[test]
fn samples_are_unique() {
    let mut seen = HashSet::new();
    for sample in parsed().into_iter().flat_map(|family| family.samples) {
        let mut labels = sample.labels;
        labels.sort();
        let key = (sample.name, labels);
        assert!(seen.insert(key.clone()), "{key:?}");
    }
}

#[test]
fn histogram_buckets_are_cumulative() {
    let families = parsed();
    let histograms = families.iter().filter(|family| family.kind == "histogram");
    let mut series: HashMap<Labels, Vec<&Sample>> = HashMap::new();
    for sample in histograms.flat_map(|family| &family.samples) {
        series.entry(sample.without_bound()).or_default().push(sample);
    }
    assert_eq!(series.len(), 6, "two drives, three operations");
    for (labels, samples) in series {
        let buckets: Vec<_> = samples
            .iter()
            .filter_map(|sample| sample.label("le").map(|le| (le, sample.value)))
            .collect();
        let bounds: Vec<f64> = buckets.iter().map(|(le, _)| le.parse().unwrap()).collect();
        assert!(bounds.is_sorted_by(|a, b| a < b), "{labels:?} {bounds:?}");
        assert!(buckets.is_sorted_by_key(|(_, count)| *count), "{labels:?}");
        assert_eq!((bounds[0], buckets.last().unwrap().0), (1e-6, "+Inf"));
        let ends: Vec<_> = samples
            .iter()
            .filter(|sample| sample.name.ends_with("_count"))
            .map(|sample| sample.value)
            .collect();
        assert_eq!(ends, [buckets.last().unwrap().1], "{labels:?}");
    }
}

/// Returns the expected sample for the field at `path` of the metrics, or `None` if the number is no sample.
fn expected_value(path: &str, number: f64) -> Option<f64> {
    if path.ends_with("/sum_us") {
        return Some(number / 1e6);
    }
    // Numbers of vCPUs are labels.
    let label = path.ends_with("/vcpu") || path.starts_with("/vcpus/") && path.ends_with("/id");
    // The fixture fills one bucket; cumulative counts repeat it in all greater buckets.
    let empty = path.contains("/buckets/") && number == 0.0;
    (!label && !empty).then_some(number)
}

/// Returns true for a metric that only the metrics file has, under a name of Firecracker.
fn is_only_in_file(path: &str) -> bool {
    let groups = ["/serial/", "/input/", "/operations/"];
    let fields = [
        "/transport/",
        "/durations/",
        "/failures",
        "/clock_failures",
        "/rejected",
        "/notifications",
        "/limiter_events",
        "/empty_batches",
        "/engine_full",
        "/left_requests",
        "/left_buffers",
        "/updates",
        "/update_failures",
        "/read_duration/",
        "/write_duration/",
        "/duration/",
        "/backend_events",
        "/faults",
    ];
    groups.iter().any(|group| path.starts_with(group)) || fields.iter().any(|field| path.contains(field))
}

#[test]
fn all_metrics_are_exposed() {
    let metrics = full();
    let families = parsed();
    let samples: Vec<f64> = families
        .iter()
        .flat_map(|family| &family.samples)
        .map(|sample| sample.value)
        .collect();
    let mut leaves = leaves(&serde_json::to_value(&metrics).unwrap());
    leaves.retain(|(path, _)| !is_only_in_file(path));
    assert!(leaves.len() > 100, "{}", leaves.len());
    for (path, number) in leaves {
        if let Some(number) = expected_value(&path, number) {
            assert!(samples.contains(&number), "{path} = {number} is missing");
        }
    }
}

#[test]
fn samples_have_labels() {
    let metrics = full();
    let families = parsed();
    let of = |name, labels: &[_]| value(&families, name, labels);
    let exact = |number: u64| number.to_string().parse::<f64>().unwrap();
    let phase = [("phase", "first exit"), ("thread", "vcpu 3")];
    assert_eq!(of("mayfly_boot_phase_seconds", &phase), metrics.phases[2].length);
    assert_eq!(
        of("mayfly_boot_phase_start_seconds", &phase),
        metrics.phases[2].start
    );
    let drives = metrics.drives();
    let (drive, counters) = (drives[1].id, drives[1].metrics);
    let write = [("drive", drive), ("operation", "write")];
    assert_eq!(of("mayfly_drive_requests_total", &write), exact(counters.writes));
    assert_eq!(
        of("mayfly_drive_bytes_total", &write),
        exact(counters.written_bytes)
    );
    assert_eq!(
        of("mayfly_drive_latency_seconds_count", &write),
        exact(counters.write_latency.count())
    );
    let net = metrics.interfaces()[0];
    let transmit = [("interface", net.id), ("direction", "transmit")];
    assert_eq!(
        of("mayfly_net_drops_total", &transmit),
        exact(net.metrics.transmit.drops)
    );
    let source = [transmit[0], transmit[1], ("reason", "source")];
    assert_eq!(
        of("mayfly_net_address_drops_total", &source),
        exact(net.metrics.transmit.address_drops.source)
    );
    let exits = of("mayfly_vcpu_exits_total", &[("vcpu", "1"), ("kind", "halt")]);
    assert_eq!(exits, exact(metrics.vcpus[1].exits[4].1));
    assert_eq!(of("mayfly_api_requests_total", &[("result", "refused")]), 4002.0);
}

#[test]
fn metrics_before_start_are_valid() {
    let families = parse(&prometheus(&VmMetrics::default(), &counters()).unwrap());
    let names: Vec<_> = families.iter().map(|family| family.name.as_str()).collect();
    let expected = [
        "mayfly_memory_bytes",
        "mayfly_memory_touched_bytes",
        "mayfly_unclaimed_accesses_total",
        "mayfly_suspends_total",
        "mayfly_guest_polling_total",
        "mayfly_api_requests_total",
    ];
    assert_eq!(names, expected);
}

#[test]
fn repeated_phase_is_one_sample() {
    let phase = |start, length| StartPhase {
        name: "open image",
        vcpu: None,
        start,
        length,
    };
    let metrics = VmMetrics {
        phases: vec![phase(1.0, 0.5), phase(2.0, 0.25)],
        ..VmMetrics::default()
    };
    let families = parse(&prometheus(&metrics, &counters()).unwrap());
    let of = |name| value(&families, name, &[("phase", "open image"), ("thread", "main")]);
    assert_eq!(of("mayfly_boot_phase_start_seconds"), 1.0);
    assert_eq!(of("mayfly_boot_phase_seconds"), 0.75);
}

proptest! {
    #[test]
    fn label_values_are_escaped(name in any::<String>(), other in "[\\\\\"\n{},= ]*") {
        let mut metrics = full();
        metrics.devices[0].id.clone_from(&name);
        metrics.devices[2].id = format!("{name}{other}");
        let families = parse(&prometheus(&metrics, &counters()).unwrap());
        let samples = || families.iter().flat_map(|family| &family.samples);
        prop_assert!(samples().any(|sample| sample.label("interface") == Some(metrics.interfaces()[0].id)));
        let drives = samples().filter(|sample| sample.label("drive") == Some(&name)).count();
        // 4 of requests, 2 of bytes, 3 of other counters, 3 histograms of 24 buckets, +Inf, sum and count.
        prop_assert_eq!(drives, 9 + 3 * 27);
    }
}

#[test]
fn family_format_is_exact() {
    let mut text = Text::default();
    let mut family = text.family("a_total", Kind::Counter, "One\\two\nthree.");
    family.sample(&[], 1);
    family.sample(&[("x", "a\\b\"c\nd"), ("y", "")], 2.5);
    text.family("b", Kind::Gauge, "Nothing.");
    assert_eq!(
        text.into_string().unwrap(),
        "# HELP a_total One\\\\two\\nthree.\n# TYPE a_total counter\na_total 1\n\
         a_total{x=\"a\\\\b\\\"c\\nd\",y=\"\"} 2.5\n"
    );
}

#[test]
fn histogram_unit_is_seconds() {
    let mut text = Text::default();
    let mut family = text.family("h_seconds", Kind::Histogram, "Time.");
    family.histogram(&[("d", "x")], [(1, 2), (1 << 23, 3)].into_iter(), 2_500_000, 4);
    assert_eq!(
        text.into_string().unwrap(),
        "# HELP h_seconds Time.\n# TYPE h_seconds histogram\nh_seconds_bucket{d=\"x\",le=\"0.000001\"} 2\n\
         h_seconds_bucket{d=\"x\",le=\"8.388608\"} 3\nh_seconds_bucket{d=\"x\",le=\"+Inf\"} 4\n\
         h_seconds_sum{d=\"x\"} 2.5\nh_seconds_count{d=\"x\"} 4\n"
    );
}
