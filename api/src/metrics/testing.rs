//! Fixtures for the tests of this module.

use std::time::Duration;

use serde_json::Value;
use vmm::control::{
    BlockMetrics, DeviceCounters, DeviceMetrics, InputMetrics, Latency, NetMetrics, OperationTimes,
    ScaleToZeroMetrics, SerialMetrics, StartPhase, TransportMetrics, VcpuMetrics, VmMetrics,
};

use super::ProcessMetrics;

const KINDS: [&str; 7] = [
    "io_in",
    "io_out",
    "mmio_read",
    "mmio_write",
    "halt",
    "interrupt",
    "other",
];

fn latency(number: &mut impl FnMut() -> u64) -> Latency {
    Latency {
        timed: 1,
        sum_ns: number() * 1000,
        min_ns: number() * 1000,
        max_ns: number() * 1000,
    }
}

fn transport(number: &mut impl FnMut() -> u64) -> TransportMetrics {
    TransportMetrics {
        activation_failures: number(),
        config_failures: number(),
        events: number(),
        interrupts: number(),
    }
}

fn drive(id: &str, number: &mut impl FnMut() -> u64) -> DeviceMetrics {
    let mut block = BlockMetrics::default();
    (block.reads, block.writes) = (number(), number());
    (block.read_bytes, block.written_bytes) = (number(), number());
    (block.flushes, block.discards, block.errors) = (number(), number(), number());
    (block.throttled, block.malformed) = (number(), number());
    block.rejected = block.errors - 3;
    (block.notifications, block.limiter_events) = (number(), number());
    (block.empty_batches, block.engine_full) = (number(), number());
    (block.left_requests, block.updates, block.update_failures) = (number(), number(), number());
    (block.read_duration, block.write_duration) = (latency(number), latency(number));
    for latency in [
        &mut block.read_latency,
        &mut block.write_latency,
        &mut block.flush_latency,
    ] {
        let us = number() * 1000;
        (0..number()).for_each(|_| latency.record(Duration::from_micros(us)));
        latency.record(Duration::from_secs(20));
    }
    DeviceMetrics {
        id: id.into(),
        counters: DeviceCounters::Drive(Box::new(block)),
        transport: transport(number),
    }
}

fn interface(id: &str, number: &mut impl FnMut() -> u64) -> DeviceMetrics {
    let mut net = NetMetrics::default();
    for direction in [&mut net.receive, &mut net.transmit] {
        (direction.packets, direction.bytes, direction.drops) = (number(), number(), number());
        (direction.errors, direction.throttled) = (number(), number());
        (direction.notifications, direction.limiter_events) = (number(), number());
        (direction.empty_batches, direction.left_buffers) = (number(), number());
        direction.duration = latency(number);
        let drops = &mut direction.address_drops;
        (drops.ipv6, drops.vlan, drops.protocol) = (number(), number(), number());
        (drops.source, drops.destination, drops.malformed) = (number(), number(), number());
    }
    (net.backend_events, net.faults) = (number(), number());
    net.address_conflicts = number();
    DeviceMetrics {
        id: id.into(),
        counters: DeviceCounters::Interface(Box::new(net)),
        transport: transport(number),
    }
}

/// Metrics of a process with a different number in each field, all above 10,000.
pub(super) fn full_process() -> ProcessMetrics {
    let mut next = 10_000;
    let mut number = || {
        next += 1;
        next
    };
    let mut process = ProcessMetrics::default();
    (process.counters.accepted, process.counters.refused) = (number(), number());
    let requests = &mut process.requests;
    let all = requests
        .get
        .iter_mut()
        .chain(&mut requests.put)
        .chain(&mut requests.patch);
    for count in all {
        (count.count, count.fails) = (number(), number());
    }
    process.deprecated = number();
    process.operations = operations(&mut number);
    process.startup_us = [number(), number()];
    (process.hangups, process.missed_messages) = (number(), number());
    process
}

fn operations(number: &mut impl FnMut() -> u64) -> OperationTimes {
    OperationTimes {
        pause_us: number(),
        resume_us: number(),
        create_full_us: number(),
        create_diff_us: number(),
        load_us: number(),
    }
}

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
            exits: KINDS.map(|kind| (kind, number())).to_vec(),
            durations: [(); 4].map(|()| latency(&mut number)),
            failures: number(),
            clock_failures: number(),
        });
    }
    for id in ["rootfs", "a\"b\\c\nd"] {
        metrics.devices.push(drive(id, &mut number));
    }
    for id in ["net1", "br-0"] {
        metrics.devices.push(interface(id, &mut number));
    }
    metrics.serial = SerialMetrics {
        reads: number(),
        empty_reads: number(),
        writes: number(),
        dropped: number(),
        limited: number(),
        errors: number(),
        flushes: number(),
    };
    metrics.input = InputMetrics {
        reads: number(),
        writes: number(),
        resets: number(),
    };
    metrics.operations = operations(&mut number);
    (metrics.unclaimed_io, metrics.unclaimed_memory) = (number(), number());
    (metrics.memory, metrics.memory_touched) = (number(), number());
    metrics.resident = Some(number());
    metrics.scale_to_zero = ScaleToZeroMetrics {
        suspends: number(),
        cancels: number(),
        failures: number(),
        polling: number(),
        // Prometheus does not have it: the process ends after the suspend.
        suspend_us: 0,
    };
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
