//! Groups of metrics with Firecracker's names.
//!
//! The names are those of Firecracker 1.12 to 1.17, so that readers made for any of them find all that they require. A name of a
//! feature that mayfly does not support has the value 0.

use vmm::control::{BlockMetrics, Latency, NetMetrics, TransportMetrics, VcpuMetrics, VmMetrics};

use super::counters::{GET, PATCH, PUT, ProcessMetrics, RequestCount, Resource};

/// Value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Number of events since the start of the process.
    Count(u64),
    /// Current value.
    Stored(u64),
    /// Bounds and sum of durations.
    Duration { min_us: u64, max_us: u64, sum_us: u64 },
}

impl Value {
    /// Returns the part that counts from the last written line.
    pub(super) fn count(self) -> u64 {
        match self {
            Self::Count(count) | Self::Duration { sum_us: count, .. } => count,
            Self::Stored(_) => 0,
        }
    }

    /// Returns the sum with `other` for an aggregate, which has no bounds of durations: as in Firecracker.
    fn plus(self, other: Self) -> Self {
        match self {
            Self::Count(_) => Self::Count(self.count().saturating_add(other.count())),
            Self::Duration { .. } => Self::Duration {
                min_us: 0,
                max_us: 0,
                sum_us: self.count().saturating_add(other.count()),
            },
            Self::Stored(_) => self,
        }
    }
}

/// Values of a group with their names.
type Values = Vec<(&'static str, Value)>;

/// Named group of metrics.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) values: Values,
}

/// Metrics of the metrics file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileMetrics {
    /// Lines that a full FIFO did not take.
    pub(super) dropped: u64,
    /// Lines that could not be written for another reason.
    pub(super) failures: u64,
}

/// Groups of features that mayfly does not support, whose values are 0. A name with the suffix `_agg` has bounds and sum.
const UNSUPPORTED: [(&str, &[&str]); 7] = [
    (
        "balloon",
        &[
            "activate_fails",
            "cfg_fails",
            "inflate_count",
            "stats_updates_count",
            "stats_update_fails",
            "deflate_count",
            "event_fails",
            "free_page_report_count",
            "free_page_report_freed",
            "free_page_report_fails",
            "free_page_hint_count",
            "free_page_hint_freed",
            "free_page_hint_fails",
        ],
    ),
    (
        "mmds",
        &[
            "rx_accepted",
            "rx_accepted_err",
            "rx_accepted_unusual",
            "rx_bad_eth",
            "rx_invalid_token",
            "rx_no_token",
            "rx_count",
            "tx_bytes",
            "tx_count",
            "tx_errors",
            "tx_frames",
            "connections_created",
            "connections_destroyed",
        ],
    ),
    (
        "vsock",
        &[
            "activate_fails",
            "cfg_fails",
            "rx_queue_event_fails",
            "tx_queue_event_fails",
            "ev_queue_event_fails",
            "muxer_event_fails",
            "conn_event_fails",
            "rx_queue_event_count",
            "tx_queue_event_count",
            "rx_bytes_count",
            "tx_bytes_count",
            "rx_packets_count",
            "tx_packets_count",
            "conns_added",
            "conns_killed",
            "conns_removed",
            "killq_resync",
            "tx_flush_fails",
            "tx_write_fails",
            "rx_read_fails",
        ],
    ),
    (
        "entropy",
        &[
            "activate_fails",
            "entropy_event_fails",
            "entropy_event_count",
            "entropy_bytes",
            "host_rng_fails",
            "entropy_rate_limiter_throttled",
            "rate_limiter_event_count",
        ],
    ),
    (
        "pmem",
        &["activate_fails", "cfg_fails", "event_fails", "queue_event_count"],
    ),
    (
        "memory_hotplug",
        &[
            "activate_fails",
            "queue_event_fails",
            "queue_event_count",
            "plug_agg",
            "plug_count",
            "plug_bytes",
            "plug_fails",
            "unplug_agg",
            "unplug_count",
            "unplug_bytes",
            "unplug_fails",
            "unplug_discard_fails",
            "unplug_all_agg",
            "unplug_all_count",
            "unplug_all_fails",
            "state_agg",
            "state_count",
            "state_fails",
        ],
    ),
    ("seccomp", &["num_faults"]),
];

/// Returns all groups, in Firecracker's order as far as it matters to a human reader.
pub(super) fn groups(metrics: &VmMetrics, process: &ProcessMetrics, file: FileMetrics) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut add = |name: &str, values: Values| {
        groups.push(Group {
            name: name.to_owned(),
            values,
        });
    };
    add("api_server", api_server(process));
    add("deprecated_api", deprecated_api(process));
    add("get_api_requests", get_requests(process));
    add("patch_api_requests", requests(&PATCH, &process.requests.patch));
    add("put_api_requests", requests(&PUT, &process.requests.put));
    add("latencies_us", latencies(metrics, process));
    add("logger", logger(process, file));
    add("i8042", i8042(metrics));
    add("uart", uart(metrics));
    add("vcpu", vcpu(&metrics.vcpus));
    add("vmm", vmm(metrics));
    add("interrupts", interrupts(metrics));
    add("signals", signals(process));
    let drives = metrics.drives();
    let drives = drives
        .iter()
        .map(|drive| (drive.id, block(drive.metrics, drive.transport)));
    devices(
        "block",
        drives.collect(),
        block(&BlockMetrics::default(), &NO_TRANSPORT),
        &mut add,
    );
    let nets = metrics.interfaces();
    let nets = nets
        .iter()
        .map(|interface| (interface.id, net(interface.metrics, interface.transport)));
    devices(
        "net",
        nets.collect(),
        net(&NetMetrics::default(), &NO_TRANSPORT),
        &mut add,
    );
    for (name, fields) in UNSUPPORTED {
        add(name, fields.iter().map(|field| (*field, zero(field))).collect());
    }
    groups
}

const NO_TRANSPORT: TransportMetrics = TransportMetrics {
    activation_failures: 0,
    config_failures: 0,
    events: 0,
    interrupts: 0,
};

fn zero(field: &str) -> Value {
    match field.ends_with("_agg") {
        true => Value::Duration {
            min_us: 0,
            max_us: 0,
            sum_us: 0,
        },
        false => Value::Count(0),
    }
}

/// Adds a group for each of `devices` of `kind`, and their sum, which starts with `zeros`.
fn devices(kind: &str, devices: Vec<(&str, Values)>, zeros: Values, add: &mut impl FnMut(&str, Values)) {
    let mut sum = zeros;
    for (id, values) in devices {
        for ((_, sum), (_, value)) in sum.iter_mut().zip(&values) {
            *sum = sum.plus(*value);
        }
        add(&format!("{kind}_{id}"), values);
    }
    add(kind, sum);
}

fn api_server(process: &ProcessMetrics) -> Values {
    vec![
        ("process_startup_time_us", Value::Stored(process.startup_us[0])),
        (
            "process_startup_time_cpu_us",
            Value::Stored(process.startup_us[1]),
        ),
        // Between Firecracker's threads; mayfly has one.
        ("sync_response_fails", Value::Count(0)),
        ("sync_vmm_send_timeout_count", Value::Count(0)),
    ]
}

fn deprecated_api(process: &ProcessMetrics) -> Values {
    vec![
        ("deprecated_http_api_calls", Value::Count(process.deprecated)),
        // No option is deprecated.
        ("deprecated_cmd_line_api_calls", Value::Count(0)),
    ]
}

fn get_requests(process: &ProcessMetrics) -> Values {
    let counts = process.requests.get.iter();
    GET.iter()
        .zip(counts)
        .map(|((_, name), count)| (*name, Value::Count(count.count)))
        .collect()
}

fn requests(resources: &[Resource], counts: &[RequestCount]) -> Values {
    let pairs = resources.iter().zip(counts);
    pairs
        .flat_map(|((_, count, fails), requests)| {
            [
                (*count, Value::Count(requests.count)),
                (*fails, Value::Count(requests.fails)),
            ]
        })
        .collect()
}

fn latencies(metrics: &VmMetrics, process: &ProcessMetrics) -> Values {
    let (api, vmm) = (&process.operations, &metrics.operations);
    vec![
        ("full_create_snapshot", Value::Stored(api.create_full_us)),
        ("diff_create_snapshot", Value::Stored(api.create_diff_us)),
        ("load_snapshot", Value::Stored(api.load_us)),
        ("pause_vm", Value::Stored(api.pause_us)),
        ("resume_vm", Value::Stored(api.resume_us)),
        ("vmm_full_create_snapshot", Value::Stored(vmm.create_full_us)),
        ("vmm_diff_create_snapshot", Value::Stored(vmm.create_diff_us)),
        ("vmm_load_snapshot", Value::Stored(vmm.load_us)),
        ("vmm_pause_vm", Value::Stored(vmm.pause_us)),
        ("vmm_resume_vm", Value::Stored(vmm.resume_us)),
    ]
}

fn logger(process: &ProcessMetrics, file: FileMetrics) -> Values {
    vec![
        ("missed_metrics_count", Value::Count(file.dropped)),
        ("metrics_fails", Value::Count(file.failures)),
        // A message that fails is missed.
        ("missed_log_count", Value::Count(process.missed_messages)),
        ("log_fails", Value::Count(0)),
    ]
}

fn i8042(metrics: &VmMetrics) -> Values {
    let keyboard = &metrics.input;
    vec![
        // A request for a reset cannot fail, and an access of any width reaches a register.
        ("error_count", Value::Count(0)),
        ("missed_read_count", Value::Count(0)),
        ("missed_write_count", Value::Count(0)),
        ("read_count", Value::Count(keyboard.reads)),
        ("reset_count", Value::Count(keyboard.resets)),
        ("write_count", Value::Count(keyboard.writes)),
    ]
}

fn uart(metrics: &VmMetrics) -> Values {
    let serial = &metrics.serial;
    vec![
        ("error_count", Value::Count(serial.errors)),
        ("flush_count", Value::Count(serial.flushes)),
        ("missed_read_count", Value::Count(serial.empty_reads)),
        ("missed_write_count", Value::Count(serial.dropped)),
        ("read_count", Value::Count(serial.reads)),
        ("write_count", Value::Count(serial.writes)),
        ("rate_limiter_dropped_bytes", Value::Count(serial.limited)),
    ]
}

fn vcpu(vcpus: &[VcpuMetrics]) -> Values {
    let exits = |index: usize| {
        let counts = vcpus.iter().filter_map(move |vcpu| vcpu.exits.get(index));
        Value::Count(counts.map(|(_, count)| count).sum())
    };
    let durations = |index: usize| {
        let durations = vcpus.iter().filter_map(|vcpu| {
            let (_, total) = vcpu.exits.get(index)?;
            (*total > 0).then(|| (vcpu.durations[index], *total))
        });
        join(durations)
    };
    let sum = |value: fn(&VcpuMetrics) -> u64| Value::Count(vcpus.iter().map(value).sum());
    vec![
        ("exit_io_in", exits(0)),
        ("exit_io_out", exits(1)),
        ("exit_mmio_read", exits(2)),
        ("exit_mmio_write", exits(3)),
        ("failures", sum(|vcpu| vcpu.failures)),
        ("kvmclock_ctrl_fails", sum(|vcpu| vcpu.clock_failures)),
        ("exit_io_in_agg", durations(0)),
        ("exit_io_out_agg", durations(1)),
        ("exit_mmio_read_agg", durations(2)),
        ("exit_mmio_write_agg", durations(3)),
    ]
}

/// Joins sampled durations, each with the number of all operations.
fn join(durations: impl Iterator<Item = (Latency, u64)>) -> Value {
    let (mut min_us, mut max_us, mut sum_us) = (0, 0, 0_u64);
    for (duration, total) in durations {
        if min_us == 0 || duration.min_us() < min_us {
            min_us = duration.min_us();
        }
        max_us = duration.max_us().max(max_us);
        sum_us = sum_us.saturating_add(duration.estimate_us(total));
    }
    Value::Duration {
        min_us,
        max_us,
        sum_us,
    }
}

fn vmm(metrics: &VmMetrics) -> Values {
    let events = metrics.devices.iter().map(|device| device.transport.events);
    vec![
        ("device_events", Value::Count(events.sum())),
        // After a panic, mayfly writes no line.
        ("panic_count", Value::Stored(0)),
    ]
}

fn interrupts(metrics: &VmMetrics) -> Values {
    let interrupts = metrics.devices.iter().map(|device| device.transport.interrupts);
    vec![
        ("triggers", Value::Count(interrupts.sum())),
        // Of MSI-X, which no device has.
        ("config_updates", Value::Count(0)),
    ]
}

fn signals(process: &ProcessMetrics) -> Values {
    // mayfly ignores SIGPIPE and SIGXFSZ, and writes no line after the other signals.
    vec![
        ("sigbus", Value::Stored(0)),
        ("sigsegv", Value::Stored(0)),
        ("sigxfsz", Value::Stored(0)),
        ("sigxcpu", Value::Stored(0)),
        ("sigpipe", Value::Count(0)),
        ("sighup", Value::Stored(process.hangups)),
        ("sigill", Value::Stored(0)),
    ]
}

fn block(drive: &BlockMetrics, transport: &TransportMetrics) -> Values {
    vec![
        ("activate_fails", Value::Count(transport.activation_failures)),
        ("cfg_fails", Value::Count(transport.config_failures)),
        ("no_avail_buffer", Value::Count(drive.empty_batches)),
        ("event_fails", Value::Count(drive.malformed)),
        (
            "execute_fails",
            Value::Count(drive.errors - drive.rejected.min(drive.errors)),
        ),
        ("invalid_reqs_count", Value::Count(drive.rejected)),
        ("flush_count", Value::Count(drive.flushes)),
        ("queue_event_count", Value::Count(drive.notifications)),
        ("rate_limiter_event_count", Value::Count(drive.limiter_events)),
        ("update_count", Value::Count(drive.updates)),
        ("update_fails", Value::Count(drive.update_failures)),
        ("read_bytes", Value::Count(drive.read_bytes)),
        ("write_bytes", Value::Count(drive.written_bytes)),
        ("read_count", Value::Count(drive.reads)),
        ("write_count", Value::Count(drive.writes)),
        ("read_agg", join([(drive.read_duration, drive.reads)].into_iter())),
        (
            "write_agg",
            join([(drive.write_duration, drive.writes)].into_iter()),
        ),
        ("rate_limiter_throttled_events", Value::Count(drive.throttled)),
        ("io_engine_throttled_events", Value::Count(drive.engine_full)),
        ("remaining_reqs_count", Value::Count(drive.left_requests)),
    ]
}

fn net(interface: &NetMetrics, transport: &TransportMetrics) -> Values {
    let (rx, tx) = (&interface.receive, &interface.transmit);
    vec![
        ("activate_fails", Value::Count(transport.activation_failures)),
        ("cfg_fails", Value::Count(transport.config_failures)),
        // The MAC address is read-only.
        ("mac_address_updates", Value::Count(0)),
        ("no_rx_avail_buffer", Value::Count(rx.empty_batches)),
        ("no_tx_avail_buffer", Value::Count(tx.empty_batches)),
        ("event_fails", Value::Count(interface.faults)),
        ("rx_queue_event_count", Value::Count(rx.notifications)),
        ("rx_event_rate_limiter_count", Value::Count(rx.limiter_events)),
        // A packet is written completely.
        ("rx_partial_writes", Value::Count(0)),
        ("rx_rate_limiter_throttled", Value::Count(rx.throttled)),
        ("rx_tap_event_count", Value::Count(interface.backend_events)),
        ("rx_bytes_count", Value::Count(rx.bytes)),
        ("rx_packets_count", Value::Count(rx.packets)),
        ("rx_fails", Value::Count(rx.drops)),
        ("rx_count", Value::Count(rx.packets)),
        ("tap_read_fails", Value::Count(rx.errors)),
        ("tap_write_fails", Value::Count(tx.errors)),
        ("tap_write_agg", join([(tx.duration, tx.packets)].into_iter())),
        ("tx_bytes_count", Value::Count(tx.bytes)),
        ("tx_malformed_frames", Value::Count(tx.drops)),
        ("tx_fails", Value::Count(tx.errors)),
        ("tx_count", Value::Count(tx.packets)),
        ("tx_packets_count", Value::Count(tx.packets)),
        // A packet is read completely.
        ("tx_partial_reads", Value::Count(0)),
        ("tx_queue_event_count", Value::Count(tx.notifications)),
        ("tx_rate_limiter_event_count", Value::Count(tx.limiter_events)),
        ("tx_rate_limiter_throttled", Value::Count(tx.throttled)),
        // The device does not look at the source address.
        ("tx_spoofed_mac_count", Value::Count(0)),
        ("tx_remaining_reqs_count", Value::Count(tx.left_buffers)),
    ]
}
