//! Fixtures for the tests of this module.

use std::time::Duration;

use serde_json::Value;
use vmm::control::{
    BlockMetrics, DeviceCounters, DeviceMetrics, NetMetrics, StartPhase, VcpuMetrics, VmMetrics,
};

/// Metrics with at least two elements of each kind, and a different number in each field.
pub(super) fn full() -> VmMetrics {
    let mut next: u32 = 100;
    let mut number = || {
        next += 1;
        next
    };
    let mut metrics = VmMetrics {
        phases: [("open image", None), ("create VM", None), ("first exit", Some(3))]
            .into_iter()
            .map(|(name, vcpu)| StartPhase {
                name,
                vcpu,
                start: f64::from(number()) / 1e5,
                length: f64::from(number()) / 1e5,
            })
            .collect(),
        ..VmMetrics::default()
    };
    let mut number = || u64::from(number());
    for id in 0..2 {
        metrics.vcpus.push(VcpuMetrics {
            id,
            exits: vec![("io_in", number()), ("halt", number()), ("other", number())],
        });
    }
    for id in ["rootfs", "a\"b\\c\nd"] {
        let mut block = BlockMetrics::default();
        (block.reads, block.writes) = (number(), number());
        (block.read_bytes, block.written_bytes) = (number(), number());
        (block.flushes, block.discards, block.errors) = (number(), number(), number());
        (block.throttled, block.malformed) = (number(), number());
        for latency in [
            &mut block.read_latency,
            &mut block.write_latency,
            &mut block.flush_latency,
        ] {
            let us = number() * 1000;
            (0..number()).for_each(|_| latency.record(Duration::from_micros(us)));
            latency.record(Duration::from_secs(20));
        }
        metrics.devices.push(DeviceMetrics {
            id: id.into(),
            counters: DeviceCounters::Drive(Box::new(block)),
        });
    }
    for id in ["net1", "br-0"] {
        let mut net = NetMetrics::default();
        for direction in [&mut net.receive, &mut net.transmit] {
            (direction.packets, direction.bytes, direction.drops) = (number(), number(), number());
            (direction.errors, direction.throttled) = (number(), number());
        }
        metrics.devices.push(DeviceMetrics {
            id: id.into(),
            counters: DeviceCounters::Interface(net),
        });
    }
    (metrics.unclaimed_ports, metrics.unclaimed_addresses) = (number(), number());
    (metrics.memory, metrics.memory_touched) = (number(), number());
    metrics.resident = Some(number());
    metrics
}

/// Numbers in `value` with their paths.
pub(super) fn leaves(value: &Value) -> Vec<(String, f64)> {
    fn walk(value: &Value, path: &str, found: &mut Vec<(String, f64)>) {
        match value {
            Value::Number(number) => found.push((path.into(), number.as_f64().unwrap())),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(index, item)| walk(item, &format!("{path}/{index}"), found)),
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, field)| walk(field, &format!("{path}/{name}"), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}
