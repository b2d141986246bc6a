//! Metrics as one line of JSON: Firecracker's groups, and one group `mayfly`.
//!
//! As in Firecracker, a number of events counts from the last written line. All numbers in the group `mayfly` count from the start of
//! the process.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use vmm::control::{VcpuMetrics, VmMetrics};

use super::counters::{Counters, ProcessMetrics};
use super::groups::{FileMetrics, Group, Value, groups};

/// Numbers of events of each group in the last written line.
#[derive(Debug, Default)]
pub(super) struct Written(Vec<(String, Vec<u64>)>);

impl Written {
    /// Returns the numbers of events of `groups`. An estimate never decreases.
    fn after(&self, groups: &[Group]) -> Self {
        let counts = |group: &Group| {
            let values = group.values.iter().enumerate();
            values
                .map(|(index, (_, value))| value.count().max(self.count(&group.name, index)))
                .collect()
        };
        let groups = groups.iter();
        Self(groups.map(|group| (group.name.clone(), counts(group))).collect())
    }

    fn count(&self, group: &str, index: usize) -> u64 {
        let counts = self.0.iter().find(|(name, _)| name == group);
        let count = counts.and_then(|(_, counts)| counts.get(index));
        count.copied().unwrap_or(0)
    }
}

/// Keys of each line that tell the lines of several VMs apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineLabels {
    /// Identifier of the VM, in the key `id`.
    pub id: Option<String>,
    /// Texts that the user chose, in the key `properties`.
    pub properties: Option<BTreeMap<String, String>>,
}

/// Renders a line without its line feed. Also returns the numbers of events after it.
pub(super) fn render(
    time: Duration,
    labels: &LineLabels,
    metrics: &VmMetrics,
    process: &ProcessMetrics,
    file: FileMetrics,
    written: &Written,
) -> Result<(Vec<u8>, Written), serde_json::Error> {
    let groups = groups(metrics, process, file);
    let line = Line {
        time,
        labels,
        groups: &groups,
        written,
        own: Own {
            metrics,
            counters: &process.counters,
        },
    };
    Ok((serde_json::to_vec(&line)?, written.after(&groups)))
}

struct Line<'a> {
    /// Time since 1970-01-01 UTC.
    time: Duration,
    labels: &'a LineLabels,
    groups: &'a [Group],
    written: &'a Written,
    own: Own<'a>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let milliseconds = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        map.serialize_entry("utc_timestamp_ms", &milliseconds)?;
        if let Some(id) = &self.labels.id {
            map.serialize_entry("id", id)?;
        }
        if let Some(properties) = &self.labels.properties {
            map.serialize_entry("properties", properties)?;
        }
        for group in self.groups {
            let since = Since(group, self.written);
            map.serialize_entry(&group.name, &since)?;
        }
        map.serialize_entry("mayfly", &self.own)?;
        map.end()
    }
}

/// Group, with numbers of events since the last written line.
struct Since<'a>(&'a Group, &'a Written);

#[derive(Serialize)]
struct Aggregate {
    min_us: u64,
    max_us: u64,
    sum_us: u64,
}

impl Serialize for Since<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(group, written) = self;
        let mut map = serializer.serialize_map(Some(group.values.len()))?;
        for (index, (name, value)) in group.values.iter().enumerate() {
            let since = |count: u64| count.saturating_sub(written.count(&group.name, index));
            match *value {
                Value::Count(count) => map.serialize_entry(name, &since(count))?,
                Value::Stored(number) => map.serialize_entry(name, &number)?,
                Value::Duration {
                    min_us,
                    max_us,
                    sum_us,
                } => {
                    let sum_us = since(sum_us);
                    map.serialize_entry(
                        name,
                        &Aggregate {
                            min_us,
                            max_us,
                            sum_us,
                        },
                    )?;
                }
            }
        }
        map.end()
    }
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

/// Group `mayfly`: metrics that Firecracker does not have, since the start of the process.
struct Own<'a> {
    metrics: &'a VmMetrics,
    counters: &'a Counters,
}

impl Serialize for Own<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let metrics = self.metrics;
        let mut map = serializer.serialize_map(None)?;
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
            unclaimed_ports: metrics.unclaimed_io,
            unclaimed_addresses: metrics.unclaimed_memory,
        };
        map.serialize_entry("vmm", &vmm)?;
        map.serialize_entry("scale_to_zero", &metrics.scale_to_zero)?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
