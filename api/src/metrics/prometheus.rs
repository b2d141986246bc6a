//! Metrics in the text format of Prometheus, version 0.0.4.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use vmm::control::{DriveMetrics, InterfaceMetrics, ScaleToZeroMetrics, StartPhase, VcpuMetrics, VmMetrics};

use super::counters::Counters;

/// Name, help and values of a family, with one value for each direction.
type Direction = (&'static str, &'static str, fn(&InterfaceMetrics<'_>) -> [u64; 2]);

/// Directions in the order of [`InterfaceMetrics`]: to the guest, from the guest.
const DIRECTIONS: [&str; 2] = ["receive", "transmit"];

const INTERFACES: [Direction; 5] = [
    (
        "mayfly_net_packets_total",
        "Delivered packets: receive is to the guest, transmit from the guest.",
        |interface| {
            [
                interface.metrics.receive.packets,
                interface.metrics.transmit.packets,
            ]
        },
    ),
    (
        "mayfly_net_bytes_total",
        "Bytes of the frames in delivered packets.",
        |interface| [interface.metrics.receive.bytes, interface.metrics.transmit.bytes],
    ),
    (
        "mayfly_net_drops_total",
        "Dropped packets: too long, too short, or larger than the guest's buffers.",
        |interface| [interface.metrics.receive.drops, interface.metrics.transmit.drops],
    ),
    (
        "mayfly_net_errors_total",
        "Packets that the backend failed to send or receive.",
        |interface| {
            [
                interface.metrics.receive.errors,
                interface.metrics.transmit.errors,
            ]
        },
    ),
    (
        "mayfly_net_throttled_total",
        "Number of times that the rate limiter stopped the queue.",
        |interface| {
            [
                interface.metrics.receive.throttled,
                interface.metrics.transmit.throttled,
            ]
        },
    ),
];

/// Name, help and value of a family.
type Drive = (&'static str, &'static str, fn(&DriveMetrics<'_>) -> u64);

const DRIVES: [Drive; 3] = [
    (
        "mayfly_drive_errors_total",
        "Failed requests of any kind.",
        |drive| drive.metrics.errors,
    ),
    (
        "mayfly_drive_throttled_total",
        "Number of times that a request waited for the rate limiter.",
        |drive| drive.metrics.throttled,
    ),
    (
        "mayfly_drive_malformed_total",
        "Number of times that a malformed virtqueue stopped the drive.",
        |drive| drive.metrics.malformed,
    ),
];

/// Returns the metrics in the text format of Prometheus, version 0.0.4, or `None` if the process has no memory for the text.
pub fn prometheus(metrics: &VmMetrics, counters: &Counters) -> Option<String> {
    let mut text = Text::default();
    phases(&mut text, &metrics.phases);
    vcpus(&mut text, &metrics.vcpus);
    interfaces(&mut text, &metrics.interfaces());
    requests(&mut text, &metrics.drives());
    latencies(&mut text, &metrics.drives());
    memory(&mut text, metrics);
    suspends(&mut text, &metrics.scale_to_zero);
    let mut family = text.family(
        "mayfly_api_requests_total",
        Kind::Counter,
        "Requests to the API by result: accepted is status 200 or 204, refused is any other.",
    );
    family.sample(&[("result", "accepted")], counters.accepted);
    family.sample(&[("result", "refused")], counters.refused);
    text.into_string()
}

fn phases(text: &mut Text, phases: &[StartPhase]) {
    // A phase that occurs twice in a thread is one sample: the first start, and the sum of the lengths.
    let mut merged: Vec<(&str, String, f64, f64)> = Vec::new();
    for phase in phases {
        let thread = phase.vcpu.map_or("main".into(), |id| format!("vcpu {id}"));
        let known = merged
            .iter_mut()
            .find(|(name, other, ..)| *name == phase.name && *other == thread);
        match known {
            Some((.., length)) => *length += phase.length,
            None => merged.push((phase.name, thread, phase.start, phase.length)),
        }
    }
    let mut family = text.family(
        "mayfly_boot_phase_start_seconds",
        Kind::Gauge,
        "Time from the start of the process to the start of a boot phase.",
    );
    for (name, thread, start, _) in &merged {
        family.sample(&[("phase", name), ("thread", thread)], start);
    }
    let mut family = text.family(
        "mayfly_boot_phase_seconds",
        Kind::Gauge,
        "Length of a boot phase, 0 for an instant.",
    );
    for (name, thread, _, length) in &merged {
        family.sample(&[("phase", name), ("thread", thread)], length);
    }
}

fn vcpus(text: &mut Text, vcpus: &[VcpuMetrics]) {
    let mut family = text.family(
        "mayfly_vcpu_exits_total",
        Kind::Counter,
        "Exits from the guest to this process by kind.",
    );
    for vcpu in vcpus {
        let id = vcpu.id.to_string();
        for (kind, count) in &vcpu.exits {
            family.sample(&[("vcpu", &id), ("kind", kind)], count);
        }
    }
}

fn interfaces(text: &mut Text, interfaces: &[InterfaceMetrics<'_>]) {
    for (name, help, values) in INTERFACES {
        let mut family = text.family(name, Kind::Counter, help);
        for interface in interfaces {
            for (direction, value) in DIRECTIONS.into_iter().zip(values(interface)) {
                family.sample(&[("interface", interface.id), ("direction", direction)], value);
            }
        }
    }
    address_drops(text, interfaces);
    let mut family = text.family(
        "mayfly_net_address_conflicts_total",
        Kind::Counter,
        "ARP messages by which another host claims the address in ip= of --net.",
    );
    for interface in interfaces {
        family.sample(
            &[("interface", interface.id)],
            interface.metrics.address_conflicts,
        );
    }
}

fn address_drops(text: &mut Text, interfaces: &[InterfaceMetrics<'_>]) {
    let mut family = text.family(
        "mayfly_net_address_drops_total",
        Kind::Counter,
        "Packets that the rewriter of addresses dropped, by reason.",
    );
    for interface in interfaces {
        let metrics = interface.metrics;
        let directions = [&metrics.receive.address_drops, &metrics.transmit.address_drops];
        for (direction, drops) in DIRECTIONS.into_iter().zip(directions) {
            for (reason, count) in [
                ("ipv6", drops.ipv6),
                ("vlan", drops.vlan),
                ("protocol", drops.protocol),
                ("source", drops.source),
                ("destination", drops.destination),
                ("malformed", drops.malformed),
            ] {
                let labels = [
                    ("interface", interface.id),
                    ("direction", direction),
                    ("reason", reason),
                ];
                family.sample(&labels, count);
            }
        }
    }
}

fn requests(text: &mut Text, drives: &[DriveMetrics<'_>]) {
    let mut family = text.family(
        "mayfly_drive_requests_total",
        Kind::Counter,
        "Successful requests by operation; write zeroes counts as discard.",
    );
    for DriveMetrics { id, metrics, .. } in drives {
        for (operation, count) in [
            ("read", metrics.reads),
            ("write", metrics.writes),
            ("flush", metrics.flushes),
            ("discard", metrics.discards),
        ] {
            family.sample(&[("drive", id), ("operation", operation)], count);
        }
    }
    let mut family = text.family(
        "mayfly_drive_bytes_total",
        Kind::Counter,
        "Bytes of successful requests.",
    );
    for DriveMetrics { id, metrics, .. } in drives {
        for (operation, bytes) in [("read", metrics.read_bytes), ("write", metrics.written_bytes)] {
            family.sample(&[("drive", id), ("operation", operation)], bytes);
        }
    }
    for (name, help, value) in DRIVES {
        let mut family = text.family(name, Kind::Counter, help);
        for drive in drives {
            family.sample(&[("drive", drive.id)], value(drive));
        }
    }
}

fn latencies(text: &mut Text, drives: &[DriveMetrics<'_>]) {
    let mut family = text.family(
        "mayfly_drive_latency_seconds",
        Kind::Histogram,
        "Latency of successful requests: of each flush, and of 1 in 16 reads and writes.",
    );
    for DriveMetrics { id, metrics, .. } in drives {
        for (operation, latency) in [
            ("read", &metrics.read_latency),
            ("write", &metrics.write_latency),
            ("flush", &metrics.flush_latency),
        ] {
            let labels = [("drive", *id), ("operation", operation)];
            family.histogram(&labels, latency.buckets(), latency.sum_us(), latency.count());
        }
    }
}

fn memory(text: &mut Text, metrics: &VmMetrics) {
    let mut family = text.family(
        "mayfly_memory_bytes",
        Kind::Gauge,
        "Size of guest memory, 0 before the start.",
    );
    family.sample(&[], metrics.memory);
    let mut family = text.family(
        "mayfly_memory_touched_bytes",
        Kind::Gauge,
        "Guest memory that is resident in host memory.",
    );
    family.sample(&[], metrics.memory_touched);
    if let Some(resident) = metrics.resident {
        let mut family = text.family(
            "mayfly_resident_bytes",
            Kind::Gauge,
            "Resident memory of this process, including guest memory.",
        );
        family.sample(&[], resident);
    }
    let mut family = text.family(
        "mayfly_unclaimed_accesses_total",
        Kind::Counter,
        "Accesses of the guest to addresses of no device.",
    );
    family.sample(&[("space", "port")], metrics.unclaimed_io);
    family.sample(&[("space", "memory")], metrics.unclaimed_memory);
}

fn suspends(text: &mut Text, metrics: &ScaleToZeroMetrics) {
    let ScaleToZeroMetrics {
        suspends,
        cancels,
        failures,
        polling,
        suspend_us: _,
    } = metrics;
    let mut family = text.family(
        "mayfly_suspends_total",
        Kind::Counter,
        "Suspends by event: begun, cancelled by a frame or a request, or failed.",
    );
    family.sample(&[("event", "begun")], suspends);
    family.sample(&[("event", "cancelled")], cancels);
    family.sample(&[("event", "failed")], failures);
    let mut family = text.family(
        "mayfly_guest_polling_total",
        Kind::Counter,
        "Number of times that the guest was found to use a processor all the time without a transfer: it is never idle.",
    );
    family.sample(&[], polling);
}

/// Type of a metric family.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Values only increase. The name ends in `_total`.
    Counter,
    /// Values increase and decrease.
    Gauge,
    /// Values are counted in buckets. The name ends in the unit.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Text in the exposition format.
#[derive(Debug, Default)]
struct Text {
    text: String,
    /// The process has no memory for the rest of the text.
    truncated: bool,
}

impl Text {
    /// Starts a family; all its samples must precede the next family. A family without samples is omitted.
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family {
            text: self,
            name,
            head: Some((kind, help)),
        }
    }

    fn into_string(self) -> Option<String> {
        (!self.truncated).then_some(self.text)
    }

    fn push_str(&mut self, part: &str) {
        self.truncated = self.truncated || self.text.try_reserve(part.len()).is_err();
        if !self.truncated {
            self.text.push_str(part);
        }
    }

    fn push(&mut self, character: char) {
        self.push_str(character.encode_utf8(&mut [0; 4]));
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push_str(part);
        Ok(())
    }
}

/// Samples of one name.
#[derive(Debug)]
struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    /// Help and type, until they are written before the first sample.
    head: Option<(Kind, &'static str)>,
}

impl Family<'_> {
    /// Adds a sample. Each combination of labels must be unique.
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Adds a histogram. Each of `buckets` is a bound in microseconds and its cumulative count; `count` is the total.
    fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (u64, u64)>,
        sum_us: u64,
        count: u64,
    ) {
        for (bound, count) in buckets {
            self.line("_bucket", labels, Some(&seconds(bound).to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), count);
        self.line("_sum", labels, None, seconds(sum_us));
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: impl Display) {
        self.write_head();
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(self.text, value);
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        // Writing to a text cannot fail.
        let _ = writeln!(self.text, " {value}");
    }

    fn write_head(&mut self) {
        let Some((kind, help)) = self.head.take() else {
            return;
        };
        let (name, kind) = (self.name, kind.name());
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }
}

fn escape(text: &mut Text, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

fn seconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64()
}

#[cfg(test)]
mod tests;
