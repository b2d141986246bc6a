//! Which number has which name in Prometheus.

use vmm::control::{DriveMetrics, InterfaceMetrics, StartPhase, VcpuMetrics, VmMetrics};

use super::Counters;
use super::text::{Kind, Text};

/// Name, help and values of a family, one value for each direction.
type Direction = (&'static str, &'static str, fn(&InterfaceMetrics<'_>) -> [u64; 2]);

/// As [`InterfaceMetrics`] has them: towards the guest, from the guest.
const DIRECTIONS: [&str; 2] = ["receive", "transmit"];

const INTERFACES: [Direction; 5] = [
    (
        "mayfly_net_packets_total",
        "Packets that went all the way. To receive is to pass to the guest.",
        |one| [one.metrics.receive.packets, one.metrics.transmit.packets],
    ),
    (
        "mayfly_net_bytes_total",
        "Bytes of the frames of packets that went all the way.",
        |one| [one.metrics.receive.bytes, one.metrics.transmit.bytes],
    ),
    (
        "mayfly_net_drops_total",
        "Packets dropped for what they are: too long, too short, or more than the guest's buffers hold.",
        |one| [one.metrics.receive.drops, one.metrics.transmit.drops],
    ),
    (
        "mayfly_net_errors_total",
        "Packets that the host's side of the interface failed to send or to receive.",
        |one| [one.metrics.receive.errors, one.metrics.transmit.errors],
    ),
    (
        "mayfly_net_throttled_total",
        "Times that the rate limiter stopped the queue.",
        |one| [one.metrics.receive.throttled, one.metrics.transmit.throttled],
    ),
];

/// Name, help and value of a family.
type Drive = (&'static str, &'static str, fn(&DriveMetrics<'_>) -> u64);

const DRIVES: [Drive; 3] = [
    (
        "mayfly_drive_errors_total",
        "Requests of any kind that did not end well.",
        |drive| drive.metrics.errors,
    ),
    (
        "mayfly_drive_throttled_total",
        "Times that a request had to wait for the rate limiter.",
        |drive| drive.metrics.throttled,
    ),
    (
        "mayfly_drive_malformed_total",
        "Times that the guest's queue was malformed, which stopped the drive.",
        |drive| drive.metrics.malformed,
    ),
];

/// The numbers in the text format of Prometheus, version 0.0.4.
pub fn prometheus(metrics: &VmMetrics, counters: &Counters) -> String {
    let mut text = Text::default();
    phases(&mut text, &metrics.phases);
    vcpus(&mut text, &metrics.vcpus);
    interfaces(&mut text, &metrics.interfaces());
    requests(&mut text, &metrics.drives());
    latencies(&mut text, &metrics.drives());
    memory(&mut text, metrics);
    let mut family = text.family(
        "mayfly_api_requests_total",
        Kind::Counter,
        "Requests to the API by how they were answered: accepted is 200 and 204, refused is all else.",
    );
    family.sample(&[("result", "accepted")], counters.accepted);
    family.sample(&[("result", "refused")], counters.refused);
    text.into_string()
}

fn phases(text: &mut Text, phases: &[StartPhase]) {
    // A phase that a thread goes through twice is one: it begins with the first and is as long as both.
    let mut lanes: Vec<(&str, String, f64, f64)> = Vec::new();
    for phase in phases {
        let thread = phase.vcpu.map_or("main".into(), |id| format!("vcpu {id}"));
        let known = lanes
            .iter_mut()
            .find(|(name, lane, ..)| *name == phase.name && *lane == thread);
        match known {
            Some((.., length)) => *length += phase.length,
            None => lanes.push((phase.name, thread, phase.start, phase.length)),
        }
    }
    let mut family = text.family(
        "mayfly_boot_phase_start_seconds",
        Kind::Gauge,
        "When a phase of the start began, counted from the start of the process.",
    );
    for (name, thread, start, _) in &lanes {
        family.sample(&[("phase", name), ("thread", thread)], start);
    }
    let mut family = text.family(
        "mayfly_boot_phase_seconds",
        Kind::Gauge,
        "How long a phase of the start took, 0 if it is a moment.",
    );
    for (name, thread, _, length) in &lanes {
        family.sample(&[("phase", name), ("thread", thread)], length);
    }
}

fn vcpus(text: &mut Text, vcpus: &[VcpuMetrics]) {
    let mut family = text.family(
        "mayfly_vcpu_exits_total",
        Kind::Counter,
        "Exits from the guest to this process by their kind.",
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
                family.sample(&[("interface", &interface.id), ("direction", direction)], value);
            }
        }
    }
}

fn requests(text: &mut Text, drives: &[DriveMetrics<'_>]) {
    let mut family = text.family(
        "mayfly_drive_requests_total",
        Kind::Counter,
        "Requests that ended well, by operation; to write zeroes is to discard.",
    );
    for DriveMetrics { id, metrics } in drives {
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
        "Bytes of requests that ended well.",
    );
    for DriveMetrics { id, metrics } in drives {
        for (operation, bytes) in [("read", metrics.read_bytes), ("write", metrics.written_bytes)] {
            family.sample(&[("drive", id), ("operation", operation)], bytes);
        }
    }
    for (name, help, value) in DRIVES {
        let mut family = text.family(name, Kind::Counter, help);
        for drive in drives {
            family.sample(&[("drive", &drive.id)], value(drive));
        }
    }
}

fn latencies(text: &mut Text, drives: &[DriveMetrics<'_>]) {
    let mut family = text.family(
        "mayfly_drive_latency_seconds",
        Kind::Histogram,
        "How long requests that ended well took. Reads and writes are sampled, 1 of 16 is timed; flushes are timed all.",
    );
    for DriveMetrics { id, metrics } in drives {
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
        "Memory that the guest has; 0 before its start.",
    );
    family.sample(&[], metrics.memory);
    let mut family = text.family(
        "mayfly_memory_touched_bytes",
        Kind::Gauge,
        "Memory of the guest that is in the host's memory.",
    );
    family.sample(&[], metrics.memory_touched);
    if let Some(resident) = metrics.resident {
        let mut family = text.family(
            "mayfly_resident_bytes",
            Kind::Gauge,
            "Memory of this process that is in the host's memory, the guest's included.",
        );
        family.sample(&[], resident);
    }
    let mut family = text.family(
        "mayfly_unclaimed_accesses_total",
        Kind::Counter,
        "Accesses of the guest that no device claimed.",
    );
    family.sample(&[("space", "port")], metrics.unclaimed_ports);
    family.sample(&[("space", "memory")], metrics.unclaimed_addresses);
}

#[cfg(test)]
mod tests;
