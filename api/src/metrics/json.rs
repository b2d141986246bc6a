//! Metrics as one line of JSON, in groups with Firecracker's names.
//!
//! Firecracker counts from the last line. These counters start with the process, so a dropped line loses no counts.

use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use vmm::control::{VcpuMetrics, VmMetrics};

use super::counters::Counters;

/// Contents of a line.
pub(super) struct Line<'a> {
    /// Time since 1970-01-01 UTC.
    pub(super) time: Duration,
    pub(super) metrics: &'a VmMetrics,
    pub(super) counters: &'a Counters,
    /// Number of lines dropped before this one.
    pub(super) dropped: u64,
}

#[derive(Serialize)]
struct Memory {
    size_bytes: u64,
    touched_bytes: u64,
    resident_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Vmm {
    unclaimed_ports: u64,
    unclaimed_addresses: u64,
}

#[derive(Serialize)]
struct Logger {
    missed_metrics_count: u64,
}

/// Exits by kind, with Firecracker's names.
struct Exits(Vec<(&'static str, u64)>);

impl Exits {
    /// Sums the exits of all `vcpus`.
    fn of_all(vcpus: &[VcpuMetrics]) -> Self {
        let mut sums: Vec<(&'static str, u64)> = Vec::new();
        for (kind, count) in vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
            match sums.iter_mut().find(|(known, _)| known == kind) {
                Some((_, sum)) => *sum = sum.wrapping_add(*count),
                None => sums.push((kind, *count)),
            }
        }
        Self(sums)
    }
}

impl Serialize for Exits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(kind, count)| (format!("exit_{kind}"), count)))
    }
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let metrics = self.metrics;
        let mut map = serializer.serialize_map(None)?;
        let milliseconds = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        map.serialize_entry("utc_timestamp_ms", &milliseconds)?;
        map.serialize_entry("api_server", self.counters)?;
        map.serialize_entry("boot", &metrics.phases)?;
        map.serialize_entry("vcpu", &Exits::of_all(&metrics.vcpus))?;
        for vcpu in &metrics.vcpus {
            map.serialize_entry(&format!("vcpu_{}", vcpu.id), &Exits(vcpu.exits.clone()))?;
        }
        for drive in metrics.drives() {
            map.serialize_entry(&format!("block_{}", drive.id), drive.metrics)?;
        }
        for interface in metrics.interfaces() {
            map.serialize_entry(&format!("net_{}", interface.id), interface.metrics)?;
        }
        let memory = Memory {
            size_bytes: metrics.memory,
            touched_bytes: metrics.memory_touched,
            resident_bytes: metrics.resident,
        };
        map.serialize_entry("memory", &memory)?;
        let vmm = Vmm {
            unclaimed_ports: metrics.unclaimed_ports,
            unclaimed_addresses: metrics.unclaimed_addresses,
        };
        map.serialize_entry("vmm", &vmm)?;
        let logger = Logger {
            missed_metrics_count: self.dropped,
        };
        map.serialize_entry("logger", &logger)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;
    use vmm::control::VmMetrics;

    use super::Line;
    use crate::metrics::Counters;
    use crate::metrics::testing::{full, leaves};

    fn value(metrics: &VmMetrics) -> Value {
        let line = Line {
            time: Duration::from_micros(1_700_000_000_123_999),
            metrics,
            counters: &Counters {
                accepted: 4001,
                refused: 4002,
            },
            dropped: 4003,
        };
        serde_json::from_slice(&serde_json::to_vec(&line).unwrap()).unwrap()
    }

    #[test]
    fn all_metrics_are_in_line() {
        let metrics = full();
        let present: Vec<f64> = leaves(&value(&metrics)).into_iter().map(|(_, one)| one).collect();
        for (path, number) in leaves(&serde_json::to_value(&metrics).unwrap()) {
            // The number of a vCPU is part of the name of its group.
            let named = path.starts_with("/vcpus/") && path.ends_with("/id");
            assert!(named || present.contains(&number), "{path} = {number} is missing");
        }
    }

    #[test]
    fn groups_have_firecracker_names() {
        let metrics = full();
        let value = value(&metrics);
        assert_eq!(value["utc_timestamp_ms"], 1_700_000_000_123_u64);
        assert_eq!(value["api_server"]["accepted"], 4001);
        assert_eq!(value["api_server"]["refused"], 4002);
        assert_eq!(value["logger"]["missed_metrics_count"], 4003);
        let drive = metrics.drives()[0];
        assert_eq!(value[format!("block_{}", drive.id)]["reads"], drive.metrics.reads);
        let net = metrics.interfaces()[1];
        assert_eq!(
            value[format!("net_{}", net.id)]["transmit"]["bytes"],
            net.metrics.transmit.bytes
        );
        let exits = |id: usize| metrics.vcpus[id].exits[1].1;
        assert_eq!(value["vcpu_1"]["exit_halt"], exits(1));
        assert_eq!(value["vcpu"]["exit_halt"], exits(0) + exits(1));
    }

    #[test]
    fn line_before_start_is_valid() {
        let value = value(&VmMetrics::default());
        assert_eq!(value["memory"]["size_bytes"], 0);
        assert!(value["memory"]["resident_bytes"].is_null());
    }
}
